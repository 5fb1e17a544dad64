"""One connection through the fault proxy: two sockets, and a pipe of bytes in each direction.

    reader ── chunk ──▶ bounded queue, planned by the direction's Shaper ──▶ writer

A pipe ends with a mark that travels through the queue like a chunk, so an end of stream, or a reset by the
peer, arrives after the bytes before it and as late as they do. States of a pipe: flowing → dead (half-open:
bytes and marks are swallowed for ever, nobody is told) or broken (the receiver is gone: the same, but the
other pipe ends with a reset). A link ends when both its pipes have, or at once by `reset`.

Invariants: at most IN_FLIGHT_BYTES_MAX and IN_FLIGHT_CHUNKS_MAX wait in a pipe, and the reader pauses beyond
that; a socket is closed only when no task uses it any more; what becomes of a chunk is decided once, when it
is about to be written. Which faults are on is in the two `Way`s, which belong to the proxy.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final

from whimbrel.testing.proxy_counters import Tally, WayName
from whimbrel.testing.proxy_shaper import Passage, Shaper

__all__ = ["Address", "Link", "Way", "prepare"]

IN_FLIGHT_BYTES_MAX: Final = 256 * 1024
IN_FLIGHT_CHUNKS_MAX: Final = 1024
CHUNK_BYTES_MAX: Final = 16 * 1024
# Under a capacity chunks are the size of packets, so that a slow link trickles instead of stuttering.
PACKET_BYTES_MAX: Final = 1500
CONNECT_TIMEOUT_S: Final = 10.0

_LINGER_NONE: Final = struct.pack("ii", 1, 0)  # closing sends RST and forgets what was not sent

Address = tuple[int, Any]


class Way:
    """One direction of the proxy: the shaper all links share, and the faults that are on."""

    def __init__(self, name: WayName, rng: random.Random, queue_bytes_max: int) -> None:
        self.name: WayName = name
        self.shaper = Shaper(rng, queue_bytes_max=queue_bytes_max)
        self.chunk_bytes_max = min(CHUNK_BYTES_MAX, queue_bytes_max)
        self.swallowing = False  # links made now are dead in this direction
        self.losses: tuple[tuple[float, float], ...] = ()  # (probability, older_than_s)
        self.admission = asyncio.Lock()  # who waits for room in the shaper's queue gets it in turn


class _Chunk:
    """Bytes on their way, or (without bytes) the mark that ends a pipe."""

    __slots__ = ("answers", "data", "passage", "reset")

    def __init__(self, data: bytes, passage: Passage, *, reset: bool = False, answers: bool = False) -> None:
        self.data = data
        self.passage = passage
        self.reset = reset  # the mark of a peer that reset, rather than closed
        self.answers = answers  # the first down after something went up


class _Pipe:
    """One direction of one link."""

    def __init__(self, link: "Link", way: Way) -> None:
        self.link = link
        self.way = way
        self.dead = way.swallowing
        self.broken = False
        self.ended = False  # its mark was written
        self.ends_in_reset = False  # an end of stream from here on hides a reset
        self._queue: deque[_Chunk] = deque()
        self._in_flight_bytes = 0
        self._room = asyncio.Event()
        self._work = asyncio.Event()

    @property
    def swallows(self) -> bool:
        return self.dead or self.broken

    def wake(self) -> None:
        """Look again: a fault began or ended."""
        self._room.set()
        self._work.set()

    async def read(self, source: socket.socket) -> None:
        """Take bytes from a socket into the queue until it ends."""
        loop = asyncio.get_running_loop()
        reset = False
        while True:
            size_max = await self._window()
            try:
                data = await loop.sock_recv(source, size_max)
            except OSError:
                reset = True
                break
            if not data:
                break
            answers = self.way.name == "down" and self.link.take_request()
            passage = None if self.swallows else await self._admit(len(data))
            if passage is None:
                self._swallow(len(data))
                # No full pipe ever makes this loop pause, and a socket with data does not either.
                await asyncio.sleep(0)
                continue
            self._in_flight_bytes += len(data)
            self._put(_Chunk(data, passage, answers=answers))
        mark = self.way.shaper.admit(self.link.lane, 0, loop.time())
        self._put(_Chunk(b"", mark, reset=reset))

    async def write(self, sink: socket.socket | None) -> None:
        """Carry out what the queue holds, each chunk at its time, until the mark that ends it."""
        loop = asyncio.get_running_loop()
        while True:
            chunk = await self._next_due()
            size = len(chunk.data)
            if self.swallows or sink is None:
                self._swallow(size)
            elif size == 0:
                self._end(chunk, sink)
            elif self.link.decides_to_reset(self.way, chunk.answers):
                self.link.reset()
                return
            else:
                try:
                    await loop.sock_sendall(sink, chunk.data)
                except OSError:
                    self.broken = True
                    self.link.note_receiver_gone(self)
                else:
                    self.link.note_forwarded(self.way, size)
            self._in_flight_bytes -= size
            self._room.set()
            if size == 0:
                self.ended = True
                return

    async def wait_for_change(self) -> None:
        """Wait until a fault begins or ends, or the link is woken for another reason."""
        self._work.clear()
        await self._work.wait()

    def _end(self, mark: _Chunk, sink: socket.socket) -> None:
        if mark.reset or self.ends_in_reset:
            self.link.reset(by_peer=True)
            return
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.broken = True

    def _put(self, chunk: _Chunk) -> None:
        self._queue.append(chunk)
        self._work.set()

    def _swallow(self, size: int) -> None:
        if self.dead:
            self.link.tally.bytes_swallowed[self.way.name] += size

    async def _window(self) -> int:
        """How many bytes may be read now; waits while the pipe is full."""
        while True:
            self._room.clear()
            room = IN_FLIGHT_BYTES_MAX - self._in_flight_bytes
            if self.swallows:
                return CHUNK_BYTES_MAX
            if room > 0 and len(self._queue) < IN_FLIGHT_CHUNKS_MAX:
                limited = self.way.shaper.capacity is not None
                return min(room, self.way.chunk_bytes_max, PACKET_BYTES_MAX if limited else CHUNK_BYTES_MAX)
            await self._room.wait()

    async def _admit(self, size: int) -> Passage | None:
        """Enter the shaper's queue as soon as it has room; None if the pipe died meanwhile."""
        loop = asyncio.get_running_loop()
        shaper = self.way.shaper
        async with self.way.admission:
            while not self.swallows:
                now = loop.time()
                room_at = shaper.room_at(size, now)
                if room_at <= now:
                    passage = shaper.admit(self.link.lane, size, now)
                    if passage.leave_at_s > now:
                        self.link.tally.chunks_delayed[self.way.name] += 1
                    return passage
                await _wait_until(self._room, room_at)
        return None

    async def _next_due(self) -> _Chunk:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                await self.wait_for_change()
                continue
            head = self._queue[0]
            held = self.way.shaper.stalled or head.passage.leave_at_s > loop.time()
            if self.swallows or not held:
                return self._queue.popleft()
            await _wait_until(self._work, inf if self.way.shaper.stalled else head.passage.leave_at_s)


class Link:
    """One client's connection and the one made for it to the target."""

    def __init__(
        self,
        client: socket.socket,
        *,
        lane: int,
        ways: tuple[Way, Way],
        tally: Tally,
        drops_answer: Callable[[float], bool],
        rng: random.Random,
    ) -> None:
        self.lane = lane
        self.tally = tally
        self._client = client
        self._server: socket.socket | None = None
        self._drops_answer = drops_answer
        self._rng = rng
        self._opened_at_s = asyncio.get_running_loop().time()
        self._up = _Pipe(self, ways[0])
        self._down = _Pipe(self, ways[1])
        self._pipes = (self._up, self._down)
        self._request_sent = False
        self._resetting = False
        self._task: asyncio.Task[None] | None = None
        self.tally.half_open += self.half_open

    @property
    def half_open(self) -> bool:
        """Whether bytes vanish on it, in one direction or both."""
        return self._up.dead or self._down.dead

    @property
    def dead(self) -> bool:
        return self._up.dead and self._down.dead

    def age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._opened_at_s

    def start(self, targets: Sequence[Address], socket_buffer_bytes: int) -> asyncio.Task[None]:
        """Begin to carry bytes; when the task has ended, `close_sockets` is due."""
        self._task = asyncio.create_task(self._run(targets, socket_buffer_bytes), name=f"link {self.lane}")
        return self._task

    def kill(self, name: WayName) -> None:
        """Make it half-open in one direction, for ever."""
        was_half_open = self.half_open
        pipe = self._up if name == "up" else self._down
        pipe.dead = True
        self.tally.half_open += self.half_open and not was_half_open
        self.wake()

    def wake(self) -> None:
        """Look again: a fault began or ended."""
        for pipe in self._pipes:
            pipe.wake()

    def reset(self, *, by_peer: bool = False) -> bool:
        """Cut it: both sides get a reset, what is on its way is lost. False if it is ending anyway."""
        if self._resetting or self._task is None or self._task.done():
            return False
        self._resetting = True
        self.tally.resets += not by_peer
        self._task.cancel()
        return True

    def close_sockets(self) -> None:
        """Let go of everything. Only for whoever saw the task end: until then it uses the sockets.

        The task cannot do this itself: one that is cancelled before its first step runs no `finally`.
        """
        now = asyncio.get_running_loop().time()
        for pipe in self._pipes:
            pipe.way.shaper.forget(self.lane, now)
        for sock in (self._client, self._server):
            if sock is not None:
                _close(sock, reset=self._resetting)

    def take_request(self) -> bool:
        """Whether something went up since the last time this was asked."""
        sent, self._request_sent = self._request_sent, False
        return sent

    def note_receiver_gone(self, pipe: _Pipe) -> None:
        """Whom a pipe writes to has reset. Its own last bytes may still be on their way: they go first."""
        back = self._down if pipe is self._up else self._up
        if back.ended:
            self.reset(by_peer=True)
        else:
            back.ends_in_reset = True

    def note_forwarded(self, way: Way, size: int) -> None:
        self.tally.chunks[way.name] += 1
        self.tally.bytes_forwarded[way.name] += size
        if way.name == "up":
            self._request_sent = True

    def decides_to_reset(self, way: Way, answers: bool) -> bool:
        """Whether a fault takes the chunk that is about to be written, and the link with it."""
        age_s = self.age_s()
        if answers and self._drops_answer(age_s):
            self.tally.answers_dropped += 1
            return True
        for probability, older_than_s in way.losses:
            if age_s >= older_than_s and self._rng.random() < probability:
                self.tally.chunks_dropped[way.name] += 1
                return True
        return False

    async def _run(self, targets: Sequence[Address], socket_buffer_bytes: int) -> None:
        while self._up.way.shaper.stalled and not self._up.dead:
            await self._up.wait_for_change()
        # On a link that is dead upwards the target never hears of the client.
        if not self._up.dead:
            self._server = await _connect_any(targets, socket_buffer_bytes)
            if self._server is None:
                self.tally.targets_unreachable += 1
                self._resetting = True
                return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._up.read(self._client))
            group.create_task(self._up.write(self._server))
            if self._server is not None:
                group.create_task(self._down.read(self._server))
                group.create_task(self._down.write(self._client))


def prepare(sock: socket.socket, buffer_bytes: int) -> None:
    """Make a socket never block and never gather, and bound what the system buffers for it."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)


async def _connect_any(targets: Sequence[Address], buffer_bytes: int) -> socket.socket | None:
    """Connect to the first address that accepts; None if none does in time."""
    loop = asyncio.get_running_loop()
    for family, address in targets:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            prepare(sock, buffer_bytes)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(sock, address)
        except (OSError, TimeoutError):
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    return None


def _close(sock: socket.socket, *, reset: bool) -> None:
    if reset:
        # A socket whose peer has gone already may refuse; closing it is all there is left to do.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    sock.close()


async def _wait_until(event: asyncio.Event, when_s: float) -> None:
    """Wait for an event that happens from now on, or until a time on the loop's clock."""
    event.clear()
    if when_s == inf:
        await event.wait()
        return
    timer = asyncio.get_running_loop().call_at(when_s, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
