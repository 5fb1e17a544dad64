"""How fast messages may leave: the server's credits, its pauses, and the bound on what is in flight."""

from __future__ import annotations

from whimbrel import protocol as p
from whimbrel.core.budget import TokenBucket
from whimbrel.core.contract import Settings
from whimbrel.core.life import Entry


class Pacing:
    """One link's pace; what counts against the server's limits."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._credits = TokenBucket(0.0, 0.0, 0.0)
        self._in_flight = 0
        self._in_flight_bytes = 0
        self.pause_until = 0.0
        self.pause_reason = ""

    def grant(self, granted: p.Credits, now: float) -> None:
        """The server says how fast this user may send."""
        self._credits = TokenBucket(granted.rate, granted.burst, now, granted.available)

    def pause(self, until: float, reason: str) -> None:
        """Let nothing pass before ``until``."""
        self.pause_until = max(self.pause_until, until)
        self.pause_reason = reason

    def admit(self, entry: Entry, now: float) -> bool:
        """Whether the message may leave now; takes a credit for it if so. A void costs none."""
        settings = self._settings
        if self._in_flight >= settings.in_flight_max:
            return False
        if self._in_flight and self._in_flight_bytes + entry.size > settings.in_flight_bytes_max:
            return False
        return entry.row.void is not None or self._credits.take(now)

    def wire(self, entry: Entry, now: float) -> None:
        """It is on the wire of the present link."""
        entry.sent_at = now
        if not entry.wired:
            entry.wired = True
            self._in_flight += 1
            self._in_flight_bytes += entry.size

    def unwire(self, entry: Entry) -> None:
        """It was answered, or must go out again."""
        if entry.wired:
            entry.wired = False
            self._in_flight -= 1
            self._in_flight_bytes -= entry.size

    def wait_s(self, now: float) -> float:
        """Seconds until the next message has a credit; 0 when it has one."""
        return self._credits.wait_s(now)

    def next_deadline(self, now: float) -> float | None:
        """When a message that waits may leave, if only time holds it back."""
        if self.pause_until > now:
            return self.pause_until
        wait_s = self._credits.wait_s(now)
        return now + wait_s if wait_s > 0 else None
