"""The client: what an app holds in its hands.

It checks what the app asks, and answers from the engine (what is on its way) and from the store
(everything else), through its ``Session``. Opening needs no network. One client syncs a store at a
time; others on the same store, in this process or another, work through it, and one of them takes
its place when it ends (``client.role``).

States: made → open → closed, each once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import msgspec

from whimbrel import protocol as p
from whimbrel.client.address import parse_address
from whimbrel.client.consumer import NAME_CHARS_MAX, ConsumerStream
from whimbrel.client.conversation import ConversationHandle
from whimbrel.client.credentials import Credentials
from whimbrel.client.events import EventStream
from whimbrel.client.handles import SentMessage
from whimbrel.client.opening import open_store
from whimbrel.client.outgoing import checked_text, outgoing, random_name
from whimbrel.client.role import unexplained
from whimbrel.client.session import Session
from whimbrel.core.contract import (
    CancelMessage,
    Command,
    Connect,
    MessageRow,
    RetryMessage,
    Settings,
)
from whimbrel.core.rows import status_of
from whimbrel.errors import (
    ClientClosed,
    InvalidArgument,
    NotConnected,
    NotFound,
    Unauthorized,
    UsageError,
    remote_error,
)
from whimbrel.model import (
    ConnectionChanged,
    ConnectionState,
    Content,
    Conversation,
    Explanation,
    Message,
    Role,
    SendStatus,
    StoreRebuilt,
)


class ClosingReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``close()`` left behind."""

    pending: int
    """Own messages not delivered; they stay in the store, and go out when it is opened again."""


class Client:
    """A connection to one whimbrel server on one store; ``async with`` opens and closes it."""

    def __init__(
        self,
        url: str,
        store: str | Path | None = None,
        credentials: Credentials | None = None,
        *,
        key: bytes | str | None = None,
        passphrase: str | None = None,
        prompt: Callable[[bool], str | None] | None = None,
        insecure: bool = False,
        settings: Settings | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is opened yet. ``store``: a file, always encrypted; None: memory, gone with the process.

        The store's key is ``key`` if that is bytes (32 of them); else it is kept where ``key`` says:
        ``"keyring"`` (the system's key store), ``"passphrase"`` (a file sealed under ``passphrase``,
        or what ``prompt(new)`` asks for), or ``"file"`` (a plain file, only by this name). Without
        ``credentials`` the tokens in the store are used. ``tls`` replaces the system's trust in
        certificates. Raises ``InvalidUrl``, and ``InsecureUrl`` for plain http off the loopback
        unless ``insecure``.
        """
        self._address = parse_address(url, insecure=insecure)
        self._store_path = None if store is None else Path(store)
        self._credentials = credentials
        self._key = key
        self._passphrase = passphrase
        self._prompt = prompt
        self._settings = settings if settings is not None else Settings()
        self._tls = tls
        self._session: Session | None = None
        self._opened = False
        self._closing: asyncio.Task[ClosingReport] | None = None

    def __repr__(self) -> str:
        return f"<Client of {self._address.http} {self.connection.state}>"

    # --- opening and closing -------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(timeout=5.0 if kind is None else 0.0)

    async def open(self) -> None:
        """Open the store and begin connecting, which goes on behind; no network is needed.

        If another client syncs this store, this one works through it: the address and settings are that
        one's until it ends and this one, or another, takes its place. Raises ``StoreError`` (wrong key,
        damaged, in use by an older version …); then nothing is left open, and it may be tried again.
        """
        if self._opened:
            raise UsageError("a client is opened once", hint="make a new Client")
        self._opened = True
        try:
            self._session = await Session.open(
                lambda: open_store(self._store_path, self._key, self._passphrase, self._prompt),
                address=self._address,
                tls=self._tls,
                settings=self._settings,
                credentials=self._credentials,
                face=self,
            )
        except BaseException:
            self._opened = False
            raise

    async def close(self, timeout: float = 5.0) -> ClosingReport:
        """Close. While connected, what is queued gets up to ``timeout`` seconds to go out first.

        It does not wait where another client syncs this store, and goes on with what is queued.
        Says what stays queued. Waiting calls get ``ClientClosed``, streams end. May be called twice.
        """
        if self._session is None:
            return ClosingReport(pending=0)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(self._session, timeout), name="whimbrel-closing")
        # Cancelled here, it goes on to its end all the same: nothing stays open behind the app's back.
        return await asyncio.shield(self._closing)

    @staticmethod
    async def _close(session: Session, timeout_s: float) -> ClosingReport:
        return ClosingReport(pending=await session.close(timeout_s))

    @property
    def closed(self) -> bool:
        """Whether it is closed, or was stopped by a bug (``failure``)."""
        return self._session is not None and self._session.role.stopped

    @property
    def failure(self) -> BaseException | None:
        """The bug that stopped this client, if one did."""
        return None if self._session is None else self._session.role.failure

    # --- connection ----------------------------------------------------------------------------

    @property
    def connection(self) -> ConnectionChanged:
        """The state of the link now."""
        if self._session is None:
            return ConnectionChanged(state=ConnectionState.STOPPED)
        return self._session.connection

    @property
    def user(self) -> str | None:
        """Whose store this is; None until the first sign-in."""
        return self._open.role.user

    @property
    def device(self) -> str:
        """The id of this device, made with the store."""
        return self._open.store.device

    @property
    def rebuilt(self) -> StoreRebuilt | None:
        """What became of a store that was damaged, if it was made anew; ``events()`` tells it, once."""
        return self._open.rebuilds.report

    async def connected(self, timeout: float | None = None) -> None:
        """Wait for the link; what changed meanwhile (new conversations, their heads) is in the store then.

        Raises ``NotConnected`` after ``timeout`` seconds, and at once when connecting was given up;
        ``Unauthorized`` when only signing in again helps.
        """
        session = self._open
        try:
            async with asyncio.timeout(timeout):
                while (state := session.connection.state) is not ConnectionState.CONNECTED:
                    failure = session.role.sign_in_failure
                    if failure is not None:
                        raise Unauthorized(str(failure), hint=failure.hint) from failure
                    if not session.role.sign_in_possible:
                        raise Unauthorized("there are no credentials, and no tokens in the store")
                    if state is ConnectionState.STOPPED and session.connection.attempt:
                        raise NotConnected(f"connecting was given up: {self._cause(session)}")
                    await session.changed()
                await session.settled()
        except TimeoutError:
            raise NotConnected(f"not connected: {self._cause(session)}") from None

    async def sign_in(self, credentials: Credentials) -> None:
        """Use these credentials from now on. Raises ``Unauthorized``, or ``ServerUnreachable`` …"""
        await self._open.sign_in(credentials)

    async def sign_out(self) -> None:
        """Forget the tokens, here and on the server; messages and queue stay in the store."""
        await self._open.sign_out()

    async def reconnect(self) -> None:
        """Try at once instead of waiting: the network changed, or the app came to the foreground."""
        await self.submit(Connect())

    @staticmethod
    def _cause(session: Session) -> str:
        return session.connection.cause or session.role.last_sign_in_error or "no answer yet"

    # --- conversations -------------------------------------------------------------------------

    def conversation(self, id: str) -> ConversationHandle:
        """The handle of a conversation, known here or not."""
        return ConversationHandle(self, checked_text("conversation", id, p.ID_CHARS_MAX))

    async def conversations(self) -> list[Conversation]:
        """All conversations of this store, by id; works offline."""
        return await self._open.read(self._open.store.conversations)

    async def create_conversation(
        self, *members: str, title: str = "", id: str | None = None
    ) -> ConversationHandle:
        """Create a conversation of these users and this one.

        With an ``id`` of the app's own it may be repeated: the same again gives the same conversation.
        Needs the server: raises ``NotConnected`` without an answer in time; ``Conflict`` if the id is
        taken by something else, ``NotFound`` for users that do not exist, ``InvalidRequest``.
        """
        if len(members) > p.MEMBERS_MAX:
            raise InvalidArgument(f"a conversation has at most {p.MEMBERS_MAX} members")
        for member in members:
            checked_text("member", member, p.ID_CHARS_MAX)
        checked_text("title", title, p.TITLE_CHARS_MAX, empty=True)
        conversation = random_name() if id is None else checked_text("id", id, p.ID_CHARS_MAX)
        await self.call_server(op="create", conversation=conversation, title=title, members=members)
        return ConversationHandle(self, conversation)

    async def call_server(
        self,
        *,
        op: str,
        conversation: str = "",
        title: str = "",
        members: tuple[str, ...] = (),
        user: str = "",
    ) -> p.Answer:
        """Ask the server something that may be repeated, and wait for its answer, over reconnections."""
        session = self._open
        call = p.Call(
            id=random_name(), op=op, conversation=conversation, title=title, members=members, user=user
        )
        answer = await session.call(call, self._settings.call_timeout_s)
        if answer is None:
            raise NotConnected(f"the server did not answer: {self._cause(session)}")
        if answer.code:
            raise remote_error(answer.code, answer.text)
        return answer

    # --- messages ------------------------------------------------------------------------------

    async def send(
        self,
        conversation: str,
        content: Content,
        *,
        key: str | None = None,
        metadata: dict[str, Any] | None = None,
        reply_to: str | None = None,
        role: Role | str = Role.USER,
        expires_in: float | None = None,
        on_reject: str = "skip",
    ) -> SentMessage:
        """Queue a message in a conversation; see ``ConversationHandle.send``."""
        session = self._open
        command = outgoing(
            conversation,
            content,
            key=key,
            metadata=metadata,
            reply_to=reply_to,
            role=role,
            expires_in=expires_in,
            on_reject=on_reject,
        )
        return await (session.send(command) if key is None else session.send_once(command))

    async def message(self, id: str) -> Message | None:
        """One message of this store by its id."""
        session = self._open
        return await session.read(lambda: session.store.message(id))

    async def pending(self) -> list[Message]:
        """Own messages that are not delivered, in the order of their queues."""
        return await self._open.read(self._open.store.pending)

    async def sent_message(self, id: str) -> SentMessage:
        """The handle of an own message, also of one sent before a restart. Raises ``NotFound``."""
        row = await self._own_row(id)
        return self._open.handle(row.id, row.key or "", row.conversation, status_of(row))

    async def status(self, id: str) -> SendStatus:
        """Where an own message stands. Raises ``NotFound`` if there is none of this id."""
        status = self._open.status(id)
        if status is None or status.settled:  # the store knows more: whether it was read
            message = await self.message(id)
            status = message.status if message is not None else None
        if status is None:
            raise NotFound(f"there is no own message {id}")
        return status

    async def explain(self, id: str) -> Explanation:
        """Why an own message is where it is, and what would move it. Raises ``NotFound``."""
        explanation = await self._open.explain(id)
        if explanation is not None:
            return explanation
        return unexplained(await self._own_row(id), await self.status(id))

    async def retry(self, id: str) -> None:
        """Take a failed message up again now."""
        await self.submit(RetryMessage(id=id))

    async def retry_all(self) -> None:
        """Take all failed messages up again now."""
        await self.submit(RetryMessage())

    async def cancel(self, id: str) -> None:
        """Withdraw a message: final at once if it never left, else when the server has answered."""
        await self.submit(CancelMessage(id=id))

    async def flush(self, timeout: float | None = None) -> int:
        """Wait until nothing is queued, and give 0. Raises ``DeliveryPending`` after ``timeout`` seconds."""
        return await self._open.drained(timeout, while_connected=False)

    # --- events --------------------------------------------------------------------------------

    @overload
    def events(self) -> EventStream: ...
    @overload
    def events(self, *, consumer: str) -> ConsumerStream: ...
    def events(self, *, consumer: str | None = None) -> EventStream | ConsumerStream:
        """Everything that happens from now on; or, for a named ``consumer``, every log entry not done yet.

        A live stream is for views: bounded, gone with the process. A durable consumer is for bots:
        it misses nothing, and gets again after a restart what it had not said ``done()`` to.
        """
        session = self._open
        if consumer is None:
            return session.rebuilds.told(session.hub.stream())
        return session.consumers.begin(
            ConsumerStream(checked_text("consumer", consumer, NAME_CHARS_MAX), self)
        )

    async def consumer_position(self, name: str) -> int:
        """How far a durable consumer has come, in this store's order of arrival."""
        session = self._open
        return await session.read(lambda: session.store.consumer_position(name))

    async def arrivals(self, after: int, limit: int = 100) -> list[Message]:
        """Log entries in the order they came to this store, behind position ``after``."""
        session = self._open
        return await session.read(lambda: session.store.arrivals(after, limit))

    # --- for the handles -----------------------------------------------------------------------

    async def save_position(self, name: str, position: int) -> None:
        """Make a consumer's position durable."""
        session = self._open
        await session.write(lambda: session.store.set_consumer_position(name, position))

    async def claim_consumer(self, name: str) -> None:
        """Be the only program that reads as this consumer. Raises ``StoreInUse``."""
        await self._open.claim_consumer(name)

    def consumer_ended(self, stream: ConsumerStream) -> None:
        """A stream hands out nothing more."""
        if self._session is not None:
            self._session.consumers.ended(stream)

    def known_status(self, id: str) -> SendStatus | None:
        """The status of a message that is not settled; None: the store knows."""
        return None if self._session is None or self.closed else self._session.status(id)

    async def read_messages(
        self, conversation: str, *, before: int | None, after: int | None, limit: int
    ) -> list[Message]:
        """A page of a conversation from the store."""
        session = self._open
        return await session.read(
            lambda: session.store.messages(conversation, before=before, after=after, limit=limit)
        )

    async def submit(self, command: Command) -> None:
        """Give the engine a command."""
        await self._open.submit(command)

    # --- inside --------------------------------------------------------------------------------

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise ClientClosed(
                "the client is not open", hint="use it inside: async with Client(...) as client"
            )
        if self.closed:
            raise self._session.role.closed_error()
        return self._session

    async def _own_row(self, id: str) -> MessageRow:
        session = self._open
        row = await session.read(lambda: session.store.row(id))
        if row is None or not row.own:
            raise NotFound(f"there is no own message {id}")
        return row
