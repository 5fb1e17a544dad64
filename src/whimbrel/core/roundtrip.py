"""The measured round trip of the link, and the quality it stands for."""

from __future__ import annotations

from collections import deque

from whimbrel.core.contract import Settings
from whimbrel.model import Quality

_RECENT = 8
_HYSTERESIS = 1.2
"""A level is left only when the round trip is a fifth beyond its border."""


class RoundTrip:
    """The measured round trip (after RFC 6298, section 2): smoothed value and variation, in seconds."""

    __slots__ = ("_level", "_recent", "rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.rttvar = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._level = Quality.OFFLINE

    @property
    def least_s(self) -> float | None:
        """The shortest of the last measurements: what the way takes when nothing holds an answer up."""
        return min(self._recent, default=None)

    def sample(self, rtt: float) -> None:
        """Take one measurement in."""
        self._recent.append(rtt)
        if self.srtt is None:
            self.srtt, self.rttvar = rtt, rtt / 2
        else:
            self.rttvar += 0.25 * (abs(self.srtt - rtt) - self.rttvar)
            # A network that became much slower is believed sooner: too short a deadline costs a link.
            self.srtt += (0.5 if rtt > 2 * self.srtt else 0.125) * (rtt - self.srtt)

    def quality(self, standing: bool, settings: Settings) -> Quality:
        """The quality of a link that is ``standing`` or not; it does not flicker at a border."""
        if not standing or self.srtt is None:
            self._level = Quality.OFFLINE
            return self._level
        for level, border_s in (
            (Quality.EXCELLENT, settings.quality_excellent_s),
            (Quality.GOOD, settings.quality_good_s),
        ):
            if self.srtt < border_s * (_HYSTERESIS if self._level is level else 1.0):
                self._level = level
                return level
        self._level = Quality.POOR
        return self._level
