"""What the fault proxy counts: a running tally inside, a frozen snapshot for whoever asks.

A test that applies a fault should look here whether the fault ever struck: one that did not proves nothing.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

__all__ = ["ProxyCounters", "Tally", "WayName"]

WayName = Literal["up", "down"]


class ProxyCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What a proxy has done since it started, and the connections that are open now."""

    connections: int
    """Accepted in all."""
    connections_open: int
    connections_turned_away: int
    """Closed at once because too many were open."""
    connections_half_open: int
    """That died silently, in one direction or both."""
    targets_unreachable: int
    """Connections reset because the target did not accept."""
    resets: int
    """Connections reset by a fault, whichever."""
    refused_windows: int
    """How many times the port began to refuse."""
    chunks_up: int
    chunks_down: int
    bytes_up: int
    bytes_down: int
    bytes_swallowed_up: int
    """Lost on half-open connections."""
    bytes_swallowed_down: int
    chunks_dropped_up: int
    """Lost together with their connection, by a ChunkLoss."""
    chunks_dropped_down: int
    answers_dropped: int
    chunks_delayed_up: int
    """That had to wait for latency, capacity or the end of a stall."""
    chunks_delayed_down: int
    stalled_up_s: float
    stalled_down_s: float


class Tally:
    """The counts while they grow. Whoever sees a thing happen counts it."""

    def __init__(self) -> None:
        self.connections = 0
        self.turned_away = 0
        self.half_open = 0
        self.targets_unreachable = 0
        self.resets = 0
        self.refused_windows = 0
        self.answers_dropped = 0
        self.chunks: dict[WayName, int] = {"up": 0, "down": 0}
        self.bytes_forwarded: dict[WayName, int] = {"up": 0, "down": 0}
        self.bytes_swallowed: dict[WayName, int] = {"up": 0, "down": 0}
        self.chunks_dropped: dict[WayName, int] = {"up": 0, "down": 0}
        self.chunks_delayed: dict[WayName, int] = {"up": 0, "down": 0}

    def snapshot(self, *, connections_open: int, stalled_s: Mapping[WayName, float]) -> ProxyCounters:
        """The counts as they are now, with what only the proxy knows."""
        return ProxyCounters(
            connections=self.connections,
            connections_open=connections_open,
            connections_turned_away=self.turned_away,
            connections_half_open=self.half_open,
            targets_unreachable=self.targets_unreachable,
            resets=self.resets,
            refused_windows=self.refused_windows,
            chunks_up=self.chunks["up"],
            chunks_down=self.chunks["down"],
            bytes_up=self.bytes_forwarded["up"],
            bytes_down=self.bytes_forwarded["down"],
            bytes_swallowed_up=self.bytes_swallowed["up"],
            bytes_swallowed_down=self.bytes_swallowed["down"],
            chunks_dropped_up=self.chunks_dropped["up"],
            chunks_dropped_down=self.chunks_dropped["down"],
            answers_dropped=self.answers_dropped,
            chunks_delayed_up=self.chunks_delayed["up"],
            chunks_delayed_down=self.chunks_delayed["down"],
            stalled_up_s=stalled_s["up"],
            stalled_down_s=stalled_s["down"],
        )
