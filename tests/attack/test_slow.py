"""Who does not read: memory stays bounded, others are served, and whoever reads in the end has everything."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attack.rig import LIMIT_S, SECRET, Attacked, Raw, frame, handshaken, raw, served
from tests.rounds import Rounds
from tests.server.app_rig import Server, create, serving
from tests.server.hub_rig import Rig
from whimbrel import protocol as p
from whimbrel.server import run
from whimbrel.server.settings import ServerSettings

MESSAGES = 80
WARM_ROOMS = 4
WINDOW_BYTES = 32 * 1024
BODY = (SECRET + "x" * 1000) * 100
"""All of them together are far more than sockets and queues hold."""
_rooms = iter(range(1_000))


def _stop_reading(link: Raw) -> Any:
    """Read no more: what the system buffers fills up, and its window goes to zero."""
    transport: Any = link.reader._transport  # type: ignore[attr-defined]
    transport.pause_reading()
    return transport


def _get(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def _busy_room(attacked: Attacked, *slow: str) -> AsyncIterator[tuple[str, Any]]:
    """A room, and a coroutine function that fills it while a quick member reads everything."""
    server = attacked.server
    room = f"room{next(_rooms)}"
    mallory = await server.login("mallory")
    await create(server, mallory, room, "eve", *slow)
    async with server.link(mallory) as writer, server.link(await server.login("eve", 9)) as quick:
        await writer.next(p.Welcome)
        await quick.next(p.Welcome)

        async def fill() -> None:
            for n in range(1, MESSAGES + 1):
                await writer.say(p.Send(conversation=room, stream=1, n=n, key=f"{room} {n}", body=BODY))
                await writer.next(p.Delivered)
                while True:
                    event = await quick.next(p.Event)
                    if event.conversation == room and event.kind == "message":
                        break
                assert event.seq == n + 1

        yield room, fill


async def _warm(attacked: Attacked) -> None:
    """Have the ledger's own caches filled, once, which are not what a slow reader costs."""
    while len(attacked.warm) < WARM_ROOMS:
        async with _busy_room(attacked) as (room, fill):
            await fill()
        attacked.warm.append(room)


async def _whole_log(server: Server, token: str, room: str) -> list[int]:
    seqs: list[int] = []
    async with server.http(token) as http:
        while True:
            since = seqs[-1] if seqs else 0
            answer = await http.get(f"/api/conversations/{room}/messages", params={"since": since})
            events = answer.json()["messages"]
            if not events:
                return seqs
            seqs += [event["seq"] for event in events]


@pytest.mark.soak
async def test_a_slow_websocket_costs_its_queue_and_catches_up(attacked: Attacked, rounds: Rounds) -> None:
    token = await attacked.server.login("eve")
    await _warm(attacked)
    async with served(attacked) as others, _busy_room(attacked) as (room, fill):
        async with handshaken(attacked, token, window_bytes=WINDOW_BYTES) as slow:
            transport = _stop_reading(slow)
            async with attacked.bounded() as growth:
                await fill()
                await others.once_more(3)
            transport.resume_reading()
            got: dict[int, str] = {}
            heads = 0
            await slow.write(frame(b'[{"t":"ping","id":5}]'))
            async for item in slow.items(object):
                if isinstance(item, p.Heads):
                    # It was switched to catching up: told how far the log goes, it fetches what it lacks.
                    for head in item.heads:
                        if head.conversation == room and head.seq > max(got, default=0):
                            heads += 1
                            ask = p.Fetch(conversation=room, since=max(got, default=0))
                            await slow.write(frame(p.encode([ask])))
                elif isinstance(item, p.Event) and item.conversation == room:
                    got[item.seq] = item.id
                elif isinstance(item, p.Page) and item.conversation == room:
                    got.update({event.seq: event.id for event in item.events})
                    if max(got) < item.head:
                        ask = p.Fetch(conversation=room, since=max(got))
                        await slow.write(frame(p.encode([ask])))
                if max(got, default=0) == MESSAGES + 1:
                    break
            # It was there before the room's first message, and after its first entry.
            assert sorted(set(got) | {1}) == list(range(1, MESSAGES + 2))
            assert heads, "it was pushed to all the time"
        await others.once_more()
    rounds.figure("a slow WebSocket in a busy room", growth.kib, "KiB", target=10 * 1024)


@pytest.mark.soak
@pytest.mark.parametrize("way", ["/api/events", "/api/conversations/{room}/events?since=0"])
async def test_a_slow_event_stream_costs_its_queue_and_loses_nothing(
    attacked: Attacked, rounds: Rounds, way: str
) -> None:
    token = await attacked.server.login("eve")
    await _warm(attacked)
    async with served(attacked) as others, _busy_room(attacked) as (room, fill):
        async with raw(attacked, _get(way.format(room=room), token), WINDOW_BYTES) as slow:
            async with asyncio.timeout(LIMIT_S):
                await slow.reader.readuntil(b"\r\n\r\n")
            transport = _stop_reading(slow)
            async with attacked.bounded() as growth:
                await fill()
                await others.once_more(3)
            transport.resume_reading()
            seqs: set[int] = set()
            head = 0
            async with asyncio.timeout(LIMIT_S):
                while max(seqs, default=0) < MESSAGES + 1 and head < MESSAGES + 1:
                    line = await slow.reader.readline()
                    if not line.startswith(b"data: "):
                        continue
                    for item in json.loads(line[6:]):
                        if item["t"] == "event" and item["conversation"] == room:
                            seqs.add(item["seq"])
                        for told in item.get("heads", ()):
                            if told["conversation"] == room:
                                head = max(head, told["seq"])
        if "since" in way:
            assert sorted(seqs) == list(range(1, MESSAGES + 2)), "the stream of a log brings all of it"
        # The stream of a user says how far it goes; what is missing is read from there.
        assert await _whole_log(attacked.server, token, room) == list(range(1, MESSAGES + 2))
    rounds.figure(f"a slow reader of {way}", growth.kib, "KiB", target=10 * 1024)


async def test_answers_nobody_reads_are_bounded(attacked: Attacked) -> None:
    """Pages asked for again and again, over links and over HTTP, polls too; none of it is read."""
    token = await attacked.server.login("eve")
    await _warm(attacked)
    async with served(attacked) as others, _busy_room(attacked) as (room, fill):
        await fill()
        async with contextlib.AsyncExitStack() as slow, attacked.bounded():
            link = await slow.enter_async_context(handshaken(attacked, token, window_bytes=WINDOW_BYTES))
            _stop_reading(link)
            fetch = p.encode([p.Fetch(conversation=room)] * 500)
            for _ in range(4):
                link.writer.write(frame(fetch))
            path = f"/api/conversations/{room}/messages?limit=100"
            for asked in (path, "/api/poll?timeout=0"):
                client = await slow.enter_async_context(raw(attacked, window_bytes=WINDOW_BYTES))
                _stop_reading(client)
                client.writer.write(_get(asked, token) * 10)
            await others.once_more(20)
        await others.once_more()


async def test_a_window_that_stays_at_zero_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "UNACKNOWLEDGED_MS_MAX", 2_000)
    async with serving(tmp_path / "data", "ann", server=ServerSettings(rate_limit=None)) as server:
        token = await server.login("ann")
        await create(server, token, "c")
        async with server.link(token) as ann:
            for n in range(1, 60):
                await ann.say(p.Send(conversation="c", stream=1, n=n, key=f"k{n}", body="x" * 200_000))
                await ann.next(p.Delivered)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        _stop_reading(Raw(reader, writer))
        tasks = len(asyncio.all_tasks())
        writer.write(_get("/api/conversations/c/events?since=0", token))
        async with asyncio.timeout(LIMIT_S):
            await _until(lambda: len(asyncio.all_tasks()) > tasks)
            # The stream's tasks are there; they end without the peer having read or closed anything.
            await _until(lambda: len(asyncio.all_tasks()) <= tasks)
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _until(done: Callable[[], bool]) -> None:
    while True:
        if done():
            return
        await asyncio.sleep(0.05)


def test_what_waits_for_the_ledger_is_bounded_in_bytes() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    sends = [p.Send(conversation="c", stream=1, n=n, key=f"k{n}", body="x" * 250_000) for n in range(1, 6)]
    ann.say(sends[0])
    assert not rig.hub.congested(ann.link)
    ann.say(*sends[1:])
    assert rig.hub.congested(ann.link), "a megabyte waits"
    rig.settle()
    assert not rig.hub.congested(ann.link), "and is settled"


def test_lists_asked_for_by_the_hundred_stop_the_reading_of_a_link() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    bob.say(p.Send(conversation="c", stream=1, n=1, key="k", body="x"))
    batch = rig.hub.take_batch(rig.now)  # behind a batch in flight, questions wait
    ann.say(*(p.Call(id=str(n), op="list") for n in range(3)))
    assert not rig.hub.congested(ann.link)
    ann.say(p.Call(id="3", op="list"))
    assert rig.hub.congested(ann.link)
    rig.hub.settled(rig.ledger.apply(batch, rig.now), rig.now)
    rig.settle()
    assert not rig.hub.congested(ann.link)
