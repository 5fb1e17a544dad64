"""What a system under measurement is: a server process, a sending and a receiving app on its client library.

The stage (`rate_stage.py`) runs the three as processes; the two apps run in `rate_child.py`, which gives
them orders. `rate_whimbrel.py` and the modules of `peers` implement this. `by_name` finds them.

In flight is what the sending app has begun to send and has not been told to be delivered. Delivered means
on the server's disk. How a receiver gets to know is the system's own way.
"""

import importlib
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import msgspec

from benchmarks.rate_texts import Arrivals

SYSTEMS = {
    "whimbrel": "benchmarks.rate_whimbrel",
    "whimbrel-memory": "benchmarks.rate_whimbrel",
    "nats": "benchmarks.peers.nats",
    "valkey": "benchmarks.peers.valkey",
    "valkey-pipelined": "benchmarks.peers.valkey",
    "bare": "benchmarks.peers.bare",
}
"""The module of each; one module may have several variants."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A server that listens."""

    pid: int
    address: str


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """Which app a child process is."""

    system: str
    sends: bool
    address: str
    folder: str
    """For what it keeps on disk; a folder of its own."""
    profile: str = ""
    """The folder to leave a profile in; empty: run without one."""
    uvloop: bool = False


class SendingEnd(Protocol):
    """The app that sends. All methods are called one at a time."""

    async def open(self) -> None:
        """Connect, and be ready to send without any further set-up."""

    async def burst(self, first: int, count: int, in_flight: int) -> None:
        """Send the texts `first` and following, at most so many in flight; return when all are delivered."""

    async def one(self, number: int) -> tuple[float, float]:
        """Send one text; give when it was on the sender's disk and when it was known to be delivered.

        Without a disk of its own, a system gives the second for both.
        """

    async def close(self) -> None:
        """End it."""


class ReceivingEnd(Protocol):
    """The app that receives. All methods are called one at a time; nothing is lost between two calls."""

    async def open(self) -> None:
        """Connect, and be ready to receive all that is sent from now on."""

    async def receive(self, arrivals: Arrivals) -> None:
        """Hand over what comes until `arrivals` is complete."""

    async def close(self) -> None:
        """End it."""


class System(Protocol):
    """One system under measurement: what a module of this shape exports."""

    def lacks(self, name: str) -> str:
        """What this variant does not do that whimbrel does: a reader must know that beside its figures."""

    def keeps_order(self, name: str) -> bool:
        """Whether what is in flight together arrives in the order of sending."""

    def serve(self, name: str, folder: Path, profile: Path | None) -> AbstractAsyncContextManager[Served]:
        """Run the server as a process of its own that keeps all in this folder; reaped at the end."""

    def sender(self, role: Role) -> SendingEnd:
        """Make the sending app."""

    def receiver(self, role: Role) -> ReceivingEnd:
        """Make the receiving app."""


def by_name(name: str) -> System:
    """Load one of `SYSTEMS`. Raises `ImportError` if its parts are not installed."""
    return importlib.import_module(SYSTEMS[name])


# --- orders to a child, one line of JSON each; it answers each with one line --------------------


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Send so many, or receive so many; the texts go on where the order before ended."""

    count: int
    in_flight: int = 1
    pause_s: float | None = None
    """One at a time, with this pause behind each, rather than a burst."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order; times are of the monotonic clock, which all processes of a machine share."""

    first: float = 0.0
    """The sender began with its first, the receiver had its first."""
    last: float = 0.0
    """The sender knew its last delivered, the receiver's app had it."""
    wrong: str = ""
    """Why this measurement does not count."""
    singles: list[tuple[float, float, float]] = []
    """One at a time, of the sender: begun, on disk, known to be delivered."""
    times: list[float] = []
    """One at a time, of the receiver: arrived."""
