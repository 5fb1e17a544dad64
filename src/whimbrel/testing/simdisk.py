"""The simulated disk of a device, under a real store.

A disk takes time and fails. What `finish` returned from is durable; what it raised from is not there, unless
the disk cannot tell (`unsure_next`); a crash between `begin` and `finish` leaves nothing. The data of a
`SimStore` is the disk's platter: a device that crashed opens a copy of it.

A driver promises not to change what it gave to `begin`: the disk looks, at the end, whether that was kept.
"""

import random
from collections.abc import Callable
from typing import Final

import msgspec

from whimbrel.core.contract import Changes, MessageRow, Snapshot
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
        self.disk.complain_if_unsure()


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
        self.error_share = 0.0
        """The share of commits and loads that end in an I/O error."""
        self.fail_next = False
        self.unsure_next = False
        """The next commit is durable, and reported as failed."""
        self.was_unsure = False
        """The last one was."""
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

    def finish(self, changes: Changes) -> list[MessageRow]:
        """Make the transaction durable, or raise `StoreError`; gives what `Store.apply` gives."""
        if self.verify and _encode(changes) != self._given:
            self.complaints.append("changes were changed while their commit was in flight")
        return self.store.apply(changes)

    def load(self) -> Snapshot:
        """What is durable. Raises `StoreError` while the disk is gone, or has errors."""
        if self.gone:
            raise StoreUnavailable("simulated: the disk is gone")
        self._fail_by_chance()
        return self.store.load()

    def reopen(self) -> None:
        """After a crash: open what was durable, as a new process would."""
        self.store = self.store.copy()

    def refuse_if_failing(self) -> None:
        """Raise if this commit must fail."""
        self.was_unsure = False
        if self.gone:
            self.count("disk_gone")
            raise StoreUnavailable("simulated: the disk is gone")
        if self.full:
            self.count("disk_full")
            raise StoreFull("simulated: the disk is full")
        self._fail_by_chance()
        if self.fail_next:
            self.fail_next = False
            self.count("commit_failed")
            raise StoreError("simulated: the commit failed")

    def complain_if_unsure(self) -> None:
        """Raise although this commit is there, if that was asked for."""
        if self.unsure_next:
            self.unsure_next, self.was_unsure = False, True
            self.count("commit_unsure")
            raise StoreError("simulated: the disk cannot tell whether it was written")

    def _fail_by_chance(self) -> None:
        if self.error_share and self.rng.random() < self.error_share:
            self.count("io_errors")
            raise StoreError("simulated: an I/O error")
