"""Receipts on their way: merged before they are written, and again before they are told.

Two stages. ``wanted`` are receipts clients reported and no batch has taken; one per (user,
conversation), merged by max. ``pending`` are written ones the other members were not told yet,
because their conversation was told of others less than an interval ago, or because more were held
back than are told at once: those that have waited longest go first.

A sync token says that everything up to a commit was told. So none may pass over a pending receipt:
``safe_commit`` is the newest commit that may be promised.
"""

from __future__ import annotations

from itertools import islice

from whimbrel.server.ledger import ReceiptSet, SetReceipt


class ReceiptBoard:
    """Merges receipts in both stages; holds no timers: the hub asks when one is due."""

    def __init__(self) -> None:
        self._wanted: dict[tuple[str, str], tuple[int, int]] = {}
        # By conversation and user, in the order in which they were first held back.
        self._pending: dict[str, dict[str, tuple[int, int]]] = {}
        # The commit of each that is pending, in the same order over all: the first is the lowest.
        self._commits: dict[tuple[str, str], int] = {}
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
        keys = list(islice(self._wanted, limit))
        return [
            SetReceipt(user=user, conversation=conversation, received=received, read=read)
            for user, conversation in keys
            for received, read in (self._wanted.pop((user, conversation)),)
        ]

    def written(self, outcome: ReceiptSet, commit: int, now: float) -> float | None:
        """Hold what a batch wrote until it is told; gives when that is due, None if it is known already."""
        pending = self._pending.get(outcome.conversation)
        due = None
        if pending is None:
            pending = self._pending[outcome.conversation] = {}
            due = max(now, self._quiet_until.get(outcome.conversation, now))
        pending[outcome.user] = (outcome.received, outcome.read)
        self._commits.setdefault((outcome.conversation, outcome.user), commit)
        return due

    def tell(
        self, conversation: str, now: float, *, limit: int, interval_s: float
    ) -> tuple[list[tuple[str, int, int]], float | None]:
        """Give up to ``limit`` receipts (user, received, read) to be told now, and when the next are due.

        No more of this conversation is due for ``interval_s``; None: none are held back.
        """
        pending = self._pending.get(conversation)
        if pending is None:
            return [], None
        told = []
        for user in list(islice(pending, limit)):
            told.append((user, *pending.pop(user)))
            del self._commits[conversation, user]
        for name in [name for name, until in islice(self._quiet_until.items(), 2) if until <= now]:
            del self._quiet_until[name]
        self._quiet_until.pop(conversation, None)
        self._quiet_until[conversation] = now + interval_s
        if pending:
            return told, now + interval_s
        del self._pending[conversation]
        return told, None

    def safe_commit(self, routed: int) -> int:
        """The newest commit up to which everything was told, ``routed`` being told but for receipts."""
        for commit in self._commits.values():
            return min(routed, commit - 1)
        return routed
