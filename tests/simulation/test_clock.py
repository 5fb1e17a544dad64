"""Virtual time: order, and machines that stand still while the world goes on."""

import pytest

from whimbrel.testing.simclock import Clock, OwnClock, Spinning


def test_things_happen_in_the_order_of_their_times_and_then_of_asking() -> None:
    clock = Clock()
    seen: list[str] = []
    clock.at(2.0, seen.append, "later")
    clock.at(1.0, seen.append, "first")
    clock.at(1.0, seen.append, "second")
    clock.at(1.5, seen.append, "never").cancel()
    clock.run_until(1.9)
    assert (seen, clock.now_s) == (["first", "second"], 1.9)
    clock.at(0.5, seen.append, "past")
    clock.run_until(2.0)
    assert seen == ["first", "second", "past", "later"]


def test_a_machine_that_sleeps_loses_that_time_and_is_as_far_from_its_deadlines_as_before() -> None:
    clock = Clock()
    device = OwnClock(clock)
    seen: list[tuple[str, float]] = []
    device.at(3.0, lambda: seen.append(("device", device.mono_s)))
    clock.at(3.0, lambda: seen.append(("world", clock.now_s)))
    clock.run_until(1.0)
    device.suspend(10.0)
    stands = [device.standing_until_s]
    clock.run_until(12.0)
    stands.append(device.standing_until_s)
    assert stands == [11.0, None]
    assert (device.mono_s, device.now_s) == (2.0, 12.0)
    clock.run_until(20.0)
    assert seen == [("world", 3.0), ("device", 3.0)]


def test_a_process_that_is_stopped_does_what_fell_due_when_it_goes_on() -> None:
    clock = Clock()
    server = OwnClock(clock)
    seen: list[tuple[str, float]] = []
    for name, at_s in (("a", 2.0), ("b", 3.0), ("c", 9.0)):
        server.at(at_s, lambda name=name: seen.append((name, server.mono_s)))
    clock.run_until(1.0)
    server.stop(5.0)
    clock.run_until(20.0)
    assert seen == [("a", 6.0), ("b", 6.0), ("c", 9.0)]


def test_a_world_that_spins_ends() -> None:
    clock = Clock()

    def again() -> None:
        clock.after(0.0, again)

    again()
    with pytest.raises(Spinning):
        clock.run_until(1.0)
