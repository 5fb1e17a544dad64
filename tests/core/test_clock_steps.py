"""The wall clock is set while the engine runs: by ten years, to and fro. It stamps, and decides nothing."""

import pytest

from tests.core.rig import WALL, Rig
from whimbrel.core import contract as c
from whimbrel.core.engine import Engine
from whimbrel.model import PermanentFailure, SendState

YEARS_S = 10 * 365.25 * 24 * 3600.0


class ClockRig(Rig):
    """A rig whose wall clock can be set."""

    def __init__(self) -> None:
        self.off_s = 0.0
        super().__init__()

    def _engine(self) -> Engine:
        sources = c.Sources(random=self.random.random, wall=lambda: WALL + self.now + self.off_s)
        return Engine(self.store.load(), self.settings, sources, device=self.store.device, now=self.now)

    def expired(self) -> list[str]:
        return [event.id for event in self.events if isinstance(event, PermanentFailure)]


@pytest.mark.parametrize("off_s", [YEARS_S, -YEARS_S, 60 * 24 * 3600.0, -1.0])
def test_a_message_waits_as_long_as_it_was_to(off_s: float) -> None:
    rig = ClockRig()
    id = rig.send("a", expires_in_s=60.0)
    rig.run(30.0)
    rig.off_s = off_s
    rig.run(59.9)
    assert rig.expired() == []
    rig.off_s = 0.0  # and back again
    rig.run(61.0)
    assert rig.expired() == [id]


def test_a_message_expires_while_the_machine_sleeps() -> None:
    rig = ClockRig()
    id = rig.send("a", expires_in_s=3600.0)
    rig.run(1.0)
    rig.off_s = 8 * 3600.0  # the monotonic clock stands still meanwhile
    rig.run(1.5)
    rig.engine.handle_timer(rig.now)
    rig.settle()
    assert rig.expired() == [id]


@pytest.mark.parametrize("off_s", [YEARS_S, -YEARS_S])
def test_a_restart_with_another_clock_never_makes_it_wait_longer(off_s: float) -> None:
    rig = ClockRig()
    rig.send("a", expires_in_s=60.0)
    rig.off_s = off_s
    rig.restart()
    rig.run(rig.now + 61.0)
    (row,) = rig.store.load().outbox
    assert row.void == "expired", "given up here; as it may have left, the server has the last word"


@pytest.mark.parametrize("off_s", [YEARS_S, -YEARS_S])
def test_nothing_else_heeds_the_clock(off_s: float) -> None:
    """Sent, failed, retried, delivered, in order, while the clock jumps at every turn."""
    rig = ClockRig()
    ids = [rig.send(f"text {n}") for n in range(3)]
    rig.off_s = off_s
    link = rig.connect()
    rig.off_s = -off_s
    ids += [rig.send(f"text {n}") for n in range(3, 5)]
    rig.off_s = off_s
    rig.lose(link)
    rig.run(rig.now + 5.0)
    link = rig.connect()
    assert rig.engine.link.active == link
    assert [row.id for row in rig.store.load().outbox] == ids
    statuses = [rig.engine.status(id) for id in ids]
    assert all(status is not None and status.state is not SendState.FAILED for status in statuses)
    rig.off_s = 0.0
    rig.run(rig.now + 60.0)
    assert [row.n for row in rig.store.load().outbox] == [1, 2, 3, 4, 5]


def test_rows_are_stamped_and_ordered_by_number() -> None:
    rig = ClockRig()
    first = rig.send("first")
    rig.off_s = -YEARS_S
    second = rig.send("second")
    rows = {row.id: row for row in rig.store.load().outbox}
    assert rows[second].sent_at < rows[first].sent_at
    assert [row.id for row in rig.store.load().outbox] == [first, second]
    assert [message.id for message in rig.store.messages("c1")] == [first, second]
