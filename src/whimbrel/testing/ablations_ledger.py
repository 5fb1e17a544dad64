"""Ablations of the ledger: one that leaves one rule of settling out. See `ablations`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from whimbrel.server.ledger import Append, AppendVoid, Operation, Outcome, SetReceipt, WasVoided
from whimbrel.server.ledger_memory import MemoryState
from whimbrel.server.records import Member
from whimbrel.testing.simledger import LedgerDisk, SimLedger

__all__ = [
    "KeylessLedgerDisk",
    "OpenLedgerDisk",
    "OverwrittenReceipts",
    "UncheckedLedgerDisk",
    "VoidlessLedgerDisk",
]


class UncheckedLedgerDisk(LedgerDisk):
    """Looks at no number: every offer is the first of a stream of its own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._streams = itertools.count(1_000_000)

    def finish(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Make the batch durable under other numbers."""
        return super().finish([self._renumbered(operation) for operation in operations], now)

    def _renumbered(self, operation: Operation) -> Operation:
        replace = msgspec.structs.replace
        if isinstance(operation, Append):
            return replace(operation, send=replace(operation.send, stream=next(self._streams), n=1))
        if isinstance(operation, AppendVoid):
            return replace(operation, void=replace(operation.void, stream=next(self._streams), n=1))
        return operation


class _KeylessState(MemoryState):
    """Finds no message by its id."""

    def located(self, id: str) -> tuple[str, int] | None:
        """Nowhere."""
        return None


class KeylessLedgerDisk(LedgerDisk):
    """Looks at numbers only."""

    def open(self, state: MemoryState) -> SimLedger:
        """Open it, its keys forgotten."""
        state.__class__ = _KeylessState
        return super().open(state)


class VoidlessLedgerDisk(LedgerDisk):
    """Confirms voids and keeps none."""

    def apply(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Carry out all the rest."""
        rest = [operation for operation in operations if not isinstance(operation, AppendVoid)]
        outcomes = iter(super().apply(rest, now))
        return [
            WasVoided(reason=operation.void.reason) if isinstance(operation, AppendVoid) else next(outcomes)
            for operation in operations
        ]


class OverwrittenReceipts(LedgerDisk):
    """Keeps the last receipt of a member, whatever it had before."""

    def apply(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Forget how far they had come, then carry it out."""
        for operation in operations:
            if isinstance(operation, SetReceipt):
                members = self.memory.state.members.get(operation.conversation, {})
                member = members.get(operation.user)
                if member is not None:
                    members[operation.user] = msgspec.structs.replace(member, received=0, read=0)
        return super().apply(operations, now)


class _OpenState(MemoryState):
    """Takes everybody for a member."""

    def member(self, conversation: str, user: str) -> Member | None:
        """One that may do everything."""
        known = super().member(conversation, user)
        if known is not None and known.left_at is None:
            return known
        return Member(conversation=conversation, user=user, floor=0, joined=0)


class OpenLedgerDisk(LedgerDisk):
    """Looks at no membership when something is written; its readers still do."""

    def apply(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Carry it out for everybody."""
        state = self.memory.state
        state.__class__ = _OpenState
        try:
            return super().apply(operations, now)
        finally:
            state.__class__ = MemoryState
