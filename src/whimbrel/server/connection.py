"""The connections of uvicorn, with the bounds they lack.

Of HTTP, the time and size of a request's headers: a connection that opens, or starts a request, and does
not bring its headers to an end in time is closed; so is one whose headers are too large, and one that was
answered and does not bring the rest of its body to an end in time. Idle connections between requests are
uvicorn's to close. Of a WebSocket, the pongs for a peer that sends pings and does not read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEADER_BYTES_MAX = 64 * 1024


class GuardedHttpProtocol(HttpToolsProtocol):
    """One connection before, between and during HTTP requests; a WebSocket leaves it behind."""

    headers_within_s: float = 10.0
    _late: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _reading_headers = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._reading_headers:
            self._header_bytes += len(data)
            # What comes with the headers may be body: only what surely is not counts as too much.
            if self._header_bytes - len(data) > HEADER_BYTES_MAX:
                self._close()
                return
            if self._late is None:
                self._wait_for_headers()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._reading_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_waiting()
        self._reading_headers = True
        self._header_bytes = 0

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


class GuardedWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket; while its peer does not read, its pings are not answered."""

    def handle_ping(self) -> None:
        output = self.conn.data_to_send()
        if self.writable.is_set():
            self.transport.write(b"".join(output))


def protocol_class(headers_within_s: float) -> type[asyncio.Protocol]:
    """Give the protocol with this patience."""
    attributes: dict[str, Any] = {"headers_within_s": headers_within_s}
    return type("GuardedHttpProtocol", (GuardedHttpProtocol,), attributes)
