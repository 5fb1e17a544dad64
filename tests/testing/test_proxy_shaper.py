"""The shaper with exact times: no clock, no sockets."""

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.testing.proxy_shaper import Narrowest, Shaper, SteadyCapacity, TraceCapacity
from whimbrel.testing.traces import Trace


def make(**settings: int) -> Shaper:
    return Shaper(random.Random(1), **settings)


def test_without_faults_a_chunk_leaves_at_once() -> None:
    shaper = make()
    assert shaper.admit(1, 1000, 5.0).leave_at_s == 5.0
    assert shaper.queued_bytes(5.0) == 0
    assert shaper.room_at(10**9, 5.0) == 5.0


def test_latency_is_added() -> None:
    shaper = make()
    shaper.set_latency(0.25)
    assert shaper.admit(1, 1000, 5.0).leave_at_s == 5.25


def test_latency_that_falls_does_not_let_chunks_overtake() -> None:
    shaper = make()
    shaper.set_latency(1.0)
    assert shaper.admit(1, 10, 0.0).leave_at_s == 1.0
    shaper.set_latency(0.0)
    assert shaper.admit(1, 10, 0.5).leave_at_s == 1.0  # behind the slow one of its lane
    assert shaper.admit(2, 10, 0.5).leave_at_s == 0.5  # another lane is free
    assert shaper.admit(1, 10, 1.5).leave_at_s == 1.5


def test_jitter_spreads_between_its_bounds_and_never_below_zero() -> None:
    shaper = make()
    shaper.set_latency(0.8, 0.4)
    delays = [shaper.admit(lane, 10, 0.0).leave_at_s for lane in range(500)]
    assert all(0.4 <= delay <= 1.2 for delay in delays)
    assert min(delays) < 0.45
    assert max(delays) > 1.15
    shaper.set_latency(0.1, 0.4)
    assert min(shaper.admit(lane, 10, 0.0).leave_at_s for lane in range(1000, 1500)) == 0.0


def test_the_same_seed_draws_the_same_delays() -> None:
    def draw(seed: int) -> list[float]:
        shaper = Shaper(random.Random(seed))
        shaper.set_latency(1.0, 0.5)
        return [shaper.admit(lane, 10, 0.0).leave_at_s for lane in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_capacity_is_shared_by_all_lanes_in_order_of_admission() -> None:
    shaper = make()
    shaper.set_capacity(SteadyCapacity(1000.0), 0.0)
    assert shaper.admit(1, 500, 0.0).leave_at_s == 0.5
    assert shaper.admit(2, 500, 0.0).leave_at_s == 1.0
    assert shaper.admit(1, 500, 0.25).leave_at_s == 1.5
    assert shaper.queued_bytes(0.25) == 1500
    assert shaper.queued_bytes(1.0) == 500
    assert shaper.admit(1, 1000, 9.0).leave_at_s == 10.0  # an idle link saves nothing up


def test_capacity_and_latency_add_up() -> None:
    shaper = make()
    shaper.set_latency(2.0)
    shaper.set_capacity(SteadyCapacity(1000.0), 0.0)
    passage = shaper.admit(1, 1000, 0.0)
    assert (passage.served_at_s, passage.leave_at_s) == (1.0, 3.0)


def test_the_queue_is_bounded() -> None:
    shaper = make(queue_bytes_max=1000)
    shaper.set_capacity(SteadyCapacity(1000.0), 0.0)
    for _ in range(2):
        assert shaper.room_at(500, 0.0) == 0.0
        shaper.admit(1, 500, 0.0)
    assert shaper.room_at(1, 0.0) == 0.5
    assert shaper.room_at(500, 0.0) == 0.5
    assert shaper.room_at(501, 0.0) == 1.0
    assert shaper.room_at(5000, 0.0) == 1.0  # larger than the queue: alone
    assert shaper.room_at(500, 0.5) == 0.5


def test_a_change_of_capacity_plans_anew_what_waits() -> None:
    shaper = make()
    shaper.set_capacity(SteadyCapacity(100.0), 0.0)
    first, second = shaper.admit(1, 100, 0.0), shaper.admit(2, 100, 0.0)
    assert (first.leave_at_s, second.leave_at_s) == (1.0, 2.0)
    shaper.set_capacity(SteadyCapacity(50.0), 0.5)  # half of the first has passed
    assert (first.leave_at_s, second.leave_at_s) == (1.5, 3.5)
    shaper.set_capacity(None, 1.5)
    assert (first.leave_at_s, second.leave_at_s) == (1.5, 1.5)
    assert shaper.queued_bytes(1.5) == 0


def test_what_passed_the_bottleneck_keeps_its_plan() -> None:
    shaper = make()
    shaper.set_latency(1.0)
    shaper.set_capacity(SteadyCapacity(100.0), 0.0)
    passage = shaper.admit(1, 100, 0.0)
    shaper.set_capacity(SteadyCapacity(1.0), 1.5)
    assert passage.leave_at_s == 2.0
    assert shaper.admit(1, 1, 1.5).leave_at_s == 3.5


def test_a_stall_holds_everything_until_it_is_released() -> None:
    shaper = make(queue_bytes_max=500)
    shaper.set_latency(1.0)
    shaper.set_capacity(SteadyCapacity(100.0), 0.0)
    flying, passing, waiting = (shaper.admit(lane, 100, 0.0) for lane in (1, 2, 3))
    assert (flying.leave_at_s, passing.leave_at_s, waiting.leave_at_s) == (2.0, 3.0, 4.0)
    shaper.stall(1.5)
    during = shaper.admit(1, 200, 2.0)
    assert {p.leave_at_s for p in (flying, passing, waiting, during)} == {inf}
    assert shaper.queued_bytes(2.0) == 400
    assert shaper.room_at(101, 2.0) == inf
    shaper.stall(2.5)  # already
    shaper.release(11.5)
    assert flying.leave_at_s == 11.5  # had a second to go at the time, and the stall took longer
    assert passing.leave_at_s == 13.0  # the half that was missing, then the latency
    assert waiting.leave_at_s == 14.0
    assert during.leave_at_s == 16.0
    shaper.release(12.0)  # already
    assert during.leave_at_s == 16.0


def test_a_short_stall_does_not_delay_what_was_still_flying() -> None:
    shaper = make()
    shaper.set_latency(5.0)
    passage = shaper.admit(1, 10, 0.0)
    shaper.stall(1.0)
    shaper.release(2.0)
    assert passage.leave_at_s == 5.0


def test_capacity_may_change_during_a_stall() -> None:
    shaper = make()
    shaper.stall(0.0)
    passage = shaper.admit(1, 100, 0.0)
    shaper.set_capacity(SteadyCapacity(100.0), 1.0)
    assert passage.leave_at_s == inf
    shaper.release(2.0)
    assert passage.leave_at_s == 3.0


def test_a_lane_that_is_gone_leaves_the_queue_to_others() -> None:
    shaper = make()
    shaper.set_capacity(SteadyCapacity(100.0), 0.0)
    shaper.admit(1, 1000, 0.0)
    other = shaper.admit(2, 100, 0.0)
    assert other.leave_at_s == 11.0
    shaper.forget(1, 4.0)
    assert other.leave_at_s == 5.0
    assert shaper.queued_bytes(4.0) == 100


def test_a_trace_carries_what_it_recorded() -> None:
    shaper = make()
    trace = Trace([1, 0, 0, 2])  # 1500 bytes, an outage of 0.2 s, 3000 bytes
    shaper.set_capacity(TraceCapacity(trace, began_at_s=100.0), 100.0)
    leave = [shaper.admit(1, 750, 100.0).leave_at_s for _ in range(8)]
    assert leave == pytest.approx([100.05, 100.1, 100.325, 100.35, 100.375, 100.4, 100.45, 100.5])


def test_a_trace_begins_at_its_offset() -> None:
    shaper = make()
    capacity = TraceCapacity(Trace([1, 0, 0, 2]), began_at_s=100.0, offset_s=0.2)
    shaper.set_capacity(capacity, 100.0)
    assert shaper.admit(1, 3000, 100.0).leave_at_s == pytest.approx(100.2)
    assert shaper.admit(1, 1500, 100.0).leave_at_s == pytest.approx(100.3)
    assert capacity.carried(100.0, 100.3) == pytest.approx(4500)
    assert capacity.carried(90.0, 100.15) == pytest.approx(1500)


def test_the_narrowest_capacity_holds() -> None:
    capacity = Narrowest([SteadyCapacity(100.0), SteadyCapacity(10.0)])
    assert capacity.finish(1.0, 100.0) == 11.0
    assert capacity.carried(1.0, 2.0) == 10.0


@pytest.mark.parametrize("bad", [0.0, -1.0, inf, float("nan")])
def test_values_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="capacity"):
        SteadyCapacity(bad)
    if bad != 0:
        with pytest.raises(ValueError, match="latency"):
            make().set_latency(bad)
        with pytest.raises(ValueError, match="latency"):
            make().set_latency(1.0, bad)
        with pytest.raises(ValueError, match="offset"):
            TraceCapacity(Trace([1]), began_at_s=0.0, offset_s=bad)
    with pytest.raises(ValueError, match="queue"):
        make(queue_bytes_max=0)
    with pytest.raises(ValueError, match="at least one"):
        Narrowest([])


Step = tuple[str, int, int]

steps = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "admit", "stall", "release", "slow", "fast", "free", "forget"]),
        st.integers(1, 3),
        st.integers(0, 2000),
    ),
    max_size=60,
)


@given(steps=steps, seed=st.integers(0, 100), traced=st.booleans())
def test_whatever_happens_order_and_bounds_are_kept(steps: list[Step], seed: int, traced: bool) -> None:
    shaper = Shaper(random.Random(seed), queue_bytes_max=4000)
    shaper.set_latency(0.5, 0.5)
    now = 0.0
    admitted = []
    for name, lane, number in steps:
        now += number / 1000
        if name == "admit" and shaper.room_at(number, now) <= now:
            admitted.append(shaper.admit(lane, number, now))
            assert admitted[-1].leave_at_s >= now
        elif name == "stall":
            shaper.stall(now)
        elif name == "release":
            shaper.release(now)
        elif name == "slow":
            shaper.set_capacity(SteadyCapacity(300.0), now)
        elif name == "fast":
            fast = TraceCapacity(Trace([3, 0, 7]), began_at_s=now) if traced else SteadyCapacity(9e6)
            shaper.set_capacity(fast, now)
        elif name == "free":
            shaper.set_capacity(None, now)
        elif name == "forget":
            shaper.forget(lane, now)
            admitted = [passage for passage in admitted if passage.lane != lane]
        assert 0 <= shaper.queued_bytes(now) <= 4000
        for one in (1, 2, 3):
            mine = [passage for passage in admitted if passage.lane == one]
            assert [p.leave_at_s for p in mine] == sorted(p.leave_at_s for p in mine)
        served = [passage.served_at_s for passage in admitted]
        assert served == sorted(served)
    shaper.release(now)
    # Whatever happened before, a link that is let go delivers everything in the end.
    assert all(passage.leave_at_s < inf for passage in admitted)
    last = max((passage.leave_at_s for passage in admitted), default=now)
    assert shaper.queued_bytes(max(last, now)) == 0
