"""A whole whimbrel server inside the test: the real gateway, hub and HTTP interface on a ledger in memory.

    server.url                          what a Client connects to
    server.user("anna")                 a user, made when first asked for: her Credentials
    server.messages("orders")           what the server has, in the order of the log

It runs on the loop of the test: on a virtual loop over the virtual network, on any other over a real socket
of the loopback. What differs from ``whimbrel serve`` is where things are kept, how weakly passwords are
hashed, and that it does wrong on demand: ``refuse_next``, ``fail_commits``, ``lose_answers``,
``holding_answers``, ``unavailable``, ``rejecting_auth``, ``revoke``, ``crash``, ``restart``, ``restore``.

States: down → up → down … ; what was delivered survives every way of going down.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import argon2
from uvicorn.server import ServerState

from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.client.client import Client
from whimbrel.client.credentials import Credentials
from whimbrel.model import Message
from whimbrel.server.accounts import Accounts
from whimbrel.server.app import create_app
from whimbrel.server.hub import Hub, Identity
from whimbrel.server.ledger_memory import MemoryState
from whimbrel.server.run import ServeSettings, configured
from whimbrel.server.service import HttpSettings, Service
from whimbrel.server.settings import ServerSettings
from whimbrel.server.synctoken import SyncTokens
from whimbrel.server.writer import Writer
from whimbrel.testing.misbehaviour import Gate, Refusal, Script, ScriptedGateway, ScriptedLedger, until_idle

__all__ = ["Backup", "MemoryServer"]

SETTLE_S_MAX: Final = 60.0
# As weak as can be: what is tested is not how long a guess takes.
_HASHER: Final = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Backup:
    """What the server had at one moment, for ``MemoryServer.restore``."""

    def __init__(self, state: MemoryState) -> None:
        self.state = state


class _Running:
    """What goes when the process goes."""

    def __init__(self, server: MemoryServer, state: MemoryState | None) -> None:
        self.ledger = ScriptedLedger(server.script, state)
        self.writer = Writer(self.ledger)
        hub = Hub(
            self.ledger,
            authenticate=server.authenticate,
            synctokens=server.sync_tokens,
            known_users=server.accounts.users_exist,
            settings=server.settings,
            wall=_wall,
        )
        self.gateway = ScriptedGateway(hub, self.writer)
        self.service = Service(
            gateway=self.gateway,
            ledger=self.ledger,
            accounts=server.accounts,
            access_tokens=server.accounts.access_tokens,
            settings=server.settings,
            http=server.http,
        )
        self.gate = Gate(create_app(self.service))
        self.connections = ServerState()
        self.listener: asyncio.AbstractServer

    def close(self) -> None:
        self.listener.close()
        for connection in [*self.connections.connections]:
            transport: asyncio.Transport | None = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        self.service.close()
        self.writer.close()


class MemoryServer:
    """See the module. Made by the fixture ``whimbrel_server``; an async context manager by hand."""

    def __init__(
        self, *, settings: ServerSettings | None = None, http: HttpSettings | None = None, port: int = 0
    ) -> None:
        """``settings``: the server's numbers (rate limits, batches, bounds), by default the real ones."""
        self.settings = settings if settings is not None else ServerSettings()
        self.http = http if http is not None else HttpSettings(login_per_s=1e6, login_burst=1_000_000)
        self.script = Script()
        self.sync_tokens = SyncTokens(secrets.token_bytes(32))
        self._port = port
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._accounts: Accounts | None = None
        self._running: _Running | None = None
        self._state = MemoryState(secrets.token_hex(10))
        self._seen: dict[str, set[str]] = {}
        self._revoked: set[str] = set()
        self._auth_rejected = False
        self.front_port = 0
        """The port of what stands before it, if something does: then that is where ``url`` leads."""
        self.restarts = 0
        """How often it was started again."""

    def __repr__(self) -> str:
        return f"<MemoryServer {'up' if self._running else 'down'} at port {self._port}>"

    async def __aenter__(self) -> MemoryServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- up and down ---------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where clients connect; the same from start to end, through restarts too."""
        if not self._port:
            raise RuntimeError("the server was not started yet")
        return f"http://127.0.0.1:{self.front_port or self._port}"

    @property
    def port(self) -> int:
        """Where it listens itself."""
        return self._port

    @property
    def is_up(self) -> bool:
        """Whether it can be reached."""
        return self._running is not None

    async def start(self) -> None:
        """Be there, on the port it had before. Nothing if it is."""
        if self._running is not None:
            return
        self.restarts += self._port != 0
        running = _Running(self, self._state)
        config = configured(ServeSettings(data=Path(self._made_folder())), running.gate)

        def serve_connection() -> Any:
            return config.http_protocol_class(  # type: ignore[call-arg]  # typed as asyncio.Protocol
                config=config, server_state=running.connections, app_state={}
            )

        try:
            running.listener = await asyncio.get_running_loop().create_server(
                serve_connection, "127.0.0.1", self._port
            )
        except BaseException:
            running.service.close()
            running.writer.close()
            raise
        self._port = running.listener.sockets[0].getsockname()[1]
        self._running = running

    async def stop(self, *, spread_s: float = 0.0) -> None:
        """Leave in order: settle what waits, send every link away, be gone. Nothing if it is down."""
        running, self._running = self._running, None
        if running is not None:
            self._state = running.ledger.state
            running.listener.close()
            await running.gateway.shutdown(spread_s=spread_s, within_s=10.0)
            running.ledger.close()
            running.close()

    def crash(self) -> None:
        """Be gone at once, as with kill -9: what was delivered stays, all else of the process is lost."""
        running, self._running = self._running, None
        if running is not None:
            self._state = running.ledger.state
            running.gateway.halt()
            running.ledger.close()
            running.close()

    async def restart(self) -> None:
        """Leave in order and come back at once."""
        await self.stop()
        await self.start()

    async def aclose(self) -> None:
        """End it for good."""
        await self.stop()
        if self._accounts is not None:
            self._accounts.close()
            self._accounts = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def backup(self) -> Backup:
        """What the server has now."""
        return Backup(self._up.ledger.copy().state)

    async def restore(self, backup: Backup) -> None:
        """Come back with the ledger of this backup, as a new history: what was delivered since is gone.

        Clients offer again what of their own it lacks.
        """
        self.crash()
        ledger = ScriptedLedger(self.script, backup.state.copy())
        ledger.begin_new_history()
        self._state = ledger.state
        await self.start()

    # --- users ---------------------------------------------------------------------------------

    def user(self, name: str) -> Credentials:
        """Give what this user signs in with; makes the user when first asked for."""
        password = f"password of {name}"
        with contextlib.suppress(errors.Conflict):
            self.accounts.add_user(name, password)
        return Credentials(name, password)

    def client(self, name: str, store: str | Path | None = None, **options: Any) -> Client:
        """A client of this user, to be entered with ``async with``; ``options`` as for ``Client``."""
        return Client(self.url, store, self.user(name), **options)

    def revoke(self, name: str) -> None:
        """Sign out every device of a user: none of its tokens is good any more, the password still is."""
        self.accounts.set_password(name, f"password of {name}")
        self._revoked |= self._seen.pop(name, set())
        if self._running is not None:
            self._running.gateway.hub.start_anew(time.monotonic())
            self._running.gateway.turn()

    @contextlib.contextmanager
    def rejecting_auth(self) -> Iterator[None]:
        """Nobody can sign in or refresh inside the ``with`` block, nor greet with a token."""
        self._auth_rejected = self._up.gate.auth_rejected = True
        try:
            yield
        finally:
            self._auth_rejected = False
            if self._running is not None:
                self._running.gate.auth_rejected = False

    # --- doing wrong ---------------------------------------------------------------------------

    def refuse_next(
        self, code: str = "unavailable", *, count: int = 1, user: str | None = None, text: str = "refused"
    ) -> None:
        """Refuse the next ``count`` messages (of ``user``, or of anyone) that come, with this code.

        ``unavailable``, ``internal`` and ``rate_limited`` are tried again by the client; ``invalid``,
        ``forbidden``, ``not_found`` and ``too_large`` are final.
        """
        self.script.refusals.extend(Refusal(code=code, text=text, user=user) for _ in range(count))

    def fail_commits(self, count: int = 1) -> None:
        """Write none of the next ``count`` batches with messages, as if the disk were full: 503."""
        self.script.failing_commits += count

    def lose_answers(self, count: int = 1, *, crash: bool = False) -> None:
        """Write the next ``count`` batches with messages and tell nobody; with ``crash`` be gone then."""
        loop = asyncio.get_running_loop()
        self.script.losing_answers += count

        def gone() -> None:
            loop.call_soon_threadsafe(self.crash)

        self.script.crash = gone if crash else None

    @contextlib.contextmanager
    def holding_answers(self) -> Iterator[None]:
        """Whatever comes is taken and carried out, but nothing goes out inside the ``with`` block."""
        self._up.gateway.hold(True)
        try:
            yield
        finally:
            if self._running is not None:
                self._running.gateway.hold(False)

    @contextlib.contextmanager
    def unavailable(self, retry_after_s: float = 1.0) -> Iterator[None]:
        """Every request and every new link is answered 503, with Retry-After, inside the ``with`` block."""
        self._up.gate.unavailable_s = retry_after_s
        try:
            yield
        finally:
            if self._running is not None:
                self._running.gate.unavailable_s = None

    # --- looking -------------------------------------------------------------------------------

    def messages(self, conversation: str, *, kind: str | None = "message") -> list[Message]:
        """What the server has of a conversation, in order; ``kind=None``: changes of members as well."""
        events = self.ledger.events(conversation)
        return [_message(event) for event in events if kind is None or event.kind == kind]

    def conversations(self) -> list[str]:
        """The ids of all conversations."""
        return sorted(self._state_now.conversations)

    def members(self, conversation: str) -> tuple[str, ...]:
        """The present members."""
        return tuple(sorted(self._state_now.present(conversation)))

    async def settled(self) -> None:
        """Wait until nothing waits for a commit. Raises ``TimeoutError`` after a minute."""
        await until_idle(lambda: self._running is not None and self._running.gateway.hub.busy, SETTLE_S_MAX)

    @property
    def ledger(self) -> ScriptedLedger:
        """The ledger, also while the server is down."""
        return self._running.ledger if self._running is not None else ScriptedLedger(self.script, self._state)

    # --- within --------------------------------------------------------------------------------

    @property
    def accounts(self) -> Accounts:
        """Users, devices and sessions."""
        if self._accounts is None:
            path = Path(self._made_folder()) / "accounts.db"
            self._accounts = Accounts(path, secrets.token_bytes(32), clock=_wall, hasher=_HASHER)
        return self._accounts

    def authenticate(self, token: str) -> Identity:
        """Give whom an access token speaks for. Raises ``Unauthorized``."""
        access = self.accounts.access_tokens.verify(token)
        if self._auth_rejected or token in self._revoked:
            raise errors.Unauthorized("this token was revoked")
        self._seen.setdefault(access.user, set()).add(token)
        return Identity(user=access.user, device=access.device, expires_at=access.expires_at)

    @property
    def _state_now(self) -> MemoryState:
        return self._running.ledger.state if self._running is not None else self._state

    @property
    def _up(self) -> _Running:
        if self._running is None:
            raise RuntimeError("the server is down")
        return self._running

    def _made_folder(self) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="whimbrel-server-")
        return self._folder.name


def _wall() -> float:
    # Asked anew each time: on a virtual loop it is not the real one.
    return time.time()


def _message(event: p.Event) -> Message:
    return Message(
        id=event.id,
        conversation=event.conversation,
        sender=event.sender,
        kind=event.kind,
        role=event.role,
        content=p.decode_content(event.format, event.body),
        metadata=event.metadata,
        reply_to=event.reply_to,
        seq=event.seq,
        sent_at=event.sent_at,
        delivered_at=event.at,
    )
