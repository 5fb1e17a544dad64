"""The memory ledger as the simulator uses it: crashes around the commit, old backups, new histories."""

import pytest

from whimbrel.server import ledger as led
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.server.records import Batch
from whimbrel.testing.ledger_conformance_settle import NOW, append, create, log, one


class Crash(Exception):
    pass


class Crashing(MemoryLedger):
    when = ""

    def before_commit(self, batch: Batch) -> None:
        if self.when == "before":
            raise Crash

    def after_commit(self, batch: Batch) -> None:
        if self.when == "after":
            raise Crash


@pytest.mark.parametrize(("when", "entries"), [("before", 1), ("after", 3)])
def test_crash_leaves_none_or_all(when: str, entries: int) -> None:
    ledger = Crashing()
    one(ledger, create())
    ledger.when = when
    with pytest.raises(Crash):
        ledger.apply([append(1), append(2)], NOW)
    restarted = Crashing(ledger.state)
    assert len(log(restarted)) == entries
    assert restarted.commit == (1 if when == "before" else 2)
    outcomes = restarted.apply([append(1), append(2)], NOW)
    assert [isinstance(o, led.Committed) and o.repeated for o in outcomes] == [when == "after"] * 2


def test_copy_is_an_old_backup() -> None:
    ledger = MemoryLedger()
    ledger.apply([create(), append(1)], NOW)
    backup = ledger.copy()
    ledger.apply([append(2)], NOW)
    assert (backup.history, backup.commit) == (ledger.history, 1)
    assert len(log(backup)) == 2
    assert one(backup, append(3)) == led.Ahead(expected=2)
    assert len(log(ledger)) == 3


def test_names_come_from_the_given_source() -> None:
    names = iter(["h", "e1", "e2"])
    ledger = MemoryLedger(new_id=lambda: next(names))
    ledger.apply([create("c1"), create("c2")], NOW)
    assert ledger.history == "h"
    assert [info.epoch for info in ledger.conversations("ann")] == ["e1", "e2"]
