"""Real servers, real sockets, real processes: what the integration tests share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.client.real_server import LIMIT_S, PASSWORD, UNLIMITED, RealServer
from whimbrel import Client, Credentials, Message
from whimbrel.server.settings import ServerSettings
from whimbrel.testing.proxy import FaultProxy

ANNA = Credentials("anna", PASSWORD)
BEN = Credentials("ben", PASSWORD)


@asynccontextmanager
async def stage(
    folder: Path, *, seed: int = 1, settings: ServerSettings = UNLIMITED
) -> AsyncIterator[tuple[RealServer, FaultProxy, str]]:
    """A server with two users, a fault proxy before it, and a conversation of the two."""
    async with RealServer(folder / "server", ("anna", "ben"), settings=settings) as server:
        async with Client(server.url, None, ANNA) as client:
            await client.connected(LIMIT_S)
            conversation = await client.create_conversation("ben", title="storm")
        async with FaultProxy("127.0.0.1", server.port, seed=seed) as proxy:
            yield server, proxy, conversation.id
        await nothing_doubled(server, conversation.id)


async def nothing_doubled(server: RealServer, conversation: str) -> None:
    """Assert that nobody's text is in the log twice, its very end included; every text here is another."""
    if not server.running:
        await server.start()
    async with Client(server.url, None, ANNA) as client:
        # Whoever greets is told how far the log goes.
        await client.connected(LIMIT_S)
        handle = client.conversation(conversation)
        async with asyncio.timeout(LIMIT_S):
            while (info := await handle.info()).position < info.head:  # noqa: ASYNC110 - it is told of no event
                await asyncio.sleep(0.02)
        log = await history(client, conversation, 0)
    counts = Counter((message.sender, str(message.content)) for message in log)
    doubled = [message for message, count in counts.items() if count > 1]
    assert not doubled, f"more than once in the log: {doubled}"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something another process does; there is nothing to wait on but looking."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.01)


async def history(client: Client, conversation: str, count: int) -> list[Message]:
    """All messages of a conversation, oldest first, once ``count`` of them are here."""
    handle = client.conversation(conversation)
    found: list[Message] = []
    async with asyncio.timeout(LIMIT_S):
        while True:
            found, after = [], 0
            while page := await handle.messages(after=after, limit=100):
                found += [message for message in page if message.kind == "message"]
                after = page[-1].seq or 0
                if page[-1].seq is None:
                    break
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)
