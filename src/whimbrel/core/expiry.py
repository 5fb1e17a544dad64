"""When queued messages are given up.

``expires_at`` is wall time, since it must survive a restart; but the wall clock may be set, by years, while a
message waits (a machine that boots in 1970 and then asks the network). So it is believed only as far as it
agrees with the monotonic clock: time passes as the wall clock says if that runs ahead by no more than a long
sleep of the machine would make it (the monotonic clock does not count that), and else as the monotonic clock
says. No message waits longer than it was to when it was queued, except while the machine is off and its
clock goes back.
"""

from __future__ import annotations

from collections.abc import Callable

from whimbrel.core.life import Entry

SLEEP_S_MAX = 30 * 24 * 3600.0
"""A wall clock that gained more than this at once was set; less may have been slept through."""


class Expiry:
    """The messages that are given up at some time, in a time of its own that is never set."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._seen: tuple[float, float] | None = None
        """(wall, monotonic) when last looked at."""
        self._time = 0.0
        self._new: dict[str, Entry] = {}
        self._due: dict[str, tuple[float, Entry]] = {}

    def __repr__(self) -> str:
        return f"<Expiry of {len(self._new) + len(self._due)} messages>"

    def add(self, entry: Entry) -> None:
        """This message has an ``expires_at``."""
        self._new[entry.row.id] = entry

    def remove(self, id: str) -> None:
        """It is settled, or waits for the app; it need not be known."""
        self._new.pop(id, None)
        self._due.pop(id, None)

    def due(self, now: float) -> list[Entry]:
        """The messages whose time is over, by the one whose was over first."""
        if not self._new and not self._due:
            return []
        self._pass(now)
        found = sorted((at, id) for id, (at, _) in self._due.items() if at <= self._time)
        return [self._due[id][1] for _, id in found]

    def next_deadline(self, now: float) -> float | None:
        """When the next one's is over, if the clock is not set meanwhile."""
        if not self._new and not self._due:
            return None
        self._pass(now)
        return now + max(0.0, min(at for at, _ in self._due.values()) - self._time)

    def _pass(self, now: float) -> None:
        wall = self._wall()
        if self._seen is not None:
            elapsed_s, ticked_s = wall - self._seen[0], now - self._seen[1]
            self._time += elapsed_s if ticked_s <= elapsed_s <= ticked_s + SLEEP_S_MAX else ticked_s
        self._seen = (wall, now)
        for id, entry in self._new.items():
            row = entry.row
            assert row.expires_at is not None
            left_s = min(row.expires_at - wall, row.expires_at - row.sent_at)
            self._due[id] = (self._time + left_s, entry)
        self._new.clear()
