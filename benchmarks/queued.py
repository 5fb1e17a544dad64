"""A thousand messages queued offline, then the link is up: until every one is delivered.

A client behind a fault proxy that refuses everything queues 1,000 messages of 100 characters; each `send()`
returned, so each is on disk. Then the network comes back. The clock runs from the moment the client calls
itself connected until the last message is in the server's permanent store and marked so in the client's.
Server and client are the real ones, with their encrypted files; the server does not limit senders here (by
default it grants ten messages a second, a hundred at once, and that would be what is measured).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Settings, figure, invalid
from benchmarks.stand import add_users, alone, create_rooms, credentials, own_folder, running_server
from benchmarks.stores import KEY, OTHER, USER, text_of
from whimbrel import Client, ConnectionChanged, ConnectionState, EventStream, Message
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.proxy_faults import Refuse, Reset

MESSAGES = 1_000
ROOM = "ferry"
CONNECT_WITHIN_S = 60.0
DELIVER_WITHIN_S = 120.0
PAGE = 500


def measure(settings: Settings) -> Iterable[Figure]:
    """Queue, connect, deliver."""
    name, target = f"{MESSAGES:,} messages queued offline: link up → all delivered", "<= 1"
    took, back = [], []
    for _ in range(settings.rounds):
        with own_folder(settings, "queued") as folder:
            try:
                after_link_s, after_network_s = asyncio.run(_once(folder))
            except _BrokenPromise as error:
                yield invalid(name, "s", target, why=str(error))
                return
        took.append(after_link_s)
        back.append(after_network_s)
    yield figure(
        f"{name}, median", median(took), "s", target, note=f"the slowest of {len(took)}: {max(took):.2f} s"
    )
    name = f"{MESSAGES:,} messages queued offline: network back → all delivered, median"
    yield figure(name, median(back), "s")


class _BrokenPromise(Exception):
    """Something was lost, doubled or out of order."""


async def _once(folder: Path) -> tuple[float, float]:
    add_users(folder, [USER, OTHER])
    create_rooms(folder, {ROOM: (USER, OTHER)})
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_server(folder))
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", server.port))
        url = f"http://127.0.0.1:{proxy.port}"
        client = await stack.enter_async_context(Client(url, folder / "a.db", credentials(USER), key=KEY))
        await client.connected(CONNECT_WITHIN_S)
        texts = [text_of(number) for number in range(MESSAGES)]
        with proxy.during(Refuse(), Reset()):
            for text in texts:
                await client.send(ROOM, text)
            if client.connection.state is ConnectionState.CONNECTED:
                raise RuntimeError("it is connected through a proxy that refuses")
            linked = asyncio.create_task(_linked(client.events()))
        back_at_s = time.monotonic()
        async with asyncio.timeout(DELIVER_WITHIN_S):
            await client.flush()
            done_at_s = time.monotonic()
            linked_at_s = await linked
        other = Client(server.url, None, credentials(OTHER))
        await stack.enter_async_context(other)
        if [message.content for message in await _history(other)] != texts:
            raise _BrokenPromise("the other member did not get what was sent, each once, in order")
    return done_at_s - linked_at_s, done_at_s - back_at_s


async def _linked(events: EventStream) -> float:
    async for event in events:
        if isinstance(event, ConnectionChanged) and event.state is ConnectionState.CONNECTED:
            return time.monotonic()
    raise RuntimeError("the client was closed")


async def _history(client: Client) -> list[Message]:
    """All that the other member has, once it is as much as was sent."""
    await client.connected(CONNECT_WITHIN_S)
    async with asyncio.timeout(DELIVER_WITHIN_S):
        while True:
            found: list[Message] = []
            after = 0
            while page := await client.conversation(ROOM).messages(after=after, limit=PAGE):
                found += [message for message in page if message.kind == "message"]
                after = page[-1].seq or after
            if len(found) >= MESSAGES:
                return found
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    raise SystemExit(alone(measure))
