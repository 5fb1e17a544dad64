"""Whose turn it is: the queues that may have something to send, a few messages each, round robin."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from whimbrel.core.life import Entry, Queue

_TURN = 64
"""How many messages of one conversation leave before it is the next one's turn."""


class Turns:
    """A queue is in it at most once; it leaves when it has nothing more to send."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: deque[Queue] = deque()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, queue: Queue) -> None:
        """It may have something to send."""
        if not queue.queued and queue.entries:
            queue.queued = True
            self._queues.append(queue)

    def go(
        self,
        budget_bytes: int,
        now: float,
        *,
        admit: Callable[[Entry, float], bool],
        leave: Callable[[Queue, Entry, float], None],
    ) -> None:
        """Let messages leave until the budget is used up, ``admit`` says no, or nothing may leave now."""
        queues = self._queues
        held = 0
        while held < len(queues):
            queue = queues[0]
            if now < queue.hold_until:
                queues.rotate(-1)
                held += 1
                continue
            held = 0
            for turn in range(_TURN):
                entry = queue.next()
                if entry is None:
                    queues.popleft()
                    queue.queued = False
                    break
                if budget_bytes <= 0 or not admit(entry, now):
                    if turn:
                        queues.rotate(-1)  # it had its turn
                    return
                leave(queue, entry, now)
                budget_bytes -= entry.size
            else:
                queues.rotate(-1)
