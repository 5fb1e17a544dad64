"""The loop that drives the engine: feeds it what happened, commits what it changed, does what it asks.

One pass: tell what a commit that has ended made true, and give apps a turn; feed all waiting inputs
(commands, what links told, the timer); begin the commit of what changed; carry out actions; hand out
events and answers. Then sleep until the engine's next deadline or the next input. Commits
(``client.commits``) run beside the passes, one at a time, so a ping never waits for the disk; everything
that came meanwhile goes into the next one.

States: ``running`` → (``stopping`` →) ``stopped``, and within ``running`` the store is good or
failing. While it fails, inputs wait (links are not read), messages to send are refused with the
store's error, and the engine is reloaded with growing pauses until a commit succeeds.

Invariants: a caller's future is settled once, whatever happens; a message's only when its row is
on disk. Bounds: ``COMMANDS_MAX`` commands and ``ITEMS_MAX`` items wait, their senders are made to
wait; ``PASS_ITEMS_MAX`` inputs are fed in one pass. The driver decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from whimbrel import protocol as p
from whimbrel.client.commits import Commits
from whimbrel.client.futures import Places, Submitted, Watchers, fail, refused, settle
from whimbrel.client.links import Link, LinkListener, Links
from whimbrel.client.mending import Mending
from whimbrel.client.role import DURABLE, ClientStore, beginning
from whimbrel.client.suspension import Suspension
from whimbrel.client.taking import Taking
from whimbrel.core.contract import (
    Action,
    CallServer,
    CloseLink,
    Command,
    Disconnect,
    OpenLink,
    RefreshToken,
    SendItems,
    SetToken,
    TakeHandoff,
    TokenFailed,
    WokeUp,
)
from whimbrel.core.engine import Engine
from whimbrel.errors import ClientClosed, StoreError, StoreUnavailable, WhimbrelError
from whimbrel.model import Event

COMMANDS_MAX = 1_000
PASS_ITEMS_MAX = 1_000
UNCOMMITTED_ITEMS_MAX = 20_000
"""How many inputs are fed while one commit hangs; beyond, links are not read."""
_RELOAD_MIN_S, _RELOAD_MAX_S = 0.1, 5.0
_STORE_CLOSE_MIN_S = 1.0
_SLEEP_MIN_S = 0.001
_SLEEP_MAX_S = 3600.0

logger = logging.getLogger("whimbrel")
T = TypeVar("T")


class Driver:
    """Runs one engine on one store. All methods are for the event loop it was made on."""

    def __init__(
        self,
        engine: Engine,
        store: ClientStore,
        *,
        open_link: Callable[[int, LinkListener], Link],
        refresh: Callable[[], Awaitable[SetToken | TokenFailed]],
        publish: Callable[[Sequence[Event]], None],
        on_end: Callable[[ClientClosed | None], None],
        stir: Callable[[], None],
        handed: list[TakeHandoff],
    ) -> None:
        """``publish`` gets all events, in order, once their changes are on disk; it must not raise or block.

        ``stir``: who waits for news should look again. ``on_end`` is called once, when the loop has
        ended: with an error if a bug ended it. ``handed`` waits since the engine was loaded.
        """
        self.engine = engine
        self._store = store
        self._refresh = refresh
        self._publish = publish
        self._on_end = on_end
        self._stir = stir
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._suspension = Suspension()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="whimbrel-writer")
        # inputs
        self._commands: deque[Submitted] = deque()
        self._places = Places(COMMANDS_MAX)
        self._links = Links(open_link, self._wake.set)
        self.mending = Mending(self._wake.set)
        self.taking = Taking(store, self._writer, self._wake.set, self.mending.met)
        self.taking.begin(handed)
        self._commits = Commits(store, self._writer, self._wake.set)
        self._fed_since_commit = 0
        self._store_failures = 0
        self._store_error: StoreError | None = None
        # what runs beside the loop
        self._token_task: asyncio.Task[None] | None = None
        self._calls: dict[str, asyncio.Future[p.Answer | None]] = {}
        self._watchers = Watchers()
        self._pending_told = engine.pending
        self._stopping = False
        self.stopped = False
        self.failure: BaseException | None = None
        """The bug that ended the loop, if one did."""
        self._task = self._loop.create_task(self._run(), name="whimbrel-driver")

    def __repr__(self) -> str:
        return f"<Driver {'stopped' if self.stopped else 'running'}>"

    # --- for the client's face -----------------------------------------------------------------

    async def submit(self, command: Command) -> str | None:
        """Feed a command; returns once what it changed is on disk, for ``SendMessage`` with its id.

        Raises the engine's errors, and ``StoreError`` if it could not be written: then nothing is changed.

        A caller that is cancelled takes its command back if it was not fed yet; otherwise it stands.
        """
        await self._places.take()
        try:
            self.check_running()
            return await self._queue(command)
        finally:
            self._places.leave()

    def post(self, command: Command, *, droppable: bool = False) -> None:
        """Feed a command nobody waits for; a ``droppable`` one only while fewer than ``COMMANDS_MAX`` do."""
        if not self.stopped and not (droppable and len(self._commands) >= COMMANDS_MAX):
            self._queue(command)

    def _queue(self, command: Command) -> asyncio.Future[str | None]:
        future: asyncio.Future[str | None] = self._loop.create_future()
        self._commands.append(Submitted(command, future))
        self._wake.set()
        return future

    async def settled(self) -> None:
        """Wait until all that was taken in so far is on disk. Raises ``StoreError`` if it could not be."""
        self.check_running()
        future: asyncio.Future[str | None] = self._loop.create_future()
        self._commits.join(future, None)
        self._wake.set()
        await future

    async def call(self, call: p.Call, timeout_s: float) -> p.Answer | None:
        """Ask the server; None when no answer came in time. Raises ``QueueFull`` if too many wait."""
        answered: asyncio.Future[p.Answer | None] = self._loop.create_future()
        self._calls[call.id] = answered
        try:
            await self.submit(CallServer(call=call, timeout_s=timeout_s))
            return await answered
        finally:
            self._calls.pop(call.id, None)

    async def on_writer(self, function: Callable[[], T]) -> T:
        """Run a blocking write on the store's writer thread. Raises ``ClientClosed`` once that has ended."""
        try:
            writing = self._loop.run_in_executor(self._writer, function)
        except RuntimeError:
            raise self.closed_error() from None
        return await writing

    def watch(self) -> asyncio.Future[None]:
        """Done when the engine says something new (an event). Raises ``ClientClosed`` when it stops."""
        self.check_running()
        return self._watchers.watch()

    async def stop(self, timeout_s: float) -> None:
        """Disconnect, commit what is to be committed, end the loop; after ``timeout_s`` without mercy.

        Everything it started has ended when this returns, and the store is closed. Called again, it
        does nothing.
        """
        if self._stopping:
            return
        self._stopping = True
        if not self.stopped:
            self.post(Disconnect())
            await asyncio.wait([self._task], timeout=timeout_s)
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._reap()
        # Last on the writer thread: behind whatever is still being written.
        closing = self._loop.run_in_executor(self._writer, self._store.close)
        self._writer.shutdown(wait=False)
        done, _ = await asyncio.wait([closing], timeout=max(timeout_s, _STORE_CLOSE_MIN_S))
        if not done:
            logger.error("the store does not answer; it could not be closed")
        elif (error := closing.exception()) is not None:
            logger.error("the store could not be closed: %s", type(error).__name__)

    # --- the loop ------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not await self._pass():
                pass
        except asyncio.CancelledError:
            logger.warning("stopped before everything was written down")
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be left waiting
            self.failure = error
            where = "".join(traceback.format_tb(error.__traceback__))
            # Without the error's text, which may quote what it was about.
            logger.critical("the client stopped because of a bug: %s\n%s", type(error).__name__, where)
        finally:
            self._end()

    async def _pass(self) -> bool:
        """One turn of the loop; True when it was the last."""
        if self._finish_commit():
            # Told first: what apps do about it, such as the next message, is in the next commit then.
            self._act(time.monotonic())
            await asyncio.sleep(0)
        damage = self.mending.error
        if damage is not None and not self._commits.in_flight and self._store_error is None:
            self._lose_uncommitted(damage, time.monotonic())
        if self._store_error is not None and not await self._reload():
            return self._stopping
        now = time.monotonic()
        if self._suspension.ended():
            self.engine.submit(WokeUp(), now)
        self._feed(now)
        self.engine.handle_timer(now)
        self._begin_commit()
        self._act(now)
        if self._stopping and not self._commits.in_flight and not self._commands:
            return True
        # Commands wait behind what was handed over, which waits for a commit that takes too long.
        feedable = (self._links.waiting or self.taking.waiting) and self._may_feed() > 0
        if feedable or (self._commands and not self.taking.waiting):
            await asyncio.sleep(0)
        else:
            await self._sleep()
        return False

    async def _sleep(self) -> None:
        now = time.monotonic()
        deadline = self.engine.next_deadline(now)
        timer: asyncio.TimerHandle | None = None
        if deadline is not None:
            delay_s = min(max(deadline - now, _SLEEP_MIN_S), _SLEEP_MAX_S)
            timer = self._loop.call_later(delay_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._wake.clear()

    def _may_feed(self) -> int:
        return UNCOMMITTED_ITEMS_MAX - self._fed_since_commit

    def _feed(self, now: float) -> None:
        self._fed_since_commit += self.taking.feed(self.engine, now, min(PASS_ITEMS_MAX, self._may_feed()))
        if not self.taking.waiting:
            for _ in range(min(len(self._commands), PASS_ITEMS_MAX)):
                self._feed_command(self._commands.popleft(), now)
        self._fed_since_commit += self._links.feed(self.engine, now, min(PASS_ITEMS_MAX, self._may_feed()))

    def _feed_command(self, submitted: Submitted, now: float) -> None:
        future = submitted.future
        if future.cancelled():
            return
        try:
            id = self.engine.submit(submitted.command, now)
        except WhimbrelError as error:
            fail(future, error)
            return
        self._fed_since_commit += 1
        if isinstance(submitted.command, DURABLE):
            self._commits.join(future, id)
        else:
            settle(future, id)

    # --- commits -------------------------------------------------------------------------------

    def _begin_commit(self) -> None:
        if not self._commits.in_flight:
            self._fed_since_commit = 0
            self._commits.begin(self.engine.take_changes())

    def _finish_commit(self) -> bool:
        """Take over what came of the commit; True if one has ended, well."""
        commit = self._commits.end()
        if commit is None:
            return False
        error = commit.exception()
        now = time.monotonic()
        if error is None:
            if self._store_failures:
                logger.info("the store can be written again")
            self._store_failures = 0
            self.engine.committed(now, commit.result())
            self._stir()
            self._commits.settle()
            return True
        if not isinstance(error, StoreError | OSError | MemoryError):
            raise error
        if not isinstance(error, StoreError):
            error = StoreUnavailable(f"the store could not be written ({type(error).__name__})")
        self._lose_uncommitted(error, now)
        return False

    def _lose_uncommitted(self, error: StoreError, now: float) -> None:
        self.engine.commit_failed(now)
        self._store_lost(error)
        # What was submitted while the commit was in flight lived in memory only, and is gone as well.
        self._commits.fail(error)
        # The engine wants its links closed: what they bring cannot be kept.
        self._act(now)

    def _store_lost(self, error: StoreError) -> None:
        self._store_error = error
        self._store_failures += 1
        if self._store_failures == 1:
            logger.error("the store cannot be written (%s); trying again", error.code)

    async def _reload(self) -> bool:
        """Wait, refuse what cannot be kept, and start the engine again from disk; False: not yet."""
        assert self._store_error is not None
        if self._stopping:
            return False
        delay_s = min(_RELOAD_MAX_S, _RELOAD_MIN_S * 2 ** min(self._store_failures - 1, 16))
        until = time.monotonic() + delay_s
        while (left_s := until - time.monotonic()) > 0 and not self._stopping:
            self._commands = refused(self._commands, (*DURABLE, CallServer), self._store_error)
            timer = self._loop.call_later(left_s, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()
        self._commands = refused(self._commands, (*DURABLE, CallServer), self._store_error)
        try:
            snapshot, handed = await self.on_writer(lambda: beginning(self._store))
        except (StoreError, OSError) as error:
            self._store_lost(error if isinstance(error, StoreError) else self._store_error)
            return False
        self._store_error = None
        self.engine.reload(snapshot, time.monotonic())
        self.taking.begin(handed)
        self.mending.end(None)
        return True

    # --- what comes out ------------------------------------------------------------------------

    def _act(self, now: float) -> None:
        for action in self.engine.actions(now):
            self._carry_out(action)
        self._links.sent(self.engine)
        self._hand_out()

    def _carry_out(self, action: Action) -> None:
        match action:
            case SendItems(link=number, items=items):
                self._links.send(number, items)
            case OpenLink(link=number):
                self._links.open(number)
            case CloseLink(link=number):
                self._links.close(number)
            case RefreshToken():
                if self._token_task is None or self._token_task.done():
                    self._token_task = self._loop.create_task(self._get_token(), name="whimbrel-token")

    async def _get_token(self) -> None:
        try:
            command = await self._refresh()
        except Exception as error:  # noqa: BLE001 - a bug there must not leave the engine waiting
            logger.error("getting a token failed because of a bug: %s", type(error).__name__)
            command = TokenFailed(permanent=False, text=type(error).__name__)
        self.post(command)

    def _hand_out(self) -> None:
        events = self.engine.events()
        if events:
            self._publish(events)
        for answered in self.engine.answers():
            future = self._calls.get(answered.id)
            if future is not None and not future.done():
                future.set_result(answered.answer)
        # The last void is settled without an event: who waits for the outbox must hear of it too.
        pending = self.engine.pending
        if events or pending != self._pending_told:
            self._pending_told = pending
            self._watchers.wake()

    # --- the end -------------------------------------------------------------------------------

    def check_running(self) -> None:
        """Raise ``ClientClosed`` once it has stopped."""
        if self.stopped:
            raise self.closed_error()

    def closed_error(self) -> ClientClosed:
        """What calls get from now on, with the bug as its cause if there was one."""
        text = "the client stopped because of a bug" if self.failure else "the client is closed"
        error = ClientClosed(text)
        error.__cause__ = self.failure
        return error

    def _end(self) -> None:
        self.stopped = True
        self._commits.fail(self.closed_error())
        for submitted in self._commands:
            fail(submitted.future, self.closed_error())
        for call in self._calls.values():
            fail(call, self.closed_error())
        self._watchers.fail(self.closed_error())
        self._commands.clear()
        if self._token_task is not None:
            self._token_task.cancel()
        self._links.close_all()
        self.taking.end()
        self.mending.end(self.closed_error())
        self._on_end(self.closed_error() if self.failure is not None else None)

    async def _reap(self) -> None:
        if self._token_task is not None:
            await asyncio.wait([self._token_task])
        await self._links.reaped()
        self._commits.give_up()
