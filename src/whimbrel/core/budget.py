"""A token bucket: how often something may happen, over all who want it.

It bounds retries over all conversations (so that an outage does not multiply the load), and is the
client's side of the server's credits.
"""

from __future__ import annotations


class TokenBucket:
    """Holds at most ``burst`` tokens and gains ``rate`` a second; a rate of 0 never limits."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float, available: float | None = None) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst if available is None else min(burst, available)
        self._at = now

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now

    def take(self, now: float) -> bool:
        """Take one token; False, and nothing taken, when there is none."""
        if self.rate <= 0:
            return True
        self._fill(now)
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True

    def reserve(self, now: float) -> float:
        """Take one token, even one that is not there yet; seconds until it is."""
        if self.rate <= 0:
            return 0.0
        self._fill(now)
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self.rate)

    def wait_s(self, now: float) -> float:
        """Seconds until a token is there; 0 when one is."""
        if self.rate <= 0:
            return 0.0
        self._fill(now)
        return max(0.0, (1.0 - self._tokens) / self.rate)
