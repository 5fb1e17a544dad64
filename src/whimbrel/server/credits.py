"""Token buckets: how fast someone may do something.

A bucket holds up to ``burst`` and refills by ``rate`` a second; time is passed in. A table of them is
bounded: the bucket not asked for the longest makes room. It is full again by then, unless the bound
is too small for the number of names, so forgetting it gives away little.
"""

from __future__ import annotations

from collections.abc import Hashable


class Bucket:
    """One allowance. Invariant: 0 <= available <= burst."""

    __slots__ = ("_at", "_available", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._available = burst
        self._at = now

    def available(self, now: float) -> float:
        """What may be taken at once now."""
        if now > self._at:
            self._available = min(self.burst, self._available + (now - self._at) * self.rate)
            self._at = now
        return self._available

    def take(self, now: float, amount: float = 1.0) -> float:
        """Take ``amount`` and give 0.0, or take nothing and give the seconds until it is there."""
        available = self.available(now)
        # Refilling adds up fractions: without the slack a caller that waits as told comes a hair too early.
        if available + 1e-9 >= amount:
            self._available = max(0.0, available - amount)
            return 0.0
        return (amount - available) / self.rate if self.rate > 0 else 3600.0


class Buckets:
    """A bounded table of buckets, one per name; ``rate`` None allows everything."""

    def __init__(self, rate: float | None, burst: float, buckets_max: int) -> None:
        self.rate = rate
        self.burst = burst
        self._max = buckets_max
        self._buckets: dict[Hashable, Bucket] = {}

    def _bucket(self, name: Hashable, now: float) -> Bucket:
        bucket = self._buckets.pop(name, None)
        if bucket is None:
            while len(self._buckets) >= self._max:
                del self._buckets[next(iter(self._buckets))]
            bucket = Bucket(self.rate or 0.0, self.burst, now)
        # Put back last: the first of the dictionary is the one not asked for the longest.
        self._buckets[name] = bucket
        return bucket

    def take(self, name: Hashable, now: float) -> float:
        """Take one of ``name``'s and give 0.0, or give the seconds to wait."""
        return 0.0 if self.rate is None else self._bucket(name, now).take(now)

    def available(self, name: Hashable, now: float) -> float:
        """What ``name`` may take at once."""
        return float(self.burst) if self.rate is None else self._bucket(name, now).available(now)
