"""What can be wrong with a network, as data: one frozen Struct per fault, told apart in JSON by `kind`.

A fault says what happens, in which direction, and from when until when in a schedule (`at_s`, `until_s`;
without an end it lasts until the schedule's). Applied to a `FaultProxy` by hand, the times mean nothing.
`up` is from client to server, `down` from server to client.

Values out of range are refused where a fault is made, by hand or from JSON, with a FaultError. What each
fault does to a connection is the proxy's business; process faults (`Kill`) are carried out by a harness.
"""

from math import isfinite
from typing import Final, Literal

import msgspec

from whimbrel.errors import InvalidArgument
from whimbrel.testing.proxy_counters import WayName
from whimbrel.testing.traces import Trace, TraceError

__all__ = [
    "FAULTS_MAX",
    "WAYS",
    "AnyFault",
    "ChunkLoss",
    "Direction",
    "DropAnswer",
    "Fault",
    "FaultError",
    "HalfOpen",
    "Kill",
    "Latency",
    "LimitCapacity",
    "Refuse",
    "Reset",
    "Stall",
]

Direction = Literal["up", "down", "both"]
WAYS: Final[dict[Direction, tuple[WayName, ...]]] = {
    "up": ("up",),
    "down": ("down",),
    "both": ("up", "down"),
}
FAULTS_MAX: Final = 256
"""On at once, on one proxy or road."""
TIME_S_MAX: Final = 7 * 24 * 3600.0
RESET_EVERY_S_MIN: Final = 0.001

_WORDS: Final = {"up": "up", "down": "down", "both": "each way"}


class FaultError(InvalidArgument):
    """A fault that makes no sense: a time, rate, probability or name out of range."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """What every fault has: when it begins and ends, in seconds from the schedule's start."""

    at_s: float = 0.0
    until_s: float | None = None

    def __post_init__(self) -> None:
        _check_range("at_s", self.at_s, 0.0, TIME_S_MAX)
        if self.until_s is not None:
            _check_range("until_s", self.until_s, 0.0, TIME_S_MAX)
            if self.until_s < self.at_s:
                raise FaultError(f"until_s {self.until_s:g} is before at_s {self.at_s:g}")

    def describe(self) -> str:
        """A few words for a person who watches."""
        raise NotImplementedError


class Latency(Fault, frozen=True, kw_only=True, tag="latency"):
    """Every chunk takes `latency_s` ± up to `jitter_s` longer; the order inside a connection is kept."""

    latency_s: float
    jitter_s: float = 0.0
    direction: Direction = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("latency_s", self.latency_s, 0.0, 3600.0)
        _check_range("jitter_s", self.jitter_s, 0.0, 3600.0)

    def describe(self) -> str:
        jitter = f" ± {self.jitter_s * 1000:g}" if self.jitter_s else ""
        return f"latency {self.latency_s * 1000:g}{jitter} ms {_WORDS[self.direction]}"


class LimitCapacity(Fault, frozen=True, kw_only=True, tag="capacity"):
    """All connections together carry no more than `bytes_per_s`, or than a recorded trace.

    Exactly one of the two is set. `trace` is a name known to `Trace.builtin` (each direction takes its own
    recording) or the path of a `.csv` file (both take the same); it begins at `offset_s` and loops.
    """

    bytes_per_s: float | None = None
    trace: str | None = None
    offset_s: float = 0.0
    direction: Direction = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("offset_s", self.offset_s, 0.0, TIME_S_MAX)
        if (self.bytes_per_s is None) == (self.trace is None):
            raise FaultError("a capacity is either bytes_per_s or a trace")
        if self.bytes_per_s is not None:
            _check_range("bytes_per_s", self.bytes_per_s, 1.0, 1e12)
        elif self.trace is not None and not self.trace.endswith(".csv"):
            names = Trace.builtin_names()
            if self.trace not in names:
                raise FaultError(f"no recorded trace {self.trace!r}; there are {', '.join(names)}")

    def load_trace(self, direction: Literal["up", "down"]) -> Trace:
        """The trace for one direction. Raises FaultError when its file is not there or not a trace."""
        assert self.trace is not None
        try:
            if self.trace.endswith(".csv"):
                return Trace.load(self.trace)
            return Trace.builtin(self.trace, direction)
        except TraceError as error:
            raise FaultError(str(error)) from error

    def describe(self) -> str:
        what = f"{self.bytes_per_s:g} bytes/s" if self.bytes_per_s is not None else f"of {self.trace}"
        return f"capacity {what} {_WORDS[self.direction]}"


class Stall(Fault, frozen=True, kw_only=True, tag="stall"):
    """Nothing flows; bytes and new connections are held, and go on when it ends."""

    direction: Direction = "both"

    def describe(self) -> str:
        return "silence" if self.direction == "both" else f"silence {_WORDS[self.direction]}"


class HalfOpen(Fault, frozen=True, kw_only=True, tag="half_open"):
    """Bytes vanish, without a word, on every connection that is open or opened meanwhile.

    Such a connection stays dead in that direction after the end; connections opened after the end are well.
    """

    direction: Direction = "both"

    def describe(self) -> str:
        return "half-open" if self.direction == "both" else f"half-open {_WORDS[self.direction]}"


class Reset(Fault, frozen=True, kw_only=True, tag="reset"):
    """Connections older than `older_than_s` are reset on both sides: once, or every `every_s` seconds."""

    every_s: float | None = None
    older_than_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("older_than_s", self.older_than_s, 0.0, TIME_S_MAX)
        if self.every_s is not None:
            _check_range("every_s", self.every_s, RESET_EVERY_S_MIN, TIME_S_MAX)

    def describe(self) -> str:
        if self.every_s is None:
            return "connections reset"
        return f"connections reset every {self.every_s * 1000:g} ms"


class ChunkLoss(Fault, frozen=True, kw_only=True, tag="loss"):
    """With `probability` a chunk is dropped and its connection reset, if that is older than `older_than_s`.

    A chunk is what the proxy read at once: at most 16 KiB, under a capacity 1500 bytes.
    """

    probability: float
    direction: Direction = "down"
    older_than_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("probability", self.probability, 0.0, 1.0)
        _check_range("older_than_s", self.older_than_s, 0.0, TIME_S_MAX)

    def describe(self) -> str:
        way = {"up": "client→server", "down": "server→client", "both": "all"}[self.direction]
        return f"{self.probability * 100:g} % of {way} chunks dropped with a reset"


class Refuse(Fault, frozen=True, kw_only=True, tag="refuse"):
    """New connections are refused; those that are open go on. Afterwards the same port accepts again."""

    def describe(self) -> str:
        return "connections refused"


class DropAnswer(Fault, frozen=True, kw_only=True, tag="drop_answer"):
    """The request arrives, its answer does not: the first chunk down after one up is swallowed, then a reset.

    Each answer is lost with `probability`, on connections older than `older_than_s`, `times_max` times in all
    (None: without end).
    """

    probability: float = 1.0
    times_max: int | None = 1
    older_than_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("probability", self.probability, 0.0, 1.0)
        _check_range("older_than_s", self.older_than_s, 0.0, TIME_S_MAX)
        if self.times_max is not None and self.times_max < 1:
            raise FaultError("times_max is at least 1")

    def describe(self) -> str:
        if self.times_max == 1 and self.probability == 1:
            return "next answer dropped after its request"
        return f"{self.probability * 100:g} % of answers dropped after their request"


class Kill(Fault, frozen=True, kw_only=True, tag="kill"):
    """A process is killed (kill -9) at `at_s` and, if `restart_at_s` is set, started again then.

    `target` is "server" or "client:<number>". The proxy takes no notice. `until_s` is not used.
    """

    target: str
    restart_at_s: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        role, colon, number = self.target.partition(":")
        known = (role == "server" and not colon) or (
            role == "client" and number.isascii() and number.isdigit() and len(number) <= 6
        )
        if not known:
            raise FaultError("target is server or client:<number>")
        if self.until_s is not None:
            raise FaultError("a kill has restart_at_s, not until_s")
        if self.restart_at_s is not None:
            _check_range("restart_at_s", self.restart_at_s, 0.0, TIME_S_MAX)
            if self.restart_at_s < self.at_s:
                raise FaultError(f"restart_at_s {self.restart_at_s:g} is before at_s {self.at_s:g}")

    def describe(self) -> str:
        return f"{self.target} killed"


AnyFault = Latency | LimitCapacity | Stall | HalfOpen | Reset | ChunkLoss | Refuse | DropAnswer | Kill


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (isfinite(value) and low <= value <= high):
        raise FaultError(f"{name} is {value:g}, not in {low:g}–{high:g}")
