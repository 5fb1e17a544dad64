"""The simulated disks: the client's, under a real store, and the server's, under a real ledger.

A disk takes time and fails. What `finish` returned from is durable; what it raised from is not there; a crash
between `begin` and `finish` leaves nothing. The data of a `SimStore` is the disk's platter: a device that
crashed opens a copy of it.

A driver promises not to change what it gave to `begin`: the disk looks, at the end, whether that was kept.
"""

import random
from collections.abc import Callable
from typing import Final

import msgspec

from whimbrel.core.contract import Changes, Snapshot
from whimbrel.errors import StoreError, StoreFull, StoreUnavailable
from whimbrel.store.memory import MemoryStore

__all__ = ["Disk", "SimStore"]

_encode = msgspec.msgpack.Encoder().encode
FAST_COMMIT_S: Final = 0.0002


class SimStore(MemoryStore):
    """A real store whose commits its disk can refuse."""

    disk: "Disk"

    def _commit(self, changes: Changes) -> None:
        self.disk.refuse_if_failing()
        super()._commit(changes)


class Disk:
    """One device's disk. `full`, `gone` and `slow_s` are set from outside while a fault lasts."""

    def __init__(
        self, device: str, commit_s: float, rng: random.Random, *, verify: bool, count: Callable[[str], None]
    ) -> None:
        self.commit_s = commit_s
        self.rng = rng
        self.verify = verify
        """Whether to look if changes were changed on their way; costs time."""
        self.full = 0
        """How many reasons there are now; so for `gone`."""
        self.gone = 0
        self.slow_s = 0.0
        self.fail_next = False
        self.crash_next = ""
        """`before` or `after` the next commit."""
        self.complaints: list[str] = []
        self.count = count
        self.store = SimStore(device=device)
        self.store.disk = self
        self._given = b""

    def latency_s(self) -> float:
        """How long the next commit takes."""
        return FAST_COMMIT_S + self.commit_s * self.rng.uniform(0.5, 2.0) + self.slow_s * self.rng.random()

    def begin(self, changes: Changes) -> None:
        """A transaction starts; nothing of it is durable."""
        if self.verify:
            self._given = _encode(changes)

    def finish(self, changes: Changes) -> None:
        """Make the transaction durable, or raise `StoreError`."""
        if self.verify and _encode(changes) != self._given:
            self.complaints.append("changes were changed while their commit was in flight")
        self.store.apply(changes)

    def load(self) -> Snapshot:
        """What is durable. Raises `StoreUnavailable` while the disk is gone."""
        if self.gone:
            raise StoreUnavailable("simulated: the disk is gone")
        return self.store.load()

    def reopen(self) -> None:
        """After a crash: open what was durable, as a new process would."""
        self.store = self.store.copy()

    def refuse_if_failing(self) -> None:
        """Raise if this commit must fail."""
        if self.gone:
            self.count("disk_gone")
            raise StoreUnavailable("simulated: the disk is gone")
        if self.full:
            self.count("disk_full")
            raise StoreFull("simulated: the disk is full")
        if self.fail_next:
            self.fail_next = False
            self.count("commit_failed")
            raise StoreError("simulated: the commit failed")
