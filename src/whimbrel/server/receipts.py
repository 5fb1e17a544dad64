"""Receipts on their way: merged before they are written, and again before they are told.

Two stages. ``wanted`` are receipts clients reported and no batch has taken; one per (user,
conversation), merged by max. ``pending`` are written ones the other members were not told yet,
because their conversation was told of others less than an interval ago.

A sync token says that everything up to a commit was told. So none may pass over a pending receipt:
``safe_commit`` is the newest commit that may be promised.
"""

from __future__ import annotations

from itertools import islice

from whimbrel import protocol as p
from whimbrel.server.ledger import ReceiptSet, SetReceipt


class _Pending:
    __slots__ = ("commit", "receipts")

    def __init__(self, commit: int) -> None:
        self.commit = commit
        self.receipts: dict[str, p.ReceiptItem] = {}


class ReceiptBoard:
    """Merges receipts in both stages; holds no timers: the hub asks when one is due."""

    def __init__(self) -> None:
        self._wanted: dict[tuple[str, str], tuple[int, int]] = {}
        # In the order in which they were first held back: the first has the lowest commit.
        self._pending: dict[str, _Pending] = {}
        self._quiet_until: dict[str, float] = {}

    @property
    def wanted(self) -> int:
        """How many receipts wait for a batch."""
        return len(self._wanted)

    def want(self, user: str, conversation: str, received: int, read: int) -> None:
        """Note what a client reported, merged by max; who has read has received."""
        old = self._wanted.get((user, conversation), (0, 0))
        self._wanted[user, conversation] = (max(old[0], received, read), max(old[1], read))

    def take(self, limit: int) -> list[SetReceipt]:
        """Give up to ``limit`` of the wanted as operations and forget them."""
        keys = list(self._wanted)[:limit]
        return [
            SetReceipt(user=user, conversation=conversation, received=received, read=read)
            for user, conversation in keys
            for received, read in (self._wanted.pop((user, conversation)),)
        ]

    def written(self, outcome: ReceiptSet, commit: int, now: float) -> float | None:
        """Hold what a batch wrote until it is told; gives when that is due, None if it is known already."""
        pending = self._pending.get(outcome.conversation)
        known = pending is not None
        if pending is None:
            pending = self._pending[outcome.conversation] = _Pending(commit)
        pending.receipts[outcome.user] = p.ReceiptItem(
            conversation=outcome.conversation, user=outcome.user, received=outcome.received, read=outcome.read
        )
        if known:
            return None
        return max(now, self._quiet_until.get(outcome.conversation, now))

    def tell(self, conversation: str, now: float, interval_s: float) -> list[p.ReceiptItem]:
        """Give what is to be told of a conversation now; no more is due for ``interval_s``."""
        pending = self._pending.pop(conversation, None)
        if pending is None:
            return []
        for name in [name for name, until in islice(self._quiet_until.items(), 2) if until <= now]:
            del self._quiet_until[name]
        self._quiet_until.pop(conversation, None)
        self._quiet_until[conversation] = now + interval_s
        return list(pending.receipts.values())

    def safe_commit(self, routed: int) -> int:
        """The newest commit up to which everything was told, ``routed`` being told but for receipts."""
        for pending in self._pending.values():
            return min(routed, pending.commit - 1)
        return routed
