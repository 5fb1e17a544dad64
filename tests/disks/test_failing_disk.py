"""A disk that is full or fails, at every operation in turn: nothing half, nothing lost, and on it goes.

Each run begins with the same files and does the same; one operation of one kind fails, once or until the disk
is repaired. A call either succeeds or raises a typed error; what it raised for is not there, and what was
there before is. The same object goes on once the disk is repaired, and at the end the power goes: what a
failed sync was to write counts as clean then, and may be gone.
"""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.disks.rig import Life, disk_in
from tests.disks.server_life import AccountsLife, LedgerLife
from tests.disks.store_life import StoreLife
from tests.rounds import Rounds
from whimbrel.errors import StoreError, StoreFull
from whimbrel.testing.powerloss import Fault

STEPS = 5
SEED = 17
KINDS = ("full", "write", "sync", "read", "lock")
Kind = type[Life[Any, Any]]
LIVES: list[Kind] = [StoreLife, LedgerLife, AccountsLife]


class Trial:
    """One life, and how its disk looked before each run."""

    def __init__(self, life: Life[Any, Any]) -> None:
        self.life = life
        self.disk = life.disk
        life.begin_anew()
        life.log_pages(8)  # so that the steps hold checkpoints and a log begun again
        life.reseed(SEED)
        life.live(12, "idle")
        self.disk.restart()
        opened = life.open()
        life.look(opened)
        life.close(opened)
        self.image = self.disk.image()
        self.model = life.model
        self.failed = 0
        """How often a call raised."""

    def run(self, *faults: Fault, opening: bool = False) -> dict[str, int]:
        """Do it once; gives how many operations of each kind there were."""
        life, disk = self.life, self.disk
        disk.restore(self.image)
        life.model, life.may_be, life.before = self.model, [], [self.model]
        life.reseed(SEED + 1)
        if opening:
            disk.fail(*faults)
        opened = self._open()
        if not opening:
            disk.fail(*faults)
        try:
            for _ in range(STEPS):
                self._step(opened)
            counts = dict(disk.counts)
        finally:
            disk.cut()
            life.close(opened)
        disk.restart()
        again = life.open()
        lost = life.lost
        try:
            life.look(again)
        finally:
            life.close(again)
        assert life.lost == lost, "reported, and gone after the power was"
        return counts

    def _open(self) -> Any:
        try:
            return self.life.open()
        except StoreError:
            self.failed += 1
            self.disk.repair()
            return self.life.open()

    def _step(self, opened: Any) -> None:
        life, disk = self.life, self.disk
        assert life.model is not None
        for _ in range(2):
            change = life.write(opened, life.model)
            after = next(change)
            try:
                next(change, None)
            except life.errors as error:
                self.failed += 1
                self._judge(error)
                self._look_again(opened)
                disk.repair()
                assert life.same(opened, life.model), "it failed, and there it is; or something else is not"
                # Until something else is written over it, a crash may find it all the same.
                life.may_be = [after]
            else:
                life.model, life.may_be = after, []
                return
        pytest.fail("the disk is repaired, and it does not go on")

    def _judge(self, error: Exception) -> None:
        full = all(fault.kind == "full" for fault in self.disk.faults)
        assert not (full and isinstance(self.life, StoreLife)) or isinstance(error, StoreFull)

    def _look_again(self, opened: Any) -> None:
        """While the disk fails, a look may fail too, but shows nothing that is not so."""
        with contextlib.suppress(*self.life.errors):
            assert self.life.same(opened, self.life.model), "shown while the disk failed"


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Trial]:
    with disk_in(tmp_path / "disk", random.Random(SEED)) as disk:
        yield Trial(request.param(disk, disk.rng, monkeypatch))


@pytest.mark.soak
@pytest.mark.parametrize("trial", LIVES, indirect=True)
def test_every_operation_fails_in_turn(trial: Trial, rounds: Rounds) -> None:
    for opening in (False, True):
        counts = trial.run(opening=opening)
        # Once open, locks are in shared memory.
        assert all(counts.get(kind) for kind in KINDS if opening or kind != "lock"), counts
        for kind in KINDS:
            every = rounds.of(ci=max(1, counts.get(kind, 0) // 5), soak=1)
            for at in range(1, counts.get(kind, 0) + 1, every):
                for lasting in (False, True):
                    trial.run(Fault(kind=kind, at=at, lasting=lasting), opening=opening)
    assert trial.failed > 20
    rounds.figure(f"calls of the {trial.life.name} that failed and were survived", trial.failed, "calls")
