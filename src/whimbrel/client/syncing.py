"""The role of the client that syncs its store: an engine, its driver, the tokens, and a door for guests.

It decides nothing and keeps nothing: it is what the four have in common, under the names that both
roles have (``client.role``). From its beginning the store is its own, until ``stop`` closed it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from whimbrel import protocol as p
from whimbrel.client import relay
from whimbrel.client.credentials import Credentials, TokenKeeper
from whimbrel.client.driver import Driver
from whimbrel.client.host import Host
from whimbrel.client.role import ClientStore
from whimbrel.core.contract import Command, Connect, SetToken, SetTyping
from whimbrel.core.engine import Engine
from whimbrel.errors import ClientClosed, StoreError, WhimbrelError
from whimbrel.model import ConnectionChanged, ConnectionState, Event, Explanation, SendStatus

logger = logging.getLogger("whimbrel")
T = TypeVar("T")


class Syncing:
    """See the module. All methods are for the event loop it was made on."""

    def __init__(self, store: ClientStore, engine: Engine, tokens: TokenKeeper) -> None:
        """The driver is given with ``begin``, since it tells its events to this."""
        self.engine = engine
        self.tokens = tokens
        self.driver: Driver
        self._store = store
        self._host: Host | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing = False

    def __repr__(self) -> str:
        return f"<Syncing {self.driver!r}>"

    def begin(self, driver: Driver) -> None:
        """Connect, and let guests in if the store can have any."""
        self.driver = driver
        driver.post(Connect())
        if self._store.path is not None:
            self._opening = asyncio.get_running_loop().create_task(self._open_door(), name="whimbrel-door")

    async def _open_door(self) -> None:
        assert self._store.path is not None
        try:
            secret = await self.driver.on_writer(self._secret)
        except (StoreError, ClientClosed) as error:
            logger.info("no guests are let in (%s)", type(error).__name__)
            return
        self._host = Host(self, secret)
        await self._host.start(self._store.path)

    def _secret(self) -> str:
        secret = self._store.get_secret(relay.SECRET_NAME)
        if secret is None:
            secret = relay.random_text()
            self._store.set_secret(relay.SECRET_NAME, secret)
        return secret

    # --- for guests ----------------------------------------------------------------------------

    def publish(self, events: Sequence[Event]) -> None:
        """Tell guests what the app is told, but for the link going down because this client closes."""
        if self._host is None or not self._host.guests:
            return
        for event in events:
            if not (self._closing and isinstance(event, ConnectionChanged)):
                self._host.publish(event)

    def stir(self) -> None:
        """Have guests look again."""
        if self._host is not None:
            self._host.stir()

    def state(self) -> relay.State:
        """Where the link stands, and who is signed in, for guests."""
        failure = self.tokens.failure
        return relay.State(
            connection=self.connection,
            user=self.tokens.user,
            failure=None if failure is None else relay.failure_of(failure),
            possible=self.tokens.possible,
            last_error=self.tokens.last_error,
        )

    def look(self) -> None:
        """A guest handed something over."""
        if not self.driver.stopped:
            self.driver.taking.look()

    def post(self, command: SetTyping | Connect) -> None:
        """Do what a guest wants done; lost when too much waits already."""
        self.driver.post(command, droppable=True)

    # --- the role ------------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        """Whether it has ended."""
        return self.driver.stopped

    @property
    def failure(self) -> BaseException | None:
        """The bug that ended it, if one did."""
        return self.driver.failure

    @property
    def connection(self) -> ConnectionChanged:
        """The state of the link now."""
        if self.driver.stopped:
            return ConnectionChanged(state=ConnectionState.STOPPED)
        return self.engine.connection(time.monotonic())

    @property
    def user(self) -> str | None:
        """Whose store it is; None until the first sign-in."""
        return self.tokens.user

    @property
    def sign_in_failure(self) -> WhimbrelError | None:
        """Why signing in failed for good."""
        return self.tokens.failure

    @property
    def sign_in_possible(self) -> bool:
        """Whether there is anything to sign in with."""
        return self.tokens.possible

    @property
    def last_sign_in_error(self) -> str:
        """Why there was no token the last time."""
        return self.tokens.last_error

    def closed_error(self) -> ClientClosed:
        """What calls get once it has stopped."""
        return self.driver.closed_error()

    def status(self, id: str) -> SendStatus | None:
        """The status of a message that is not settled; None: the store knows."""
        return None if self.driver.stopped else self.engine.status(id)

    def follow(self, id: str, status: SendStatus) -> None:
        """Whatever becomes of it is told anyway."""

    async def explain(self, id: str) -> Explanation | None:
        """Why a message is where it is; None: the store knows."""
        return self.engine.explain(id, time.monotonic())

    async def pending(self) -> int:
        """How many own messages are not settled, or not even queued yet; none: the store says so too."""
        if not self._waiting:
            try:
                await self.driver.settled()
            except StoreError:
                return max(1, self._waiting)  # it was not kept, and will be settled again
        return self._waiting

    @property
    def _waiting(self) -> int:
        return self.engine.pending + self.driver.taking.waiting

    async def submit(self, command: Command) -> str | None:
        """Feed the engine a command."""
        return await self.driver.submit(command)

    async def call(self, call: p.Call, timeout_s: float) -> p.Answer | None:
        """Ask the server; None when no answer came in time."""
        return await self.driver.call(call, timeout_s)

    async def settled(self) -> None:
        """Wait until all that came from the server so far is in the store."""
        await self.driver.settled()

    def watch(self) -> asyncio.Future[None]:
        """Done when the engine says something new."""
        return self.driver.watch()

    async def write(self, function: Callable[[], T]) -> T:
        """Run a blocking write on the store's writer thread."""
        return await self.driver.on_writer(function)

    async def sign_in(self, credentials: Credentials) -> None:
        """Use these credentials from now on. Raises what went wrong."""
        await self.driver.submit(await self.tokens.sign_in(credentials))

    async def sign_out(self) -> None:
        """Forget the tokens, here and on the server."""
        await self.tokens.sign_out()
        await self.driver.submit(SetToken(token=None))

    async def stop(self, timeout_s: float) -> None:
        """Let nobody in, end the driver, close the store; then guests hear of it, and one takes over."""
        self._closing = True
        if self._opening is not None:
            await asyncio.wait([self._opening], timeout=timeout_s)
            self._opening.cancel()  # it waits for a disk that does not answer
        if self._host is not None:
            self._host.close()
        await self.driver.stop(timeout_s)
        if self._host is not None:
            await self._host.leave()
