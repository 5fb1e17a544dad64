"""NATS JetStream: a stream in files, every write synced; publish with acknowledgement; an ordered consumer.

As many tasks as there may be messages in flight publish, each the next text when its own was acknowledged.
They share one connection, so the order of sending is kept. They use `publish_async`, which costs the client
a third less than `publish`. The receiver has a callback on a push consumer, the quickest that the client
offers; it finds gaps and goes back for them, without acknowledgements.
"""

import asyncio
import json
import time
from collections import deque
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from benchmarks.peers.processes import program, running
from benchmarks.rate_ends import Role, Served
from benchmarks.rate_texts import Arrivals, text

STREAM, SUBJECT = "bench", "bench.texts"
PUBLISH_WITHIN_S = 60.0
CONNECT_WITHIN_S = 30


def lacks(name: str) -> str:
    """What is left to its user."""
    return (
        "no durable outbox: what is not acknowledged is gone with the sender; "
        "sent again after a lost link it is a second message; nothing encrypted at rest; "
        "the receiver keeps neither messages nor its position"
    )


def keeps_order(name: str) -> bool:
    """One connection, one stream."""
    return True


def serve(
    name: str,
    folder: Path,
    profile: Path | None,
) -> AbstractAsyncContextManager[Served]:
    """Run `nats-server` with files synced at every write."""
    config = folder / "nats.conf"
    # JSON is a subset of what it reads, and quotes paths.
    jetstream = {"store_dir": str(folder / "streams"), "sync_interval": "always"}
    config.write_text(f"jetstream: {json.dumps(jetstream)}\n")
    binary = program("nats-server")
    return running(lambda port: [binary, "-c", str(config), "-a", "127.0.0.1", "-p", str(port)], folder)


async def _connected(role: Role) -> tuple[Client, JetStreamContext]:
    client = Client()
    await client.connect(f"nats://{role.address}", connect_timeout=CONNECT_WITHIN_S)
    jetstream = client.jetstream(timeout=CONNECT_WITHIN_S)
    # The receiver, which comes first, creates it; the same again is no error.
    await jetstream.add_stream(name=STREAM, subjects=[SUBJECT])
    return client, jetstream


class Sender:
    """Publishes."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._client: Client
        self._jetstream: JetStreamContext

    async def open(self) -> None:
        """Connect."""
        self._client, self._jetstream = await _connected(self._role)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def burst(self, first: int, count: int, in_flight: int) -> None:
        """Publish by so many tasks."""
        numbers = iter(range(first, first + count))
        publish = self._jetstream.publish_async

        async def work() -> None:
            for number in numbers:
                acknowledged = await publish(SUBJECT, text(number).encode())
                await acknowledged

        async with asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(work())

    async def one(self, number: int) -> tuple[float, float]:
        """Publish one."""
        await self._jetstream.publish(SUBJECT, text(number).encode(), timeout=PUBLISH_WITHIN_S)
        return (at := time.monotonic()), at


class Receiver:
    """Takes what is pushed."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._client: Client
        self._early: deque[str] = deque()
        self._arrivals: Arrivals | None = None
        self._complete = asyncio.Event()

    async def open(self) -> None:
        """Connect and subscribe."""
        self._client, jetstream = await _connected(self._role)
        await jetstream.subscribe(SUBJECT, cb=self._take, ordered_consumer=True)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def _take(self, message: Msg) -> None:
        self._early.append(message.data.decode())
        if self._arrivals is not None:
            self._hand_over(self._arrivals)

    def _hand_over(self, arrivals: Arrivals) -> None:
        while self._early and not arrivals.complete:
            arrivals.take(self._early.popleft())
        if arrivals.complete:
            self._complete.set()

    async def receive(self, arrivals: Arrivals) -> None:
        """Hand over what is pushed."""
        self._complete.clear()
        self._arrivals = arrivals
        self._hand_over(arrivals)
        await self._complete.wait()


def sender(role: Role) -> Sender:
    """Make the sending app."""
    return Sender(role)


def receiver(role: Role) -> Receiver:
    """Make the receiving app."""
    return Receiver(role)
