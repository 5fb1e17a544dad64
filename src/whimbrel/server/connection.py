"""The connections of uvicorn, with the bounds they lack.

Of all connections, their number: one too many is answered 503 and closed. Of HTTP, the time and size of a
request's headers: a connection that opens, or starts a request, and does not bring its headers to an end in
time is closed; so is one whose headers or trailers are too large or too many, one that asks much more before
it was answered, and one that was answered and does not bring the rest of its body to an end in time. Idle
connections between requests are uvicorn's to close.

Of a WebSocket, a handshake that cannot be; how much of it is taken in one turn of the event loop, lest one
peer that floods holds up all others; how large a message may be before it has greeted; how many frames may
come without a message; and the pongs for a peer that sends pings and does not read. How soon it must greet,
and what a greeted one may do, is the hub's.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request

from whimbrel.server.problem import problem

HEADER_BYTES_MAX = 64 * 1024
"""Of a request line and headers; also of what comes with a body and is none (trailers, sizes of chunks)."""
HEADERS_MAX = 100
PIPELINED_MAX = 16
"""Requests that may wait for the answer to the one before."""
REFUSED_MAX = 50
"""Connections above the bound that may read why they are refused; others are just closed."""
REFUSED_S = 1.0
TURN_BYTES = 16 * 1024
"""What is taken of a WebSocket in one turn of the event loop."""
GREETING_BYTES_MAX = 64 * 1024
"""A message of a WebSocket that has not greeted: room for the tokens of a hello, and no more."""
NOISE_FRAMES_MAX = 4096
"""Pings, pongs and fragments since the last whole message."""
TRUSTED = "whimbrel.trusted"
"""Under this name the state of a WebSocket's scope has what to call once it has greeted."""


class _TooMuch(Exception):
    """Ends the parsing of a connection, which is then refused."""


class GuardedHttpProtocol(HttpToolsProtocol):
    """One connection before, between and during HTTP requests; a WebSocket leaves it behind."""

    headers_within_s: float = 10.0
    connections_max: int = 20_000
    _late: asyncio.TimerHandle | None = None
    _idle_bytes = 0
    """What came since the parser last had a whole request's headers, or a part of a body."""
    _headers = 0
    _reading_headers = True
    _refused = False
    _running: RequestResponseCycle | None = None

    # As in uvicorn: asyncio promises any transport, and gives one that can be written to.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            self._refuse_connection()
        else:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        running = self._running
        if running is not None and not running.response_complete:
            # The base tells only the request that came last; this one would write to a closed connection.
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        # What comes with the headers may be body: only what surely is not counts as too much.
        if self._idle_bytes > HEADER_BYTES_MAX:
            self._close()
            return
        self._idle_bytes += len(data)
        if self._reading_headers and self._late is None:
            self._wait_for_headers()
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._headers = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        if self._headers > HEADERS_MAX:
            raise _TooMuch
        if self._reading_headers:  # trailers say nothing to us
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= PIPELINED_MAX:
            raise _TooMuch
        self._stop_waiting()
        self._reading_headers = False
        self._idle_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_waiting()
        self._reading_headers = True
        self._idle_bytes = 0

    def send_400_response(self, msg: str) -> None:
        cycle: Any = self.cycle  # None before the first request, whatever its type says
        if cycle is None or cycle.response_complete:
            self.transport.write(_closing(problem("invalid", msg)))
        self._close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Nobody reads that body any more; closed at once, who still sends it might not see the answer.
        if self.cycle.response_complete and self.cycle.more_body and self._late is None:
            self._wait_for_headers()

    def _wait_for_headers(self) -> None:
        self._late = self.loop.call_later(self.headers_within_s, self._close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse_connection(self) -> None:
        self._refused = True
        if len(self.connections) > self.connections_max + REFUSED_MAX:
            self.transport.abort()
            return
        self.transport.write(_closing(problem("unavailable", "too many connections")))
        # Closed while the request is still unread, the answer would be lost with it.
        self._late = self.loop.call_later(REFUSED_S, self._close)


class GuardedWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket; while its peer does not read, its pings are not answered. Frames are never logged."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # At debug level the library quotes frames and headers: tokens and messages.
        self.conn.debug = False

        self._untaken = bytearray()
        self._taking: asyncio.Handle | None = None
        self._noise = 0
        self._trusted = False
        self._unfinished_bytes = 0
        """What came, about, since the last whole message."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._untaken += data
        if self._taking is None and not (self.read_paused and self.handshake_initiated):
            self._take()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["state"][TRUSTED] = self._trust

    async def send(self, message: ASGISendEvent) -> None:
        # The protocol may have failed while the application was about to say something: no fault of it.
        if self.handshake_complete and (self.close_sent or self.conn.close_sent is not None):
            raise ClientDisconnected
        await super().send(message)

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if self._untaken and not self.read_paused:
            # The last of what was taken is with the application: the rest, before more is read.
            self.transport.pause_reading()
            self._take_later()
        return message

    def handle_text(self, event: Frame) -> None:
        self._noise = 0
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._noise = 0
        super().handle_bytes(event)

    def send_receive_event_to_app(self) -> None:
        self._unfinished_bytes = 0
        if self.curr_msg_data_type == "text":
            self.frames = [b"".join(self.frames)]
            try:
                self.frames[0].decode()
            except UnicodeDecodeError:  # which uvicorn would log as if it were a fault of ours
                self._fail(CloseCode.INVALID_DATA, "no UTF-8")
                return
        super().send_receive_event_to_app()

    def handle_cont(self, event: Frame) -> None:
        super().handle_cont(event)
        self._bear_noise()

    def handle_pong(self, event: Frame) -> None:
        super().handle_pong(event)
        self._bear_noise()

    def handle_ping(self) -> None:
        output = self.conn.data_to_send()
        if self.writable.is_set():
            self.transport.write(b"".join(output))
        self._bear_noise()

    def _bear_noise(self) -> None:
        self._noise += 1
        if self._noise > NOISE_FRAMES_MAX:
            self._fail(CloseCode.POLICY_VIOLATION, "too many frames without a message")

    def _fail(self, code: CloseCode, reason: str) -> None:
        self.frames = []
        if self.conn.close_sent is None:
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    def _take(self) -> None:
        """Take some of what came; the rest when others had their turn, and the application has this."""
        self._taking = None
        if self.transport.is_closing():
            self._untaken.clear()
            return
        part = bytes(self._untaken[:TURN_BYTES])
        del self._untaken[:TURN_BYTES]
        super().data_received(part)
        self._unfinished_bytes += len(part)
        if not self.handshake_initiated:
            # The request came whole: the library refused it, and nobody would ever close the connection.
            self.transport.write(_closing(problem("too_large", "the headers are too large for a WebSocket")))
            self.transport.close()
        elif self._unfinished_bytes > GREETING_BYTES_MAX and not self._trusted:
            # Not by the size it says it has: a greeting may be on its way to the application before it.
            self._fail(CloseCode.MESSAGE_TOO_BIG, "greet first")
        elif self._untaken and not self.read_paused:
            self.transport.pause_reading()
            self._take_later()
        elif not self._untaken and not self.read_paused:
            self.transport.resume_reading()

    def _take_later(self) -> None:
        if self._taking is None:
            self._taking = self.loop.call_soon(self._take)

    def _trust(self) -> None:
        self._trusted = True


def _closing(response: Response) -> bytes:
    """Give the bytes of a response that ends its connection."""
    status = HTTPStatus(response.status_code)
    lines = [f"HTTP/1.1 {status} {status.phrase}".encode(), b"connection: close"]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)


def protocol_class(headers_within_s: float, connections_max: int) -> type[asyncio.Protocol]:
    """Give the protocol with this patience and this room."""
    attributes: dict[str, Any] = {"headers_within_s": headers_within_s, "connections_max": connections_max}
    return type("GuardedHttpProtocol", (GuardedHttpProtocol,), attributes)
