"""A network in memory, for a loop on virtual time: what listens on it can be connected to, and nothing else.

It carries bytes between asyncio protocols, so whatever speaks over asyncio's transports (the client's
WebSocket, an HTTP library, a server) runs over it unchanged. Between those who connect and those who listen
there are *roads*; all connections made inside ``with network.on("phone"):`` take the road of that name, all
others the road ``""``. A road has the faults of ``FaultProxy``, under the same names (``proxy_faults``), and
two of its own: ``offline`` (the device knows that it has no network) and ``online``.

    network.apply(Stall())                      # every road
    network.road("phone").offline()             # one device loses its network, and knows it
    with network.during(Latency(latency_s=2.0)): ...

Guarantees: bytes of a connection are never changed, reordered or doubled; all chance comes from the seed;
faults take effect at once, for open connections too. Bounds: ``CONNECTIONS_MAX`` of a road at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from whimbrel.testing.proxy import AppliedFault
from whimbrel.testing.proxy_faults import AnyFault
from whimbrel.testing.virtualroad import Road
from whimbrel.testing.virtualwire import Transport, Wire

if TYPE_CHECKING:
    from whimbrel.testing.virtualtime import VirtualLoop

__all__ = ["PatchyNetwork", "Road", "VirtualNetwork"]

FIRST_PORT: Final = 20_000

_here: contextvars.ContextVar[str] = contextvars.ContextVar("whimbrel_road", default="")


class Listener(asyncio.AbstractServer):
    """A server on the virtual network; closing it refuses new connections and leaves the others."""

    def __init__(self, network: VirtualNetwork, factory: Callable[[], Any], address: tuple[str, int]) -> None:
        self._network = network
        self.factory = factory
        self.address = address

    def __repr__(self) -> str:
        return f"<Listener on {self.address[0]}:{self.address[1]}>"

    @property
    def sockets(self) -> tuple[_ListeningFace, ...]:
        """What tells the port."""
        return (_ListeningFace(self.address),) if self.is_serving() else ()

    def close(self) -> None:
        self._network.unlisten(self)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._network.loop

    def is_serving(self) -> bool:
        return self._network.listens(self)

    async def start_serving(self) -> None:
        """It serves from the start."""

    async def serve_forever(self) -> None:
        """Wait to be cancelled, then close."""
        try:
            await self._network.loop.create_future()
        finally:
            self.close()

    async def wait_closed(self) -> None:
        """Return at once: connections have a life of their own."""


class _ListeningFace:
    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def getsockname(self) -> tuple[str, int]:
        return self._address


class VirtualNetwork:
    """See the module. What ``apply``, ``lift``, ``calm`` and ``during`` do, they do to every road."""

    def __init__(self, loop: VirtualLoop, *, seed: int = 0) -> None:
        self.loop = loop
        self._rng = random.Random(seed)
        self._silent_fd, self._silent_end = os.pipe()
        self._roads: dict[str, Road] = {}
        self._everywhere: dict[AppliedFault, dict[str, AppliedFault]] = {}
        self._offline = False
        self._listeners: dict[tuple[str, int], Listener] = {}
        self._next_port = FIRST_PORT
        self._next_lane = 1
        self._closed = False

    def __repr__(self) -> str:
        return f"<VirtualNetwork: {self.present_fault}>"

    def reseed(self, seed: int) -> None:
        """Begin all chance anew."""
        self._rng.seed(seed)

    def road(self, name: str = "") -> Road:
        """The road of this name, made when first asked for; what is wrong everywhere is wrong on it."""
        road = self._roads.get(name)
        if road is None:
            road = self._roads[name] = Road(self.loop, name, self._rng, self._silent_fd)
            for everywhere, on in self._everywhere.items():
                on[name] = road.apply(everywhere.fault)
            if self._offline:
                road.offline()
        return road

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[Road]:
        """Whatever connects inside, tasks that begin inside included, takes the road of this name."""
        token = _here.set(name)
        try:
            yield self.road(name)
        finally:
            _here.reset(token)

    @property
    def roads(self) -> tuple[Road, ...]:
        """All that were used so far."""
        return tuple(self._roads.values())

    # --- faults --------------------------------------------------------------------------------

    @property
    def present_fault(self) -> str:
        """What is wrong everywhere just now; "calm" when nothing is."""
        words = [everywhere.fault.describe() for everywhere in self._everywhere]
        return " + ".join((["offline"] if self._offline else []) + words) or "calm"

    def offline(self) -> None:
        """Every device loses its network, and knows it."""
        self._offline = True
        self.road()
        for road in self.roads:
            road.offline()

    def online(self) -> None:
        """Every device has its network again."""
        self._offline = False
        for road in self.roads:
            road.online()

    def apply(self, fault: AnyFault) -> AppliedFault:
        """Begin a fault on every road, at once; it is on until ``lift``."""
        self.road()
        everywhere = AppliedFault(fault, self.loop.time(), {})
        self._everywhere[everywhere] = {road.name: road.apply(fault) for road in self.roads}
        return everywhere

    def lift(self, applied: AppliedFault) -> None:
        """End a fault, at once. Lifting one that has ended already does nothing."""
        for name, one in self._everywhere.pop(applied, {}).items():
            self._roads[name].lift(one)

    def calm(self) -> None:
        """End every fault on every road."""
        self._everywhere.clear()
        self._offline = False
        for road in self.roads:
            road.calm()

    @contextlib.contextmanager
    def during(self, *faults: AnyFault) -> Iterator[None]:
        """These faults are on inside the ``with`` block."""
        with contextlib.ExitStack() as stack:
            for fault in faults:
                stack.callback(self.lift, self.apply(fault))
            yield

    def reset_connections(self, *, older_than_s: float = 0.0) -> int:
        """Reset, on both sides, every connection at least so old; how many that were."""
        return sum(road.reset_connections(older_than_s=older_than_s) for road in self.roads)

    # --- connecting ----------------------------------------------------------------------------

    def listen(self, factory: Callable[[], Any], host: str, port: int) -> Listener:
        """Accept connections; port 0 takes any free one. Raises OSError if it is taken."""
        if port == 0:
            port, self._next_port = self._next_port, self._next_port + 1
        address = (_plain(host), port)
        if address in self._listeners:
            raise OSError(errno.EADDRINUSE, f"port {port} is in use")
        listener = self._listeners[address] = Listener(self, factory, (host, port))
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Accept no more. May be called twice."""
        if self.listens(listener):
            del self._listeners[_plain(listener.address[0]), listener.address[1]]

    def listens(self, listener: Listener) -> bool:
        """Whether it still accepts."""
        return self._listeners.get((_plain(listener.address[0]), listener.address[1])) is listener

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect to what listens there, over the road of the context. Raises OSError."""
        road = self.road(_here.get())
        lane, self._next_lane = self._next_lane, self._next_lane + 1
        await road.passable()
        await road.round_trip(lane)
        listener = self._listeners.get((_plain(host), port))
        if listener is None or self._closed:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on {host}:{port}")
        wire = Wire(road, lane)
        own, peer = ("127.0.0.1", 40_000 + lane % 20_000), listener.address
        ours, theirs = factory(), listener.factory()
        client, server = Transport(wire, ours, own, peer), Transport(wire, theirs, peer, own)
        wire.attach(client, server)
        road.add(wire)
        theirs.connection_made(server)
        ours.connection_made(client)
        return client, ours

    def close(self) -> None:
        """End all connections, and what listens. May be called twice."""
        if not self._closed:
            self._closed = True
            self._listeners.clear()
            self.calm()
            os.close(self._silent_fd)
            os.close(self._silent_end)


class PatchyNetwork:
    """A network on which each fault strikes everywhere, or on one road alone, as the seed has it."""

    def __init__(self, network: VirtualNetwork, seed: int) -> None:
        self.network = network
        self._rng = random.Random(seed)
        self._roads: dict[AppliedFault, Road] = {}
        self.struck = ""
        """Where the last fault struck, in words."""
        self._struck: Road | None = None

    @property
    def present_fault(self) -> str:
        """What is wrong everywhere, then what is wrong on single roads."""
        words = [f"{applied.fault.describe()} on {_named(road)}" for applied, road in self._roads.items()]
        if self.network.present_fault != "calm" or not words:
            words.insert(0, self.network.present_fault)
        return " + ".join(words)

    def apply(self, fault: AnyFault) -> AppliedFault:
        """Begin a fault, somewhere."""
        road = self._rng.choice(self.network.roads or (self.network.road(),))
        if self._rng.random() < 0.4:
            self.struck, self._struck = "everywhere", None
            return self.network.apply(fault)
        self.struck, self._struck = f"on {_named(road)}", road
        applied = road.apply(fault)
        self._roads[applied] = road
        return applied

    def lift(self, applied: AppliedFault) -> None:
        """End it, where it is."""
        road = self._roads.pop(applied, None)
        if road is not None:
            self.struck = f"on {_named(road)}"
            road.lift(applied)
        else:
            self.struck = "everywhere"
            self.network.lift(applied)

    def reset_connections(self) -> int:
        """Reset every connection where the last fault struck."""
        return (self.network if self._struck is None else self._struck).reset_connections()

    def calm(self) -> None:
        """End every fault everywhere."""
        self._roads.clear()
        self.network.calm()


def _named(road: Road) -> str:
    return f"the road of {road.name}" if road.name else "the common road"


def _plain(host: str) -> str:
    return "127.0.0.1" if host in ("localhost", "::1", "0.0.0.0", "") else host  # noqa: S104 - names only
