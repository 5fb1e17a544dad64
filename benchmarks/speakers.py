"""Thin members: connections that speak the protocol over a bare WebSocket, hundreds in one process.

A whole client has a store, an engine and a writer thread; five hundred of them on one machine would be what
is measured. A `Speaker` greets, keeps its link alive, notes what comes and when, and acknowledges it once a
second as a client does. It decides nothing else. Frames are those of `whimbrel.protocol`; of WebSocket it
knows what it needs: whole text frames from the server, and its own, masked with zeros.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from typing import cast

from whimbrel import protocol as p

__all__ = ["Speaker", "SpeakerError", "say_hello"]

RECEIVED_EVERY_S = 1.0
PING_EVERY_S = 10.0
GREETED_WITHIN_S = 60.0
_TEXT, _CLOSE = 0x1, 0x8
_FIN = 0x80


class SpeakerError(RuntimeError):
    """The server closed, refused, or said what no server of ours says."""


class Speaker(asyncio.Protocol):
    """One connection. `on_event` is called with each entry of a log, as it comes."""

    def __init__(self, token: str, host: str, on_event: Callable[[p.Event], None] | None = None) -> None:
        self.welcome: asyncio.Future[p.Welcome] = asyncio.get_running_loop().create_future()
        self.failure: SpeakerError | None = None
        self._token = token
        self._host = host
        self._on_event = on_event
        self._buffer = bytearray()
        self._upgraded = False
        self._closing = False
        self._acknowledged: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._transport: asyncio.Transport

    def __repr__(self) -> str:
        return "<Speaker>"

    # --- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        self._transport.write(
            f"GET /api/ws HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded:
            head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._fail("the server did not open a WebSocket")
                return
            self._upgraded, self._buffer = True, bytearray(rest)
            self._say(p.Hello(token=self._token))
        while (payload := self._next_frame()) is not None:
            for item in p.decode_server(payload):
                self._take(item)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        if not self._closing:
            self._fail("the connection was lost")

    # --- inside --------------------------------------------------------------------------------

    def close(self) -> None:
        """End it, without a farewell."""
        self._closing = True
        self._transport.abort()

    def _say(self, *items: p.ClientItem) -> None:
        for payload in p.frames(items):
            size = len(payload)
            length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
            # Masked with zeros, which leaves the payload as it is.
            self._transport.write(bytes([_FIN | _TEXT]) + length + b"\0\0\0\0" + payload)

    def _next_frame(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, size, begin = buffer[0], buffer[1], 2
        if size >= 126:
            begin = 4 if size == 126 else 10
            if len(buffer) < begin:
                return None
            size = int.from_bytes(buffer[2:begin], "big")
        if len(buffer) < begin + size:
            return None
        payload = bytes(buffer[begin : begin + size])
        del buffer[: begin + size]
        if first != _FIN | _TEXT:
            self._fail("closed by the server" if first & 0x0F == _CLOSE else "an unexpected frame")
            return None
        return payload

    def _take(self, item: p.ServerItem | p.Unknown) -> None:
        match item:
            case p.Event(conversation=conversation, seq=seq):
                self._seen[conversation] = seq
                if self._on_event is not None:
                    self._on_event(item)
            case p.Welcome():
                if not self.welcome.done():
                    self.welcome.set_result(item)
                loop = asyncio.get_running_loop()
                # Clients do not all tick at the same instant.
                spread = secrets.randbelow(1000) / 1000
                self._timers = [
                    loop.call_later(RECEIVED_EVERY_S * spread, self._acknowledge),
                    loop.call_later(PING_EVERY_S * spread, self._ping),
                ]
            case p.Goaway() | p.Error():
                self._fail(f"the server said {type(item).__name__}")
            case _:
                pass

    def _acknowledge(self) -> None:
        for conversation, seq in self._seen.items():
            if self._acknowledged.get(conversation) != seq:
                self._acknowledged[conversation] = seq
                self._say(p.Received(conversation=conversation, seq=seq))
        self._timers[0] = asyncio.get_running_loop().call_later(RECEIVED_EVERY_S, self._acknowledge)

    def _ping(self) -> None:
        self._say(p.Ping(id=1))
        self._timers[1] = asyncio.get_running_loop().call_later(PING_EVERY_S, self._ping)

    def _fail(self, text: str) -> None:
        error = SpeakerError(text)
        self.failure = self.failure or error
        if not self.welcome.done():
            self.welcome.set_exception(error)
        self._closing = True
        self._transport.abort()


async def say_hello(
    tokens: list[str], port: int, on_event: Callable[[int], Callable[[p.Event], None]] | None = None
) -> list[Speaker]:
    """Connect a speaker for each token and wait until all are welcomed; `on_event(i)` makes the i-th's ear.

    Raises `SpeakerError` or `OSError` if one is not; then all are closed.
    """
    loop = asyncio.get_running_loop()
    at_once = asyncio.Semaphore(20)
    speakers: list[Speaker] = []

    async def open_one(number: int, token: str) -> None:
        ear = on_event(number) if on_event is not None else None
        async with at_once:
            _, speaker = await loop.create_connection(
                lambda: Speaker(token, f"127.0.0.1:{port}", ear), "127.0.0.1", port
            )
            speakers.append(speaker)
            async with asyncio.timeout(GREETED_WITHIN_S):
                await speaker.welcome

    try:
        async with asyncio.TaskGroup() as group:
            for number, token in enumerate(tokens):
                group.create_task(open_one(number, token))
    except BaseException:
        for speaker in speakers:
            speaker.close()
        raise
    return speakers
