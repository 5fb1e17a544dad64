"""A bare loop of whimbrel's own building blocks: `websockets` and SQLite, a commit at each of three ends.

A text is committed by the sender before it leaves, by the server before it acknowledges and passes it on,
and by the receiver before the app has it. Whatever waits goes into one commit and one frame. There is
nothing else: no ids, no states, no members, no resuming, no retries, no limits, no encryption. What
whimbrel costs more than this is what its promises cost.

`python -m benchmarks.peers.bare FOLDER PORT` is the server.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import TypeAlias

import apsw
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed

from benchmarks.peers.processes import essential, running
from benchmarks.rate_ends import Role, Served
from benchmarks.rate_texts import Arrivals, text

FRAME_BYTES_MAX = 64 * 1024 * 1024
Rows: TypeAlias = list[tuple[int, str]]

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE log (n INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE position (acknowledged INTEGER NOT NULL);
INSERT INTO position VALUES (-1);
"""
_encode = msgspec.json.Encoder().encode
_decode_rows = msgspec.json.Decoder(Rows).decode
_decode_number = msgspec.json.Decoder(int).decode


def lacks(name: str) -> str:
    """What is left to its user."""
    return "everything but three commits and two links: no encryption, no resuming, no exactly-once, no users"


def keeps_order(name: str) -> bool:
    """It has one of everything."""
    return True


class GroupCommit:
    """Commits rows on a thread of its own, one commit at a time, all that waits in each."""

    def __init__(self, path: Path, committed: Callable[[Rows], None]) -> None:
        """`committed` is called on the event loop with the rows that are on disk now."""
        self._thread = ThreadPoolExecutor(1)
        self._database = apsw.Connection(str(path))
        self._database.execute(_SCHEMA).fetchall()  # it stops at each row until that is fetched
        self._committed = committed
        self._rows: Rows = []
        self._acknowledged = -1
        self._wake = asyncio.Event()
        self._task = essential(self._run())

    def put(self, rows: Rows) -> None:
        """Commit these soon."""
        self._rows += rows
        self._wake.set()

    def acknowledge(self, number: int) -> None:
        """Note how far it is acknowledged, with the next commit."""
        self._acknowledged = number

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            rows, self._rows = self._rows, []
            await loop.run_in_executor(self._thread, self._write, rows, self._acknowledged)
            self._committed(rows)

    def _write(self, rows: Rows, acknowledged: int) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO log VALUES (?, ?)", rows)
        database.execute("UPDATE position SET acknowledged = ?", (acknowledged,))
        database.execute("COMMIT")

    async def close(self) -> None:
        """Stop, and close the database."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown()
        self._database.close()


# --- the server ---------------------------------------------------------------------------------


def serve(
    name: str,
    folder: Path,
    profile: Path | None,
) -> AbstractAsyncContextManager[Served]:
    """Run the server."""
    begin = [sys.executable, "-m", "benchmarks.peers.bare"]
    if profile is not None:
        begin = [
            sys.executable,
            "-m",
            "benchmarks.rate_profile",
            str(profile),
            "server",
            "benchmarks.peers.bare",
        ]
    return running(lambda port: [*begin, str(folder), str(port)], folder)


class Server:
    """One sender, one receiver."""

    def __init__(self, path: Path) -> None:
        self._log = GroupCommit(path, self._committed)
        self._ends: dict[str, ServerConnection] = {}
        self._out: asyncio.Queue[Rows] = asyncio.Queue()

    async def handle(self, connection: ServerConnection) -> None:
        """Serve one connection; its path says which end it is."""
        assert connection.request is not None
        self._ends[connection.request.path] = connection
        with suppress(ConnectionClosed):
            async for frame in connection:
                self._log.put(_decode_rows(frame))

    def _committed(self, rows: Rows) -> None:
        self._out.put_nowait(rows)

    async def pass_on(self) -> None:
        """Acknowledge and pass on what is committed."""
        while True:
            rows = await self._out.get()
            with suppress(ConnectionClosed):
                await self._ends["/send"].send(_encode(rows[-1][0]), text=True)
                await self._ends["/receive"].send(_encode(rows), text=True)


async def _serve(folder: Path, port: int) -> None:
    server = Server(folder / "log.db")
    async with serve_websocket(server.handle, "127.0.0.1", port, compression=None, max_size=FRAME_BYTES_MAX):
        await server.pass_on()


def main() -> None:
    """Serve until it is killed: on uvloop where there is one, as whimbrel does."""
    folder, port = sys.argv[1:]
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415 - absent on some platforms

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(Path(folder), int(port)))


# --- the apps -----------------------------------------------------------------------------------


async def _connected(role: Role, path: str) -> ClientConnection:
    return await connect(f"ws://{role.address}{path}", compression=None, max_size=FRAME_BYTES_MAX)


class Sender:
    """Commits, sends, tops up."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._connection: ClientConnection
        self._outbox: GroupCommit
        self._frames: asyncio.Queue[Rows] = asyncio.Queue()
        self._sending: asyncio.Task[None]
        self._committed_at = 0.0

    async def open(self) -> None:
        """Connect and open the outbox."""
        self._connection = await _connected(self._role, "/send")
        self._outbox = GroupCommit(Path(self._role.folder, "outbox.db"), self._committed)
        self._sending = essential(self._send())

    async def close(self) -> None:
        """Close both."""
        self._sending.cancel()
        await self._outbox.close()
        await self._connection.close()

    def _committed(self, rows: Rows) -> None:
        self._committed_at = time.monotonic()
        self._frames.put_nowait(rows)

    async def _send(self) -> None:
        while True:
            await self._connection.send(_encode(await self._frames.get()), text=True)

    async def burst(self, first: int, count: int, in_flight: int) -> None:
        """Send, topping up what is in flight as acknowledgements come."""
        end = first + count
        following = min(first + in_flight, end)
        self._outbox.put([(number, text(number)) for number in range(first, following)])
        while True:
            acknowledged = _decode_number(await self._connection.recv())
            self._outbox.acknowledge(acknowledged)
            if acknowledged == end - 1:
                return
            upto = min(acknowledged + 1 + in_flight, end)
            if upto > following:
                self._outbox.put([(number, text(number)) for number in range(following, upto)])
                following = upto

    async def one(self, number: int) -> tuple[float, float]:
        """Send one."""
        await self.burst(number, 1, 1)
        return self._committed_at, time.monotonic()


class Receiver:
    """Receives, commits, hands over."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._connection: ClientConnection
        self._log: GroupCommit
        self._ready: asyncio.Queue[Rows] = asyncio.Queue()
        self._reading: asyncio.Task[None]

    async def open(self) -> None:
        """Connect and open the log."""
        self._connection = await _connected(self._role, "/receive")
        self._log = GroupCommit(Path(self._role.folder, "log.db"), self._ready.put_nowait)
        self._reading = essential(self._read())

    async def close(self) -> None:
        """Close both."""
        self._reading.cancel()
        await self._log.close()
        await self._connection.close()

    async def _read(self) -> None:
        async for frame in self._connection:
            self._log.put(_decode_rows(frame))

    async def receive(self, arrivals: Arrivals) -> None:
        """Hand over what is committed."""
        while not arrivals.complete:
            rows: Sequence[tuple[int, str]] = await self._ready.get()
            for _, received in rows:
                arrivals.take(received)


def sender(role: Role) -> Sender:
    """Make the sending app."""
    return Sender(role)


def receiver(role: Role) -> Receiver:
    """Make the receiving app."""
    return Receiver(role)


if __name__ == "__main__":
    main()
