"""One link to the server over a WebSocket: frames in, frames out, and why it ended.

A link is opened once and ends once: ``opened`` then ``closed``, or ``closed`` alone. It decides
nothing: no ping, no timeout and no reconnection of its own, since the engine does all three. What
it tells its listener, always on the event loop and in this order of the wire: that it opened,
that bytes came (any), the items of each frame, how much room there is to write, and, unless it was
closed from this side, the fault that ended it.

Bounds: what came and was not taken stays in the listener's hands (it makes the reader wait, and 16
frames later the socket is no longer read); what is to be written never exceeds ``WRITE_BYTES_MAX``
plus one item, because the engine is told the room and keeps to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import broadcast
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    WebSocketException,
)

from whimbrel import protocol as p
from whimbrel.client.address import Address
from whimbrel.client.links import LinkListener
from whimbrel.core.contract import Fault
from whimbrel.errors import ProtocolError

WRITE_BYTES_MAX = 64 * 1024
"""How much may wait to be written on one link."""
_WRITE_HIGH, _WRITE_LOW = 16 * 1024, 4 * 1024
_NOT_SENT_BYTES = 32 * 1024
_CLOSE_TIMEOUT_S = 1.0
_RETRY_AFTER_MAX_S = 24 * 3600.0

# Codes by which the other side says that it did not understand us, or we say it of them.
_PROTOCOL_CODES = frozenset({1002, 1003, 1007, 1009, 1010})


class _WithoutFrames(logging.LoggerAdapter[logging.Logger]):
    """The library's log, but never its debug level, which quotes frames: tokens and messages."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name is logging's
        return level > logging.DEBUG and super().isEnabledFor(level)


class _Connection(ClientConnection):
    """A connection that tells of every byte that came, and when there is room to write again."""

    def __init__(self, *args: Any, listener: LinkListener, link: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.listener: LinkListener | None = listener
        self.link = link

    def data_received(self, data: bytes) -> None:
        if self.listener is not None:
            self.listener.link_alive(self.link)
        super().data_received(data)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.listener is not None:
            self.listener.link_writable(self.link, self.room_bytes)

    @property
    def room_bytes(self) -> int:
        return max(0, WRITE_BYTES_MAX - self.transport.get_write_buffer_size())


class _Connect(connect):
    """Opens without following redirects: the token must not go where the app did not say."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebSocketLink:
    """One attempt to be connected, from opening to its end."""

    def __init__(
        self, number: int, address: Address, listener: LinkListener, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.number = number
        self._address = address
        self._listener = listener
        self._tls = tls
        self._connection: _Connection | None = None
        self._closing = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"whimbrel-link-{number}")

    def __repr__(self) -> str:
        return f"<WebSocketLink {self.number}>"

    def send(self, items: Sequence[p.ClientItem]) -> None:
        """Write items, in order, and tell the listener what room is left. Nothing if it is not open."""
        connection = self._connection
        if connection is None or self._closing:
            return
        try:
            for frame in p.frames(items):
                broadcast((connection,), frame, text=True, raise_exceptions=True)
        except ExceptionGroup:
            # A half-written stream cannot go on; the reader sees the end and tells of it.
            connection.transport.abort()
        self._listener.link_writable(self.number, connection.room_bytes)

    async def close(self) -> None:
        """End it without telling the listener; returns when nothing of it is left. May be repeated.

        What was written goes out first, if that takes no longer than a second.
        """
        self._closing = True
        if self._connection is not None:
            with contextlib.suppress(WebSocketException, OSError):
                await self._connection.close()
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (bug := self._task.exception()) is not None:
            raise bug

    async def _run(self) -> None:
        fault: Fault | None = None
        try:
            connection = await self._open()
            self._connection = connection
            try:
                self._listener.link_opened(self.number)
                self._listener.link_writable(self.number, connection.room_bytes)
                await self._read(connection)
            finally:
                connection.listener = None
                if not self._closing:
                    # Whatever ended the reading: the socket goes with it.
                    with contextlib.suppress(WebSocketException, OSError):
                        await connection.close()
        except (WebSocketException, OSError, EOFError, ProtocolError, TimeoutError, ValueError) as error:
            fault = fault_of(error)
        finally:
            if not self._closing:
                self._listener.link_closed(
                    self.number, fault or Fault(kind="closed", text="the link stopped")
                )

    async def _open(self) -> _Connection:
        # It carries its listener from the first byte on: the handshake's bytes are life as well.
        made = partial(_Connection, listener=self._listener, link=self.number)
        options: dict[str, Any] = {}
        if self._address.secure and self._tls is not None:
            options["ssl"] = self._tls
        connection = await _Connect(
            self._address.websocket,
            compression=None,
            proxy=None if self._address.loopback else True,
            open_timeout=None,
            ping_interval=None,
            close_timeout=_CLOSE_TIMEOUT_S,
            max_size=p.FRAME_BYTES_MAX,
            write_limit=(_WRITE_HIGH, _WRITE_LOW),
            create_connection=cast("type[ClientConnection]", made),
            logger=_WithoutFrames(logging.getLogger("whimbrel.websocket"), {}),
            **options,
        )
        assert isinstance(connection, _Connection)
        _keep_backlog_here(connection)
        return connection

    async def _read(self, connection: _Connection) -> None:
        while True:
            frame = await connection.recv(decode=False)
            try:
                items = p.decode_server(frame)
            except ProtocolError:
                await connection.close(1007)
                raise
            await self._listener.link_received(self.number, items)


def _keep_backlog_here(connection: ClientConnection) -> None:
    """Leave little unsent in the kernel: what waits there can neither be seen nor overtaken by a ping."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    sock = connection.transport.get_extra_info("socket")
    if option is not None and sock is not None:
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, option, _NOT_SENT_BYTES)


def fault_of(error: BaseException) -> Fault:
    """Say whose fault the end of a link is; the text is technical and holds nothing of messages."""
    text = f"{type(error).__name__}: {error}"[:200]
    match error:
        case InvalidStatus():
            response = error.response
            return Fault(
                kind="http",
                text=f"HTTP status {response.status_code}",
                status=response.status_code,
                retry_after_s=retry_after(response.headers.get("Retry-After"), response.headers.get("Date")),
            )
        case InvalidMessage() | InvalidHandshake() if isinstance(error.__cause__, EOFError | OSError):
            return Fault(kind="network", text="the connection was cut while opening")
        case ConnectionClosed():
            return _closed_fault(error)
        case ssl.SSLCertVerificationError():
            return Fault(
                kind="protocol", text=f"the server's certificate is not accepted: {error.verify_message}"
            )
        case ConnectionRefusedError():
            return Fault(kind="refused", text="the connection was refused")
        case OSError() if f"[Errno {errno.ECONNREFUSED}]" in str(error):
            # Several addresses were tried; asyncio joins what came of each in one text.
            return Fault(kind="refused", text="the connection was refused")
        case OSError() | EOFError():
            return Fault(kind="network", text=text)
        case _:
            return Fault(kind="protocol", text=text)


def _closed_fault(error: ConnectionClosed) -> Fault:
    received, sent = error.rcvd, error.sent
    if received is not None:
        kind = "protocol" if received.code in _PROTOCOL_CODES else "closed"
        return Fault(kind=kind, text=f"closed by the server ({received.code})")
    if sent is not None and sent.code in _PROTOCOL_CODES:
        return Fault(kind="protocol", text=f"what came cannot be understood ({sent.code})")
    return Fault(kind="network", text="the connection was lost")


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """Read a Retry-After header (RFC 9110, 10.2.3) as seconds from now, at most a day; nonsense is none.

    ``date``: the Date header beside it, the clock that a time of day in it is of. Ours may be years off.
    """
    if value is None:
        return None
    try:
        delay_s = float(value)
    except ValueError:
        try:
            delay_s = parsedate_to_datetime(value).timestamp() - _time_of(date)
        except (ValueError, OverflowError, IndexError, TypeError):
            return None
        delay_s = max(0.0, delay_s)
    if not 0 <= delay_s < float("inf"):
        return None
    return min(delay_s, _RETRY_AFTER_MAX_S)


def _time_of(date: str | None) -> float:
    try:
        return time.time() if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return time.time()
