"""What an open client consists of: store, role, and who waits for news.

Made by ``Session.open`` from a store that is already open, ended once by ``close``. Its role says
whether this client syncs the store or is a guest (``client.role``); a guest may become the one that
syncs, and then all that was begun goes on with the new role. Reads run on reader threads, writes on
the role's writer thread. The face (``client.Client``) asks the role for what is on its way and the
store, through here, for everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from whimbrel import protocol as p
from whimbrel.client.address import Address
from whimbrel.client.consumers import Consumers
from whimbrel.client.credentials import Credentials, TokenKeeper
from whimbrel.client.driver import Driver
from whimbrel.client.events import EventHub
from whimbrel.client.futures import Turns
from whimbrel.client.guest import Guest
from whimbrel.client.handles import Handles, MessageAccess, SentMessage
from whimbrel.client.http import HttpApi
from whimbrel.client.mending import Rebuilds
from whimbrel.client.role import ClientStore, Role, RolePassed, beginning
from whimbrel.client.syncing import Syncing
from whimbrel.client.websocket import WebSocketLink
from whimbrel.core.contract import Command, SendMessage, Settings, Snapshot, Sources, TakeHandoff
from whimbrel.core.engine import Engine
from whimbrel.core.rows import is_repeat, status_of
from whimbrel.errors import (
    ClientClosed,
    DeliveryPending,
    InvalidArgument,
    KeyReused,
    StoreCorrupt,
    StoreError,
)
from whimbrel.model import (
    AuthChanged,
    ConnectionChanged,
    ConnectionState,
    Event,
    Explanation,
    MessageReceived,
    SendState,
    SendStatus,
    message_id,
)
from whimbrel.store.handoff import Limits

READERS = 2
_PENDING = SendStatus(state=SendState.PENDING)

logger = logging.getLogger("whimbrel")
T = TypeVar("T")


class Session:
    """An open client, without its face."""

    def __init__(
        self,
        store: ClientStore,
        *,
        readers: ThreadPoolExecutor,
        address: Address,
        tls: ssl.SSLContext | None,
        settings: Settings,
        credentials: Credentials | None,
        face: MessageAccess,
    ) -> None:
        """It has no role yet."""
        self.store = store
        self.hub = EventHub()
        self.rebuilds = Rebuilds(store, readers, self._tell, lambda: self.hub.listening)
        self.role: Role
        self._readers = readers
        self._address = address
        self._tls = tls
        self._settings = settings
        self._credentials = credentials
        self._api = HttpApi(address, tls=tls)
        self._handles = Handles(face)
        self.consumers = Consumers()
        self._keys = Turns()
        self._tasks: set[asyncio.Task[Any]] = set()

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
            session: Session | None = None
            try:
                session = cls(
                    store,
                    readers=readers,
                    address=address,
                    tls=tls,
                    settings=settings,
                    credentials=credentials,
                    face=face,
                )
                await session._begin()
            except BaseException:
                if session is not None and hasattr(session, "role"):
                    await session.close(0.0)
                else:
                    await asyncio.shield(loop.run_in_executor(readers, store.close))
                raise
        except BaseException:
            readers.shutdown(wait=False)
            raise
        return session

    async def _begin(self) -> None:
        """Take the first role."""
        loop = asyncio.get_running_loop()
        snapshot, handed = await loop.run_in_executor(self._readers, beginning, self.store)
        if not self.store.guest:
            await self._sync(snapshot, handed)
            await self.rebuilds.begin(self.driver.mending, self.driver.on_writer)
            return
        user, named = snapshot.meta.get("user"), self._credentials
        if named is not None and user is not None and named.username.strip().casefold() != user:
            raise InvalidArgument(
                "this store belongs to another user", hint="give every user a store of their own"
            )
        self.role = Guest(
            self.store,
            snapshot,
            readers=self._readers,
            limits=Limits(
                messages_max=self._settings.outbox_messages_max, bytes_max=self._settings.outbox_bytes_max
            ),
            credentials=named,
            publish=self._tell,
            promote=self._promoted,
            on_end=self._ended,
        )

    async def _sync(self, snapshot: Snapshot, handed: list[TakeHandoff]) -> None:
        """Sync the store from now on; nothing is between the new role and its first message."""
        store = self.store
        sources = Sources(random=random.random, wall=time.time)
        tokens = TokenKeeper(
            self._api,
            store,
            credentials=self._credentials,
            device=store.device,
            user=snapshot.meta.get("user"),
            on_disk=self._write_tokens,
        )
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._readers, tokens.load)
        except StoreCorrupt:  # all else of it may be whole; made anew it is when it is loaded again
            snapshot, handed = await loop.run_in_executor(self._readers, beginning, store)
            await loop.run_in_executor(self._readers, tokens.load)
        engine = Engine(snapshot, self._settings, sources, device=store.device, now=time.monotonic())
        role = Syncing(store, engine, tokens)
        driver = Driver(
            engine,
            store,
            open_link=lambda number, listener: WebSocketLink(number, self._address, listener, tls=self._tls),
            refresh=tokens.fresh,
            publish=self._publish,
            on_end=self._ended,
            stir=role.stir,
            handed=handed,
        )
        role.begin(driver)
        self.role = role  # nothing may fail or wait from here on: it runs

    async def _promoted(self, snapshot: Snapshot, handed: list[TakeHandoff]) -> None:
        """This client was a guest, and syncs the store from now on."""
        await self._sync(snapshot, handed)
        task = asyncio.ensure_future(self.rebuilds.begin(self.driver.mending, self.driver.on_writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, timeout_s: float) -> int:
        """End everything; gives how many messages stay queued. Called once."""
        until = time.monotonic() + timeout_s
        # Who syncs the store goes on when a guest leaves: there is nothing to wait for.
        if not self.store.guest and self.connection.state is ConnectionState.CONNECTED:
            try:
                await self.drained(timeout_s, while_connected=True)
            except (DeliveryPending, ClientClosed, StoreError):
                logger.info("closing with messages still queued")
        pending = 0
        if not isinstance(self.role, Syncing):
            with contextlib.suppress(StoreError, ClientClosed, TimeoutError):
                async with asyncio.timeout(max(1.0, timeout_s)):
                    pending = await self.read(self.store.pending_count)
        while True:
            role = self.role
            await role.stop(max(1.0, until - time.monotonic()))
            if self.role is role:
                break
        if isinstance(role, Syncing):
            pending = role.engine.pending + role.driver.taking.messages
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.rebuilds.end()
        self.consumers.release_all()
        await self._api.close()
        self._readers.shutdown(wait=False)
        return pending

    # --- the role ------------------------------------------------------------------------------

    @property
    def syncing(self) -> Syncing:
        """The role of the client that syncs its store; only where it is known to be that."""
        assert isinstance(self.role, Syncing), "this client is a guest"
        return self.role

    @property
    def driver(self) -> Driver:
        """The driver of the client that syncs its store."""
        return self.syncing.driver

    @property
    def engine(self) -> Engine:
        """The engine of the client that syncs its store."""
        return self.syncing.engine

    @property
    def connection(self) -> ConnectionChanged:
        """The state of the link now."""
        if self.role.stopped:
            return ConnectionChanged(state=ConnectionState.STOPPED)
        return self.role.connection

    def status(self, id: str) -> SendStatus | None:
        """The status of an own message that is not settled; None: the store knows."""
        return self.role.status(id)

    async def explain(self, id: str) -> Explanation | None:
        """Why an own message that is not settled is where it is; None: the store knows."""
        return await self._by_role(lambda role: role.explain(id))

    async def submit(self, command: Command) -> str | None:
        """Have a command done."""
        return await self._by_role(lambda role: role.submit(command))

    async def call(self, call: p.Call, timeout_s: float) -> p.Answer | None:
        """Ask the server; None when no answer came in time."""
        until = time.monotonic() + timeout_s
        return await self._by_role(lambda role: role.call(call, max(0.0, until - time.monotonic())))

    async def settled(self) -> None:
        """Wait until all that came from the server so far is in the store."""
        await self._by_role(lambda role: role.settled())

    async def changed(self) -> None:
        """Wait until something may have changed. Raises ``ClientClosed`` when it stops."""
        change = self._watch()
        try:
            await change
        finally:
            change.cancel()

    def _watch(self) -> asyncio.Future[None]:
        try:
            return self.role.watch()
        except RolePassed:
            return self.role.watch()

    async def write(self, function: Callable[[], T]) -> T:
        """Run a blocking write on the role's writer thread; twice if the store turns out damaged."""
        return await self.rebuilds.whole(lambda: self._by_role(lambda role: role.write(function)))

    async def sign_in(self, credentials: Credentials) -> None:
        """Use these credentials from now on. Raises what went wrong."""
        await self._by_role(lambda role: role.sign_in(credentials))
        self._credentials = credentials

    async def sign_out(self) -> None:
        """Forget the tokens."""
        self._credentials = None
        await self._by_role(lambda role: role.sign_out())

    async def _by_role(self, ask: Callable[[Role], Awaitable[T]]) -> T:
        """Ask the role, and the next one if it passed meanwhile; that happens once."""
        try:
            return await ask(self.role)
        except RolePassed:
            return await ask(self.role)

    async def _write_tokens(self, function: Callable[[], None]) -> None:
        await self.rebuilds.whole(lambda: self.driver.on_writer(function))

    def check_running(self) -> None:
        """Raise ``ClientClosed`` once it has stopped."""
        if self.role.stopped:
            raise self.role.closed_error()

    async def read(self, function: Callable[[], T]) -> T:
        """Run a blocking read on a reader thread. Raises ``ClientClosed`` if it is closed meanwhile."""
        self.check_running()
        try:
            return await self.rebuilds.read(function)
        except StoreError:
            self.check_running()  # closing closed the store under the read
            raise

    async def drained(self, timeout_s: float | None, *, while_connected: bool) -> int:
        """Wait until nothing is queued. Raises ``DeliveryPending`` when that takes too long."""
        pending: int | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    change = self._watch()  # before looking, or a change meanwhile is missed
                    try:
                        pending = await self._by_role(lambda role: role.pending())
                        if not pending:
                            break
                        if while_connected and self.connection.state is not ConnectionState.CONNECTED:
                            raise TimeoutError
                        await change
                    finally:
                        change.cancel()
        except TimeoutError:
            if pending is None:  # there was no time to look even once
                pending = await self.read(self.store.pending_count)
            if not pending:
                return 0
            raise DeliveryPending(f"{pending} messages are still queued", pending=pending) from None
        return 0

    # --- sending -------------------------------------------------------------------------------

    async def send(self, command: SendMessage) -> SentMessage:
        """Queue a message under a key that cannot have been used before."""
        role = self.role
        # The role of a guest may pass meanwhile, this one does not; every message goes this way.
        sending = role.driver.submit(command) if isinstance(role, Syncing) else self.submit(command)
        id = await sending
        assert id is not None
        return self.handle(id, command.key, command.conversation, _PENDING)

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
        async with self._keys.turn(key):
            row = await self.read(lambda: self.store.row(message_id(self.store.device, key)))
            if row is None:
                return await self.send(command)
            if not is_repeat(row, command):
                raise KeyReused("this key was used before for other content")
            return self.handle(row.id, key, row.conversation, status_of(row))

    def _forget_task(self, task: asyncio.Task[SentMessage]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # A caller that was cancelled does not fetch it, and knows that it may have failed.
            task.exception()

    def handle(self, id: str, key: str, conversation: str, status: SendStatus | None) -> SentMessage:
        """The one handle of a message; ``status`` is what a new one begins with."""
        handle = self._handles.find(id)
        if handle is None:
            status = status or SendStatus(state=SendState.SENT)
            handle = self._handles.make(id, key, conversation, status)
            self.role.follow(id, status)
        return handle

    # --- news ----------------------------------------------------------------------------------

    async def claim_consumer(self, name: str) -> None:
        """Be the only one that reads as this consumer. Raises ``StoreInUse`` if another program does."""
        await self.consumers.claim(name, lambda: self.read(lambda: self.store.claim_consumer(name)))

    def _tell(self, event: Event) -> None:
        self._publish((event,))

    def _publish(self, events: Sequence[Event]) -> None:
        arrived = False
        for event in events:
            self._handles.note(event)
            match event:
                case MessageReceived():
                    arrived = True
                case ConnectionChanged(state=state):
                    logger.debug("connection: %s", state)
                case AuthChanged(ok=False):
                    logger.warning("signed out: sign in again")
                case _:
                    pass
        if arrived:
            self.consumers.wake()
        self.hub.publish(*events)
        if isinstance(self.role, Syncing):
            self.role.publish(events)

    def _ended(self, error: ClientClosed | None) -> None:
        """The role has ended; with an error if a bug did it."""
        self._handles.fail(self.role.closed_error())
        self.consumers.end(error)
        self.hub.end(error)


def _closed_when_opened(opening: asyncio.Future[ClientStore]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.get_loop().run_in_executor(None, opening.result().close)
