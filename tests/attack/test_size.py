"""Too much at once: frames, items, headers, bodies, bombs. Each costs at most 10 MiB, and nobody else."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from tests.attack.rig import GROWTH_KIB_MAX, SECRET, Attacked, frame, handshaken, raw, served, upgrade
from tests.rounds import Rounds
from tests.server.app_rig import create
from whimbrel import protocol as p

Attack: TypeAlias = Callable[[Attacked, str], Awaitable[None]]
"""Given the server and an access token of somebody who may do anything a user may."""

FLOOD_BYTES = 30_000_000
"""Far more than sockets hold."""
BORNE_BYTES = 400_000
MIB = 1024 * 1024
HEALTH = b"GET /api/health HTTP/1.1\r\nHost: x\r\n"
LOGIN = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\n"
CHUNKED = LOGIN + b"Transfer-Encoding: chunked\r\n\r\n"


def _deflated(size_bytes: int) -> bytes:
    squeeze = zlib.compressobj(level=9, wbits=-15)
    return b"".join(squeeze.compress(bytes(MIB)) for _ in range(size_bytes // MIB)) + squeeze.flush()


# --- HTTP --------------------------------------------------------------------------------------


def flood_http(
    head: bytes,
    more: bytes,
    *,
    answered: tuple[int, ...],
    open_ended: bool = False,
    size_bytes: int = FLOOD_BYTES,
) -> Attack:
    """Write a head, then the same without end; the server closes, or goes on reading what it throws away."""

    async def attack(attacked: Attacked, token: str) -> None:
        async with raw(attacked, head) as link:
            written = await link.flood(more * (60_000 // len(more) + 1), size_bytes)
            assert open_ended or written < size_bytes, "the server never had enough"
            assert await link.status() in answered

    return attack


def ask_http(request: bytes, status: int) -> Attack:
    async def attack(attacked: Attacked, token: str) -> None:
        async with raw(attacked, request) as link:
            assert await link.status() == status

    return attack


async def gzip_bomb(attacked: Attacked, token: str) -> None:
    body = gzip.compress(bytes(50 * MIB))
    head = LOGIN + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with raw(attacked, head + body) as link:
        assert await link.status() == 400


async def large_message_body(attacked: Attacked, token: str) -> None:
    async with attacked.server.http(token) as http:
        for size, status in ((300_000, 404), (p.FRAME_BYTES_MAX + 1, 413)):
            said = {"key": "k", "body": SECRET * (size // len(SECRET)), "stream": 1, "n": 1}
            answer = await http.post("/api/conversations/none/messages/buffered", json=said)
            assert answer.status_code == (status if size > p.FRAME_BYTES_MAX else 413)
            assert SECRET not in answer.text


async def pipelined_and_reset(attacked: Attacked, token: str) -> None:
    """Gone while the first of several requests is answered: the others must not be answered into nothing."""
    for _ in range(20):
        async with raw(attacked, (b"GET /api/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n") * 16, 4096) as link:
            await link.reader.readexactly(10)


async def pipelined_and_unread(attacked: Attacked, token: str) -> None:
    async with raw(attacked) as link:
        link.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await link.flood((HEALTH + b"\r\n") * 16, FLOOD_BYTES)


HTTP: dict[str, Attack] = {
    "header count": flood_http(HEALTH, b"a: b\r\n", answered=(0, 400)),
    "header size": flood_http(HEALTH + b"a: ", b"b", answered=(0, 400)),
    "url": flood_http(b"GET /", b"a", answered=(0, 400)),
    "trailer count": flood_http(CHUNKED + b"0\r\n", b"a: b\r\n", answered=(0, 400)),
    "trailer size": flood_http(CHUNKED + b"0\r\na: ", b"b", answered=(0, 400)),
    "chunk extension": flood_http(CHUNKED + b"1;", b"a", answered=(0, 400)),
    "chunks of one byte": flood_http(
        CHUNKED, b"1\r\n \r\n", answered=(413,), open_ended=True, size_bytes=BORNE_BYTES
    ),
    "body without length": flood_http(
        CHUNKED, b"ea60\r\n" + b" " * 60_000 + b"\r\n", answered=(413,), open_ended=True
    ),
    "body of a promised length": flood_http(
        LOGIN + b"Content-Length: 1000000000\r\n\r\n", b" ", answered=(413,), open_ended=True
    ),
    "pipelined requests": flood_http(HEALTH + b"\r\n", HEALTH + b"\r\n", answered=(0, 200, 400)),
    "pipelined and unread": pipelined_and_unread,
    "pipelined and reset": pipelined_and_reset,
    "no HTTP at all": flood_http(b"\x16\x03\x01\x02\x00", b"\x00", answered=(0, 400)),
    "101 headers": ask_http(HEALTH + b"".join(b"x-%d: a\r\n" % n for n in range(100)) + b"\r\n", 400),
    "a url of 60,000 bytes": ask_http(b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "a url no text": ask_http(b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "negative length": ask_http(LOGIN + b"Content-Length: -1\r\n\r\n", 400),
    "huge length": ask_http(LOGIN + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n", 400),
    "length and chunks": ask_http(LOGIN + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "deep body": ask_http(LOGIN + b"Content-Length: 60000\r\n\r\n" + b"[" * 60_000, 400),
    "gzip bomb": gzip_bomb,
    "large message": large_message_body,
    "another upgrade": flood_http(
        HEALTH + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b"a", answered=(0, 200, 400)
    ),
    "an upgrade too large": ask_http(upgrade(b"X-Large: " + b"a" * 9_000)[:-2] + b"\r\n", 413),
    "an upgrade of 101 headers": ask_http(upgrade(*(b"X-%d: a" % n for n in range(101))), 400),
}


# --- WebSocket ---------------------------------------------------------------------------------


def flood_links(more: bytes, *, code: int, head: bytes = b"", greeted: bool = True) -> Attack:
    """Write a head, then the same without end; the server closes with this code, or (-1) bears it."""
    size_bytes = BORNE_BYTES if code < 0 else FLOOD_BYTES

    async def attack(attacked: Attacked, token: str) -> None:
        async with handshaken(attacked, token if greeted else "") as link:
            await link.write(head)
            written = await link.flood(more * (20_000 // len(more) + 1), size_bytes)
            if code < 0:
                assert written >= size_bytes
                await link.write(frame(b'[{"t":"bye"}]'))
                assert await link.closed() == 1000
            else:
                assert written < size_bytes
                # Closed while more of the flood came, the end may be lost with the connection.
                assert await link.closed() in (0, code)

    return attack


def say(*frames: bytes, code: int, greeted: bool = True, error: str = "") -> Attack:
    """Write frames and be closed with a code, and told an error before."""

    async def attack(attacked: Attacked, token: str) -> None:
        async with handshaken(attacked, token if greeted else "") as link:
            await link.write(b"".join(frames))
            if error:
                assert [item.code async for item in link.items(p.Error)] == [error]
            else:
                assert await link.closed() == code

    return attack


def bear(*frames: bytes) -> Attack:
    """Write frames that cost themselves and never the link."""

    async def attack(attacked: Attacked, token: str) -> None:
        async with handshaken(attacked, token) as link:
            await link.write(b"".join(frames) + frame(b'[{"t":"ping","id":77}]'))
            async for pong in link.items(p.Pong):
                if pong.id == 77:
                    return
            raise AssertionError("the link was closed")

    return attack


async def deflate_bomb(attacked: Attacked, token: str) -> None:
    bomb = _deflated(256 * MIB)
    assert len(bomb) < MIB
    for greeted in (token, ""):
        async with handshaken(
            attacked, greeted, b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
        ) as link:
            await link.write(frame(bomb, rsv=4))
            assert await link.closed() in (1002, 1009)


async def large_items(attacked: Attacked, token: str) -> None:
    """Bodies, keys and names of a megabyte, many at once, and the answers left unread for a while."""
    await create(attacked.server, token, "large")
    sends = [
        p.Send(conversation="large", stream=1, n=1, key="a", body="b" * 900_000),
        p.Send(conversation="large", stream=2, n=1, key="k" * 900_000, body="b"),
        p.Send(conversation="c" * 900_000, stream=3, n=1, key="b", body="b"),
        p.Void(conversation="large", stream=4, n=1, key="k" * 900_000),
        p.Void(conversation="large", stream=5, n=1, key="c", reason="r" * 900_000),
        p.Fetch(conversation="c" * 900_000),
        p.Call(id="i" * 900_000, op="create", conversation="large"),
        p.Received(conversation="c" * 900_000, seq=1),
        p.Typing(conversation="c" * 900_000),
        p.Status(conversation="large", stream=1, numbers=tuple(range(100_000))),
    ]
    async with handshaken(attacked, token) as link:
        link.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for said in sends * 2:
            await link.write(frame(p.encode([said])))
        link.reader._transport.resume_reading()  # type: ignore[attr-defined]
        refused: list[str] = []
        async for item in link.items(p.Rejected):
            refused.append(item.code)
            if len(refused) == 10:
                break
    assert set(refused) == {"too_large", "invalid"}


async def bombs_of_json(attacked: Attacked, token: str) -> None:
    """What is small on the wire and large in memory: a megabyte of empty lists would take 24."""
    await create(attacked.server, token, "bombs")
    head = b'"t":"send","conversation":"bombs","stream":1,"n":%d,"key":"k%d","body":"b"'
    inside = [
        b'{"a":[%s1]}' % (part * (990_000 // len(part))) for part in (b"[],", b"{},", b"300,", b'"ab",')
    ]
    inside.append(b"{" + b",".join(b'"%x":1' % n for n in range(90_000)) + b"}")
    sends = [b'[{%s,"metadata":%s}]' % (head % (n, n), part) for n, part in enumerate(inside, 1)]
    # Of a name that comes twice the first is thrown away, but it was there.
    sends.append(b'[{%s,"metadata":%s,"metadata":null}]' % (head % (6, 6), inside[0]))
    others = [
        b'[{"t":"ping","x":%s}]' % inside[0],
        b'[{"t":"unheard of","x":%s}]' % inside[0],
        b'[{"t":%s}]' % inside[0],
        b'[{"t":"status","conversation":"bombs","stream":1,"numbers":[%s1]}]' % (b"300," * 200_000),
        b'[{"t":"call","id":"a","op":"create","members":[%s""]}]' % (b'"ab",' * 190_000),
    ]
    async with handshaken(attacked, token) as link:
        for said in sends + others:
            await link.write(frame(said))
        refused: list[tuple[int, str, bool]] = []
        async for item in link.items(p.Rejected):
            refused.append((item.n, item.code, item.final))
            if len(refused) == len(sends):
                break
    assert refused == [(n, "too_large", True) for n in range(1, 7)]
    async with attacked.server.http(token) as http:
        body = b'{"key":"k","body":"b","stream":2,"n":1,"metadata":%s}' % inside[0]
        answer = await http.post("/api/conversations/bombs/messages/buffered", content=body)
        assert answer.status_code == 413


async def say_behind_greeting(attacked: Attacked, token: str) -> None:
    """Who greets and goes on at once, without waiting for the welcome, is no stranger."""
    hello = frame(b'[{"t":"hello","token":"%s"}]' % token.encode())
    async with handshaken(attacked) as link:
        await link.write(hello + frame(LARGE % (b"x" * 900_000)) + frame(b'[{"t":"ping","id":77}]'))
        assert 77 in [pong.id async for pong in link.items(p.Pong) if pong.id == 77 and await link.write(BYE)]


BYE = frame(b'[{"t":"bye"}]')
LARGE = b'[{"t":"ping","x":"%s"}]'
MANY_PINGS = b"[" + b",".join([b'{"t":"ping"}'] * p.FRAME_ITEMS_MAX) + b"]"
DEEP_ITEM = b'[{"t":"ping","x":%s%s}]' % (b"[" * 400, b"]" * 400)
LINKS: dict[str, Attack] = {
    "a frame too large": say(frame(LARGE % (b"x" * MIB)), code=1009),
    "a frame that only claims to be large": say(
        bytes([0x81, 0xFF]) + b"\x7f" + b"\xff" * 7 + bytes(4), code=1009
    ),
    "large before greeting": say(frame(LARGE % (b"x" * 66_000)), code=1009, greeted=False),
    "large right behind the greeting": say_behind_greeting,
    "large in fragments": say(
        *(frame(b" " * 1000, 0 if n else 1, fin=False) for n in range(1100)), code=1009
    ),
    "as large as may be": bear(frame(LARGE % (b"x" * (MIB - 100)))),
    "too many items": say(frame(b"[" + b"1," * p.FRAME_ITEMS_MAX + b"1]"), code=1002, error="protocol"),
    "as many items as may be": bear(*[frame(MANY_PINGS)] * 10),
    "depth": say(frame(b"[" * 500_000), code=1002, error="protocol"),
    "depth in an item": bear(frame(DEEP_ITEM)),
    "depth before greeting": say(frame(b"[" * 60_000), code=1002, error="protocol", greeted=False),
    "huge numbers": bear(
        frame(b'[{"t":"read","conversation":"c","seq":%s}]' % (b"9" * 4000)),
        frame(b'[{"t":"read","conversation":"c","seq":%s}]' % (b"9" * 500_000)),
        frame(b'[{"t":"send","conversation":"c","stream":1,"n":-1,"key":"k","body":"b","sent_at":1e999}]'),
        frame(b'[{"t":"fetch","conversation":"c","since":-99999999999999999999,"limit":1e3}]'),
        frame(b'[{"t":"ping","id":%s}]' % (b"9" * 4000)),
    ),
    "no UTF-8": say(frame(b'["\xff"]'), code=1007),
    "no UTF-8 in fragments": say(frame(b'["\xc3', fin=False), frame(b'("]', 0), code=1007),
    "no UTF-8 in binary": bear(frame(b'["\xff"]', 2)),
    "half a surrogate pair": say(frame(b'["\\ud800"]'), code=1002, error="protocol"),
    "NUL": bear(frame(b'[{"t":"fetch","conversation":"\\u0000"}]')),
    "binary": bear(frame(b'[{"t":"ping"}]', 2)),
    "binary rubbish": say(frame(bytes(range(256)), 2), code=1002, error="protocol"),
    "an empty frame": say(frame(b""), code=1002, error="protocol"),
    "a large control frame": say(frame(b"x" * 126, 9), code=1002),
    "a control frame in pieces": say(frame(b"x", 9, fin=False), code=1002),
    "unmasked": say(frame(b"[]", mask=False), code=1002),
    "reserved bits": say(frame(b"[]", rsv=1), code=1002),
    "an unknown opcode": say(frame(b"[]", 3), code=1002),
    "a fragment of nothing": say(frame(b"[]", 0), code=1002),
    "a close code that is none": say(frame(b"\x00\x00", 8), code=1002),
    "a close frame of one byte": say(frame(b"\x00", 8), code=1002),
    "fragments of a byte": flood_links(frame(b" ", 0, fin=False), head=frame(b"[", fin=False), code=1008),
    "fragments of nothing": flood_links(frame(b"", 0, fin=False), head=frame(b"[", fin=False), code=1008),
    "fragments before greeting": flood_links(
        frame(b" ", 0, fin=False), head=frame(b"[", fin=False), code=1008, greeted=False
    ),
    "pings": flood_links(frame(b"x" * 100, 9), code=1008),
    "pongs": flood_links(frame(b"", 10), code=1008),
    "pings before greeting": flood_links(frame(b"", 9), code=1008, greeted=False),
    "frames of no items": flood_links(frame(b"[]"), code=-1),
    "pings that are items": flood_links(frame(b'[{"t":"ping"}]'), code=-1),
    "unknown items": flood_links(frame(b"[1]"), code=-1),
    "large items": large_items,
    "bombs of JSON": bombs_of_json,
    "deflate bomb": deflate_bomb,
}


@pytest.mark.soak
@pytest.mark.parametrize("name", [*HTTP, *LINKS])
async def test_too_much_costs_little_and_nobody_else(
    attacked: Attacked, name: str, request: pytest.FixtureRequest, rounds: Rounds
) -> None:
    if rounds.soak:  # nothing that another attack left behind may hide what this one takes
        attacked = request.getfixturevalue("attacked_afresh")
    token = await attacked.server.login("eve")
    async with served(attacked) as others:
        async with attacked.bounded() as growth:
            times = others.times
            await {**HTTP, **LINKS}[name](attacked, token)
            await others.once_more()
        assert others.times > times
    rounds.figure(f"memory taken by: {name}", growth.kib, "KiB", target=GROWTH_KIB_MAX)
