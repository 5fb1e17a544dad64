"""One connection of the virtual network: two transports, and a pipe of bytes in each direction.

    transport ── write ──▶ pipe, planned by the direction's Shaper ──▶ protocol of the other side

What a pipe holds is on its way: it counts as the sender's until it arrives, the first ``WINDOW_BYTES`` as if
the system had it. A pipe ends with a mark that arrives after the bytes before it. States of a pipe:
flowing → dead (half-open: all is swallowed, nobody is told). Of a transport: open → closing (its mark is
sent, it is told nothing more but its end) → lost.

Invariants: bytes are never changed, reordered or doubled; ``connection_lost`` is called once; a protocol is
called from the event loop only. Which faults are on is in the ``Road``, which belongs to the network.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from whimbrel.testing.proxy_counters import WayName
from whimbrel.testing.proxy_shaper import Passage

if TYPE_CHECKING:
    from whimbrel.testing.virtualroad import Road

__all__ = ["Transport", "Wire"]

WINDOW_BYTES: Final = 64 * 1024
CHUNK_BYTES_MAX: Final = 16 * 1024
PACKET_BYTES_MAX: Final = 1500
"""Under a capacity chunks are the size of packets, so that a narrow road trickles."""
HIGH_WATER_BYTES: Final = 64 * 1024


class SocketFace:
    """What libraries ask of a socket: addresses, options, and whether something waits to be read."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP

    def __init__(self, transport: Transport, own: tuple[str, int], peer: tuple[str, int]) -> None:
        self._transport = transport
        self._own = own
        self._peer = peer

    def getsockname(self) -> tuple[str, int]:
        return self._own

    def getpeername(self) -> tuple[str, int]:
        return self._peer

    def setsockopt(self, *_: Any) -> None:
        """Every option is taken."""

    def fileno(self) -> int:
        # A file that is never readable, or none, which is as good as one that is.
        return -1 if self._transport.ended else self._transport.wire.road.silent_fd


class _Pipe:
    """One direction of a wire."""

    def __init__(self, wire: Wire, name: WayName) -> None:
        self.wire = wire
        self.name: WayName = name
        self.dead = wire.road.swallowing(name)
        self.in_flight_bytes = 0
        self._queue: deque[tuple[bytes, Passage, bool]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def sender(self) -> Transport:
        return self.wire.client if self.name == "up" else self.wire.server

    @property
    def receiver(self) -> Transport:
        return self.wire.server if self.name == "up" else self.wire.client

    def put(self, data: bytes) -> None:
        """Take bytes, or (empty) the mark that ends it."""
        if self.dead or self.wire.over:
            if data:
                self.wire.road.tally.bytes_swallowed[self.name] += len(data)
            return
        shaper = self.wire.road.shapers[self.name]
        size_max = CHUNK_BYTES_MAX if shaper.capacity is None else PACKET_BYTES_MAX
        now = self.wire.loop.time()
        for begin in range(0, max(len(data), 1), size_max):
            chunk = data[begin : begin + size_max]
            answers = bool(chunk) and self.name == "down" and self.wire.take_request()
            passage = shaper.admit(self.wire.lane, len(chunk), now)
            if passage.leave_at_s > now:
                self.wire.road.tally.chunks_delayed[self.name] += 1
            self.in_flight_bytes += len(chunk)
            self._queue.append((chunk, passage, answers))
        self.wake()

    def wake(self) -> None:
        """Look again when the first chunk may leave: something changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue and not self.wire.over:
            at = self._queue[0][1].leave_at_s
            if at != inf:
                self._timer = self.wire.loop.call_at(at, self._deliver)

    def kill(self) -> None:
        """Half-open from now on: what is on its way vanishes as well."""
        if not self.dead:
            self.dead = True
            self.wire.road.tally.half_open += 1
            self.drop()

    def drop(self) -> None:
        """Forget what is on its way."""
        self._queue.clear()
        self.in_flight_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.sender.drained()

    def _deliver(self) -> None:
        self._timer = None
        now = self.wire.loop.time()
        while self._queue and not self.dead and not self.wire.over:
            chunk, passage, answers = self._queue[0]
            if passage.leave_at_s > now + 1e-9:
                break
            if chunk and not self.receiver.takes:
                return  # it calls ``wake`` when it reads again
            self._queue.popleft()
            self.in_flight_bytes -= len(chunk)
            if not chunk:
                self.receiver.take_end()
            elif self.wire.road.loses(self.wire, self.name, answers):
                self.wire.reset()
                return
            else:
                self.wire.road.tally.chunks[self.name] += 1
                self.wire.road.tally.bytes_forwarded[self.name] += len(chunk)
                if self.name == "up":
                    self.wire.request_sent = True
                self.receiver.take(chunk)
            self.sender.drained()
        self.wake()


class Transport(asyncio.Transport):
    """One end of a wire, as asyncio's protocols know them."""

    def __init__(
        self, wire: Wire, protocol: asyncio.BaseProtocol, own: tuple[str, int], peer: tuple[str, int]
    ) -> None:
        face = SocketFace(self, own, peer)
        super().__init__({"socket": face, "sockname": own, "peername": peer})
        self.wire = wire
        self.pipe: _Pipe
        self.incoming: _Pipe
        self.ended = False
        """Nothing more will come."""
        self._protocol = protocol
        self._reading = True
        self._closing = False
        self._lost = False
        self._wrote_end = False
        self._paused_writer = False
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4

    def __repr__(self) -> str:
        return f"<Transport of wire {self.wire.lane}>"

    # --- what the pipes tell it ----------------------------------------------------------------

    @property
    def takes(self) -> bool:
        """Whether bytes can be handed to it now; to one that is gone, they come to nothing."""
        return self._reading or self._closing

    def take(self, data: bytes) -> None:
        """Bytes came."""
        if self._lost:
            self.wire.reset()  # nobody is there to read: the other side is told so
        elif not self._closing:
            cast("asyncio.Protocol", self._protocol).data_received(data)

    def take_end(self) -> None:
        """The other side has closed, or will write no more."""
        self.ended = True
        if self._lost or self._closing:
            return
        if not cast("asyncio.Protocol", self._protocol).eof_received():
            self.close()

    def drained(self) -> None:
        """Some of what was written is gone."""
        if self._paused_writer and not self._lost and self.get_write_buffer_size() <= self._low:
            self._paused_writer = False
            self._protocol.resume_writing()

    def lose(self, error: Exception | None) -> None:
        """It is over; the protocol hears of it in the next turn of the loop."""
        if not self._lost:
            self._lost = self._closing = self.ended = True
            self.wire.loop.call_soon(self._protocol.connection_lost, error)

    # --- asyncio.Transport ---------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.incoming.wake()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"bytes are needed, not {type(data).__name__}")
        if self._wrote_end:
            raise RuntimeError("write_eof was called before")
        if self._closing or not data:
            return
        self.pipe.put(bytes(data))
        if not self._paused_writer and self.get_write_buffer_size() > self._high:
            self._paused_writer = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return max(0, self.pipe.in_flight_bytes - WINDOW_BYTES)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        self._high, self._low = high, high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._wrote_end and not self._closing:
            self._wrote_end = True
            self.pipe.put(b"")

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._wrote_end:
            self._wrote_end = True
            self.pipe.put(b"")
        self.lose(None)
        self.incoming.wake()  # what was held for a reader that is gone comes to nothing

    def abort(self) -> None:
        self.close()


class Wire:
    """One connection. It is over when it was reset, or both sides are gone and nothing is on its way."""

    def __init__(self, road: Road, lane: int) -> None:
        self.road = road
        self.lane = lane
        self.loop = road.loop
        self.opened_at_s = self.loop.time()
        self.over = False
        self.request_sent = False
        self.client: Transport
        self.server: Transport
        self.up = _Pipe(self, "up")
        self.down = _Pipe(self, "down")

    def __repr__(self) -> str:
        return f"<Wire {self.lane}>"

    def attach(self, client: Transport, server: Transport) -> None:
        """Give it its two ends."""
        self.client, self.server = client, server
        client.pipe = server.incoming = self.up
        server.pipe = client.incoming = self.down

    @property
    def dead(self) -> bool:
        """Whether nothing gets through, either way."""
        return self.up.dead and self.down.dead

    def age_s(self) -> float:
        """How long it has been there."""
        return self.loop.time() - self.opened_at_s

    def take_request(self) -> bool:
        """Whether something went up since the last time this was asked."""
        sent, self.request_sent = self.request_sent, False
        return sent

    def kill(self, name: WayName) -> None:
        """Half-open from now on, in this direction."""
        (self.up if name == "up" else self.down).kill()

    def wake(self) -> None:
        """A fault began or ended."""
        self.up.wake()
        self.down.wake()

    def reset(self) -> None:
        """Cut it: both sides that are still there see a reset, what is on its way is lost."""
        if not self.over:
            self.over = True
            self.up.drop()
            self.down.drop()
            self.road.forget(self)
            error = ConnectionResetError(104, "the connection was reset")
            self.client.lose(error)
            self.server.lose(error)
