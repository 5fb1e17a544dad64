"""Scenarios of those who read: ticks, catching up, a stream with a hole, a stream that is cut."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx2
import msgspec

from tests.client.real_server import LIMIT_S, PASSWORD
from tests.core.rig import Rig, delivered, event, head, of_kind, sends
from tests.integration.rig import BEN, history
from tests.rounds import Rounds
from tests.scenarios.rig import scene
from whimbrel import Client, MessageReceived, SendState
from whimbrel import protocol as p
from whimbrel.testing.proxy_faults import Refuse


async def test_recipient_opens_blue_ticks(tmp_path: Path) -> None:
    """Delivered is ✓✓; once the other has opened it, it is read, on the page and in the store."""
    async with scene(tmp_path) as here:
        sent = await here.send(3)
        await here.arrived()
        assert [message.status.state for message in sent] == [SendState.DELIVERED] * 3
        await history(here.ben, here.conversation, 3)
        await here.ben.conversation(here.conversation).mark_read()
        async with asyncio.timeout(LIMIT_S):
            while True:
                own = [await here.anna.message(message.id) for message in sent]
                if all(message is not None and message.read_at is not None for message in own):
                    break
                await asyncio.sleep(0.01)
        for message in own:
            assert message is not None
            assert message.status is not None
            assert message.status.state is SendState.READ


async def test_foreground_catch_up(rounds: Rounds, tmp_path: Path) -> None:
    """Ben's app is closed while 60 messages come; opened, it has them all, each once."""
    async with scene(tmp_path) as here:
        store = tmp_path / "ben.db"
        async with Client(here.server.url, store, BEN, key=b"b" * 32) as app:
            await here.send(5)
            await history(app, here.conversation, 5)
        await here.send(60)
        assert await here.anna.flush(LIMIT_S) == 0
        began_s = time.monotonic()
        async with Client(here.server.url, store, BEN, key=b"b" * 32) as app:
            events = app.events()
            await app.connected(LIMIT_S)
            seen = await history(app, here.conversation, 65)
            rounds.figure("foreground: 60 messages caught up, with opening", time.monotonic() - began_s, "s")
            assert [message.content for message in seen] == here.texts
            fresh: list[str] = []
            async with asyncio.timeout(LIMIT_S):
                async for what in events:
                    if isinstance(what, MessageReceived):
                        fresh.append(what.message.id)
                    if len(fresh) == 60:
                        break
            assert fresh == [message.id for message in seen[5:]]


def test_stream_1_2_5_6() -> None:
    """3 and 4 are fetched at once, and the app gets 1 to 6 in order, each once; sending goes on meanwhile."""
    rig = Rig()
    link = rig.connect(head(0))
    rig.receive(link, event(1), event(2), event(5), event(6))
    (fetch,) = of_kind(rig.take(link), p.Fetch)
    assert isinstance(fetch, p.Fetch)
    assert fetch.since == 2
    handed = [what.message.seq for what in rig.events if isinstance(what, MessageReceived)]
    assert handed == [1, 2]
    id = rig.send("k1")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 7, id))
    page = p.Page(conversation="c1", epoch="e1", events=(event(3), event(4)), since=2, head=7)
    rig.receive(link, page)
    handed = [what.message.seq for what in rig.events if isinstance(what, MessageReceived)]
    assert handed == [1, 2, 3, 4, 5, 6, 7]


async def test_sse_cut_messages_sent_meanwhile_resumed_by_cursor_caught_up_by_rest(tmp_path: Path) -> None:
    """Any program with HTTP alone: its stream is cut, it resumes by the last id, and REST has the same."""
    async with scene(tmp_path) as here:
        base = f"http://127.0.0.1:{here.proxy.port}"
        async with httpx2.AsyncClient(base_url=base, trust_env=False, timeout=LIMIT_S) as http:
            login = await http.post(
                "/api/auth/login", json={"username": "ben", "password": PASSWORD, "device": "b" * 26}
            )
            headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
            await here.send(3)
            url = f"/api/conversations/{here.conversation}/events"
            seen, last = await read_stream(http, f"{url}?since=0", headers, "", "text 2")
            here.proxy.reset_connections()
            with here.proxy.during(Refuse()):
                await here.send(4)
            await here.arrived()
            more, _ = await read_stream(http, url, headers, last, "text 6")
            assert seen[-3:] + more == here.texts
            cursor, texts = "0", list[str]()
            while True:
                page = await http.get(
                    f"/api/conversations/{here.conversation}/messages",
                    params={"since": cursor, "limit": "3"},
                    headers=headers,
                )
                body = page.raise_for_status().json()
                texts += [entry["body"] for entry in body["messages"] if entry["kind"] == "message"]
                if not body["messages"]:
                    break
                cursor = str(body["cursor"])
            assert texts == here.texts


async def read_stream(
    http: httpx2.AsyncClient, url: str, headers: dict[str, str], last: str, until: str
) -> tuple[list[str], str]:
    """The texts of a stream of events up to this one, and the id to resume after it."""
    texts: list[str] = []
    if last:
        headers = {**headers, "Last-Event-ID": last}
    async with asyncio.timeout(LIMIT_S), http.stream("GET", url, headers=headers) as stream:
        assert stream.status_code == 200
        async for line in stream.aiter_lines():
            if line.startswith("id:"):
                last = line[3:].strip()
            elif line.startswith("data:"):
                items = msgspec.json.decode(line[5:])
                events = [item for item in items if item["t"] == "event"]
                texts += [item["body"] for item in events if item.get("kind", "message") == "message"]
            elif not line and until in texts:
                return texts, last
    raise AssertionError("the stream ended")
