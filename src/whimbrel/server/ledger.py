"""The port of the ledger: the permanent record of every conversation.

The ledger decides what is settled. It keeps, per (device, conversation, stream), the last number it
settled, **in the transaction that inserts**, so that a message is in the log once however often it
is offered. Two implementations: ``ledger_sqlite`` (the embedded server's) and ``ledger_memory``
(simulator). Both run ``whimbrel.testing.ledger_conformance``.

Guarantees of every implementation:

* ``apply`` is one transaction: when it returns, all of it survives a power cut; when it raises
  ``LedgerUnavailable``, none of it is there. One bad operation gets its own ``Refused`` and never
  fails the others.
* Settling: number ``n <= last_n`` gives the stored outcome again (same key, other content: refused
  as ``conflict`` and nothing changes); ``n == last_n + 1`` is settled now; beyond gives
  ``Ahead(expected)``.
* A refused send with ``on_reject="skip"`` is settled as void in the same transaction (``final``);
  with ``"block"`` its number stays expected.
* ``seq`` of a conversation is contiguous from 1. Every transaction that changes anything raises
  ``commit``, the history's clock, which sync tokens are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec

from whimbrel import protocol as p

EVER = -1
"""Since before the first commit: of who knows what there was, and is told what became of it."""


class LedgerUnavailable(Exception):
    """The ledger could not commit (disk full, I/O error); nothing of the batch is there. Try later."""


# --- operations --------------------------------------------------------------------------------


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Settle one numbered message of ``device``, which belongs to ``user``."""

    user: str
    device: str
    send: p.Send


class AppendVoid(msgspec.Struct, frozen=True, kw_only=True):
    """Settle one number as void."""

    user: str
    device: str
    void: p.Void


class CreateConversation(msgspec.Struct, frozen=True, kw_only=True):
    """Create it with these members (the creator among them); the same again gives the same answer."""

    user: str
    conversation: str
    title: str
    members: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<CreateConversation {self.conversation}>"


class AddMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member adds ``member``, who sees the log from its own joining on; repeated: no change."""

    user: str
    conversation: str
    member: str


class RemoveMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member removes ``member``, or itself (leaves); the entry that says so is the last it sees."""

    user: str
    conversation: str
    member: str


class SetReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """Merge, by max and capped at the log's end, how far ``user`` has received and read."""

    user: str
    conversation: str
    received: int = 0
    read: int = 0


Operation: TypeAlias = Append | AppendVoid | CreateConversation | AddMember | RemoveMember | SetReceipt

# --- outcomes, one per operation, in order -----------------------------------------------------


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """The send is entry ``event.seq``; ``repeated``: it was before, nothing new was written."""

    event: p.Event
    repeated: bool = False


class WasVoided(msgspec.Struct, frozen=True, kw_only=True):
    """The number is void; ``code``/``text`` say why if the server refused it."""

    reason: str
    code: str = ""
    text: str = ""
    repeated: bool = False


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Not done, and nothing was written.

    Codes: ``invalid``, ``not_found``, ``forbidden``, ``conflict``, ``too_large``, ``unavailable``.
    """

    code: str
    text: str = ""


class Ahead(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers before this one are missing; nothing was written."""

    expected: int


class ConversationSet(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation as it is now, and the log entries this operation wrote (none: repeated)."""

    info: p.ConversationInfo
    events: tuple[p.Event, ...] = ()


class ReceiptSet(msgspec.Struct, frozen=True, kw_only=True):
    """The merged receipt; ``changed`` is False when nothing moved."""

    conversation: str
    user: str
    received: int
    read: int
    changed: bool


Outcome: TypeAlias = Committed | WasVoided | Refused | Ahead | ConversationSet | ReceiptSet


class Ledger(Protocol):
    """The permanent record. All methods block; ``apply`` has one caller at a time, reads have many."""

    @property
    def history(self) -> str:
        """The id of this history; a restored or replaced ledger has another."""

    @property
    def commit(self) -> int:
        """The clock of the last committed transaction."""

    def apply(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Carry all of it out in one durable transaction at wall time ``now``; one outcome each."""

    def heads(self, user: str, since_commit: int) -> list[p.Head]:
        """The user's conversations changed after ``since_commit`` (0: all it is a member of).

        Those it left since are among them with ``left``; with ``EVER`` all it ever left. ``members`` when
        they changed since (or 0); ``receipts`` those of the others that changed since.
        """

    def head(self, user: str, conversation: str, since_commit: int) -> p.Head | None:
        """The one of ``heads`` that is of this conversation; costs no more for a user who has many."""

    def page(
        self, user: str, conversation: str, *, since: int = 0, before: int | None = None, limit: int = 50
    ) -> p.Page | None:
        """Entries visible to ``user`` with seq > ``since`` (oldest first), or the newest below ``before``.

        A past member still sees up to the entry of its leaving. None: unknown, or never a member:
        the caller cannot tell which.
        """

    def conversations(self, user: str) -> list[p.ConversationInfo]:
        """All conversations of which ``user`` is a member, by id."""

    def version(self, user: str) -> int:
        """The sum of the last ``seq`` of all conversations of which ``user`` is a member."""

    def members(self, conversation: str) -> tuple[str, ...]:
        """The present members, by name; empty if there is no such conversation."""

    def settled(self, device: str, conversation: str, stream: int, n: int) -> Outcome | None:
        """What became of a number: ``Committed``, ``WasVoided``, or ``Ahead``; never None for n <= last."""

    def find(self, user: str, conversation: str, id: str) -> int | None:
        """The seq of the entry with this message id, if ``user`` may see it."""

    def close(self) -> None:
        """Release the file. May be called twice."""
