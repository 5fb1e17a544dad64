"""Virtual time: a heap of things to do, and a clock that jumps from one to the next.

Nothing here waits. `run_until` takes what is due in order of (time, order of scheduling), so two things at
one instant happen in the order they were asked for and a run depends on nothing but its inputs.

A device or a server schedules what it does on an `OwnClock`: it can be stopped while the world goes on, as a
laptop that sleeps or a process that got SIGSTOP. `suspend`: its monotonic clock stands still and what it
waited for is as far away afterwards as before. `stop`: its clocks go on, and what fell due meanwhile happens
at once when it continues.

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

__all__ = ["EPOCH_S", "Clock", "OwnClock", "Spinning", "Timer"]

EPOCH_S: Final = 1_700_000_000.0
"""The wall time at virtual second 0."""
STEPS_PER_S_MAX: Final = 20_000


class Spinning(Exception):
    """More happened within one virtual second than any honest run needs."""


class Timer:
    """Something that will happen at `at_s`, unless it is cancelled."""

    __slots__ = ("args", "at_s", "call", "owner")

    def __init__(self, at_s: float, call: Callable[..., None], args: tuple[Any, ...], owner: object) -> None:
        self.at_s = at_s
        self.call: Callable[..., None] | None = call
        self.args = args
        self.owner = owner

    def cancel(self) -> None:
        """Make it never happen. Harmless if it has happened."""
        self.call = None
        self.args = ()


class Clock:
    """Virtual seconds from 0. All of a simulated world shares one."""

    __slots__ = ("_heap", "_order", "_second", "_steps_at_second", "now_s", "steps")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = 0
        self._second = 0.0
        """When the virtual second under way ends."""
        self._steps_at_second = 0
        """The steps taken before it."""

    @property
    def wall_s(self) -> float:
        """What an honest wall clock shows."""
        return EPOCH_S + self.now_s

    def at(self, at_s: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call it at this virtual time, or now if that is past."""
        return self.add(at_s, call, args, None)

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call it so many virtual seconds from now."""
        return self.add(self.now_s + delay_s, call, args, None)

    def add(self, at_s: float, call: Callable[..., None], args: tuple[Any, ...], owner: object) -> Timer:
        """Call it at this virtual time, or now if that is past; `owner`: for `move`."""
        at_s = max(at_s, self.now_s)
        timer = Timer(at_s, call, args, owner)
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, timer))
        return timer

    def run_until(self, end_s: float) -> None:
        """Let happen what is due up to `end_s`. Raises `Spinning`."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end_s:
            at_s, _, timer = pop(heap)
            call = timer.call
            if call is None:
                continue
            self.now_s = at_s
            self.steps += 1
            if at_s >= self._second:
                self._second = float(int(at_s) + 1)
                self._steps_at_second = self.steps
            elif self.steps - self._steps_at_second > STEPS_PER_S_MAX:
                raise Spinning(f"more than {STEPS_PER_S_MAX} steps in virtual second {int(at_s)}")
            timer.call = None
            call(*timer.args)
        self.now_s = max(self.now_s, end_s)

    def move(self, owner: object, when: Callable[[float], float]) -> None:
        """Give everything that waits for this owner another time; what is due together keeps its order."""
        moved = []
        for at_s, order, timer in self._heap:
            new_s = at_s
            if timer.owner is owner and timer.call is not None:
                new_s = timer.at_s = max(when(at_s), self.now_s)
            moved.append((new_s, order, timer))
        self._heap[:] = moved
        heapq.heapify(self._heap)


class OwnClock:
    """The clock of one machine or process, which can stand still."""

    __slots__ = ("_clock", "_lost_s", "_standing_until_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lost_s = 0.0
        self._standing_until_s = 0.0

    @property
    def now_s(self) -> float:
        """The world's time: for what is written down about a run."""
        return self._clock.now_s

    @property
    def mono_s(self) -> float:
        """What its monotonic clock shows: how long it has been awake."""
        return self._clock.now_s - self._lost_s

    @property
    def wall_s(self) -> float:
        """What an honest wall clock shows."""
        return self._clock.wall_s

    @property
    def standing_until_s(self) -> float | None:
        """When it goes on, on the world's clock; None: it does not stand still."""
        return self._standing_until_s if self._clock.now_s < self._standing_until_s else None

    def at(self, mono_s: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call it when the monotonic clock shows this."""
        return self._clock.add(mono_s + self._lost_s, call, args, self)

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call it after so many seconds awake."""
        return self._clock.add(self._clock.now_s + delay_s, call, args, self)

    def suspend(self, sleep_s: float) -> None:
        """Sleep: the monotonic clock stands still."""
        # It is told at once what it will have lost; nobody asks for its time while it sleeps.
        self._standing_until_s = self._clock.now_s + sleep_s
        self._lost_s += sleep_s
        self._clock.move(self, lambda at_s: at_s + sleep_s)

    def stop(self, stop_s: float) -> None:
        """Do nothing for a while, although the clocks go on."""
        until_s = self._standing_until_s = self._clock.now_s + stop_s
        self._clock.move(self, lambda at_s: max(at_s, until_s))
