"""The heartbeat of the active link: when to ping it, and when its silence means that it died.

A link is dead when nothing came within ``max(2.5 s, srtt + 4 rttvar)`` of a ping, or of data that wants an
answer. Half way a ping is sent, so that a slow disk of the server is not taken for a dead link. A link that
was taken for dead and answers after all doubles the deadline for this network; answers in time shorten it
again.
"""

from __future__ import annotations

from whimbrel.core.contract import Settings
from whimbrel.core.roundtrip import RoundTrip

_FACTOR_MAX = 12.0
_FACTOR_DECAY = 0.8


class Heartbeat:
    """Pings and the deadline of their answers. What silence means is left to the link."""

    __slots__ = (
        "_busy_at",
        "_ping_at",
        "_ping_id",
        "_pinged_at",
        "_settings",
        "expect_since",
        "factor",
        "pings",
        "rtt",
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.rtt = RoundTrip()
        self.factor = 1.0
        """By how much the deadline of this network is longer."""
        self.expect_since: float | None = None
        """Since when an answer is waited for."""
        self.pings: list[int] = []
        """To be sent now; see ``take``."""
        self._ping_id = 0
        self._ping_at: float | None = None
        self._pinged_at = 0.0
        self._busy_at = 0.0
        """When last anything but pings and their answers passed."""

    def begin(self, now: float) -> None:
        """A new link is active."""
        self._busy_at = self._pinged_at = now
        self.expect_since = self._ping_at = None

    def heard(self, now: float) -> None:
        """Bytes came: any byte is life."""
        if self._ping_at is None:
            self._busy_at = now
        self.expect_since = None

    def sent(self, now: float) -> None:
        """Data that wants an answer went out."""
        self._busy_at = now
        if self.expect_since is None:
            self.expect_since = now
        if self._ping_at is None and now - self._pinged_at >= self._settings.measure_every_s:
            self.ping(now)

    def ping(self, now: float) -> None:
        """Ask the link whether it lives."""
        self._ping_id += 1
        self._ping_at = self._pinged_at = now
        self.pings.append(self._ping_id)
        if self.expect_since is None:
            self.expect_since = now

    def pong(self, ping_id: int, now: float) -> None:
        """The answer to a ping."""
        if ping_id == self._ping_id and self._ping_at is not None:
            self.rtt.sample(now - self._ping_at)
            self._ping_at = None
            self.factor = max(1.0, self.factor * _FACTOR_DECAY)

    def answered_late(self, now: float) -> None:
        """What was taken for dead answered: this network needs more time."""
        self.factor = min(self.factor * 2, _FACTOR_MAX)
        # What held the answer up is over, or is not: a new ping tells how long the way is, the old one how
        # long the silence was. Taken for a round trip, that would hide the next silence for as long.
        self.ping(now)

    def take(self) -> list[int]:
        """Pings to send now."""
        pings, self.pings = self.pings, []
        return pings

    @property
    def deadline_s(self) -> float:
        """How long an answer may take."""
        measured = 0.0 if self.rtt.srtt is None else self.rtt.srtt + 4 * self.rtt.rttvar
        return max(self._settings.dead_after_s, measured) * self.factor

    def silent(self, now: float) -> bool:
        """Whether an answer is overdue."""
        return self.expect_since is not None and now >= self.expect_since + self.deadline_s

    def ping_due(self) -> float:
        """When to ping next; a link on which nothing else passes is pinged less often."""
        if self.expect_since is not None and self._ping_at is None:
            return self.expect_since + self.deadline_s / 2
        settings = self._settings
        quiet = self._pinged_at - self._busy_at >= settings.ping_idle_after_s
        return self._pinged_at + (settings.ping_idle_s if quiet else settings.ping_every_s)

    def next_deadline(self) -> float:
        """When to look again."""
        due = self.ping_due()
        return due if self.expect_since is None else min(due, self.expect_since + self.deadline_s)
