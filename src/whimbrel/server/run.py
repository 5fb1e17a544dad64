"""Serving: bind, open the data folder, run until told to stop, then leave in order.

Leaving, on SIGTERM or SIGINT or when the task is cancelled: nothing new is taken, what waits is
committed and answered, every link is told when to come back, and only then is it closed. Killed
instead, nothing that was answered is lost, and the next start takes the same port at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import uvicorn
from starlette.types import ASGIApp

from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server.app import create_app
from whimbrel.server.connection import REFUSED_MAX, GuardedWebSocketProtocol, protocol_class
from whimbrel.server.data import ServerData, open_data
from whimbrel.server.gateway import Gateway
from whimbrel.server.hub import Hub, Identity, ServerSettings
from whimbrel.server.service import HttpSettings, Service
from whimbrel.server.writer import Writer

_log = logging.getLogger(__name__)

UNACKNOWLEDGED_MS_MAX = 60_000
"""A peer that acknowledges nothing for so long is gone; frees what the system buffers for it."""


FILES_RESERVED = 64
"""Open files that are no connections: the databases, the event loop, the log."""


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where to serve from and how."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one; ``ready`` tells which."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    """Serve plain http off the loopback, for others on the way to read."""
    headers_within_s: float = 10.0
    connections_max: int = 20_000
    """Of all kinds; one more is answered 503. Fewer if the system allows the process too few open files."""
    shutdown_spread_s: float = 5.0
    """Over how long clients spread their return after a shutdown."""
    shutdown_within_s: float = 10.0
    server: ServerSettings = ServerSettings()
    http: HttpSettings = HttpSettings()


def run(settings: ServeSettings, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, on uvloop where there is one. Raises as ``serve``."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - absent on some platforms

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(settings, ready=ready))


async def serve(settings: ServeSettings, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until cancelled; ``ready`` is given the address once it listens.

    Raises ``InsecureUrl`` for plain http off the loopback, ``InvalidArgument`` if the address or the
    certificate cannot be used, ``StoreError`` if the data folder cannot.
    """
    tls = _check_tls(settings)
    with contextlib.closing(_bind(settings)) as listener, open_data(settings.data) as data:
        host, port = listener.getsockname()[:2]
        name = f"[{host}]" if listener.family == socket.AF_INET6 else host
        url = f"{'https' if tls else 'http'}://{name}:{port}"
        await _serve(settings, data, listener, lambda: ready(url) if ready is not None else None)


async def _serve(
    settings: ServeSettings, data: ServerData, listener: socket.socket, ready: Callable[[], None]
) -> None:
    writer = Writer(data.ledger)
    gateway = Gateway(_hub(settings, data), writer)
    service = Service(
        gateway=gateway,
        ledger=data.ledger,
        accounts=data.accounts,
        access_tokens=data.access_tokens,
        settings=settings.server,
        http=settings.http,
    )
    server = _Server(configured(settings, create_app(service)))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    stop = asyncio.Event()
    waiting = asyncio.ensure_future(stop.wait())
    damaged: asyncio.Future[errors.StoreCorrupt] = asyncio.get_running_loop().create_future()
    data.ledger.watch(_teller(damaged))
    try:
        with _signals(stop, server):
            started = asyncio.ensure_future(server.listening.wait())
            await asyncio.wait((started, serving), return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            if not serving.done():
                ready()
                await asyncio.wait((waiting, serving, damaged), return_when=asyncio.FIRST_COMPLETED)
            await _leave(settings, gateway, server, serving)
    except asyncio.CancelledError:
        await _leave(settings, gateway, server, serving)
        raise
    finally:
        waiting.cancel()
        service.close()
        writer.close()
    if damaged.done():
        raise damaged.result()


def _teller(damaged: asyncio.Future[errors.StoreCorrupt]) -> Callable[[errors.StoreCorrupt], None]:
    """What tells of damage, from any thread."""
    loop = asyncio.get_running_loop()

    def tell(error: errors.StoreCorrupt) -> None:
        def settle() -> None:
            if not damaged.done():
                damaged.set_result(error)

        with contextlib.suppress(RuntimeError):  # the loop is over, and nothing is served any more
            loop.call_soon_threadsafe(settle)

    return tell


async def _leave(
    settings: ServeSettings, gateway: Gateway, server: _Server, serving: asyncio.Future[None]
) -> None:
    await gateway.shutdown(spread_s=settings.shutdown_spread_s, within_s=settings.shutdown_within_s)
    server.should_exit = True
    await serving


def _hub(settings: ServeSettings, data: ServerData) -> Hub:
    def authenticate(token: str) -> Identity:
        access = data.access_tokens.verify(token)
        return Identity(user=access.user, device=access.device, expires_at=access.expires_at)

    return Hub(
        data.ledger,
        authenticate=authenticate,
        synctokens=data.sync_tokens,
        known_users=data.accounts.users_exist,
        settings=settings.server,
        wall=time.time,
    )


def _connections_max(settings: ServeSettings) -> int:
    """Give how many connections there may be, so that the ledger can always open its files."""
    with contextlib.suppress(ImportError):
        import resource  # noqa: PLC0415 - absent on some platforms

        files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files_max != resource.RLIM_INFINITY:
            # Those being refused hold a file as well.
            room = files_max - FILES_RESERVED - REFUSED_MAX
            return max(1, min(settings.connections_max, room))
    return settings.connections_max


def configured(settings: ServeSettings, app: ASGIApp) -> uvicorn.Config:
    """Give uvicorn's configuration for this application, with all its bounds. Raises ``InvalidArgument``."""
    config = uvicorn.Config(
        app,
        http=protocol_class(settings.headers_within_s, _connections_max(settings)),
        ws=GuardedWebSocketProtocol,
        ws_max_size=p.FRAME_BYTES_MAX,
        ws_per_message_deflate=False,
        # Links have a heartbeat of their own, which the client paces.
        ws_ping_interval=None,
        ws_ping_timeout=None,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise errors.InvalidArgument(
            f"the certificate or its key cannot be used: {error}", hint="give two PEM files that fit"
        ) from error
    return config


class _Server(uvicorn.Server):
    """Says when it listens, and leaves signals to us."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextlib.contextmanager
def _signals(stop: asyncio.Event, server: _Server) -> Iterator[None]:
    """Stop at the first signal, hurry at the second; not in a thread, where no signal comes."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            server.force_exit = True
        stop.set()

    taken = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(number, on_signal)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


# --- the address -------------------------------------------------------------------------------


def _check_tls(settings: ServeSettings) -> bool:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise errors.InvalidArgument("a certificate needs its key", hint="give both, or neither")
    return settings.tls_cert is not None


def _bind(settings: ServeSettings) -> socket.socket:
    """Take the port, so that two servers never share it. Raises ``InvalidArgument``, ``InsecureUrl``."""
    host, port = settings.host, settings.port
    if not 0 <= port <= 65_535:
        raise errors.InvalidArgument(f"{port} is no port", hint="ports go from 0 (any free one) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise errors.InvalidArgument(f"{host} port {port} is no address of this machine") from error
    on_loopback = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    if settings.tls_cert is None and not on_loopback and not settings.insecure:
        raise errors.InsecureUrl(
            f"plain http on {host}: others on the way can read it",
            hint="give a certificate (--tls-cert, --tls-key), or say --insecure if you accept that",
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A killed server's connections linger; without this they would hold the port for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Inherited by every connection. asyncio sees to it only for sockets that name their protocol, and an
        # answer of two writes would wait for the peer's delayed acknowledgement: 40 ms each.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_MAX)
        listener.bind(address)
        # Listening decides who has the port: with SO_REUSEADDR, binding alone may succeed twice.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _bind_error(host, port, error) from error
    listener.setblocking(False)
    return listener


def _bind_error(host: str, port: int, error: OSError) -> errors.InvalidArgument:
    if error.errno == errno.EADDRINUSE:
        return errors.InvalidArgument(
            f"port {port} on {host} is in use",
            hint="stop the other program, or choose another port (--port 0 takes any free one)",
        )
    if error.errno == errno.EACCES:
        return errors.InvalidArgument(
            f"port {port} may not be used by this user", hint="choose a port from 1024 on"
        )
    return errors.InvalidArgument(f"{host} port {port} cannot be used: {error.strerror}")
