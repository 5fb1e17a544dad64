"""The simulated disk of the server, under a real ledger.

What `finish` returned from is durable, crash or not. Reads can fail too (`unreadable_share`), single
messages can be such that the server cannot take them (`poison`), and the whole disk can be put back to a
backup that was taken earlier in the run.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Sequence

from whimbrel.model import message_id
from whimbrel.server.ledger import Append, Ledger, LedgerUnavailable, Operation, Outcome, Refused
from whimbrel.server.ledger_memory import MemoryLedger, MemoryState
from whimbrel.server.records import NewId

__all__ = ["LedgerDisk", "SimLedger"]


class SimLedger(MemoryLedger):
    """A real ledger whose reads its disk can refuse."""

    disk: LedgerDisk | None = None

    def _open(self) -> threading.Lock:
        if self.disk is not None and self.disk.unreadable_share:
            self.disk.refuse_by_chance()
        return super()._open()


class LedgerDisk:
    """One server's disk. `unavailable` and `unreadable_share` are set from outside while a fault lasts."""

    def __init__(self, rng: random.Random, count: Callable[[str], None]) -> None:
        numbers = itertools.count(1)
        self.rng = rng
        self.count = count
        self.new_id: NewId = lambda: f"id{next(numbers)}"
        self.ledger: Ledger = self.open(MemoryState(self.new_id()))
        self.unavailable = 0
        """How many reasons there are now."""
        self.unreadable_share = 0.0
        self.fail_next = False
        self.poison: dict[tuple[str, str], float] = {}
        """(device, conversation) → the chance that a message is refused, each time it comes."""
        self.poisoned: set[str] = set()
        """The messages that were."""
        self.backups: list[MemoryState] = []

    def open(self, state: MemoryState) -> SimLedger:
        """A ledger on what is on the disk."""
        ledger = SimLedger(state, new_id=self.new_id)
        ledger.disk = self
        return ledger

    @property
    def memory(self) -> MemoryLedger:
        """The ledger, as what it is."""
        assert isinstance(self.ledger, MemoryLedger)
        return self.ledger

    def prepared(self) -> None:
        """What the run begins with is there."""

    def finish(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Make the batch durable, or raise `LedgerUnavailable`."""
        if self.unavailable or self.fail_next:
            self.fail_next = False
            raise LedgerUnavailable("simulated")
        if not self.poison:
            return self.apply(operations, now)
        good = [operation for operation in operations if not self._is_poison(operation)]
        outcomes = dict(zip(map(id, good), self.apply(good, now), strict=True))
        refused = Refused(code="unavailable", text="simulated: the server stumbles over it")
        return [outcomes.get(id(operation), refused) for operation in operations]

    def apply(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Have the ledger carry it out."""
        return self.ledger.apply(operations, now)

    def crashed(self) -> None:
        """The process died: what was not durable is gone."""

    def back_up(self) -> int:
        """Keep a copy of what is durable; gives its number."""
        self.backups.append(self.memory.state.copy())
        return len(self.backups) - 1

    def restore(self, backup: int, *, tell: bool) -> None:
        """Put a copy back, and (`tell`) begin a new history; else whoever opens it next does not know."""
        ledger = self.open(self.backups[backup].copy())
        if tell:
            ledger.disk = None  # what cannot be read is read again, until it can
            ledger.begin_new_history()
            ledger.disk = self
        self.ledger = ledger

    def refuse_by_chance(self) -> None:
        """Raise, perhaps: a read failed."""
        if self.rng.random() < self.unreadable_share:
            self.count("ledger_unreadable")
            raise LedgerUnavailable("simulated: a read failed")

    def _is_poison(self, operation: Operation) -> bool:
        if not isinstance(operation, Append):
            return False
        if self.rng.random() >= self.poison.get((operation.device, operation.send.conversation), 0.0):
            return False
        self.count("poison")
        self.poisoned.add(message_id(operation.device, operation.send.key))
        return True
