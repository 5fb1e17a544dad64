"""Sleep is seen by two clocks that part."""

from __future__ import annotations

from whimbrel.client.suspension import Suspension, since_boot


class Clocks:
    def __init__(self) -> None:
        self.awake_s = 100.0
        self.asleep_s = 0.0

    def awake(self) -> float:
        return self.awake_s

    def boot(self) -> float:
        return self.awake_s + self.asleep_s


def test_a_sleep_is_told_once() -> None:
    clocks = Clocks()
    suspension = Suspension(clocks.awake, clocks.boot)
    assert not suspension.ended()
    clocks.awake_s += 3600.0
    assert not suspension.ended()
    clocks.asleep_s += 30.0
    assert suspension.ended()
    assert not suspension.ended()
    clocks.asleep_s += 2.0
    assert suspension.ended()


def test_short_pauses_add_up_to_a_sleep() -> None:
    clocks = Clocks()
    suspension = Suspension(clocks.awake, clocks.boot)
    told = 0
    for _ in range(20):
        clocks.asleep_s += 0.25
        told += suspension.ended()
    assert told == 5


def test_the_clocks_of_this_machine() -> None:
    before = since_boot()
    assert since_boot() >= before
    assert not Suspension().ended()
