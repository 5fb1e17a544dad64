"""The port of a local store: what the driver and the client's face need of it.

Two implementations: ``store.sqlite`` (the real one, encrypted) and ``store.memory`` (for
``store=None`` and for the simulator). Both run ``whimbrel.testing.store_conformance``.

Guarantees of every implementation:

* ``apply`` is atomic and durable: when it returns, all of the ``Changes`` survive a power cut; when
  it raises, none of them is there. It is not idempotent in ``arrival`` and is never called twice
  with the same changes after success.
* Reads see every change applied before they were called.
* Methods block and may be called from any thread; the driver runs ``apply`` on a writer thread.
"""

from __future__ import annotations

from typing import Protocol

from whimbrel.core.contract import Changes, MessageRow, Snapshot
from whimbrel.model import Conversation, Message


class Store(Protocol):
    """A client's durable state."""

    @property
    def device(self) -> str:
        """The id of this device: made with the store, 26 characters, never changed."""

    def load(self) -> Snapshot:
        """Read what the engine starts from."""

    def apply(self, changes: Changes) -> list[MessageRow]:
        """Write all of it durably, or raise ``StoreError`` (``StoreFull`` …) and write none of it.

        Gives the own messages that ``resets`` displaced and these changes did not place again, by
        (conversation, order of sending); without resets nothing.
        """

    def conversations(self) -> list[Conversation]:
        """List all conversations, by id, with the count of own messages that wait."""

    def messages(
        self, conversation: str, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> list[Message]:
        """A page of a conversation, oldest first.

        Log entries by ``seq``, then own messages that have none yet, by (stream, n). ``before`` and
        ``after`` are seqs (exclusive): without either, the newest ``limit``; with ``before`` the
        newest below it (no unsent ones); with ``after`` the oldest above it.
        """

    def message(self, id: str) -> Message | None:
        """One message by id, with its status (``read`` where the receipts of all others say so)."""

    def row(self, id: str) -> MessageRow | None:
        """The stored row of a message: what a repeated key is compared with."""

    def pending(self) -> list[Message]:
        """Own messages that are not settled, in queue order per conversation."""

    def arrivals(self, after: int, limit: int = 100) -> list[Message]:
        """Log entries in the order they came to this store, with ``position`` > ``after``."""

    def consumer_position(self, name: str) -> int:
        """How far a durable consumer has come; 0 for a new one."""

    def set_consumer_position(self, name: str, position: int) -> None:
        """Record, durably, that a consumer is done up to ``position``; never goes back."""

    def close(self) -> None:
        """Release the file; further calls raise ``StoreError``. May be called twice."""
