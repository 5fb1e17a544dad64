"""A room of 500 members, all online on one server, 20 messages a second: how soon each is received.

The sender is a whole client on a store of its own; the clock starts when it calls `send()`, so writing to its
disk, the way up and the server's commit are in the figure. The other 499 members are thin (`speakers`): bare
WebSockets in a few processes, since 499 whole clients on one machine would measure the clients. They tell the
server once a second what they received, as clients do, so receipts pass as well, at the server's pace.
Each member must hear every message, each the next in the log; else there is no figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from array import array
from collections.abc import AsyncIterator, Iterable
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.ears import EarsConfig, EarsReport
from benchmarks.figures import Figure, Settings, figure, invalid, show_progress
from benchmarks.stand import (
    RunningServer,
    add_users,
    alone,
    create_rooms,
    credentials,
    own_folder,
    percentile,
    running_server,
    until,
)
from benchmarks.stores import KEY
from whimbrel import Client
from whimbrel.cli.storm_process import Child, reap

MEMBERS, MEMBERS_QUICK = 500, 50
MESSAGES_PER_S = 20
DURATION_S, DURATION_QUICK_S = 30.0, 3.0
PROCESSES = 2
ROOM, SENDER = "market", "crier"
READY_WITHIN_S = 120.0
SETTLE_S = 3.0
ARRIVE_S = 5.0
END_WITHIN_S = 60.0


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    times_s: list[float]
    missing: int
    not_in_order: int
    failures: tuple[str, ...]
    ears_busy: float
    """Of one processor, by the busiest process of listeners."""


def measure(settings: Settings) -> Iterable[Figure]:
    """Talk to the whole room."""
    members = MEMBERS_QUICK if settings.quick else MEMBERS
    with own_folder(settings, "fanout") as folder:
        heard = asyncio.run(_talk(folder, members, DURATION_QUICK_S if settings.quick else DURATION_S))
    name, target = f"room of {members}, {MESSAGES_PER_S} messages/s: received", "<= 250"
    if heard.missing or heard.not_in_order or heard.failures:
        why = f"{heard.missing} missing, {heard.not_in_order} out of order, {len(heard.failures)} links lost"
        yield invalid(f"{name}, 99th percentile", "ms", target, why=why)
        return
    times_ms = [1000 * seconds for seconds in heard.times_s]
    note = f"{len(times_ms):,} receptions by bare WebSockets in {PROCESSES} processes, each busy for up to "
    note += f"{heard.ears_busy:.0%} of the time; the slowest {max(times_ms):.0f} ms"
    yield figure(f"{name}, 99th percentile", percentile(times_ms, 99), "ms", target, note=note)
    yield figure(f"{name}, median", median(times_ms), "ms")


async def _talk(folder: Path, members: int, duration_s: float) -> Heard:
    names = [f"member-{number:03d}" for number in range(members - 1)]
    tokens = add_users(folder, [SENDER, *names], with_tokens=True)
    create_rooms(folder, {ROOM: (SENDER, *names)})
    count = int(duration_s * MESSAGES_PER_S)
    async with running_server(folder) as server:
        client = Client(server.url, folder / "sender.db", credentials(SENDER), key=KEY)
        async with client, _listeners(folder, server, [tokens[name] for name in names]) as ears:
            await client.connected(READY_WITHIN_S)
            await asyncio.sleep(SETTLE_S)
            began_at_s = time.monotonic()
            for number in range(count):
                await asyncio.sleep(max(0.0, began_at_s + number / MESSAGES_PER_S - time.monotonic()))
                await client.send(ROOM, str(time.monotonic_ns()))
            await client.flush(READY_WITHIN_S)
            await asyncio.sleep(ARRIVE_S)
            lasted_s = time.monotonic() - began_at_s
            for child in ears:
                await child.write(b"")
                async with asyncio.timeout(END_WITHIN_S):
                    await child.wait()
            await client.close(timeout=0.0)
    return await asyncio.to_thread(_read, folder, count, lasted_s)


def _note(ready: set[str], name: str, _: bytes) -> None:
    ready.add(name)


@contextlib.asynccontextmanager
async def _listeners(folder: Path, server: RunningServer, tokens: list[str]) -> AsyncIterator[list[Child]]:
    ready: set[str] = set()
    children: list[Child] = []
    try:
        for number in range(PROCESSES):
            name = f"ears-{number}"
            config = EarsConfig(
                port=server.port, tokens=tuple(tokens[number::PROCESSES]), report=str(folder / f"{name}.json")
            )
            file = folder / f"{name}.config"
            file.write_bytes(msgspec.json.encode(config))
            command = [sys.executable, "-m", "benchmarks.ears", str(file)]
            child = Child(name, command, folder, on_line=partial(_note, ready, name))
            children.append(child)
            await child.start()

        def all_ready() -> bool:
            for child in children:
                child.check()
            return len(ready) == PROCESSES

        await until(all_ready, READY_WITHIN_S, "all members to be online")
        show_progress(f"{len(tokens)} members are online")
        yield children
    finally:
        await reap(children)


def _read(folder: Path, count: int, lasted_s: float) -> Heard:
    times = array("d")
    reports = []
    for number in range(PROCESSES):
        file = folder / f"ears-{number}.json"
        reports.append(msgspec.json.decode(file.read_bytes(), type=EarsReport))
        times.frombytes(Path(f"{file}.times").read_bytes())
    return Heard(
        times_s=list(times),
        missing=sum(abs(count - heard) for report in reports for heard in report.heard),
        not_in_order=sum(report.not_in_order for report in reports),
        failures=tuple(failure for report in reports for failure in report.failures),
        ears_busy=max(report.busy_s for report in reports) / lasted_s,
    )


if __name__ == "__main__":
    raise SystemExit(alone(measure))
