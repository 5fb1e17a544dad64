"""A TCP proxy that misbehaves on purpose: one process, one event loop, any TCP protocol.

    async with FaultProxy("127.0.0.1", server_port, seed=7) as proxy:
        connect_to("127.0.0.1", proxy.port)
        with proxy.during(Latency(latency_s=0.8, jitter_s=0.4)):
            ...

Faults are values (`proxy_faults`); several may be on at once, and they compose: latencies and jitters add
up, of several capacities the narrowest holds, each loss has its own draw, one stall is enough to hold.
Applying and lifting take effect at once, without awaiting, for open connections too.

Guarantees: bytes are never changed, reordered or doubled inside a connection; what is lost is lost with the
connection. All randomness comes from the seed (the order in which the sockets become ready does not).
Everything is bounded: connections, bytes in flight per connection and direction, and the queue before a
capacity. Closing leaves no task and no socket.

Not simulated: the handshake of a new connection (the operating system accepts it before the proxy sees it),
and what the systems' own socket buffers hold, which no fault can reach (`socket_buffer_bytes` bounds it).
The arithmetic of time is in `proxy_shaper`, a single connection in `proxy_link`, faults by a timetable
in `schedule`.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator
from typing import Final, Literal, Self

from whimbrel.testing.proxy_counters import ProxyCounters, Tally, WayName
from whimbrel.testing.proxy_faults import (
    FAULTS_MAX,
    WAYS,
    AnyFault,
    ChunkLoss,
    Direction,
    DropAnswer,
    FaultError,
    HalfOpen,
    Latency,
    LimitCapacity,
    Refuse,
    Reset,
    Stall,
)
from whimbrel.testing.proxy_link import Address, Link, Way, prepare
from whimbrel.testing.proxy_shaper import (
    QUEUE_BYTES_MAX_DEFAULT,
    Capacity,
    Narrowest,
    SteadyCapacity,
    TraceCapacity,
)
from whimbrel.testing.traces import Trace

__all__ = ["AppliedFault", "FaultProxy", "ProxyCounters"]

LINKS_MAX_DEFAULT: Final = 1024
SOCKET_BUFFER_BYTES_DEFAULT: Final = 256 * 1024
BACKLOG: Final = 128
ACCEPT_RETRY_S: Final = 0.1


class AppliedFault:
    """A fault that is on; hand it to `FaultProxy.lift` to end it."""

    __slots__ = ("began_at_s", "fault", "timer", "times_left", "traces")

    def __init__(self, fault: AnyFault, began_at_s: float, traces: dict[WayName, Trace]) -> None:
        self.fault = fault
        self.began_at_s = began_at_s
        self.traces = traces
        self.timer: asyncio.TimerHandle | None = None
        self.times_left = fault.times_max if isinstance(fault, DropAnswer) else None

    @property
    def capacity_ways(self) -> tuple[WayName, ...]:
        """The directions whose capacity it limits."""
        return WAYS[self.fault.direction] if isinstance(self.fault, LimitCapacity) else ()

    def capacity(self, name: WayName) -> Capacity:
        """The capacity it leaves to one of these directions; a trace goes on from where it is by now."""
        fault = self.fault
        assert isinstance(fault, LimitCapacity)
        if fault.bytes_per_s is not None:
            return SteadyCapacity(fault.bytes_per_s)
        return TraceCapacity(self.traces[name], began_at_s=self.began_at_s, offset_s=fault.offset_s)

    def __repr__(self) -> str:
        return f"<AppliedFault {self.fault.describe()}>"


class FaultProxy:
    """Forwards every connection on `port` to the target, with the faults that are on.

    Listens on 127.0.0.1, on `port` or (0) a free one, while its context is entered. Beyond `links_max` open
    connections a new one is closed at once. Entering raises OSError when the port is taken or the target's
    name unknown; a target that does not accept is no error: its clients are reset.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        seed: int = 0,
        port: int = 0,
        links_max: int = LINKS_MAX_DEFAULT,
        queue_bytes_max: int = QUEUE_BYTES_MAX_DEFAULT,
        socket_buffer_bytes: int = SOCKET_BUFFER_BYTES_DEFAULT,
    ) -> None:
        self.host: Final = "127.0.0.1"
        self._target = (target_host, target_port)
        self._port = port
        self._links_max = links_max
        self._queue_bytes_max = queue_bytes_max
        self._socket_buffer_bytes = socket_buffer_bytes
        self._rng = random.Random(seed)
        self._addresses: tuple[Address, ...] = ()
        self._bound: socket.socket | None = None  # holds the port, listening or not
        self._listening = False
        self._accept_timer: asyncio.TimerHandle | None = None
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._lane_last = 0
        self._applied: list[AppliedFault] = []
        self._tally = Tally()
        self._stalled_s: dict[WayName, float] = {"up": 0.0, "down": 0.0}
        self._stalled_since_s: dict[WayName, float] = {}
        self._failures: list[BaseException] = []

    async def __aenter__(self) -> Self:
        if self._bound is not None:
            raise RuntimeError("this proxy is running already")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(*self._target, type=socket.SOCK_STREAM)
        self._addresses = tuple((family, address) for family, _, _, _, address in found)
        up = Way("up", self._rng, self._queue_bytes_max)
        down = Way("down", self._rng, self._queue_bytes_max)
        self._ways: dict[WayName, Way] = {"up": up, "down": down}
        self._bound = self._bind()
        self._port = self._bound.getsockname()[1]
        self._listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening, end every connection, lift every fault. Raises what went wrong inside the proxy."""
        self._stop_listening()
        if self._bound is not None:
            self._bound.close()
            self._bound = None
            self.calm()
        tasks = tuple(self._links.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

    @property
    def port(self) -> int:
        """Where clients connect; the same from start to end, through refusals too."""
        if self._port == 0:
            raise RuntimeError("the proxy is not running yet")
        return self._port

    @property
    def present_fault(self) -> str:
        """What is wrong just now, in a few words for a person; "calm" when nothing is."""
        return " + ".join(applied.fault.describe() for applied in self._applied) or "calm"

    @property
    def counters(self) -> ProxyCounters:
        """A snapshot of everything counted so far."""
        now = asyncio.get_running_loop().time()
        stalled_s = dict(self._stalled_s)
        for name, since_s in self._stalled_since_s.items():
            stalled_s[name] += now - since_s
        return self._tally.snapshot(connections_open=len(self._links), stalled_s=stalled_s)

    def apply(self, fault: AnyFault) -> AppliedFault:
        """Begin a fault, at once; it is on until `lift`. Its times are not looked at.

        A Reset without `every_s` acts once, now. A Kill does nothing but show in `present_fault`. Raises
        FaultError when too many are on or a trace cannot be loaded; then nothing has changed.
        """
        if self._bound is None:
            raise RuntimeError("the proxy is not running")
        if len(self._applied) >= FAULTS_MAX:
            raise FaultError(f"{FAULTS_MAX} faults are on, no more are allowed")
        now = asyncio.get_running_loop().time()
        traces: dict[WayName, Trace] = {}
        if isinstance(fault, LimitCapacity) and fault.trace is not None:
            traces = {name: fault.load_trace(name) for name in WAYS[fault.direction]}
        applied = AppliedFault(fault, now, traces)
        self._applied.append(applied)
        self._begin(applied)
        return applied

    def lift(self, applied: AppliedFault) -> None:
        """End a fault, at once. Lifting one that has ended already does nothing."""
        if applied in self._applied:
            self._applied.remove(applied)
            self._end(applied)

    def calm(self) -> None:
        """End every fault."""
        for applied in tuple(self._applied):
            self.lift(applied)

    @contextlib.contextmanager
    def during(self, *faults: AnyFault) -> Iterator[None]:
        """These faults are on inside the `with` block."""
        with contextlib.ExitStack() as stack:
            for fault in faults:
                stack.callback(self.lift, self.apply(fault))
            yield

    def reset_connections(self, *, older_than_s: float = 0.0) -> int:
        """Reset, on both sides, every connection at least so old; how many that were.

        Those that are dead in both directions stay as they are: not even a reset gets through.
        """
        chosen = [link for link in self._links if not link.dead and link.age_s() >= older_than_s]
        return sum(link.reset() for link in chosen)

    # -- faults ---------------------------------------------------------------------------------------------

    def _begin(self, applied: AppliedFault) -> None:
        match applied.fault:
            case Reset():
                self._reset_now(applied)
            case HalfOpen(direction=direction):
                for link in self._links:
                    for name in WAYS[direction]:
                        link.kill(name)
            case LimitCapacity(direction=direction):
                self._set_capacity(direction)
            case _:
                pass
        self._settle()

    def _end(self, applied: AppliedFault) -> None:
        if applied.timer is not None:
            applied.timer.cancel()
            applied.timer = None
        if isinstance(applied.fault, LimitCapacity):
            self._set_capacity(applied.fault.direction)
        self._settle()

    def _settle(self) -> None:
        """Make the ways and the port what the faults that are on want them to be."""
        now = asyncio.get_running_loop().time()
        for name, way in self._ways.items():
            on = [applied.fault for applied in self._applied if _concerns(applied.fault, name)]
            latencies = [fault for fault in on if isinstance(fault, Latency)]
            way.shaper.set_latency(
                sum(fault.latency_s for fault in latencies), sum(fault.jitter_s for fault in latencies)
            )
            way.losses = tuple(
                (fault.probability, fault.older_than_s) for fault in on if isinstance(fault, ChunkLoss)
            )
            way.swallowing = any(isinstance(fault, HalfOpen) for fault in on)
            self._set_stall(name, any(isinstance(fault, Stall) for fault in on), now)
        if any(isinstance(applied.fault, Refuse) for applied in self._applied):
            self._refuse()
        elif self._bound is not None and not self._listening:
            self._listen()
        for link in self._links:
            link.wake()

    def _set_stall(self, name: WayName, stalled: bool, now_s: float) -> None:
        shaper = self._ways[name].shaper
        if stalled and not shaper.stalled:
            shaper.stall(now_s)
            self._stalled_since_s[name] = now_s
        elif shaper.stalled and not stalled:
            shaper.release(now_s)
            self._stalled_s[name] += now_s - self._stalled_since_s.pop(name)

    def _set_capacity(self, direction: Direction) -> None:
        now = asyncio.get_running_loop().time()
        for name in WAYS[direction]:
            capacities = [
                applied.capacity(name) for applied in self._applied if name in applied.capacity_ways
            ]
            narrowest = Narrowest(capacities) if capacities else None
            self._ways[name].shaper.set_capacity(narrowest, now)

    def _reset_now(self, applied: AppliedFault) -> None:
        fault = applied.fault
        assert isinstance(fault, Reset)
        self.reset_connections(older_than_s=fault.older_than_s)
        if fault.every_s is not None:
            loop = asyncio.get_running_loop()
            applied.timer = loop.call_later(fault.every_s, self._reset_now, applied)

    def _drops_answer(self, age_s: float) -> bool:
        """Whether a fault takes the answer that is about to go down a connection of this age."""
        for applied in self._applied:
            fault = applied.fault
            if not isinstance(fault, DropAnswer) or age_s < fault.older_than_s or applied.times_left == 0:
                continue
            if self._rng.random() < fault.probability:
                if applied.times_left is not None:
                    applied.times_left -= 1
                if applied.times_left == 0:
                    self.lift(applied)
                return True
        return False

    # -- the port -------------------------------------------------------------------------------------------

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            # Connections of this port that are open, or not long closed, must not keep it from being bound.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            prepare(sock, self._socket_buffer_bytes)  # what it accepts inherits the sizes of its buffers
            sock.bind((self.host, self._port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _listen(self) -> None:
        assert self._bound is not None
        self._bound.listen(BACKLOG)
        self._listening = True
        self._watch()

    def _watch(self) -> None:
        self._accept_timer = None
        if self._bound is not None and self._listening:
            asyncio.get_running_loop().add_reader(self._bound.fileno(), self._accept)

    def _stop_listening(self) -> None:
        if self._accept_timer is not None:
            self._accept_timer.cancel()
            self._accept_timer = None
        if self._bound is not None and self._listening:
            asyncio.get_running_loop().remove_reader(self._bound.fileno())
        self._listening = False

    def _refuse(self) -> None:
        """Refuse connections. The port stays bound, without listening, so that nobody else gets it."""
        if self._bound is None or not self._listening:
            return
        self._stop_listening()
        self._bound.close()
        self._bound = self._bind()
        self._tally.refused_windows += 1

    def _accept(self) -> None:
        assert self._bound is not None
        loop = asyncio.get_running_loop()
        for _ in range(BACKLOG):
            try:
                client, _address = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # No file descriptors left, most likely: trying again at once would only burn the processor.
                loop.remove_reader(self._bound.fileno())
                self._accept_timer = loop.call_later(ACCEPT_RETRY_S, self._watch)
                return
            if len(self._links) >= self._links_max:
                self._tally.turned_away += 1
                client.close()
                continue
            try:
                prepare(client, self._socket_buffer_bytes)
            except OSError:
                client.close()  # it has gone before it began
                continue
            self._open(client)

    def _open(self, client: socket.socket) -> None:
        self._tally.connections += 1
        self._lane_last += 1
        ways = (self._ways["up"], self._ways["down"])
        link = Link(
            client,
            lane=self._lane_last,
            ways=ways,
            tally=self._tally,
            drops_answer=self._drops_answer,
            rng=self._rng,
        )
        task = link.start(self._addresses, self._socket_buffer_bytes)
        self._links[link] = task
        task.add_done_callback(lambda done: self._close_link(link, done))

    def _close_link(self, link: Link, task: asyncio.Task[None]) -> None:
        del self._links[link]
        link.close_sockets()
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)

    def __repr__(self) -> str:
        return f"<FaultProxy port {self._port}, {len(self._links)} connections, {self.present_fault}>"


def _concerns(fault: AnyFault, name: Literal["up", "down"]) -> bool:
    if isinstance(fault, Latency | LimitCapacity | Stall | HalfOpen | ChunkLoss):
        return name in WAYS[fault.direction]
    return False
