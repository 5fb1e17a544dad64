"""The way of one device to all servers on the virtual network: its faults, and the connections on it.

The faults are those of ``FaultProxy``, under the same names (``proxy_faults``); they compose, and take effect
at once, for open connections too. When a chunk leaves is the ``Shaper``'s arithmetic; what a connection does
with it is in ``virtualwire``. All chance comes from the generator given.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from whimbrel.testing.proxy import AppliedFault
from whimbrel.testing.proxy_counters import ProxyCounters, Tally, WayName
from whimbrel.testing.proxy_faults import (
    FAULTS_MAX,
    WAYS,
    AnyFault,
    ChunkLoss,
    Direction,
    DropAnswer,
    HalfOpen,
    Latency,
    LimitCapacity,
    Refuse,
    Reset,
    Stall,
)
from whimbrel.testing.proxy_shaper import Narrowest, Shaper
from whimbrel.testing.virtualwire import Wire

if TYPE_CHECKING:
    from whimbrel.testing.virtualtime import VirtualLoop

__all__ = ["Road"]

CONNECTIONS_MAX: Final = 10_000
CONNECT_S_MAX: Final = 127.0
"""How long a connection that nobody answers is tried, as systems do."""


class Road:
    """The way of one device to all servers; its faults compose with each other."""

    def __init__(self, loop: VirtualLoop, name: str, rng: random.Random, silent_fd: int) -> None:
        self.loop = loop
        self.name = name
        self.silent_fd = silent_fd
        self.tally = Tally()
        self.shapers: dict[WayName, Shaper] = {"up": Shaper(rng), "down": Shaper(rng)}
        self._rng = rng
        self._wires: dict[int, Wire] = {}
        self._applied: list[AppliedFault] = []
        self._stalled_s: dict[WayName, float] = {"up": 0.0, "down": 0.0}
        self._stalled_since_s: dict[WayName, float] = {}
        self._changed = asyncio.Event()
        self._offline: AppliedFault | None = None

    def __repr__(self) -> str:
        return f"<Road {self.name or 'of all'}: {self.present_fault}>"

    @property
    def present_fault(self) -> str:
        """What is wrong just now, in a few words; "calm" when nothing is."""
        words = [applied.fault.describe() for applied in self._applied if applied is not self._offline]
        return " + ".join((["offline"] if self._offline is not None else []) + words) or "calm"

    @property
    def counters(self) -> ProxyCounters:
        """What happened so far: a test that applies a fault should look whether it ever struck."""
        stalled_s = dict(self._stalled_s)
        for name, since_s in self._stalled_since_s.items():
            stalled_s[name] += self.loop.time() - since_s
        return self.tally.snapshot(connections_open=len(self._wires), stalled_s=stalled_s)

    @property
    def is_offline(self) -> bool:
        """Whether the device knows that it has no network."""
        return self._offline is not None

    def offline(self) -> None:
        """No network, and the device knows: nothing flows, new connections fail at once."""
        if self._offline is None:
            self._offline = self.apply(Stall())

    def online(self) -> None:
        """The network is back; connections that were open go on, with what they held."""
        offline, self._offline = self._offline, None
        if offline is not None:
            self.lift(offline)

    # --- faults --------------------------------------------------------------------------------

    def apply(self, fault: AnyFault) -> AppliedFault:
        """Begin a fault, at once; it is on until ``lift``. Its times are not looked at."""
        if len(self._applied) >= FAULTS_MAX:
            raise ValueError(f"{FAULTS_MAX} faults are on, no more are allowed")
        traces = {}
        if isinstance(fault, LimitCapacity) and fault.trace is not None:
            traces = {name: fault.load_trace(name) for name in WAYS[fault.direction]}
        applied = AppliedFault(fault, self.loop.time(), traces)
        if isinstance(fault, Refuse) and not any(isinstance(on.fault, Refuse) for on in self._applied):
            self.tally.refused_windows += 1
        self._applied.append(applied)
        if isinstance(fault, Reset):
            self._reset_now(applied)
        elif isinstance(fault, HalfOpen):
            for wire in [*self._wires.values()]:
                for name in WAYS[fault.direction]:
                    wire.kill(name)
        self._settle()
        return applied

    def lift(self, applied: AppliedFault) -> None:
        """End a fault, at once. Lifting one that has ended already does nothing."""
        if applied in self._applied:
            self._applied.remove(applied)
            if applied.timer is not None:
                applied.timer.cancel()
                applied.timer = None
            self._settle()

    def calm(self) -> None:
        """End every fault."""
        self._offline = None
        for applied in [*self._applied]:
            self.lift(applied)

    @contextlib.contextmanager
    def during(self, *faults: AnyFault) -> Iterator[None]:
        """These faults are on inside the ``with`` block."""
        with contextlib.ExitStack() as stack:
            for fault in faults:
                stack.callback(self.lift, self.apply(fault))
            yield

    def reset_connections(self, *, older_than_s: float = 0.0) -> int:
        """Reset, on both sides, every connection at least so old; how many that were."""
        chosen = [w for w in self._wires.values() if not w.dead and w.age_s() >= older_than_s]
        for wire in chosen:
            wire.reset()
        self.tally.resets += len(chosen)
        return len(chosen)

    # --- for the wires -------------------------------------------------------------------------

    def swallowing(self, name: WayName) -> bool:
        """Whether connections made now are dead in this direction."""
        return any(isinstance(on.fault, HalfOpen) and _concerns(on.fault, name) for on in self._applied)

    def loses(self, wire: Wire, name: WayName, answers: bool) -> bool:
        """Whether a fault takes the chunk that is about to arrive, and its connection with it."""
        age_s = wire.age_s()
        for applied in [*self._applied]:
            fault = applied.fault
            if not isinstance(fault, ChunkLoss | DropAnswer) or age_s < fault.older_than_s:
                continue
            struck = _concerns(fault, name) if isinstance(fault, ChunkLoss) else answers
            if not struck or applied.times_left == 0 or self._rng.random() >= fault.probability:
                continue
            if isinstance(fault, ChunkLoss):
                self.tally.chunks_dropped[name] += 1
            else:
                self.tally.answers_dropped += 1
                if applied.times_left is not None:
                    applied.times_left -= 1
            return True
        return False

    def forget(self, wire: Wire) -> None:
        """It is over."""
        if self._wires.pop(wire.lane, None) is not None:
            for shaper in self.shapers.values():
                shaper.forget(wire.lane, self.loop.time())

    async def passable(self) -> None:
        """Wait until a new connection gets through. Raises OSError when it never will."""
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                while True:
                    if self.is_offline:
                        raise OSError(errno.ENETUNREACH, "the network is unreachable")
                    if any(isinstance(applied.fault, Refuse) for applied in self._applied):
                        raise ConnectionRefusedError(errno.ECONNREFUSED, "the connection was refused")
                    if not any(shaper.stalled for shaper in self.shapers.values()):
                        return
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, "nobody answered") from None

    async def round_trip(self, lane: int) -> None:
        """Wait as long as a greeting takes, there and back."""
        for shaper in self.shapers.values():
            passage = shaper.admit(lane, 0, self.loop.time())
            while (at := passage.leave_at_s) > self.loop.time() + 1e-9:
                if at == float("inf"):
                    await self._changed.wait()
                else:
                    await asyncio.sleep(at - self.loop.time())

    def add(self, wire: Wire) -> None:
        """A connection was made."""
        self._wires = {lane: w for lane, w in self._wires.items() if not _gone(w)}
        if len(self._wires) >= CONNECTIONS_MAX:
            raise OSError(errno.EMFILE, "too many connections")
        self._wires[wire.lane] = wire
        self.tally.connections += 1

    # --- within --------------------------------------------------------------------------------

    def _reset_now(self, applied: AppliedFault) -> None:
        fault = applied.fault
        assert isinstance(fault, Reset)
        self.reset_connections(older_than_s=fault.older_than_s)
        if fault.every_s is not None:
            applied.timer = self.loop.call_later(fault.every_s, self._reset_now, applied)

    def _settle(self) -> None:
        now = self.loop.time()
        for name, shaper in self.shapers.items():
            on = [applied for applied in self._applied if _concerns(applied.fault, name)]
            latencies = [applied.fault for applied in on if isinstance(applied.fault, Latency)]
            shaper.set_latency(sum(f.latency_s for f in latencies), sum(f.jitter_s for f in latencies))
            capacities = [applied.capacity(name) for applied in on if name in applied.capacity_ways]
            if capacities or shaper.capacity is not None:
                shaper.set_capacity(Narrowest(capacities) if capacities else None, now)
            stalled = any(isinstance(applied.fault, Stall) for applied in on)
            if stalled and not shaper.stalled:
                shaper.stall(now)
                self._stalled_since_s[name] = now
            elif shaper.stalled and not stalled:
                shaper.release(now)
                self._stalled_s[name] += now - self._stalled_since_s.pop(name)
        for wire in [*self._wires.values()]:
            wire.wake()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _gone(wire: Wire) -> bool:
    return wire.over or (wire.client.ended and wire.server.ended)


def _concerns(fault: AnyFault, name: WayName) -> bool:
    direction: Direction = getattr(fault, "direction", "both")
    return name in WAYS[direction]
