"""Virtual time: a heap of things to do, and a clock that jumps from one to the next.

Nothing here waits. `run_until` takes what is due in order of (time, order of scheduling), so two things at
one instant happen in the order they were asked for and a run depends on nothing but its inputs.

Invariants:
- `now_s` never goes back;
- what is scheduled in the past happens now, after everything already scheduled for now;
- a timer that was cancelled never fires.

The clock has a bound on how much may happen in one virtual second: an engine that spins does not hang the
run, it ends it with `Spinning`.
"""

import heapq
from collections.abc import Callable
from typing import Any, Final

__all__ = ["EPOCH_S", "Clock", "Spinning", "Timer"]

EPOCH_S: Final = 1_700_000_000.0
"""The wall time at virtual second 0."""
STEPS_PER_S_MAX: Final = 20_000


class Spinning(Exception):
    """More happened within one virtual second than any honest run needs."""


class Timer:
    """Something that will happen at `at_s`, unless it is cancelled."""

    __slots__ = ("args", "at_s", "call")

    def __init__(self, at_s: float, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.at_s = at_s
        self.call: Callable[..., None] | None = call
        self.args = args

    def cancel(self) -> None:
        """Make it never happen. Harmless if it has happened."""
        self.call = None
        self.args = ()


class Clock:
    """Virtual seconds from 0. All of a simulated world shares one."""

    __slots__ = ("_heap", "_order", "_second", "_steps_in_second", "now_s", "steps")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = 0
        self._second = 0
        self._steps_in_second = 0

    @property
    def wall_s(self) -> float:
        """What an honest wall clock shows."""
        return EPOCH_S + self.now_s

    def at(self, at_s: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call it at this virtual time, or now if that is past."""
        at_s = max(at_s, self.now_s)
        timer = Timer(at_s, call, args)
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, timer))
        return timer

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call it so many virtual seconds from now."""
        return self.at(self.now_s + delay_s, call, *args)

    def run_until(self, end_s: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let happen what is due up to `end_s`; True if `stop` said so before that.

        `stop` is asked after each thing that happened. Raises `Spinning`.
        """
        heap = self._heap
        while heap and heap[0][0] <= end_s:
            at_s, _, timer = heapq.heappop(heap)
            call = timer.call
            if call is None:
                continue
            self.now_s = at_s
            self._count(at_s)
            timer.call = None
            call(*timer.args)
            if stop is not None and stop():
                return True
        self.now_s = max(self.now_s, end_s)
        return False

    def _count(self, at_s: float) -> None:
        self.steps += 1
        second = int(at_s)
        if second != self._second:
            self._second = second
            self._steps_in_second = 0
        self._steps_in_second += 1
        if self._steps_in_second > STEPS_PER_S_MAX:
            raise Spinning(f"more than {STEPS_PER_S_MAX} steps in virtual second {second}")
