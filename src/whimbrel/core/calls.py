"""Calls: requests that may be repeated, asked again on every new link until answered or out of time."""

from __future__ import annotations

from whimbrel import protocol as p
from whimbrel.core.contract import CallAnswered, CallServer
from whimbrel.errors import QueueFull


class _Waiting:
    __slots__ = ("call", "sent_on", "until")

    def __init__(self, call: p.Call, until: float) -> None:
        self.call = call
        self.until = until
        self.sent_on: int | None = None


class Calls:
    """The calls that wait for an answer."""

    def __init__(self, waiting_max: int) -> None:
        self._max = waiting_max
        self.waiting: dict[str, _Waiting] = {}
        """By id, in the order they were asked."""
        self._answers: list[CallAnswered] = []

    def add(self, command: CallServer, now: float) -> None:
        """Take a call in. Raises ``QueueFull``."""
        if len(self.waiting) >= self._max:
            raise QueueFull("too many calls wait for an answer")
        self.waiting[command.call.id] = _Waiting(command.call, now + command.timeout_s)

    def answered(self, answer: p.Answer) -> None:
        """The server answered; an answer nobody waits for is dropped."""
        if self.waiting.pop(answer.id, None) is not None:
            self._answers.append(CallAnswered(id=answer.id, answer=answer))

    def handle_timer(self, now: float) -> None:
        """Give up on those out of time."""
        if not self.waiting:
            return
        for id in [id for id, waiting in self.waiting.items() if now >= waiting.until]:
            del self.waiting[id]
            self._answers.append(CallAnswered(id=id, answer=None))

    def next_deadline(self) -> float | None:
        """When the first is out of time."""
        if not self.waiting:
            return None
        return min((waiting.until for waiting in self.waiting.values()), default=None)

    def due(self, link: int) -> list[p.Call]:
        """Those not asked on this link yet."""
        if not self.waiting:
            return []
        due = [waiting for waiting in self.waiting.values() if waiting.sent_on != link]
        for waiting in due:
            waiting.sent_on = link
        return [waiting.call for waiting in due]

    def answers(self) -> list[CallAnswered]:
        """What came of the calls; drained."""
        if not self._answers:
            return []
        answers, self._answers = self._answers, []
        return answers
