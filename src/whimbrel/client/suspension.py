"""Whether the machine slept: the time since boot goes on in its sleep, the monotonic clock does not.

A link that slept through its peer's patience looks as good as new. So what follows from sleep is a question
to the link, never an assumption about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SLEPT_MIN_S = 1.0
"""Shorter sleeps are not told from a busy machine's pauses between reading two clocks."""


def since_boot() -> float:
    """Seconds since boot, sleep included; where no clock says so (other than Linux), the monotonic clock."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Suspension:
    """Compares the two clocks, each time it is asked. The clocks give seconds."""

    def __init__(
        self, awake: Callable[[], float] = time.monotonic, boot: Callable[[], float] = since_boot
    ) -> None:
        self._awake = awake
        self._boot = boot
        self._asleep_s = boot() - awake()

    def ended(self) -> bool:
        """True once after each sleep of at least ``SLEPT_MIN_S``."""
        asleep_s = self._boot() - self._awake()
        slept = asleep_s - self._asleep_s >= SLEPT_MIN_S
        if slept:
            self._asleep_s = asleep_s
        return slept
