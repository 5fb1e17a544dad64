"""What an open client consists of: store, engine, driver, tokens, and who waits for news of them.

Made by ``Session.open`` from a store that is already open, ended once by ``close``. Reads run on
reader threads, writes on the driver's writer thread. The face (``client.Client``) asks the engine
for what is on its way and the store, through here, for everything else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from whimbrel.client.address import Address
from whimbrel.client.consumer import ConsumerStream
from whimbrel.client.credentials import Credentials, TokenKeeper
from whimbrel.client.driver import ClientStore, Driver
from whimbrel.client.events import EventHub
from whimbrel.client.handles import MessageAccess, SentMessage
from whimbrel.client.http import HttpApi
from whimbrel.client.outgoing import is_repeat
from whimbrel.client.websocket import WebSocketLink
from whimbrel.core.contract import Connect, SendMessage, Settings, SetToken, Sources, TokenFailed
from whimbrel.core.engine import Engine
from whimbrel.core.rows import status_of
from whimbrel.errors import ClientClosed, DeliveryPending, InvalidArgument, KeyReused, StoreError
from whimbrel.model import (
    AuthChanged,
    ConnectionChanged,
    ConnectionState,
    Event,
    MessageChanged,
    MessageReceived,
    SendState,
    SendStatus,
    message_id,
)

READERS = 2

logger = logging.getLogger("whimbrel")
T = TypeVar("T")


class Session:
    """An open client, without its face."""

    def __init__(
        self,
        store: ClientStore,
        *,
        readers: ThreadPoolExecutor,
        engine: Engine,
        api: HttpApi,
        address: Address,
        tls: ssl.SSLContext | None,
        face: MessageAccess,
    ) -> None:
        self.store = store
        self.engine = engine
        self.hub = EventHub()
        self._face = face
        self._readers = readers
        self._api = api
        self._handles: weakref.WeakValueDictionary[str, SentMessage] = weakref.WeakValueDictionary()
        self._consumers: weakref.WeakValueDictionary[str, ConsumerStream] = weakref.WeakValueDictionary()
        self._sending: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[SentMessage]] = set()
        self.tokens: TokenKeeper
        self.driver = Driver(
            engine,
            store,
            open_link=lambda number, listener: WebSocketLink(number, address, listener, tls=tls),
            refresh=self._fresh_token,
            publish=self._published,
            on_end=self._ended,
        )

    @classmethod
    async def open(
        cls,
        open_store: Callable[[], ClientStore],
        *,
        address: Address,
        tls: ssl.SSLContext | None,
        settings: Settings,
        credentials: Credentials | None,
        face: MessageAccess,
    ) -> Session:
        """Open the store and begin connecting. Raises ``StoreError``; then nothing is left open."""
        loop = asyncio.get_running_loop()
        readers = ThreadPoolExecutor(READERS, thread_name_prefix="whimbrel-reader")
        try:
            opening = loop.run_in_executor(readers, open_store)
            try:
                store = await asyncio.shield(opening)
            except asyncio.CancelledError:
                # The thread goes on, and what it opens has an owner no more.
                opening.add_done_callback(_closed_when_opened)
                raise
            try:
                snapshot = await loop.run_in_executor(readers, store.load)
            except BaseException:
                store.close()
                raise
        except BaseException:
            readers.shutdown(wait=False)
            raise
        sources = Sources(random=random.random, wall=time.time)
        engine = Engine(snapshot, settings, sources, device=store.device, now=time.monotonic())
        api = HttpApi(address, tls=tls)
        session = cls(store, readers=readers, engine=engine, api=api, address=address, tls=tls, face=face)
        session.tokens = TokenKeeper(
            api,
            store,
            credentials=credentials,
            device=store.device,
            user=snapshot.meta.get("user"),
            on_disk=session.driver.on_writer,
        )
        try:
            await loop.run_in_executor(readers, session.tokens.load)
        except BaseException:
            await session.close(0.0)
            raise
        session.driver.post(Connect())
        return session

    async def close(self, timeout_s: float) -> None:
        """End everything. Called once."""
        until = time.monotonic() + timeout_s
        if self.connection.state is ConnectionState.CONNECTED and self.engine.pending:
            try:
                await self.drained(timeout_s, while_connected=True)
            except (DeliveryPending, ClientClosed):
                logger.info("closing with messages still queued")
        await self.driver.stop(max(1.0, until - time.monotonic()))
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._api.close()
        self._readers.shutdown(wait=False)

    @property
    def connection(self) -> ConnectionChanged:
        """The state of the link now."""
        if self.driver.stopped:
            return ConnectionChanged(state=ConnectionState.STOPPED)
        return self.engine.connection(time.monotonic())

    async def read(self, function: Callable[[], T]) -> T:
        """Run a blocking read on a reader thread. Raises ``ClientClosed`` if it is closed meanwhile."""
        self.driver.check_running()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, function)
        except StoreError:
            self.driver.check_running()  # closing closed the store under the read
            raise

    async def drained(self, timeout_s: float | None, *, while_connected: bool) -> int:
        """Wait until nothing is queued. Raises ``DeliveryPending`` when that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.engine.pending:
                    if while_connected and self.connection.state is not ConnectionState.CONNECTED:
                        raise TimeoutError
                    await self.driver.changed()
        except TimeoutError:
            pending = self.engine.pending
            if not pending:
                return 0
            raise DeliveryPending(f"{pending} messages are still queued", pending=pending) from None
        return 0

    # --- sending -------------------------------------------------------------------------------

    async def send(self, command: SendMessage) -> SentMessage:
        """Queue a message under a key that cannot have been used before."""
        id = await self.driver.submit(command)
        assert id is not None
        return self.handle(id, command.key, command.conversation, SendStatus(state=SendState.PENDING))

    async def send_once(self, command: SendMessage) -> SentMessage:
        """Queue a message under the app's own key, unless it is there already. Raises ``KeyReused``.

        It goes on when the caller is cancelled: who comes next with this key must find its row, or wait.
        """
        task = asyncio.ensure_future(self._send_once(command))
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)
        return await asyncio.shield(task)

    async def _send_once(self, command: SendMessage) -> SentMessage:
        # One at a time per key. Whether it was used before, and for what, the row says: the engine
        # forgets what is settled.
        key = command.key
        while (other := self._sending.get(key)) is not None:
            await asyncio.wait([other])
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sending[key] = mine
        try:
            row = await self.read(lambda: self.store.row(message_id(self.store.device, key)))
            if row is None:
                return await self.send(command)
            if not is_repeat(row, command):
                raise KeyReused("this key was used before for other content")
            return self.handle(row.id, key, row.conversation, status_of(row))
        finally:
            del self._sending[key]
            mine.set_result(None)

    def _forget_task(self, task: asyncio.Task[SentMessage]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # A caller that was cancelled does not fetch it, and knows that it may have failed.
            task.exception()

    def handle(self, id: str, key: str, conversation: str, status: SendStatus | None) -> SentMessage:
        """The one handle of a message; ``status`` is what a new one begins with."""
        handle = self._handles.get(id)
        if handle is None:
            status = status or SendStatus(state=SendState.SENT)
            handle = SentMessage(self._face, id=id, key=key, conversation=conversation, status=status)
            self._handles[id] = handle
        return handle

    # --- news ----------------------------------------------------------------------------------

    def consumer(self, stream: ConsumerStream) -> ConsumerStream:
        """Wake this consumer from now on; an older one of its name is ended."""
        older = self._consumers.get(stream.name)
        if older is not None:
            older.end(InvalidArgument(f"another stream of consumer {stream.name} was opened"))
        self._consumers[stream.name] = stream
        return stream

    async def _fresh_token(self) -> SetToken | TokenFailed:
        return await self.tokens.fresh()

    def _published(self, event: Event) -> None:
        match event:
            case MessageChanged(id=id, status=status):
                handle = self._handles.get(id)
                if handle is not None:
                    handle.note(status)
            case MessageReceived():
                for consumer in list(self._consumers.values()):
                    consumer.wake()
            case ConnectionChanged(state=state):
                logger.debug("connection: %s", state)
            case AuthChanged(ok=False):
                logger.warning("signed out: sign in again")
            case _:
                pass
        self.hub.publish(event)

    def _ended(self, error: ClientClosed | None) -> None:
        """The driver stopped; with an error if a bug did it."""
        for handle in list(self._handles.values()):
            handle.fail(self.driver.closed_error())
        for consumer in list(self._consumers.values()):
            consumer.end(error)
        self.hub.end(error)


def _closed_when_opened(opening: asyncio.Future[ClientStore]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
