"""What memory it takes: a connection that idles at the server, and a client with 100,000 stored messages.

A connection: 2,000 devices, one of each of 2,000 users who are members of one conversation with another,
greet the real server and say nothing more but pings. The growth of its resident memory, divided by their
number, is the figure; what the system itself keeps for a socket is not in it. Before, a few have come and
gone, so that what is made once is not counted.

A client: it has synced 100,000 messages from a real server, ended, and was started again in a new process;
connected, with its conversations listed and the newest page of one read, all of that process counts: the
interpreter, the libraries, and the caches of the database. So does the peak since its start.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from benchmarks.figures import Figure, Settings, figure, show_progress
from benchmarks.speakers import Speaker, say_hello
from benchmarks.stand import (
    RunningServer,
    add_users,
    alone,
    create_rooms,
    credentials,
    files_at_most,
    own_folder,
    resident_bytes,
    running_server,
)
from benchmarks.stores import KEY, OTHER, USER, fill_ledger
from whimbrel import Client
from whimbrel.cli.storm_process import Child
from whimbrel.server.data import open_data

CONNECTIONS, CONNECTIONS_QUICK = 2_000, 200
WARM_UP = 20
STORED, STORED_QUICK = 100_000, 5_000
ROOMS = 20
IDLE_S = 3.0
SYNC_WITHIN_S = 600.0
CONNECT_WITHIN_S = 60.0
PAGE = 50
KIB, MB = 1024, 1_000_000


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the client's process says of itself."""

    stored: int
    resident_bytes: int
    peak_bytes: int


def measure(settings: Settings) -> Iterable[Figure]:
    """Server and client."""
    count = CONNECTIONS_QUICK if settings.quick else CONNECTIONS
    with own_folder(settings, "links") as folder:
        before, after = asyncio.run(_connections(folder, count))
    note = f"{count:,} connections: {before / MB:.0f} MB grew to {after / MB:.0f} MB"
    name = "server memory per idle connection"
    yield figure(name, (after - before) / count / KIB, "KiB", "<= 40", note=note)
    stored = STORED_QUICK if settings.quick else STORED
    with own_folder(settings, "client") as folder:
        report = asyncio.run(_client(folder, stored))
    name = f"client memory with {report.stored:,} stored messages, the whole process"
    note = f"connected; at its peak since the start {report.peak_bytes / MB:.0f} MB"
    yield figure(name, report.resident_bytes / MB, "MB", "<= 60", note=note)


# --- connections ---------------------------------------------------------------------------------


async def _connections(folder: Path, count: int) -> tuple[int, int]:
    files_at_most(count + 1_000)
    names = [f"idler-{number:04d}" for number in range(count + WARM_UP)]
    tokens = add_users(folder, names, with_tokens=True)
    pairs = zip(names[::2], names[1::2], strict=True)
    create_rooms(folder, {f"pair-{number}": pair for number, pair in enumerate(pairs)})
    async with running_server(folder) as server:
        for speaker in await say_hello([tokens[name] for name in names[count:]], server.port):
            speaker.close()
        before = await _settled(server)
        speakers = await say_hello([tokens[name] for name in names[:count]], server.port)
        try:
            show_progress(f"{count} connections are open")
            after = await _settled(server)
            _still_there(speakers)
        finally:
            for speaker in speakers:
                speaker.close()
    return before, after


async def _settled(server: RunningServer) -> int:
    await asyncio.sleep(IDLE_S)
    return resident_bytes(server.pid)


def _still_there(speakers: Sequence[Speaker]) -> None:
    for speaker in speakers:
        if speaker.failure is not None:
            raise speaker.failure


# --- a client ------------------------------------------------------------------------------------


async def _client(folder: Path, stored: int) -> Report:
    add_users(folder, [USER, OTHER])
    await asyncio.to_thread(_fill, folder, stored)
    async with running_server(folder) as server:
        # The first process syncs, the second is measured.
        for role in ("sync", "look"):
            said: list[bytes] = []
            command = [sys.executable, "-m", "benchmarks.memory", role, server.url, str(folder), str(stored)]
            child = Child(role, command, folder, on_line=said.append)
            try:
                await child.start()
                async with asyncio.timeout(SYNC_WITHIN_S):
                    code = await child.wait()
            finally:
                await child.stop()
            if code or not said:
                raise RuntimeError(f"the client's process ended with {code}:\n{child.last_words()}")
            report = msgspec.json.decode(said[-1], type=Report)
            show_progress(f"{role}: {report.resident_bytes / MB:.0f} MB")
    if report.stored < stored:
        raise RuntimeError(f"only {report.stored} messages are in the store")
    return report


def _fill(folder: Path, stored: int) -> None:
    with open_data(folder / "server") as data:
        for number in range(ROOMS):
            fill_ledger(data.ledger, f"room-{number}", (OTHER, USER), stored // ROOMS)


async def _live(role: str, url: str, folder: Path, stored: int) -> Report:
    """What the client's process does: connect, sync if there is something to sync, and look."""
    async with Client(url, folder / "client.db", credentials(USER), key=KEY) as client:
        await client.connected(CONNECT_WITHIN_S)
        have = 0
        async with asyncio.timeout(SYNC_WITHIN_S):
            while have < stored:
                await asyncio.sleep(0.2)
                have = await _stored(client)
        await client.conversation("room-0").messages(limit=PAGE)
        if role == "look":
            await asyncio.sleep(IDLE_S)
        pid = (await asyncio.to_thread(Path("/proc/self").readlink)).name
        return Report(
            stored=have,
            resident_bytes=resident_bytes(int(pid)),
            peak_bytes=resident_bytes(int(pid), peak=True),
        )


async def _stored(client: Client) -> int:
    return sum(conversation.position for conversation in await client.conversations())


def main() -> int:
    """Be the client's process if told so, else measure."""
    if sys.argv[1:2] not in (["sync"], ["look"]):
        return alone(measure)
    role, url, folder, stored = sys.argv[1:5]
    report = asyncio.run(_live(role, url, Path(folder), int(stored)))
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
