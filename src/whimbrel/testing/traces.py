"""Recorded capacity of real links: how many bytes could pass, window after window.

A trace is a list of whole numbers, one per window of 100 ms: how many packets of 1500 bytes the link could
carry in that window. Zero is an outage. A trace loops: what comes after its end is its beginning again.

Inside a window the capacity is spread evenly, so the bytes carried since the start of the trace are a
continuous, never falling function of time. `bytes_before` is that function and `time_of` its inverse.
All times here are positions in the trace, in seconds from its beginning; clocks are the caller's business.

Recorded traces that come with the package: K. Winstein, A. Sivaraman, H. Balakrishnan, "Stochastic Forecasts
Achieve High Throughput and Low Delay over Cellular Networks", NSDI 2013. Each file carries the citation.
"""

from bisect import bisect_left
from collections.abc import Iterable
from importlib import resources
from itertools import accumulate
from math import floor
from pathlib import Path
from typing import Final, Literal

import msgspec

from whimbrel.errors import InvalidArgument

__all__ = ["PACKET_BYTES", "WINDOW_S", "Outage", "Trace", "TraceError"]

PACKET_BYTES: Final = 1500
WINDOW_S: Final = 0.1
WINDOWS_MAX: Final = 1_000_000
PACKETS_MAX: Final = 1_000_000
FILE_BYTES_MAX: Final = 16 * 1024 * 1024

# A position that misses the edge of a window by rounding must not wait for the end of the outage behind it.
_ROUNDING_BYTES: Final = 0.001
_ROUNDING_WINDOWS: Final = 1e-6

_SUFFIX: Final = ".csv"


class TraceError(InvalidArgument):
    """A trace that cannot be used: not found, unreadable, empty, or never carrying anything."""


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a trace in which nothing passes: from `start_s` up to, not including, `end_s`."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


class Trace:
    """The capacity of one direction of a link over time. Immutable; loops for ever.

    `packets` is one number per window, each from 0 to 1,000,000; at least one must be above zero.
    Raises TraceError for anything else.
    """

    __slots__ = ("_bytes_before", "name", "packets")

    def __init__(self, packets: Iterable[int], *, name: str = "trace") -> None:
        self.name = name
        self.packets = tuple(packets)
        if not self.packets:
            raise TraceError(f"{name}: no windows")
        if len(self.packets) > WINDOWS_MAX:
            raise TraceError(f"{name}: {len(self.packets)} windows, at most {WINDOWS_MAX} are allowed")
        for index, count in enumerate(self.packets):
            if not 0 <= count <= PACKETS_MAX:
                raise TraceError(f"{name}: window {index}: {count} packets, not in 0–{PACKETS_MAX}")
        # _bytes_before[i] is what windows 0 … i-1 carry together.
        self._bytes_before = (0, *accumulate(count * PACKET_BYTES for count in self.packets))
        if self.total_bytes == 0:
            raise TraceError(f"{name}: carries nothing at all; a stall says that better")

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read a trace from a file: one whole number a line, in the first column; `#` starts a comment.

        Columns are separated by commas or white space; those after the first are ignored, and so are empty
        lines. Raises TraceError, naming the line, for anything else.
        """
        path = Path(path)
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise TraceError(f"{path.name}: larger than {FILE_BYTES_MAX} bytes")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TraceError(f"{path.name}: cannot be read: {error}") from error
        return cls.parse(text, name=path.name.removesuffix(_SUFFIX))

    @classmethod
    def parse(cls, text: str, *, name: str = "trace") -> "Trace":
        """Read a trace from text, by the rules of `load`."""
        packets: list[int] = []
        for number, line in enumerate(text.splitlines(), start=1):
            columns = line.partition("#")[0].replace(",", " ").split()
            if not columns:
                continue
            if not (columns[0].isascii() and columns[0].isdigit() and len(columns[0]) <= 12):
                raise TraceError(f"{name}: line {number}: not a whole number of packets")
            packets.append(int(columns[0]))
        return cls(packets, name=name)

    @classmethod
    def builtin(cls, name: str, direction: Literal["up", "down"]) -> "Trace":
        """A recorded trace that comes with the package; `up` is device to network, `down` the other way.

        Raises TraceError, listing the names there are, when there is none of that name and direction.
        """
        if name not in cls.builtin_names() or direction not in ("up", "down"):
            known = ", ".join(cls.builtin_names())
            raise TraceError(f"no recorded trace {name!r} {direction!r}; there are {known}, each up and down")
        file = resources.files("whimbrel.testing") / "data" / f"{name}.{direction}{_SUFFIX}"
        return cls.parse(file.read_text(encoding="utf-8"), name=f"{name}.{direction}")

    @staticmethod
    def builtin_names() -> tuple[str, ...]:
        """The names `builtin` knows, sorted."""
        files = (entry.name for entry in (resources.files("whimbrel.testing") / "data").iterdir())
        return tuple(sorted({name.rsplit(".", 2)[0] for name in files if name.endswith(_SUFFIX)}))

    @property
    def duration_s(self) -> float:
        """The length of one loop."""
        return len(self.packets) / 10

    @property
    def total_bytes(self) -> int:
        """What one loop carries."""
        return self._bytes_before[-1]

    def capacity_at(self, t_s: float) -> float:
        """The capacity in bytes/s at `t_s` seconds (≥ 0) from the beginning of the trace."""
        if t_s < 0:
            raise ValueError("a position in a trace is not negative")
        index = floor(t_s * 10 + _ROUNDING_WINDOWS) % len(self.packets)
        return self.packets[index] * PACKET_BYTES * 10.0

    def bytes_before(self, t_s: float) -> float:
        """How many bytes pass from the beginning of the trace up to `t_s` seconds (≥ 0)."""
        if t_s < 0:
            raise ValueError("a position in a trace is not negative")
        loops, index, part = self._position(t_s)
        inside = part * self.packets[index] * PACKET_BYTES
        return loops * self.total_bytes + self._bytes_before[index] + inside

    def time_of(self, bytes_carried: float) -> float:
        """The earliest time by which the trace has carried so many bytes (≥ 0) since its beginning."""
        if bytes_carried < 0:
            raise ValueError("a number of bytes is not negative")
        loops = int(bytes_carried // self.total_bytes)
        rest = bytes_carried - loops * self.total_bytes
        if rest <= _ROUNDING_BYTES and loops:
            # Just at the end of a loop: its last window that carried anything, not the next loop's first.
            loops, rest = loops - 1, float(self.total_bytes)
        index = max(bisect_left(self._bytes_before, rest - _ROUNDING_BYTES) - 1, 0)
        if rest <= 0:
            return 0.0
        window_bytes = self.packets[index] * PACKET_BYTES
        part = min((rest - self._bytes_before[index]) / window_bytes, 1.0) if window_bytes else 0.0
        return (loops * len(self.packets) + index + part) / 10

    def finish(self, start_s: float, size_bytes: float) -> float:
        """When `size_bytes` that begin to pass at `start_s` have all passed; at once when there are none."""
        if size_bytes <= 0:
            return start_s
        # Whole loops are taken off first, so that a long run does not lose precision in large sums.
        loop_s = floor(start_s / self.duration_s) * self.duration_s
        inside_s = max(start_s - loop_s, 0.0)
        return loop_s + max(self.time_of(self.bytes_before(inside_s) + size_bytes), inside_s)

    def outages(self, *, min_s: float = 0.0) -> tuple[Outage, ...]:
        """The stretches of one loop in which nothing passes, of at least `min_s` seconds, in order."""
        found: list[Outage] = []
        start: int | None = None
        for index, count in enumerate((*self.packets, 1)):
            if count == 0 and start is None:
                start = index
            elif count and start is not None:
                if (index - start) / 10 >= min_s:
                    found.append(Outage(start_s=start / 10, end_s=index / 10))
                start = None
        return tuple(found)

    def _position(self, t_s: float) -> tuple[int, int, float]:
        """Split a time into whole loops, the window inside the loop, and the part of the window gone."""
        windows = t_s * 10
        whole = floor(windows)
        loops, index = divmod(whole, len(self.packets))
        return loops, index, windows - whole

    def __repr__(self) -> str:
        return f"<Trace {self.name} {self.duration_s:g} s, {self.total_bytes} bytes>"
