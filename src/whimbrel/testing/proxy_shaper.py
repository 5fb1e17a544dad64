"""When may a chunk leave a link that is slow, unsteady or narrow? Pure arithmetic: `now` is always passed in.

One `Shaper` is one direction of a link, shared by every connection (a *lane*) that runs over it:

    admit ──▶ queue ──▶ bottleneck (capacity) ──▶ propagation (latency ± jitter) ──▶ leave
              bounded    one chunk after another   chunks of one lane keep their order

Invariants:
- chunks pass the bottleneck in the order they were admitted;
- a chunk never leaves before an earlier one of its lane; lanes may overtake each other in propagation;
- the queue before the bottleneck never holds more than `queue_bytes_max`, unless one chunk alone is larger;
- while stalled nothing leaves, and nothing passes the bottleneck.

`admit` answers a `Passage` whose `leave_at_s` is the plan. A change of capacity, a stall or its end makes a
new plan for what has not left yet; a caller that waits must look again after it made such a change.
Left to the caller: the bytes themselves, waiting, and what becomes of a connection.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from math import inf, isfinite
from typing import Final, Protocol

from whimbrel.testing.traces import Trace

__all__ = ["Capacity", "Narrowest", "Passage", "Shaper", "SteadyCapacity", "TraceCapacity"]

QUEUE_BYTES_MAX_DEFAULT: Final = 256 * 1024


class Capacity(Protocol):
    """How fast a bottleneck carries bytes. Both methods are pure functions of the caller's clock."""

    def finish(self, start_s: float, size_bytes: float) -> float:
        """When so many bytes that begin to pass at `start_s` have all passed."""

    def carried(self, start_s: float, end_s: float) -> float:
        """How many bytes pass between two times."""


class SteadyCapacity:
    """The same rate always, in bytes per second, above zero."""

    def __init__(self, rate_bytes_per_s: float) -> None:
        if not (isfinite(rate_bytes_per_s) and rate_bytes_per_s > 0):
            raise ValueError("a capacity is above zero bytes/s; to let nothing pass, stall")
        self.rate_bytes_per_s = rate_bytes_per_s

    def finish(self, start_s: float, size_bytes: float) -> float:
        return start_s + size_bytes / self.rate_bytes_per_s

    def carried(self, start_s: float, end_s: float) -> float:
        return max(end_s - start_s, 0.0) * self.rate_bytes_per_s


class TraceCapacity:
    """The capacity of a recorded trace, which is at position `offset_s` when the clock shows `began_at_s`.

    Asking about a time before `began_at_s` is answered as of `began_at_s`.
    """

    def __init__(self, trace: Trace, *, began_at_s: float, offset_s: float = 0.0) -> None:
        if not (isfinite(offset_s) and offset_s >= 0):
            raise ValueError("an offset into a trace is zero or more seconds")
        self.trace = trace
        self.began_at_s = began_at_s
        self.offset_s = offset_s

    def finish(self, start_s: float, size_bytes: float) -> float:
        start = self._position(start_s)
        # Only the difference goes back on the caller's clock: nothing to carry takes exactly no time.
        return max(start_s, self.began_at_s) + (self.trace.finish(start, size_bytes) - start)

    def carried(self, start_s: float, end_s: float) -> float:
        start, end = self._position(start_s), self._position(end_s)
        return max(self.trace.bytes_before(end) - self.trace.bytes_before(start), 0.0)

    def _position(self, now_s: float) -> float:
        return max(now_s - self.began_at_s, 0.0) + self.offset_s


class Narrowest:
    """Several capacities at once: each chunk is as slow as the slowest of them alone would make it."""

    def __init__(self, capacities: Sequence[Capacity]) -> None:
        if not capacities:
            raise ValueError("at least one capacity")
        self.capacities = tuple(capacities)

    def finish(self, start_s: float, size_bytes: float) -> float:
        return max(capacity.finish(start_s, size_bytes) for capacity in self.capacities)

    def carried(self, start_s: float, end_s: float) -> float:
        return min(capacity.carried(start_s, end_s) for capacity in self.capacities)


class Passage:
    """One chunk's way through the link. Times are on the caller's clock; `inf` while a stall has no end."""

    __slots__ = ("delay_s", "lane", "leave_at_s", "rest_bytes", "served_at_s", "size_bytes", "start_s")

    def __init__(self, lane: int, size_bytes: int, delay_s: float) -> None:
        self.lane = lane
        self.size_bytes = size_bytes
        self.delay_s = delay_s  # drawn once: its propagation, latency and jitter together
        self.served_at_s = inf  # through the bottleneck
        self.leave_at_s = inf  # at the other end
        self.start_s = inf  # begins to pass the bottleneck
        self.rest_bytes = float(size_bytes)  # what has not passed it yet, when the plan was made

    def __repr__(self) -> str:
        return f"<Passage lane {self.lane}, {self.size_bytes} bytes, leaves at {self.leave_at_s:.6f}>"


class Shaper:
    """One direction of a link. `now_s` must never go back from one call to the next."""

    def __init__(self, rng: random.Random, *, queue_bytes_max: int = QUEUE_BYTES_MAX_DEFAULT) -> None:
        if queue_bytes_max < 1:
            raise ValueError("queue_bytes_max is at least 1")
        self.queue_bytes_max = queue_bytes_max
        self.latency_s = 0.0
        self.jitter_s = 0.0
        self.capacity: Capacity | None = None
        self.stalled = False
        self._rng = rng
        self._passages: deque[Passage] = deque()  # not left yet, in the order of admission
        self._queue: deque[Passage] = deque()  # the part of them that has not passed the bottleneck
        self._queued_bytes = 0
        self._busy_until_s = -inf
        self._released_at_s = -inf
        self._leave_last_s: dict[int, float] = {}

    def set_latency(self, latency_s: float, jitter_s: float = 0.0) -> None:
        """Delay every chunk admitted from now on by `latency_s` plus or minus up to `jitter_s`, evenly drawn.

        Never below zero. What is on its way already keeps the delay it has.
        """
        if not (isfinite(latency_s) and latency_s >= 0 and isfinite(jitter_s) and jitter_s >= 0):
            raise ValueError("latency and jitter are zero or more seconds")
        self.latency_s = latency_s
        self.jitter_s = jitter_s

    def set_capacity(self, capacity: Capacity | None, now_s: float) -> None:
        """Carry bytes, those in the queue too, at this capacity from now on; None is without limit."""
        self._credit_head(now_s)
        self.capacity = capacity
        self._plan(now_s)

    def stall(self, now_s: float) -> None:
        """Hold everything, wherever it is on the link, until `release`."""
        if self.stalled:
            return
        self._credit_head(now_s)
        self.stalled = True
        self._plan(now_s)

    def release(self, now_s: float) -> None:
        """End a stall: what waited in the queue passes the bottleneck from now on."""
        if not self.stalled:
            return
        self.stalled = False
        self._released_at_s = now_s
        self._plan(now_s)

    def queued_bytes(self, now_s: float) -> int:
        """What waits before the bottleneck, the chunk that is just passing included."""
        self._forget_past(now_s)
        return self._queued_bytes

    def room_at(self, size_bytes: int, now_s: float) -> float:
        """When the queue will have room for a chunk; `now_s` if it has, `inf` while a stall has no end.

        A chunk larger than the whole queue has room when the queue is empty.
        """
        self._forget_past(now_s)
        left = self._queued_bytes
        if left == 0 or left + size_bytes <= self.queue_bytes_max:
            return now_s
        for passage in self._queue:
            left -= passage.size_bytes
            if left == 0 or left + size_bytes <= self.queue_bytes_max:
                return passage.served_at_s
        raise AssertionError("the queue's bytes are those of its passages")

    def admit(self, lane: int, size_bytes: int, now_s: float) -> Passage:
        """Take a chunk in; the answer says when it may leave.

        The caller keeps the queue's bound by asking `room_at` first. Size 0 (an end of stream) always fits.
        """
        self._forget_past(now_s)
        passage = Passage(lane, size_bytes, self._draw_delay())
        if self.capacity is None and not self.stalled and not self._queue and self._busy_until_s <= now_s:
            # Nothing holds it up at the bottleneck: no queue to enter, nothing to plan anew.
            passage.start_s = passage.served_at_s = self._busy_until_s = now_s
            passage.leave_at_s = self._leave_last_s[lane] = max(
                now_s + passage.delay_s, self._leave_last_s.get(lane, now_s), self._released_at_s
            )
            if passage.leave_at_s > now_s:
                self._passages.append(passage)
            return passage
        self._passages.append(passage)
        self._queue.append(passage)
        self._queued_bytes += size_bytes
        self._plan_one(passage, now_s)
        self._forget_past(now_s)
        return passage

    def forget(self, lane: int, now_s: float) -> None:
        """Drop everything a lane has on the link: its connection is gone and will never be used again."""
        self._credit_head(now_s)
        self._passages = deque(passage for passage in self._passages if passage.lane != lane)
        self._queue = deque(passage for passage in self._queue if passage.lane != lane)
        self._queued_bytes = sum(passage.size_bytes for passage in self._queue)
        self._leave_last_s.pop(lane, None)
        self._plan(now_s)

    def _draw_delay(self) -> float:
        if self.jitter_s == 0:
            return self.latency_s
        return max(0.0, self.latency_s + self._rng.uniform(-self.jitter_s, self.jitter_s))

    def _waiting(self, now_s: float) -> Iterator[Passage]:
        return (passage for passage in self._queue if passage.served_at_s > now_s)

    def _credit_head(self, now_s: float) -> None:
        """Note what the bottleneck carried of the chunk that is passing, before the plan changes."""
        self._forget_past(now_s)
        if self.capacity is None or self.stalled:
            return
        head = next(self._waiting(now_s), None)
        if head is not None and head.start_s < now_s:
            done = self.capacity.carried(head.start_s, now_s)
            head.rest_bytes = max(head.rest_bytes - done, 0.0)

    def _plan(self, now_s: float) -> None:
        """Make the plan anew for everything that has not left."""
        self._busy_until_s = now_s
        self._leave_last_s.clear()  # what has left already binds nobody who leaves from now on
        for passage in self._passages:
            self._plan_one(passage, now_s)
        self._forget_past(now_s)

    def _plan_one(self, passage: Passage, now_s: float) -> None:
        if passage.served_at_s > now_s:
            passage.start_s = max(self._busy_until_s, now_s)
            if self.stalled:
                passage.served_at_s = inf
            elif self.capacity is None:
                passage.served_at_s = passage.start_s
            else:
                passage.served_at_s = self.capacity.finish(passage.start_s, passage.rest_bytes)
            self._busy_until_s = passage.served_at_s
        if self.stalled:
            passage.leave_at_s = inf
            return
        passage.leave_at_s = max(
            passage.served_at_s + passage.delay_s,
            self._leave_last_s.get(passage.lane, -inf),
            self._released_at_s,
        )
        self._leave_last_s[passage.lane] = passage.leave_at_s

    def _forget_past(self, now_s: float) -> None:
        while self._queue and self._queue[0].served_at_s <= now_s:
            self._queued_bytes -= self._queue.popleft().size_bytes
        # Lanes overtake each other, so one that left may hide behind one that has not; it goes with that.
        while self._passages and self._passages[0].leave_at_s <= now_s:
            self._passages.popleft()
