"""The server's simulated disk: what a restore does while nothing can be read."""

import random
from collections import Counter

import pytest

from whimbrel.server.ledger import LedgerUnavailable
from whimbrel.testing.simledger import LedgerDisk


def test_a_backup_can_be_put_back_while_reads_fail_and_they_fail_on_afterwards() -> None:
    counts: Counter[str] = Counter()
    disk = LedgerDisk(random.Random(1), lambda fault: counts.update([fault]))
    before = disk.memory.state.history
    backup = disk.back_up()
    disk.unreadable_share = 1.0
    disk.restore(backup, tell=True)
    assert disk.memory.state.history != before
    assert not counts
    with pytest.raises(LedgerUnavailable):
        disk.ledger.members("all")
    assert counts["ledger_unreadable"] == 1
    disk.unreadable_share = 0.0
    disk.restore(backup, tell=False)
    assert disk.memory.state.history == before
