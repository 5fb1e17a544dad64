"""Who is late is closed: headers, bodies, handshakes and greetings that never come to an end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.attack.rig import Attacked, Raw, attacked_server, frame, handshaken, raw, served, unharmed, upgrade
from whimbrel.server.run import ServeSettings
from whimbrel.server.service import HttpSettings
from whimbrel.server.settings import ServerSettings

DRIP_S = 0.1
POST = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\n"
SPOKEN: dict[str, tuple[bytes, bytes]] = {
    # What is written at once, and what is then dripped, byte by byte, for as long as the server bears it.
    "nothing": (b"", b""),
    "half a request line": (b"GET /api/he", b""),
    "a header byte now and then": (b"GET /api/health HTTP/1.1\r\n", b"X-Long: " + b"x" * 10_000),
    "headers without their end": (b"GET /api/health HTTP/1.1\r\nHost: x\r\n", b""),
    "a second request without its end": (b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\nGET /", b""),
    "a body that stops": (POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 10, b""),
    "a body that drips": (POST + b"Content-Length: 10000\r\n\r\n", b"x" * 10_000),
    "chunks without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 10_000),
    "trailers without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 10_000),
    "half a handshake": (upgrade()[:60], b""),
}
ANSWERED = {"a body that stops", "a body that drips", "chunks without end", "trailers without end"}


async def _drip(link: Raw, data: bytes) -> None:
    for byte in data:
        if not await link.write(bytes([byte])):
            return
        await asyncio.sleep(DRIP_S)


async def _ended(link: Raw, dripped: bytes, end: Callable[[], Awaitable[object]]) -> object:
    dripping = asyncio.ensure_future(_drip(link, dripped))
    try:
        return await end()
    finally:
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def _late_http(attacked: Attacked, name: str) -> None:
    said, dripped = SPOKEN[name]
    async with raw(attacked, said) as link:
        answer = await _ended(link, dripped, link.rest)
    assert isinstance(answer, bytes)
    if name in ANSWERED:
        assert answer.startswith(b"HTTP/1.1 400 "), name
        assert b'"code":"invalid"' in answer, name
    else:
        assert b" 400 " not in answer, name


async def _late_hello(attacked: Attacked, dripped: bytes) -> None:
    async with handshaken(attacked) as link:
        assert await _ended(link, dripped, link.closed) == 1008


async def _all_are_late(attacked: Attacked) -> None:
    token = await attacked.server.login("eve")
    hello = b'[{"t":"hello","token":"%s"}]' % token.encode()
    async with served(attacked) as others:
        async with asyncio.TaskGroup() as late:
            for name in SPOKEN:
                late.create_task(_late_http(attacked, name))
            for dripped in (b"", frame(hello), frame(b"[", fin=False) + frame(b"", 0, fin=False) * 2_000):
                late.create_task(_late_hello(attacked, dripped))
            await others.once_more(3)
        await others.once_more(3)


async def test_who_is_late_is_closed_and_others_are_served(attacked: Attacked) -> None:
    await _all_are_late(attacked)


@pytest.mark.soak
async def test_late_is_ten_seconds_unless_told_otherwise(tmp_path: Path) -> None:
    assert ServeSettings(data=tmp_path).headers_within_s == 10.0
    assert HttpSettings().body_within_s == 10.0
    assert ServerSettings().greet_within_s == 10.0
    with attacked_server(tmp_path) as attacked:
        await _all_are_late(attacked)
        unharmed(attacked)
