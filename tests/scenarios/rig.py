"""Scenarios over real sockets: a server process, Anna behind a fault proxy, Ben on a good line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.client.real_server import LIMIT_S, UNLIMITED, RealServer
from tests.integration.rig import ANNA, BEN, history, stage, until
from whimbrel import (
    Client,
    ConnectionState,
    EventStream,
    Message,
    MessageChanged,
    SendState,
    SendStatus,
    SentMessage,
    Settings,
)
from whimbrel.server.settings import ServerSettings
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.proxy_faults import Refuse

KEY = b"k" * 32


class Scene:
    """Who is there. Anna is the one with the bad network."""

    def __init__(
        self, folder: Path, server: RealServer, proxy: FaultProxy, conversation: str, settings: Settings
    ) -> None:
        self.folder = folder
        self.server = server
        self.proxy = proxy
        self.conversation = conversation
        self.settings = settings
        self.anna: Client
        self.ben: Client
        self.sent: list[SentMessage] = []
        self.texts: list[str] = []
        self._told: EventStream

    def client(self) -> Client:
        """Anna's client, to be opened: for the first time or again."""
        self.anna = Client(
            f"http://127.0.0.1:{self.proxy.port}",
            self.folder / "anna.db",
            ANNA,
            key=KEY,
            settings=self.settings,
        )
        return self.anna

    def listen(self) -> None:
        """Note from now on what Anna's page is told of her messages."""
        self._told = self.anna.events()

    async def send(self, count: int = 1) -> list[SentMessage]:
        """Anna writes so many messages, one after the other."""
        fresh = []
        for _ in range(count):
            self.texts.append(f"text {len(self.texts)}")
            fresh.append(await self.anna.send(self.conversation, self.texts[-1]))
        self.sent += fresh
        return fresh

    def network_gone(self) -> AsyncExitStack:
        """A context in which nothing of Anna's gets through, and every connection is broken."""
        stack = AsyncExitStack()
        stack.enter_context(self.proxy.during(Refuse()))
        self.proxy.reset_connections()
        return stack

    async def until_state(self, state: ConnectionState, *, other: bool = False) -> None:
        """Wait until Anna's link is in this state, or in any other."""
        await until(lambda: (self.anna.connection.state is state) is not other)

    async def arrived(self, *, count: int | None = None) -> list[Message]:
        """Assert that all Anna wrote is with Ben and with her: once, in order, delivered."""
        count = len(self.texts) if count is None else count
        async with asyncio.timeout(LIMIT_S):
            assert await self.anna.flush() == 0
        seen = await history(self.ben, self.conversation, count)
        own = await history(self.anna, self.conversation, count)
        assert [message.content for message in seen] == self.texts
        assert [message.id for message in own] == [message.id for message in seen]
        for message in own:
            assert message.status is not None
            assert message.status.state in (SendState.DELIVERED, SendState.READ), message.status
        return own

    async def told(self) -> dict[str, list[SendStatus]]:
        """What Anna's page was told of each of her messages, until the last was delivered."""
        statuses: dict[str, list[SendStatus]] = {message.id: [] for message in self.sent}
        settled = (SendState.DELIVERED, SendState.READ)
        async with asyncio.timeout(LIMIT_S):
            async for event in self._told:
                if isinstance(event, MessageChanged):
                    statuses.setdefault(event.id, []).append(event.status)
                if all(told and told[-1].state in settled for told in statuses.values()):
                    break
        return statuses


@asynccontextmanager
async def scene(
    folder: Path, *, settings: Settings | None = None, server: ServerSettings = UNLIMITED, seed: int = 1
) -> AsyncIterator[Scene]:
    """A server, a conversation of the two, both signed in and connected."""
    async with stage(folder, seed=seed, settings=server) as (real, proxy, conversation):
        here = Scene(folder, real, proxy, conversation, settings or Settings())
        async with Client(real.url, None, BEN) as here.ben:
            await here.ben.connected(LIMIT_S)
            async with here.client():
                await here.anna.connected(LIMIT_S)
                here.listen()
                yield here
                # A scenario may have closed it and opened another; what it opened it closes.


async def until_status(message: SentMessage, fits: Callable[[SendStatus], bool]) -> None:
    """Wait until the status of a message is as wanted."""
    await until(lambda: fits(message.status))
