"""One direction of one simulated connection: frames on their way, in order, through a shaper."""

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from whimbrel.testing.proxy_shaper import Passage, Shaper
from whimbrel.testing.simclock import Clock

__all__ = ["Items", "Lane"]

Items = tuple[Any, ...]


class Lane:
    """One direction of one connection: a queue of frames on their way, in order."""

    __slots__ = ("clock", "deliver", "held_until_s", "number", "paused", "queue", "shaper", "sizes_bytes")

    def __init__(
        self, clock: Clock, shaper: Shaper, number: int, deliver: Callable[[Items | None], None]
    ) -> None:
        self.clock = clock
        self.shaper = shaper
        self.number = number
        self.deliver = deliver
        self.queue: deque[tuple[Passage, Items | None]] = deque()
        self.held_until_s = 0.0
        self.paused = False
        """The receiver does not read."""
        self.sizes_bytes = 0

    def put(self, items: Items | None, size_bytes: int) -> None:
        """Send a frame on its way; None is the end of the stream."""
        clock = self.clock
        passage = self.shaper.admit(self.number, size_bytes, clock.now_s)
        self.queue.append((passage, items))
        self.sizes_bytes += size_bytes
        leave_at_s = passage.leave_at_s
        if leave_at_s != inf:
            clock.at(leave_at_s, self.fire)

    def fire(self) -> None:
        """Deliver what is due. Asked too often it does nothing: plans change, old wake-ups stay."""
        now = self.clock.now_s
        if now < self.held_until_s:
            return
        while self.queue and not self.paused and self.queue[0][0].leave_at_s <= now:
            passage, items = self.queue.popleft()
            self.sizes_bytes -= passage.size_bytes
            self.deliver(items)

    def replan(self) -> None:
        """Look again when each frame is due, after the shaper's plan changed."""
        clock = self.clock
        for passage, _ in self.queue:
            if passage.leave_at_s != inf:
                clock.at(passage.leave_at_s, self.fire)

    def hold(self, until_s: float) -> None:
        """Deliver nothing before that time; then everything, in order."""
        self.held_until_s = until_s
        self.clock.at(until_s, self.fire)

    def drop(self) -> None:
        """Lose everything that is on its way."""
        self.queue.clear()
        self.sizes_bytes = 0
        self.shaper.forget(self.number, self.clock.now_s)
