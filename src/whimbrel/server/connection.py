"""The HTTP connection of uvicorn, with the bounds it lacks: on the time and size of a request's headers.

A connection that opens, or starts a request, and does not bring its headers to an end in time is closed;
so is one whose headers are too large. Idle connections between requests are uvicorn's to close.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
        self._reading_headers = True
        self._header_bytes = 0

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


def protocol_class(headers_within_s: float) -> type[asyncio.Protocol]:
    """Give the protocol with this patience."""
    attributes: dict[str, Any] = {"headers_within_s": headers_within_s}
    return type("GuardedHttpProtocol", (GuardedHttpProtocol,), attributes)
