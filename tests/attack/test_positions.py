"""Positions forged, swapped, stale: sync tokens, cursors, Last-Event-ID.

Whatever is said: a typed error, or everything told anew. Never another's entries, never one passed over.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

from tests.attack.rig import SECRET, attacked_server, unharmed
from tests.rounds import Rounds
from tests.server.app_rig import Link, Server, create, serving
from whimbrel import protocol as p
from whimbrel.server.data import open_data
from whimbrel.server.synctoken import SyncTokens

SEQS = 5


async def _send(server: Server, token: str, conversation: str, count: int, stream: int = 1) -> list[str]:
    async with server.http(token) as http:
        ids = []
        for n in range(1, count + 1):
            said = {"key": f"{conversation} {stream} {n}", "body": SECRET, "stream": stream, "n": n}
            answer = await http.post(f"/api/conversations/{conversation}/messages/buffered", json=said)
            assert answer.status_code == 200, answer.text
            ids.append(answer.json()["id"])
        return ids


async def _welcome(server: Server, token: str, sync: str) -> p.Welcome | p.Goaway:
    address = server.url.replace("http", "ws", 1) + "/api/ws"
    async with connect(address, compression=None) as socket:
        link = Link(socket)
        await link.say(p.Hello(token=token, sync=sync))
        while True:
            item = await link.next(object)
            if isinstance(item, p.Welcome | p.Goaway):
                return item


def _forgeries(genuine: str, rng: random.Random, count: int) -> list[str]:
    """Tokens near a genuine one, and far from any."""
    raw = base64.urlsafe_b64decode(genuine + "=" * (-len(genuine) % 4))
    forged = ["", "=", "0", "null", "-1", "A" * 5000, "ä", "\x7f", genuine + "A", genuine * 2, genuine[::-1]]
    forged += [genuine[:-n] for n in range(1, 12)]
    forged.append(SyncTokens(bytes(32)).encode("h", 1, "ann"))
    for _ in range(count):
        bent = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 8))):
            bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
        if bytes(bent) != raw:
            forged.append(base64.urlsafe_b64encode(bent).decode().rstrip("="))
        forged.append(base64.urlsafe_b64encode(rng.randbytes(rng.randrange(80))).decode())
    return forged


@pytest.mark.soak
async def test_a_forged_sync_token_has_everything_told_anew(tmp_path: Path, rounds: Rounds) -> None:
    with attacked_server(tmp_path) as attacked:
        server = attacked.server
        ann, eve = await server.login("ann"), await server.login("eve")
        await create(server, ann, "hers", "bob")
        await create(server, eve, "mine")
        await _send(server, ann, "hers", SEQS)
        genuine = await _welcome(server, ann, "")
        swapped = await _welcome(server, eve, "")
        assert isinstance(genuine, p.Welcome)
        assert isinstance(swapped, p.Welcome)
        rng = random.Random(rounds.fresh_seed())
        # Ann's own token is as good for eve as one that was made up, and the other way round.
        for sync in [*_forgeries(genuine.sync, rng, rounds.of(ci=40, soak=2_000)), swapped.sync]:
            welcome = await _welcome(server, ann, sync)
            assert isinstance(welcome, p.Welcome), sync
            assert welcome.complete, sync
            assert [(head.conversation, head.seq) for head in welcome.heads] == [("hers", SEQS + 1)]
            async with server.http(ann) as http:
                polled = await http.get("/api/poll", params={"sync": sync, "timeout": 0})
                assert polled.status_code == 200
                assert [item["t"] for item in polled.json()["items"]] == ["welcome"]
                assert polled.json()["items"][0]["complete"]
        stolen = await _welcome(server, eve, genuine.sync)
        assert isinstance(stolen, p.Welcome)
        assert stolen.complete
        assert [head.conversation for head in stolen.heads] == ["mine"]
        # The genuine one was not spoilt by all that.
        again = await _welcome(server, ann, genuine.sync)
        assert isinstance(again, p.Welcome)
        assert not again.complete
        assert not again.heads
        unharmed(attacked)


async def test_a_token_from_before_a_restore_and_one_of_another_server(tmp_path: Path) -> None:
    tokens: dict[str, str] = {}
    for name in ("one", "two"):
        async with serving(tmp_path / name, "ann") as server:
            ann = await server.login("ann")
            await create(server, ann, "c")
            await _send(server, ann, "c", SEQS)
            welcome = await _welcome(server, ann, "")
            assert isinstance(welcome, p.Welcome)
            tokens[name] = welcome.sync
    with open_data(tmp_path / "one") as data:
        # As an administrator does with `restore`: what clients hold is of a history that is no more.
        data.ledger.begin_new_history()
    async with serving(tmp_path / "one") as server:
        ann = await server.login("ann")
        for sync in tokens.values():
            anew = await _welcome(server, ann, sync)
            assert isinstance(anew, p.Welcome)
            assert anew.complete
            assert [(head.conversation, head.seq) for head in anew.heads] == [("c", SEQS + 1)]


CURSORS = {
    # What is asked of "hers" by a member, with the status it gets and the seqs, if it is 200.
    "since=0": (200, [1, 2, 3, 4, 5, 6]),
    "since=3": (200, [4, 5, 6]),
    "since=6": (200, []),
    "since=68719476735": (200, []),
    "since=68719476736": (400, []),
    "since=" + "9" * 18: (400, []),
    "since=" + "9" * 4000: (400, []),
    "since=-1": (404, []),
    "since=1.5": (404, []),
    "since=%00": (404, []),
    "since=%ED%A0%80": (404, []),
    "since=%D9%A1": (404, []),
    "since=" + "a" * 26: (404, []),
    "since=" + "a" * 60_000: (404, []),
    "since=' OR 1=1 --": (404, []),
    "before=0": (400, []),
    "before=-1": (400, []),
    "before=1": (200, []),
    "before=3": (200, [1, 2]),
    "before=x": (400, []),
    "limit=0": (400, []),
    "limit=101": (400, []),
    "limit=1e3": (400, []),
    "since=4&before=3": (200, []),
    "since=1&since=5": (200, [6]),
}


async def test_cursors_give_what_they_say_or_an_error(tmp_path: Path) -> None:
    with attacked_server(tmp_path) as attacked:
        server = attacked.server
        ann, eve = await server.login("ann"), await server.login("eve")
        await create(server, ann, "hers")
        await create(server, eve, "mine")
        ids = await _send(server, ann, "hers", SEQS)
        other = await _send(server, eve, "mine", 1)
        async with server.http(ann) as http, server.http(eve) as stranger:
            for query, (status, seqs) in CURSORS.items():
                answer = await http.get(f"/api/conversations/hers/messages?{query}")
                assert answer.status_code == status, query
                if status == 200:
                    assert [event["seq"] for event in answer.json()["messages"]] == seqs, query
                else:
                    assert answer.headers["content-type"] == "application/problem+json"
                assert (await stranger.get(f"/api/conversations/hers/messages?{query}")).status_code in (
                    400,
                    404,
                )
            after = await http.get(f"/api/conversations/hers/messages?since={ids[2]}")
            assert [event["seq"] for event in after.json()["messages"]] == [5, 6]
            # The id of an entry of another log leads nowhere, be it one's own or a stranger's.
            for conversation, id, who in (("hers", other[0], http), ("mine", ids[0], stranger)):
                swapped = await who.get(f"/api/conversations/{conversation}/messages?since={id}")
                assert swapped.status_code == 404
        unharmed(attacked)


@contextlib.asynccontextmanager
async def _stream(http: httpx2.AsyncClient, path: str, last: str) -> AsyncIterator[httpx2.Response]:
    headers = {"Last-Event-ID": last} if last else {}
    async with http.stream("GET", path, headers=headers) as stream:
        yield stream


LAST_IDS = {
    "": (200, 0),
    "0": (200, 0),
    "4": (200, 4),
    "6": (200, 6),
    "99999999999": (200, 6),
    "999999999999": (400, 0),
    "-1": (400, 0),
    "1.0": (400, 0),
    "x": (400, 0),
    "0x1": (400, 0),
}


async def test_last_event_id_of_a_log(tmp_path: Path) -> None:
    with attacked_server(tmp_path) as attacked:
        server = attacked.server
        ann, eve = await server.login("ann"), await server.login("eve")
        await create(server, ann, "hers")
        await create(server, eve, "mine")
        await _send(server, ann, "hers", SEQS)
        async with server.http(ann) as http, server.http(eve) as stranger:
            for last, (status, position) in LAST_IDS.items():
                path = "/api/conversations/hers/events" + ("" if last else "?since=0")
                async with _stream(stranger, path, last) as stream:
                    assert stream.status_code == 404
                async with _stream(http, path, last) as stream:
                    assert stream.status_code == status, last
                    if status != 200:
                        continue
                    seqs: list[int] = []
                    lines = stream.aiter_lines()
                    while position + len(seqs) < SEQS + 1:
                        line = await anext(lines)
                        if line.startswith("data: "):
                            seqs += [item["seq"] for item in json.loads(line[6:]) if item["t"] == "event"]
                    assert seqs == list(range(position + 1, SEQS + 2)), last
        unharmed(attacked)


async def test_a_stream_ahead_of_its_log_gets_what_comes_when_it_comes(tmp_path: Path) -> None:
    """Who says it has entries that are not there yet is not given them twice, nor others in their place."""
    with attacked_server(tmp_path) as attacked:
        server = attacked.server
        ann = await server.login("ann")
        await create(server, ann, "hers")
        await _send(server, ann, "hers", 2)
        async with server.http(ann) as http, _stream(http, "/api/conversations/hers/events", "4") as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            await _send(server, ann, "hers", 3, stream=2)
            seqs: list[int] = []
            while not seqs:
                line = await anext(lines)
                if line.startswith("data: "):
                    seqs += [item["seq"] for item in json.loads(line[6:]) if item["t"] == "event"]
            assert seqs == [5]
        unharmed(attacked)
