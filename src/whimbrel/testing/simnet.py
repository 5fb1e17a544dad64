"""The simulated network: one path per device, connections over it, and everything that goes wrong there.

A `Path` is a device's way to the server: latency, jitter and capacity either way (two `Shaper`s), shared
by all its connections. A `Connection` is what TCP gives: what is written arrives in order or not at all,
and an end that is told that it closed is told last. Two connections of one path may overtake each other.

    Connection:  connecting ──▶ open ──▶ closed (each end learns of it in its own time, or never)

What can happen to a path: refusals, unreachable (nothing passes, connections turn half-open), a server that
answers 503, connects that are never answered, stalls, more latency, less capacity. To a connection: cut (both
told after a while), reset (both told at once), half-open (nobody told), held back in one direction while
other connections go on, cut by the very answer to a request. What may be repeated (not the greeting) can come
twice, as over transports whose requests are repeated by something on the way; and a single answer can be
lost, as by a server of several processes of which one dies.

Frames are tuples of items with their size in bytes; with `wire` they are encoded and decoded by the protocol.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol

from whimbrel import protocol as p
from whimbrel.core.contract import Fault
from whimbrel.testing.proxy_shaper import Capacity, Shaper
from whimbrel.testing.simclock import Clock
from whimbrel.testing.simlane import Items, Lane

__all__ = ["BUFFER_BYTES", "ClientEnd", "Connection", "Items", "Network", "Path", "ServerEnd"]

BUFFER_BYTES: Final = 64 * 1024
"""What the client's side of a connection takes before it must wait."""
SPLIT_SHARE: Final = 0.2
ONCE: Final = (p.Hello, p.Welcome, p.Goaway, p.Bye, p.Auth)
"""What opens and closes a link; everything else may be repeated."""

Direction = Literal["up", "down"]


class ClientEnd(Protocol):
    """What a device is told about its connections."""

    def opened(self, link: int) -> None:
        """The connection stands."""

    def closed(self, link: int, fault: Fault) -> None:
        """It could not be made, or is gone."""

    def received(self, link: int, items: Items) -> None:
        """A frame came."""

    def drained(self, link: int) -> None:
        """Bytes left the sending buffer."""


class ServerEnd(Protocol):
    """What the server is told."""

    up: bool

    @property
    def stopped_until_s(self) -> float | None:
        """Its process stands still until then: the host takes connections in, nobody answers."""

    def accepted(self, connection: "Connection") -> None:
        """A client connected."""

    def received(self, connection: "Connection", items: Items) -> None:
        """A frame came."""

    def closed(self, connection: "Connection") -> None:
        """The connection is gone."""

    def drained(self, connection: "Connection") -> None:
        """Bytes left the sending buffer."""


class Connection:
    """One TCP connection, as the world sees it. The two ends know only what reached them."""

    __slots__ = (
        "black_hole",
        "client_open",
        "down",
        "link",
        "network",
        "number",
        "path",
        "server_open",
        "up",
        "was_full",
    )

    def __init__(self, path: "Path", link: int, number: int) -> None:
        self.path = path
        self.network = path.network
        self.link = link
        self.number = number
        self.client_open = True
        """The client has not closed it and was not told that it closed."""
        self.server_open = False
        self.was_full = False
        """The client's side had little room when it last wrote."""
        self.black_hole = False
        """Nothing passes any more, in either direction."""
        self.up = Lane(self.network.clock, path.up, number, self._arrive_up)
        self.down = Lane(self.network.clock, path.down, number, self._arrive_down)

    def __repr__(self) -> str:
        return f"<Connection {self.number}: link {self.link} of {self.path.name}>"

    # --- the client's side

    def send_up(self, items: Items) -> None:
        """The client writes a frame."""
        if self.client_open and not self.black_hole:
            for frame, size in self.network.frames(items, "up"):
                self.up.put(frame, size)
                if self.path.duplicating and self._comes_twice(frame):
                    self.up.put(frame, size)

    def close_up(self) -> None:
        """The client closes: what it wrote still arrives, what comes is lost."""
        if self.client_open:
            self.client_open = False
            self.down.drop()
            if not self.black_hole:
                self.up.put(None, 0)
            self._forget_if_over()

    @property
    def room_bytes(self) -> int:
        """How many more bytes the client's side takes now."""
        return max(BUFFER_BYTES - self.up.sizes_bytes, 0)

    # --- the server's side

    def send_down(self, items: Items) -> None:
        """The server writes a frame."""
        if not self.server_open or self.black_hole:
            return
        if self.path.answer_fatal and any(isinstance(item, p.Delivered | p.Accepted) for item in items):
            self.path.answer_fatal = False
            self.network.count("answer_lost")
            self.cut(0.05, 0.05)
            return
        if self.path.swallowing:
            items = self._without_answers(items)
        if len(items) > 1 and self.path.rng.random() < SPLIT_SHARE:
            # Written in two pieces: what goes wrong may go wrong between them.
            middle = self.path.rng.randrange(1, len(items))
            pieces: tuple[Items, ...] = (items[:middle], items[middle:])
        else:
            pieces = (items,)
        for piece in pieces:
            if not piece:
                continue
            for frame, size in self.network.frames(piece, "down"):
                self.down.put(frame, size)
                if self.path.duplicating and self._comes_twice(frame):
                    self.down.put(frame, size)

    def _without_answers(self, items: Items) -> Items:
        """Lose some answers, as when a process behind the gateway dies between commit and answer."""
        kept = []
        for item in items:
            answer = isinstance(item, p.Delivered | p.Rejected | p.Page)
            if answer and self.path.rng.random() < self.path.swallowing:
                self.network.count("swallowed")
            else:
                kept.append(item)
        return tuple(kept)

    def _comes_twice(self, items: Items) -> bool:
        path = self.path
        if path.rng.random() >= path.duplicating or any(isinstance(item, ONCE) for item in items):
            return False
        self.network.count("duplicated")
        return True

    def close_down(self) -> None:
        """The server closes: what it wrote still arrives, what comes is lost."""
        if self.server_open:
            self.server_open = False
            self.up.drop()
            if not self.black_hole:
                self.down.put(None, 0)
            self._forget_if_over()

    # --- what goes wrong

    def cut(self, client_told_s: float, server_told_s: float, kind: str = "network") -> None:
        """Lose what is on its way; each end is told after its own time."""
        self.half_open()
        self.network.clock.after(client_told_s, self.tell_client, Fault(kind=kind, text="cut"))
        self.network.clock.after(server_told_s, self._tell_server)

    def half_open(self) -> None:
        """Nothing passes any more and nobody is told."""
        self.black_hole = True
        self.up.drop()
        self.down.drop()

    def server_gone(self, reset: bool) -> None:
        """The server process died: its end is gone; the client's is reset, or never told."""
        self.server_open = False
        self.half_open()
        if reset:
            delay = self.path.latency_s()
            self.network.clock.after(delay, self.tell_client, Fault(kind="network", text="reset"))
        self._forget_if_over()

    def client_gone(self, silent: bool) -> None:
        """The device died: with its power (nobody tells the server), or only the process."""
        if silent:
            self.client_open = False
            self.half_open()
            self._forget_if_over()
        else:
            self.close_up()

    # --- arrivals

    def syn(self) -> None:
        """The connect reached the server's host."""
        network = self.network
        path = self.path
        if self.black_hole or not self.client_open:
            return
        stopped_until_s = network.server.stopped_until_s
        if stopped_until_s is not None:
            network.clock.at(stopped_until_s, self.syn)
            return
        back = path.latency_s()
        if path.unavailable:
            network.count("unavailable_503")
            fault = Fault(kind="http", text="unavailable", status=503, retry_after_s=path.retry_after_s)
            network.clock.after(back, self.tell_client, fault)
        elif path.refusing or not network.server.up:
            network.count("refused")
            network.clock.after(back, self.tell_client, Fault(kind="refused", text="refused"))
        else:
            self.server_open = True
            network.connections[self.number] = self
            network.server.accepted(self)
            network.clock.after(back, self._tell_opened)

    def _tell_opened(self) -> None:
        if self.client_open and not self.black_hole:
            self.path.client.opened(self.link)

    def tell_client(self, fault: Fault) -> None:
        if self.client_open:
            self.client_open = False
            self.path.client.closed(self.link, fault)
            self._forget_if_over()

    def _tell_server(self) -> None:
        if self.server_open:
            self.server_open = False
            self.network.server.closed(self)
            self._forget_if_over()

    def _arrive_up(self, items: Items | None) -> None:
        if not self.server_open:
            return
        if items is None:
            self._tell_server()
            return
        self.network.server.received(self, items)
        if self.client_open:
            self.path.client.drained(self.link)

    def _arrive_down(self, items: Items | None) -> None:
        if not self.client_open:
            return
        if items is None:
            self.tell_client(Fault(kind="closed", text="closed by the server"))
        else:
            self.path.client.received(self.link, items)
            if self.server_open:
                self.network.server.drained(self)

    def _forget_if_over(self) -> None:
        if not self.client_open:
            # After a crash, the numbers of links begin anew: it may be another's by now.
            if self.path.connections.get(self.link) is self:
                del self.path.connections[self.link]
            if not self.server_open:
                self.network.connections.pop(self.number, None)


class Path:
    """One device's way to the server."""

    def __init__(self, network: "Network", name: str, rng: random.Random) -> None:
        self.network = network
        self.name = name
        self.rng = rng
        self.client: ClientEnd
        self.up = Shaper(rng)
        self.down = Shaper(rng)
        self.connections: dict[int, Connection] = {}
        self.refusing = 0
        """How many reasons there are now to refuse; so for the next four."""
        self.unreachable = 0
        self.unavailable = 0
        self.unanswered = 0
        self.retry_after_s: float | None = None
        self.duplicating = 0.0
        """The share of frames that come twice."""
        self.swallowing = 0.0
        """The share of answers that are lost while the connection goes on."""
        self.answer_fatal = False
        """The connection is cut by the next answer of the server to something that was sent."""

    def latency_s(self) -> float:
        """One way, drawn anew: for what does not pass through the shapers."""
        return max(0.001, self.up.latency_s + self.rng.uniform(-self.up.jitter_s, self.up.jitter_s))

    def set_latency(self, latency_s: float, jitter_s: float) -> None:
        """Delay what is sent from now on, either way."""
        self.up.set_latency(latency_s, jitter_s)
        self.down.set_latency(latency_s, jitter_s)

    def set_capacity(self, up: Capacity | None, down: Capacity | None) -> None:
        """Carry no more than this, what is queued included."""
        now = self.network.clock.now_s
        self.up.set_capacity(up, now)
        self.down.set_capacity(down, now)
        self._replan()

    def stall(self) -> None:
        """Hold everything on the way until `release`."""
        now = self.network.clock.now_s
        self.up.stall(now)
        self.down.stall(now)

    def release(self) -> None:
        """End a stall."""
        now = self.network.clock.now_s
        self.up.release(now)
        self.down.release(now)
        self._replan()

    def connect(self, link: int) -> None:
        """Begin a connection under this number; the client is told what came of it, or never."""
        network = self.network
        network.numbers += 1
        connection = self.connections[link] = Connection(self, link, network.numbers)
        if self.unreachable:
            network.count("unreachable")
            fault = Fault(kind="network", text="unreachable")
            network.clock.after(0.001, connection.tell_client, fault)
        elif self.unanswered:
            network.count("unanswered")
            connection.black_hole = True
        else:
            # Two round trips before the first byte: the connect itself, then the handshake.
            network.clock.after(self.latency_s() * 3, connection.syn)

    def newest(self) -> Connection | None:
        """The connection that was begun last and still stands on the client's side, if any."""
        return next(reversed(self.connections.values()), None)

    def _replan(self) -> None:
        for connection in list(self.network.connections.values()):
            if connection.path is self:
                connection.up.replan()
                connection.down.replan()


class Network:
    """All paths and connections of one world."""

    def __init__(self, clock: Clock, *, wire: bool, count: Callable[[str], None]) -> None:
        self.clock = clock
        self.wire = wire
        self.count = count
        self.server: ServerEnd
        self.connections: dict[int, Connection] = {}
        """Those of which at least the server's end stands."""
        self.numbers = 0

    def frames(self, items: Sequence[Any], direction: Direction) -> list[tuple[Items, int]]:
        """Pack items into frames with their sizes; with `wire`, through the protocol and back."""
        if self.wire:
            decode: Callable[[bytes], list[Any]]
            decode = p.decode_client if direction == "up" else p.decode_server
            return [(tuple(decode(frame)), len(frame)) for frame in p.frames(items)]
        return [(tuple(items), sum(size_of(item) for item in items))]


def size_of(item: Any) -> int:
    """About how many bytes an item takes on the wire, without encoding it."""
    if isinstance(item, p.Page):
        return 120 + sum(size_of(event) for event in item.events)
    if isinstance(item, p.Send | p.Event):
        return 200 + len(item.body)
    if isinstance(item, p.Welcome | p.Heads):
        return 120 + 150 * len(item.heads)
    return 100
