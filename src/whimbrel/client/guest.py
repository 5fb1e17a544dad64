"""The role of a client while another one syncs its store: hand over, ask, and be ready to take its place.

States, in a circle until it takes over or is stopped:

    searching ──▶ joined      the one that syncs let it in, on the local socket: news come by themselves
        ▲ │          │
        │ └▶ looking │        nobody answers there: the store is looked at once a second
        └────────────┘        the connection ended: perhaps so did the one that syncs
    searching ──▶ passing ──▶ passed     the lock was free: this client syncs the store from now on

What the app wants done is on disk, in the order it was asked for, before anybody is told of it
(``store.handoff``). What needs an answer waits for whoever can give it. Events go through a ``Mirror``,
so none is told twice and none is missed, over all of this.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from whimbrel import protocol as p
from whimbrel.client import doorway, relay
from whimbrel.client.asking import Asking
from whimbrel.client.credentials import Credentials
from whimbrel.client.futures import Watchers
from whimbrel.client.handing import Handing
from whimbrel.client.mirror import Mirror
from whimbrel.client.role import DURABLE, ClientStore, RolePassed, beginning
from whimbrel.core.contract import Command, Connect, SendMessage, SetTyping, Snapshot, TakeHandoff
from whimbrel.errors import ClientClosed, StoreError, WhimbrelError
from whimbrel.model import (
    ConnectionChanged,
    ConnectionState,
    Event,
    Explanation,
    SendState,
    SendStatus,
    message_id,
)
from whimbrel.store.handoff import Limits

LOOK_EVERY_S = 1.0
_AGAIN_MIN_S = 0.01
_LOST_S = 3.0
"""So long may a role take to pass before it is said that nobody syncs."""
_EXPLAIN_S = 5.0
_STORE_CLOSE_MIN_S = 1.0

logger = logging.getLogger("whimbrel")
T = TypeVar("T")
Promote = Callable[[Snapshot, list[TakeHandoff]], Awaitable[None]]


class Guest:
    """See the module. All methods are for the event loop it was made on."""

    def __init__(
        self,
        store: ClientStore,
        snapshot: Snapshot,
        *,
        readers: ThreadPoolExecutor,
        limits: Limits,
        credentials: Credentials | None,
        publish: Callable[[Event], None],
        promote: Promote,
        on_end: Callable[[ClientClosed | None], None],
    ) -> None:
        """``publish`` gets every event. ``promote`` makes the new role; from then on this one is nothing."""
        self._store = store
        self._readers = readers
        self._credentials = credentials
        self._publish = publish
        self._promote = promote
        self._on_end = on_end
        self._mirror = Mirror(snapshot)
        self._loop = asyncio.get_running_loop()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="whimbrel-writer")
        self._user = snapshot.meta.get("user")
        self._handing = Handing(store, self._writer, limits, self._tell_handed)
        # the one that syncs
        self._asking = Asking()
        self._state: relay.State | None = None
        self._alone_since = time.monotonic()
        self._version = -1
        # who waits
        self._watchers = Watchers()
        self._passing = False
        self._passed = False
        self._over = asyncio.Event()
        """It passed, or was stopped."""
        self.stopped = False
        self.failure: BaseException | None = None
        """The bug that ended it, if one did."""
        self._task = self._loop.create_task(self._run(), name="whimbrel-guest")

    def __repr__(self) -> str:
        return f"<Guest {'joined' if self._asking.joined else 'alone'}>"

    # --- what is known here --------------------------------------------------------------------

    @property
    def connection(self) -> ConnectionChanged:
        """The state of the link, as the one that syncs told it."""
        if self._asking.joined and self._state is not None:
            return self._state.connection
        if time.monotonic() - self._alone_since < _LOST_S:
            return ConnectionChanged(state=ConnectionState.CONNECTING)
        cause = "the program that syncs this store does not answer"
        return ConnectionChanged(state=ConnectionState.OFFLINE, cause=cause)

    @property
    def user(self) -> str | None:
        """Whose store it is; None until the first sign-in."""
        return self._user

    @property
    def sign_in_failure(self) -> WhimbrelError | None:
        """Why signing in failed for good."""
        failure = self._state.failure if self._state is not None else None
        return None if failure is None else relay.error_of(failure)

    @property
    def sign_in_possible(self) -> bool:
        """Whether there is anything to sign in with, here or there."""
        return self._credentials is not None or self._state is None or self._state.possible

    @property
    def last_sign_in_error(self) -> str:
        """Why there was no token the last time."""
        return "" if self._state is None else self._state.last_error

    def closed_error(self) -> ClientClosed:
        """What calls get from now on, with the bug as its cause if there was one."""
        text = "the client stopped because of a bug" if self.failure else "the client is closed"
        error = ClientClosed(text)
        error.__cause__ = self.failure
        return error

    def status(self, id: str) -> SendStatus | None:
        """The status of a message that is not settled, as far as it was told; None: the store knows."""
        status = self._mirror.status(id)
        offline = self.connection.state is not ConnectionState.CONNECTED
        if status is not None and status.state is SendState.PENDING and offline:
            return SendStatus(state=SendState.OFFLINE)
        return status

    def follow(self, id: str, status: SendStatus) -> None:
        """Somebody wants to hear what becomes of this message."""
        self._mirror.follow(id, status)

    async def pending(self) -> int:
        """How many own messages are not settled."""
        return await self._read(self._store.pending_count)

    def watch(self) -> asyncio.Future[None]:
        """Done when something may have changed. Raises ``ClientClosed`` when it stops."""
        self._check()
        return self._watchers.watch()

    async def write(self, function: Callable[[], T]) -> T:
        """Run a blocking write of what is this client's own."""
        self._check()
        return await self._loop.run_in_executor(self._writer, function)

    # --- handing over --------------------------------------------------------------------------

    async def submit(self, command: Command) -> str | None:
        """Hand a command over, durably; those nobody has to wait for are told, or lost.

        Raises what refuses it, ``StoreError`` if it could not be written.
        """
        if isinstance(command, SetTyping | Connect):
            self._asking.tell(relay.of_command(command))
            return None
        assert isinstance(command, DURABLE), "others are not for a guest"
        async with self._handing.places:
            self._check()
            if self._passing:
                await self._over.wait()
                self._check()
            await self._handing.hand_over(command)
        if not isinstance(command, SendMessage):
            return None
        id = message_id(self._store.device, command.key)
        self._mirror.follow(id, SendStatus(state=SendState.PENDING))
        return id

    def _tell_handed(self) -> None:
        self._asking.tell(relay.Handed())

    # --- asking --------------------------------------------------------------------------------

    async def explain(self, id: str) -> Explanation | None:
        """Ask why a message is where it is; None: the store knows."""
        reply = await self._ask(relay.Explain(message=id), _EXPLAIN_S)
        return None if reply is None else reply.explanation

    async def call(self, call: p.Call, timeout_s: float) -> p.Answer | None:
        """Have the server asked; None when no answer came in time."""
        reply = await self._ask(relay.AskServer(call=call, timeout_s=timeout_s), timeout_s)
        return None if reply is None else reply.answer

    async def settled(self) -> None:
        """Wait until all that came from the server so far is in the store."""
        await self._ask(relay.Settle(), None)

    async def sign_in(self, credentials: Credentials) -> None:
        """Have the one that syncs use these credentials. Raises what went wrong."""
        question = relay.SignIn(username=credentials.username, password=credentials.password)
        await self._ask(question, None)
        self._credentials = credentials

    async def sign_out(self) -> None:
        """Have the one that syncs forget the tokens."""
        self._credentials = None
        await self._ask(relay.SignOut(), None)

    async def _ask(self, question: relay.Question, timeout_s: float | None) -> relay.Reply | None:
        """Ask whoever syncs, over changes of who that is; None when no answer came in time.

        Raises the error it answers with, and ``RolePassed`` when it is this client.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._check()
                    if not self._asking.joined:
                        await self.watch()
                    elif (reply := await self._asking.ask(question)) is not None:
                        break
        except TimeoutError:
            return None
        if reply.failure is not None:
            raise relay.error_of(reply.failure)
        return reply

    # --- the circle ----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            pause_s = _AGAIN_MIN_S
            while not await self._take_over():
                line = await self._search()
                if line is None:
                    await self._look()
                else:
                    began = time.monotonic()
                    await self._follow(line)
                    if time.monotonic() - began >= LOOK_EVERY_S:
                        pause_s = _AGAIN_MIN_S
                        continue
                # Also when it was joined for a moment only: it may end the same way again.
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LOOK_EVERY_S)
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be left waiting
            self.failure = error
            where = "".join(traceback.format_tb(error.__traceback__))
            # Without the error's text, which may quote what it was about.
            logger.critical("the client stopped because of a bug: %s\n%s", type(error).__name__, where)
        finally:
            if not self._passed:
                self._end()

    async def _search(self) -> relay.Line | None:
        """The one that syncs, once it let this client in."""
        path = self._store.path
        address = None if path is None else doorway.address_of(path)
        line = None if address is None else await doorway.connect(address)
        if line is None:
            return None
        try:
            async with asyncio.timeout(relay.HANDSHAKE_S):
                secret = await self._read(lambda: self._store.get_secret(relay.SECRET_NAME))
                if secret is not None and await relay.enter(line, secret):
                    return line
        except (TimeoutError, StoreError):
            pass
        except BaseException:
            line.cut()
            raise
        await line.close()
        return None

    async def _follow(self, line: relay.Line) -> None:
        """Take news in until the connection ends."""
        try:
            first = await line.receive(relay.host_frames)
            if not isinstance(first, relay.State):
                return
            self._asking.begin(line)
            await self._take_in(first)
            line.send(relay.Handed())  # what nobody was there to be told of
            await self._catch_up()
            while (frame := await line.receive(relay.host_frames)) is not None:
                await self._take_in(frame)
        except StoreError as error:
            logger.info("the store cannot be read now (%s)", error.code)
        finally:
            self._state = None
            self._alone_since = time.monotonic()
            line.cut()
            self._asking.end()
            self._publish(self.connection)
            self._watchers.wake()

    async def _take_in(self, frame: relay.HostFrame) -> None:
        match frame:
            case relay.State(user=user):
                before, self._state = self._state, frame
                self._user = user or self._user
                if before is None:
                    self._publish(frame.connection)
                    self._offer_credentials(frame)
            case relay.Arrived(position=position):
                if position > self._mirror.arrival:
                    await self._tell_arrivals()
            case relay.News():
                event = relay.event_of(frame)
                if event is not None:
                    self._tell([event])
            case relay.Reply():
                self._asking.answered(frame)
                return
            case _:
                pass
        self._watchers.wake()

    def _offer_credentials(self, state: relay.State) -> None:
        """Sign in for the one that syncs, if it cannot by itself."""
        credentials = self._credentials
        if credentials is not None and (state.failure or not state.possible):
            self._asking.post(relay.SignIn(username=credentials.username, password=credentials.password))

    async def _look(self) -> None:
        """Without anybody to tell the news: find out whether there are any."""
        try:
            version = await self.write(self._store.data_version)
            if version != self._version:
                self._version = version
                await self._catch_up()
                self._watchers.wake()
        except StoreError as error:
            logger.info("the store cannot be read now (%s)", error.code)

    # --- telling -------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Tell what changed in the store and was not told."""
        snapshot = await self._read(self._store.load)
        self._user = snapshot.meta.get("user") or self._user
        await self._tell_missed(snapshot)

    async def _tell_missed(self, snapshot: Snapshot) -> None:
        # Lower than what was told: the store was made anew, and counts anew.
        self._mirror.arrival = min(self._mirror.arrival, snapshot.arrival)
        self._tell(await self._read(lambda: self._mirror.missed(self._store, snapshot)))
        await self._tell_arrivals()

    async def _tell_arrivals(self) -> None:
        while events := await self._read(lambda: self._mirror.arrivals(self._store)):
            self._tell(events)

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            if self._mirror.news(event):
                self._publish(event)

    async def _read(self, function: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._readers, function)

    # --- taking over ---------------------------------------------------------------------------

    async def _take_over(self) -> bool:
        """Try to become the one that syncs; True when it is, and this role is over."""
        try:
            if not await self.write(self._store.take_over):
                return False
        except StoreError as error:
            logger.warning("the store cannot be taken over (%s); trying again", error.code)
            return False
        # From here on nobody else changes messages. What the app asked for so far is handed over
        # first, and what it asks for now waits for the new role: so all of it stays in order.
        self._passing = True
        await self._handing.drained()
        pause_s = _AGAIN_MIN_S
        while True:
            try:
                snapshot, handed = await self.write(lambda: beginning(self._store))
                await self._tell_missed(snapshot)
                await self._promote(snapshot, handed)
                break
            except StoreError as error:
                logger.warning("the store cannot be read (%s); trying again", error.code)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LOOK_EVERY_S)
        self._writer.shutdown(wait=False)
        self._passed = True
        self._over.set()
        self._watchers.wake()
        return True

    # --- the end -------------------------------------------------------------------------------

    async def stop(self, timeout_s: float) -> None:
        """Write what is to be written, leave, and close the store. Nothing, once it has passed."""
        await self._handing.drained(timeout_s)
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._passed:
            return
        closing = self._loop.run_in_executor(self._writer, self._store.close)
        self._writer.shutdown(wait=False)
        done, _ = await asyncio.wait([closing], timeout=max(timeout_s, _STORE_CLOSE_MIN_S))
        if not done:
            logger.error("the store does not answer; it could not be closed")
        elif (error := closing.exception()) is not None:
            logger.error("the store could not be closed: %s", type(error).__name__)

    def _end(self) -> None:
        self.stopped = True
        self._handing.end(self.closed_error())
        self._watchers.fail(self.closed_error())
        self._over.set()
        self._on_end(self.closed_error() if self.failure is not None else None)

    def _check(self) -> None:
        if self._passed:
            raise RolePassed
        if self.stopped:
            raise self.closed_error()
