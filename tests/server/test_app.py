"""The whole server over real sockets: WebSocket, HTTP calls, event streams, polling."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from tests.server.app_rig import PASSWORD, Server, create, device_of, serving
from whimbrel import protocol as p
from whimbrel.server.app import ROUTES
from whimbrel.server.hub import ServerSettings
from whimbrel.server.service import HttpSettings


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    settings = ServerSettings(rate_limit=None)
    async with serving(tmp_path / "data", "ann", "bob", "dan", server=settings) as server:
        yield server


def message(n: int, body: str = "x") -> dict[str, object]:
    return {"key": f"k{n}", "body": body, "stream": 1, "n": n}


async def post(http: httpx2.AsyncClient, conversation: str, n: int, body: str = "x") -> httpx2.Response:
    return await http.post(f"/api/conversations/{conversation}/messages/buffered", json=message(n, body))


class Events:
    """Server-sent events, as they come."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.aiter_lines()
        self.last_id = ""

    async def next(self) -> list[p.ServerItem | p.Unknown]:
        async with asyncio.timeout(30):
            async for line in self._lines:
                if line.startswith("id: "):
                    self.last_id = line[4:]
                elif line.startswith("data: "):
                    return p.decode_server(line[6:])
        raise AssertionError("the stream ended")

    async def bodies(self, count: int) -> list[tuple[int, str]]:
        """Read until so many entries came."""
        found: list[tuple[int, str]] = []
        while len(found) < count:
            found += [(item.seq, item.body) for item in await self.next() if isinstance(item, p.Event)]
        return found


# --- the WebSocket -----------------------------------------------------------------------------


async def test_messages_go_from_link_to_link_in_order(server: Server) -> None:
    ann_token, bob_token = await server.login("ann"), await server.login("bob")
    await create(server, ann_token, "c", "bob")
    async with server.link(ann_token) as ann, server.link(bob_token) as bob:
        welcome = await bob.next(p.Welcome)
        assert (welcome.user, welcome.device) == ("bob", device_of("bob"))
        await ann.say(
            *(p.Send(conversation="c", stream=1, n=n, key=f"k{n}", body=f"m{n}") for n in range(1, 51))
        )
        delivered = [await ann.next(p.Delivered) for _ in range(50)]
        events = [await bob.next(p.Event) for _ in range(50)]
        assert [item.seq for item in delivered] == list(range(2, 52))
        assert [(item.seq, item.body) for item in events] == [(n + 1, f"m{n}") for n in range(1, 51)]
        await bob.say(p.Read(conversation="c", seq=51))
        assert await ann.next(p.Receipts) == p.Receipts(conversation="c", receipts=(("bob", 51, 51),))
        await ann.say(p.Ping(id=5))
        assert (await ann.next(p.Pong)).id == 5


async def test_a_newer_link_of_the_device_closes_the_older(server: Server) -> None:
    token = await server.login("ann")
    async with server.link(token) as old:
        await old.next(p.Welcome)
        async with server.link(token) as new:
            await new.next(p.Welcome)
            assert (await old.next(p.Goaway)).reason == "replaced"
            with pytest.raises(ConnectionClosed) as closed:
                await old.next(p.Pong)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "replaced")


@pytest.mark.parametrize("frame", ["nonsense", '{"t":"ping"}', "[1", b"\xff\xfe"])
async def test_what_is_no_frame_closes_the_link(server: Server, frame: str | bytes) -> None:
    async with server.link(await server.login("ann")) as ann:
        await ann.next(p.Welcome)
        await ann.socket.send(frame)
        assert (await ann.next(p.Error)).code == "protocol"
        with pytest.raises(ConnectionClosed) as closed:
            await ann.next(p.Pong)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1002


async def test_a_frame_over_the_limit_closes_the_link_and_the_server_goes_on(server: Server) -> None:
    token = await server.login("ann")
    async with server.link(token) as ann:
        await ann.next(p.Welcome)
        with contextlib.suppress(ConnectionClosed):  # it may be closed before all of it is out
            await ann.socket.send(" " * (p.FRAME_BYTES_MAX + 1))
        with pytest.raises(ConnectionClosed):
            await ann.next(p.Pong)
    async with server.link(token) as again:
        await again.next(p.Welcome)


async def test_a_wrong_token_is_turned_away_without_being_repeated(server: Server) -> None:
    async with server.link("secret-looking-token") as link:
        error = await link.next(p.Error)
        assert error.code == "unauthorized"
        assert "secret" not in error.text
        with pytest.raises(ConnectionClosed):
            await link.next(p.Welcome)


async def test_a_flood_from_one_link_is_slowed_and_settled(tmp_path: Path) -> None:
    settings = ServerSettings(rate_limit=None, waiting_per_link_max=50, queue_items_max=100)
    async with serving(tmp_path / "data", "ann", server=settings) as server:
        token = await server.login("ann")
        await create(server, token, "c")
        async with server.link(token) as ann:
            for first in range(1, 3001, 100):
                await ann.say(
                    *(
                        p.Send(conversation="c", stream=1, n=n, key=f"k{n}", body="x" * 100)
                        for n in range(first, first + 100)
                    )
                )
            delivered = [(await ann.next(p.Delivered)).n for _ in range(3000)]
        assert delivered == list(range(1, 3001))


# --- signing in --------------------------------------------------------------------------------


async def test_tokens_are_given_refreshed_and_taken_back(server: Server) -> None:
    async with server.http() as http:
        assert (await http.get("/api/health")).json()["status"] == "ok"
        who = {"username": "ann", "password": PASSWORD, "device": device_of("ann")}
        wrong = await http.post("/api/auth/login", json={**who, "password": "wrong"})
        unknown = await http.post("/api/auth/login", json={**who, "username": "nobody"})
        assert (wrong.status_code, wrong.json()) == (unknown.status_code, unknown.json())
        assert wrong.headers["content-type"] == "application/problem+json"
        assert (wrong.status_code, wrong.json()["code"]) == (401, "unauthorized")
        first = (await http.post("/api/auth/login", json=who)).json()
        assert (first["user"], first["device"]) == ("ann", device_of("ann"))
        assert first["expires_in"] > 60
        second = (await http.post("/api/auth/refresh", json={"refresh_token": first["refresh_token"]})).json()
        http.headers["Authorization"] = f"Bearer {second['access_token']}"
        assert (await http.get("/api/conversations")).json() == {"conversations": []}
        gone = await http.post("/api/auth/logout", json={"refresh_token": second["refresh_token"]})
        assert gone.status_code == 204
        over = await http.post("/api/auth/refresh", json={"refresh_token": second["refresh_token"]})
        assert over.status_code == 401


async def test_guessing_passwords_is_slowed_by_name_and_by_address(tmp_path: Path) -> None:
    settings = HttpSettings(login_burst=3, login_per_s=0.001)
    async with serving(tmp_path / "data", "ann", http=settings) as server, server.http() as http:
        who = {"username": "Ann", "password": "wrong", "device": device_of("ann")}
        statuses = [(await http.post("/api/auth/login", json=who)).status_code for _ in range(4)]
        assert statuses == [401, 401, 401, 429]
        limited = await http.post("/api/auth/login", json={**who, "username": "other"})
        assert limited.status_code == 429
        assert int(limited.headers["Retry-After"]) > 1


@pytest.mark.parametrize("path", ["/api/conversations", "/api/events", "/api/poll"])
async def test_without_a_token_there_is_nothing(server: Server, path: str) -> None:
    for token in ("", "wrong"):
        async with server.http(token) as http:
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"


# --- conversations and messages ----------------------------------------------------------------


async def test_conversations_and_members_over_http(server: Server) -> None:
    ann_token = await server.login("ann")
    async with server.http(ann_token) as http, server.link(await server.login("bob")) as bob:
        await bob.next(p.Welcome)
        created = await http.post("/api/conversations", json={"title": "T"})
        assert created.status_code == 201
        id = created.json()["id"]
        path = f"/api/conversations/{id}"
        assert (await http.get(path)).json() == created.json()
        assert (await http.post(path + "/members", json={"user": "nobody"})).status_code == 404
        added = await http.post(path + "/members", json={"user": "bob"})
        assert added.json()["members"] == ["ann", "bob"]
        assert (await bob.next(p.Heads)).heads[0].conversation == id
        assert (await bob.next(p.Event)).kind == "member"
        assert (await http.get(path + "/members")).json() == {"members": ["ann", "bob"]}
        assert [c["id"] for c in (await http.get("/api/conversations")).json()["conversations"]] == [id]
        assert (await http.delete(path + "/members/bob")).json()["members"] == ["ann"]
        assert (await bob.next(p.Heads)).heads[0].left


async def test_strangers_see_the_same_as_for_what_does_not_exist(server: Server) -> None:
    await create(server, await server.login("ann"), "c", "bob")
    async with server.http(await server.login("dan")) as http:
        for method, path, body in [
            ("GET", "", None),
            ("GET", "/members", None),
            ("POST", "/members", {"user": "dan"}),
            ("DELETE", "/members/dan", None),
            ("GET", "/messages", None),
            ("GET", "/messages?since=abc", None),
            ("GET", "/events", None),
            ("POST", "/messages/buffered", message(1)),
            ("POST", "/receipts", {"read": 1}),
        ]:
            answers = [
                await http.request(method, f"/api/conversations/{id}{path}", json=body)
                for id in ("c", "nothing-here")
            ]
            assert [answer.status_code for answer in answers] == [404, 404], (method, path)
            assert answers[0].json() == answers[1].json()
            assert answers[0].json()["code"] == "not_found"
        assert (await http.get("/api/nothing")).json()["code"] == "not_found"
        assert (await http.put("/api/conversations")).status_code == 405


async def test_a_buffered_message_is_settled_once_however_often_it_is_posted(server: Server) -> None:
    token = await server.login("ann")
    await create(server, token, "c", "bob")
    async with server.http(token) as http, server.link(await server.login("bob")) as bob:
        await bob.next(p.Welcome)
        first, again = await post(http, "c", 1), await post(http, "c", 1)
        assert (first.status_code, first.json()) == (again.status_code, again.json())
        assert (first.status_code, first.json()["seq"]) == (200, 2)
        assert first.json()["server_id"] == (await bob.next(p.Event)).id
        ahead = await post(http, "c", 5)
        assert (ahead.status_code, ahead.json()["code"], ahead.json()["expected"]) == (409, "out_of_order", 2)
        other = await post(http, "c", 1, "changed")
        assert (other.status_code, other.json()["code"]) == (409, "conflict")
        assert (await post(http, "c", 2)).json()["seq"] == 3
        large = await post(http, "c", 3, "x" * (p.BODY_BYTES_MAX + 1))
        assert (large.status_code, large.json()["final"]) == (413, True)
        assert (await post(http, "c", 4, "x" * p.FRAME_BYTES_MAX)).status_code == 413
        nonsense = await http.post("/api/conversations/c/messages/buffered", content=b"{")
        assert (nonsense.status_code, nonsense.json()["code"]) == (400, "invalid")


async def test_too_many_messages_are_told_when_to_come_back(tmp_path: Path) -> None:
    settings = ServerSettings(rate_limit=0.001, rate_burst=3)
    async with serving(tmp_path / "data", "ann", server=settings) as server:
        token = await server.login("ann")
        await create(server, token, "c")
        async with server.http(token) as http:
            answers = [await post(http, "c", n) for n in range(1, 4)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert int(answers[2].headers["Retry-After"]) >= 1
        assert answers[2].json()["retry_after_s"] > 0


async def test_messages_are_read_forwards_and_backwards(server: Server) -> None:
    token = await server.login("ann")
    await create(server, token, "c", "bob")
    async with server.http(token) as http:
        ids = [(await post(http, "c", n)).json()["id"] for n in range(1, 11)]
        path = "/api/conversations/c/messages"
        page = (await http.get(path, params={"limit": 4})).json()
        assert [event["seq"] for event in page["messages"]] == [1, 2, 3, 4]
        assert (page["cursor"], page["head"], page["floor"]) == (4, 11, 0)
        page = (await http.get(path, params={"since": page["cursor"]})).json()
        assert [event["seq"] for event in page["messages"]] == [5, 6, 7, 8, 9, 10, 11]
        end = (await http.get(path, params={"since": page["cursor"]})).json()
        assert (end["messages"], end["cursor"]) == ([], 11)
        page = (await http.get(path, params={"since": ids[7]})).json()
        assert [event["id"] for event in page["messages"]] == ids[8:]
        page = (await http.get(path, params={"before": 12, "limit": 3})).json()
        assert ([event["seq"] for event in page["messages"]], page["cursor"]) == ([9, 10, 11], 9)
        page = (await http.get(path, params={"before": page["cursor"], "limit": 3})).json()
        assert [event["seq"] for event in page["messages"]] == [6, 7, 8]
        for bad in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"since": "-1"}, {"before": 0}):
            assert (await http.get(path, params=bad)).status_code in (400, 404), bad


async def test_receipts_over_http(server: Server) -> None:
    token = await server.login("ann")
    await create(server, token, "c", "bob")
    async with server.http(await server.login("bob")) as http, server.link(token) as ann:
        await ann.next(p.Welcome)
        answer = await http.post("/api/conversations/c/receipts", json={"received": 1})
        assert answer.json() == {"received": 1, "read": 0}
        answer = await http.post("/api/conversations/c/receipts", json={"read": 99})
        assert answer.json() == {"received": 1, "read": 1}
        assert (await ann.next(p.Receipts)).receipts[0][:2] == ("bob", 1)


# --- listening over HTTP -----------------------------------------------------------------------


async def test_the_stream_of_a_user_resumes_by_its_last_id_and_loses_nothing(server: Server) -> None:
    ann_token, bob_token = await server.login("ann"), await server.login("bob")
    await create(server, ann_token, "c", "bob")
    async with server.http(ann_token) as ann, server.http(bob_token) as bob:
        async with bob.stream("GET", "/api/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = Events(response)
            (welcome,) = await events.next()
            assert isinstance(welcome, p.Welcome)
            assert [head.seq for head in welcome.heads] == [1]
            await post(ann, "c", 1, "one")
            assert await events.bodies(1) == [(2, "one")]
        await post(ann, "c", 2, "two")
        async with bob.stream("GET", "/api/events", headers={"Last-Event-ID": events.last_id}) as response:
            events = Events(response)
            (welcome,) = await events.next()
            assert isinstance(welcome, p.Welcome)
            assert not welcome.complete
            assert [(head.conversation, head.seq) for head in welcome.heads] == [("c", 3)]
            await post(ann, "c", 3, "three")
            assert await events.bodies(1) == [(4, "three")]
        async with bob.stream("GET", "/api/events", headers={"Last-Event-ID": events.last_id}) as response:
            (welcome,) = await Events(response).next()
            assert isinstance(welcome, p.Welcome)
            assert welcome.heads == ()


async def test_the_stream_of_a_conversation_brings_what_was_missed(server: Server) -> None:
    ann_token, bob_token = await server.login("ann"), await server.login("bob")
    await create(server, ann_token, "c", "bob")
    await create(server, ann_token, "d", "bob")
    async with server.http(ann_token) as ann, server.http(bob_token) as bob:
        path = "/api/conversations/c/events"
        async with bob.stream("GET", path) as response:
            events = Events(response)
            await events.next()
            await post(ann, "d", 1, "elsewhere")
            await ann.post("/api/conversations/c/messages/buffered", json={**message(1, "one"), "key": "c1"})
            assert await events.bodies(1) == [(2, "one")]
            assert events.last_id == "2"
        for n in range(2, 131):
            answer = await ann.post(
                "/api/conversations/c/messages/buffered", json={**message(n, f"m{n}"), "key": f"c{n}"}
            )
            assert answer.status_code == 200
        async with bob.stream("GET", path, headers={"Last-Event-ID": events.last_id}) as response:
            assert await Events(response).bodies(129) == [(n + 1, f"m{n}") for n in range(2, 131)]
        async with bob.stream("GET", path, params={"since": 128}) as response:
            assert [seq for seq, _ in await Events(response).bodies(3)] == [129, 130, 131]


async def test_the_stream_of_a_conversation_ends_when_its_member_is_removed(server: Server) -> None:
    ann_token = await server.login("ann")
    await create(server, ann_token, "c", "bob")
    async with server.http(ann_token) as ann, server.http(await server.login("bob")) as bob:
        async with bob.stream("GET", "/api/conversations/c/events") as response:
            events = Events(response)
            await events.next()
            await ann.delete("/api/conversations/c/members/bob")
            await post(ann, "c", 1, "not for bob")
            rest = [line async for line in events._lines]
        assert not any("not for bob" in line for line in rest)
        assert (await bob.get("/api/conversations/c/events")).status_code == 404


async def test_polling_brings_everything_and_waits_when_there_is_nothing(server: Server) -> None:
    ann_token, bob_token = await server.login("ann"), await server.login("bob")
    await create(server, ann_token, "c", "bob")
    async with server.http(ann_token) as ann, server.http(bob_token) as bob:
        first = (await bob.get("/api/poll")).json()
        assert [item["t"] for item in first["items"]] == ["welcome"]
        empty = (await bob.get("/api/poll", params={"sync": first["sync"], "timeout": 0})).json()
        assert empty["items"] == []
        waiting = asyncio.ensure_future(bob.get("/api/poll", params={"sync": empty["sync"]}))
        seen: set[int] = set()
        for n in range(1, 21):
            await post(ann, "c", n)
            if n % 3 == 0:
                answer = (await waiting).json()
                seen |= _known(answer["items"])
                waiting = asyncio.ensure_future(bob.get("/api/poll", params={"sync": answer["sync"]}))
        while max(seen) < 21:
            answer = (await waiting).json()
            seen |= _known(answer["items"])
            waiting = asyncio.ensure_future(bob.get("/api/poll", params={"sync": answer["sync"]}))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def _known(items: list[dict[str, object]]) -> set[int]:
    known = {0}
    for item in msgspec.convert(items, list[p.ServerItem]):
        if isinstance(item, p.Event):
            known.add(item.seq)
        elif isinstance(item, p.Welcome | p.Heads):
            known |= {head.seq for head in item.heads}
    return known


# --- the document ------------------------------------------------------------------------------


async def test_the_document_lists_every_route_and_every_reference_resolves(server: Server) -> None:
    async with server.http(await server.login("ann")) as http:
        answer = await http.get("/api/openapi.json")
        document = answer.json()
        assert document["openapi"] == "3.1.0"
        listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        assert listed == {(route.method, route.path) for route in ROUTES}
        assert len(listed) >= 15
        schemas = document["components"]["schemas"]
        references = {part.split('"')[0] for part in answer.text.split('"#/components/schemas/')[1:]}
        assert references <= set(schemas)
        # What is listed is there: none is the router's own 404.
        for method, path in listed:
            url = path.replace("{conversation}", "none").replace("{user}", "ann")
            async with http.stream(method, url) as response:
                if response.status_code == 404:
                    assert "no such path" not in (await response.aread()).decode()
                assert response.status_code not in (405, 500)


async def test_too_many_changes_are_told_when_to_come_back(tmp_path: Path) -> None:
    settings = ServerSettings(rate_limit=0.001, rate_burst=1)
    async with serving(tmp_path / "data", "ann", server=settings) as server:
        token = await server.login("ann")
        await create(server, token, "c")
        async with server.http(token) as http:
            for answer in (
                await http.post("/api/conversations", json={"id": "d"}),
                await http.post("/api/conversations/c/members", json={"user": "ann"}),
                await http.delete("/api/conversations/c/members/ann"),
            ):
                assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
                assert int(answer.headers["retry-after"]) >= 1
            assert (await http.get("/api/conversations/c")).status_code == 200


async def test_a_refresh_token_is_enough_to_sign_out(server: Server) -> None:
    async with server.http() as http, server.http("an access token that expired") as late:
        for number, client in enumerate((http, late), 1):
            device = device_of("ann", number)
            answer = await http.post(
                "/api/auth/login", json={"username": "ann", "password": PASSWORD, "device": device}
            )
            body = {"refresh_token": answer.json()["refresh_token"]}
            assert (await client.post("/api/auth/logout", json=body)).status_code == 204
            assert (await http.post("/api/auth/refresh", json=body)).status_code == 401


async def test_polls_of_who_is_gone_hold_no_links(tmp_path: Path) -> None:
    settings = ServerSettings(rate_limit=None, links_per_user_max=3)
    async with serving(tmp_path / "data", "ann", server=settings) as server:
        token = await server.login("ann")
        port = int(server.url.rpartition(":")[2])
        async with server.http(token) as http, asyncio.timeout(30):
            sync = (await http.get("/api/poll")).json()["sync"]
            request = f"GET /api/poll?timeout=60&sync={sync} HTTP/1.1\r\nHost: x\r\n"
            request += f"Authorization: Bearer {token}\r\n\r\n"

            async def until(status: int) -> None:
                answer = await http.get("/api/poll", params={"timeout": 0})
                while answer.status_code != status:
                    answer = await http.get("/api/poll", params={"timeout": 0})

            polls = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for _, writer in polls:
                writer.write(request.encode())
            await until(429)
            for _, writer in polls:
                writer.close()
                await writer.wait_closed()
            await until(200)


async def test_one_of_many_conversations_is_told_as_in_the_list(server: Server) -> None:
    ann_token, bob_token = await server.login("ann"), await server.login("bob")
    for id in ("a", "b", "c"):
        await create(server, ann_token, id, "bob", "dan")
    async with server.http(ann_token) as ann, server.http(bob_token) as bob:
        await post(ann, "b", 1)
        assert (await ann.delete("/api/conversations/c/members/dan")).status_code == 200
        assert (await bob.delete("/api/conversations/a/members/bob")).status_code == 200
        for http in (ann, bob):
            listed = (await http.get("/api/conversations")).json()["conversations"]
            for info in listed:
                assert (await http.get(f"/api/conversations/{info['id']}")).json() == info
        assert {info["id"] for info in listed} == {"b", "c"}
        gone, never = await bob.get("/api/conversations/a"), await bob.get("/api/conversations/none")
        assert (gone.status_code, gone.content) == (404, never.content)
