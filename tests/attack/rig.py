"""A real server in a process of its own that is attacked: what it costs, what it logs, whom it still serves.

The attacker writes bytes (`raw`, `handshake`, `frame`); the victims are two users of the same server, whose
messages must arrive all the time (`served`). Memory is the kernel's figure of the server's process, peak
included; the log is everything the server wrote, at level INFO.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import msgspec
from websockets.exceptions import ConnectionClosed

from tests.server.app_rig import Server, add_users, create
from whimbrel import protocol as p

LIMIT_S = 60.0
"""Far more than anything here takes."""
GROWTH_KIB_MAX = 10 * 1024
"""What one attack may cost in memory, at its peak."""
SECRET = "Kiebitz7Q"
"""In every body the rig sends; it must never be in the log."""
Item = TypeVar("Item")
USERS = ("ann", "bob", "eve", "mallory")

_PROGRAM = """
import logging, resource, sys
import msgspec
from whimbrel.server.run import ServeSettings, run

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
settings = msgspec.json.decode(sys.argv[1], type=ServeSettings, dec_hook=lambda type, value: type(value))
if files := int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
run(settings, ready=lambda url: print(url, flush=True))
"""


class Attacked:
    """A server process and what is known of it from outside."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.server = Server(url, None)  # type: ignore[arg-type]
        self.port = int(url.rpartition(":")[2])
        self.log = log
        self.warm: list[str] = []
        """Rooms that were filled only to have caches filled."""

    def status(self, field: str) -> int:
        """A figure of the kernel, in KiB where it is of memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)
        assert found, field
        return int(found.group(1))

    @property
    def rss_kib(self) -> int:
        return self.status("VmRSS")

    @property
    def files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def complaints(self) -> list[str]:
        """Lines of the log that no attack may cause, and any that shows content."""
        lines = self.log.read_text(errors="replace").splitlines()
        bad = re.compile(r"^ERROR|^CRITICAL|Traceback|Fatal error|never retrieved|" + SECRET)
        return [line for line in lines if bad.search(line)]

    @contextlib.asynccontextmanager
    async def bounded(self, growth_kib_max: int = GROWTH_KIB_MAX) -> AsyncIterator[Growth]:
        """Hold the memory that the server takes for what is inside, at its peak, to a bound."""
        await settle_down(self)
        growth = Growth(self)
        yield growth
        growth.stop()
        assert growth.kib <= growth_kib_max, f"grew by {growth.kib} KiB"


class Growth:
    """The peak of the memory from now until told to stop, over what it was."""

    def __init__(self, attacked: Attacked) -> None:
        self._attacked = attacked
        # 5 resets the peak to what it is now.
        Path(f"/proc/{attacked.process.pid}/clear_refs").write_text("5")
        self._before_kib = attacked.rss_kib
        self.kib = 0

    def stop(self) -> None:
        self.kib = self._attacked.status("VmHWM") - self._before_kib


async def settle_down(attacked: Attacked) -> None:
    """Wait until what earlier tests left behind is closed."""
    async with asyncio.timeout(LIMIT_S):
        idle = attacked.files
        while True:
            await asyncio.sleep(0.05)
            if attacked.files >= idle:
                return
            idle = attacked.files


@contextlib.contextmanager
def attacked_server(folder: Path, *, files: int = 0, **settings: Any) -> Iterator[Attacked]:
    """Start a server with `USERS`; reaped whatever happens. `files`: its limit on open files."""
    data = folder / "data"
    add_users(data, *USERS)
    settings = {"server": {"rate_limit": None}, **settings}
    settings["http"] = {"login_burst": 100_000, **settings.get("http", {})}
    said = msgspec.json.encode({"data": str(data), "port": 0, **settings}).decode()
    log = folder / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, said, str(files)], stdout=subprocess.PIPE, stderr=errors
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        assert url, log.read_text()
        yield Attacked(process, url, log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def unharmed(attacked: Attacked, complaints_before: int = 0) -> None:
    """It runs, answers, and has logged nothing that it may not since so many complaints."""
    assert attacked.process.poll() is None, "the server is gone"
    answer = httpx2.get(attacked.server.url + "/api/health", timeout=LIMIT_S)
    assert answer.status_code == 200
    complaints = attacked.complaints()[complaints_before:]
    assert not complaints, "\n".join(complaints)


# --- the attacker's bytes ----------------------------------------------------------------------


class Raw:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def write(self, data: bytes) -> bool:
        """Write; tells whether the connection still stands."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()
            return not self.reader.at_eof() and not self.writer.is_closing()
        return False

    async def flood(self, data: bytes, size_bytes: int) -> int:
        """Write the same again and again until so much is out, or the server has enough; gives how much."""
        written = 0
        async with asyncio.timeout(LIMIT_S):
            while written < size_bytes and await self.write(data):
                written += len(data)
                await asyncio.sleep(0)
        return written

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        data = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(LIMIT_S):
                while part := await self.reader.read(65536):
                    data += part
        return data

    async def status(self) -> int:
        """The status of the next HTTP answer, which must be a problem if it is an error; 0: closed."""
        async with asyncio.timeout(LIMIT_S):
            try:
                head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0
        code = int(head.split()[1])
        assert code < 400 or b"\r\ncontent-type: application/problem+json\r\n" in head, head
        return code

    async def frame(self) -> tuple[int, bytes]:
        """The next WebSocket frame: opcode and payload. Raises `EOFError` or `ConnectionError`."""
        async with asyncio.timeout(LIMIT_S):
            first, second = await self.reader.readexactly(2)
            size = second & 127
            if size >= 126:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
            return first & 15, await self.reader.readexactly(size)

    async def items(self, kind: type[Item]) -> AsyncIterator[Item]:
        """The items of a kind, as they come; ends when the server closes."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                opcode, payload = await self.frame()
                if opcode == 8:
                    return
                if opcode == 1:
                    for item in p.decode_server(payload):
                        if isinstance(item, kind):
                            yield item

    async def closed(self) -> int:
        """The code of the close frame with which the server ends it; 0: it only closed."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                opcode, payload = await self.frame()
                if opcode == 8:
                    return int.from_bytes(payload[:2])
        return 0


@contextlib.asynccontextmanager
async def raw(attacked: Attacked, data: bytes = b"", window_bytes: int = 0) -> AsyncIterator[Raw]:
    """Connect and write; `window_bytes`: what the system may take for who does not read."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.socket())
        if window_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", attacked.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=4 * 1024 * 1024)
        stack.pop_all()
    try:
        if data:
            writer.write(data)
            await writer.drain()
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def upgrade(*headers: bytes, path: bytes = b"/api/ws") -> bytes:
    """The request of a WebSocket handshake."""
    lines = (
        b"GET " + path + b" HTTP/1.1",
        b"Host: x",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: " + b"A" * 22 + b"==",
        b"Sec-WebSocket-Version: 13",
        *headers,
    )
    return b"\r\n".join(lines) + b"\r\n\r\n"


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """A frame as a client masks it; the mask is zero, so that the payload is as it was given."""
    bit = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        length = bytes([bit | size])
    elif size < 65536:
        length = bytes([bit | 126]) + struct.pack(">H", size)
    else:
        length = bytes([bit | 127]) + struct.pack(">Q", size)
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + length + (bytes(4) if mask else b"") + payload


@contextlib.asynccontextmanager
async def handshaken(
    attacked: Attacked, token: str = "", *headers: bytes, window_bytes: int = 0
) -> AsyncIterator[Raw]:
    """A WebSocket, greeted if there is a token."""
    async with raw(attacked, upgrade(*headers), window_bytes) as link:
        async with asyncio.timeout(LIMIT_S):
            answer = await link.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        if token:
            await link.write(frame(b'[{"t":"hello","token":"%s"}]' % token.encode()))
            async with asyncio.timeout(LIMIT_S):
                opcode, payload = await link.frame()
            assert opcode == 1, payload
            assert b'"welcome"' in payload, payload
        yield link


# --- the victims -------------------------------------------------------------------------------


class Served:
    """How often somebody else's message arrived meanwhile."""

    def __init__(self) -> None:
        self.times = 0
        self.round = asyncio.Event()
        self.chatting: asyncio.Future[None] | None = None

    async def once_more(self, times: int = 1) -> None:
        """Wait until that many more messages arrived."""
        async with asyncio.timeout(LIMIT_S):
            until = self.times + times
            while self.times < until:
                self.round.clear()
                if self.chatting is not None and self.chatting.done():
                    self.chatting.result()
                await self.round.wait()


_conversations = iter(range(1_000_000))


@contextlib.asynccontextmanager
async def served(attacked: Attacked) -> AsyncIterator[Served]:
    """Have ann write to bob all the time; each message arrives, once and in order, or this fails."""
    server, said = attacked.server, Served()
    conversation = f"chat{os.getpid()}-{next(_conversations)}"
    ann_token, bob_token = await server.login("ann"), await server.login("bob")
    await create(server, ann_token, conversation, "bob")

    async with server.link(ann_token) as ann, server.link(bob_token) as bob:
        await ann.next(p.Welcome)
        await bob.next(p.Welcome)

        async def chat() -> None:
            while True:
                n = said.times + 1
                await bob.say(p.Ping())
                await ann.say(
                    p.Send(conversation=conversation, stream=1, n=n, key=f"{conversation} {n}", body=SECRET)
                )
                await ann.next(p.Delivered)
                event = await bob.next(p.Event)
                while event.conversation != conversation or event.kind != "message":
                    event = await bob.next(p.Event)
                assert event.seq == n + 1, "each message arrives once, in order"
                said.times = n
                said.round.set()
                await asyncio.sleep(0.01)

        chatting = said.chatting = asyncio.ensure_future(chat())
        chatting.add_done_callback(lambda _: said.round.set())
        try:
            await said.once_more()
            yield said
            await said.once_more()
        finally:
            chatting.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await chatting
