"""Every route, for everyone who has no business there: nothing leaks, and all hear the same 404.

The matrix is made from the server's own table of routes. A route without a rule here fails the first test.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx2
import pytest

from tests.attack.access_rig import (
    ABSENT,
    AFTER,
    BEFORE,
    FORMER,
    LATER,
    LIMIT_S,
    MEMBER,
    OTHER,
    OWN,
    OWNER,
    ROOM,
    STRANGER,
    Stage,
    stage_on,
)
from tests.server.app_rig import PASSWORD, TLS, device_of
from whimbrel.server.app import ROUTES
from whimbrel.server.http import EVENTS, Route

Reach: TypeAlias = Literal["public", "own", "member", "history"]

REACH: dict[str, Reach] = {
    # Says nothing of anybody.
    "health": "public",
    "openapi": "public",
    # Asks for a password or a refresh token instead.
    "login": "public",
    "refresh": "public",
    "logout": "public",
    # Of the caller alone.
    "list_conversations": "own",
    "create_conversation": "own",
    "all_events": "own",
    "poll": "own",
    # For who is a member now.
    "get_conversation": "member",
    "list_members": "member",
    "add_member": "member",
    "remove_member": "member",
    "buffer_message": "member",
    "post_receipts": "member",
    "conversation_events": "member",
    # Also for who was one, as far as it saw.
    "get_messages": "history",
}
BODIES: dict[str, dict[str, Any]] = {
    "login": {"username": STRANGER, "password": PASSWORD, "device": device_of(STRANGER)},
    "refresh": {"refresh_token": "wr_" + "x" * 43},
    "logout": {"refresh_token": "wr_" + "x" * 43},
    "create_conversation": {"id": "fresh", "title": "of their own", "members": [OTHER]},
    "add_member": {"user": STRANGER},
    "buffer_message": {"key": "intruder", "body": "intruder", "stream": 1, "n": 1},
    "post_receipts": {"received": 1, "read": 1},
}
QUERIES: dict[str, list[dict[str, str]]] = {
    "get_messages": [{}, {"since": "0"}, {"before": "100"}, {"since": "50"}, {"limit": "1"}],
    "conversation_events": [{}, {"since": "0"}, {"since": "3"}],
    "poll": [{"timeout": "0"}],
}
# Apart from these, the answers to the same question about the room and about nothing are the same bytes.
UNLIKE = {"date"}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage_on(tmp_path) as stage:
        yield stage


def routes(*reaches: Reach) -> list[Route]:
    return [route for route in ROUTES if REACH[route.name] in reaches]


def test_every_route_has_a_rule() -> None:
    assert set(REACH) == {route.name for route in ROUTES}
    assert {name for name, reach in REACH.items() if reach == "public"} == {
        route.name for route in ROUTES if route.public
    }
    for route in ROUTES:
        assert ("{conversation}" in route.path) == (REACH[route.name] in ("member", "history")), route.name
        assert (route.body is None) == (route.name not in BODIES), f"a body for {route.name}"


def path_of(route: Route, conversation: str, user: str = MEMBER) -> str:
    return route.path.replace("{conversation}", conversation).replace("{user}", user)


async def ask(
    http: httpx2.AsyncClient,
    route: Route,
    conversation: str,
    *,
    query: dict[str, str] | None = None,
    user: str = MEMBER,
) -> httpx2.Response:
    """Call a route; what is left of an event stream that opens is not waited for."""
    request = http.build_request(
        route.method, path_of(route, conversation, user), params=query, json=BODIES.get(route.name)
    )
    if route.media_type == EVENTS:
        async with asyncio.timeout(LIMIT_S):
            response = await http.send(request, stream=True)
            if response.status_code != 200:
                await response.aread()
            await response.aclose()
        return response
    return await http.send(request)


def shown(response: httpx2.Response) -> bytes:
    """All that the other side could read: status, headers, body."""
    head = "\n".join(f"{name}: {value}" for name, value in response.headers.multi_items())
    return head.encode() + b"\n\n" + (response.content if response.is_stream_consumed else b"")


def alike(response: httpx2.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    headers = [(name, value) for name, value in response.headers.multi_items() if name not in UNLIKE]
    return response.status_code, headers, response.content


# --- without a good token ------------------------------------------------------------------------


async def test_nothing_but_an_access_token_of_this_server_opens_anything(stage: Stage) -> None:
    closed = [route for route in ROUTES if not route.public]
    assert len(closed) >= 12
    for token in stage.bad_tokens():
        headers = {"Authorization": f"{token.scheme} {token.text}".strip()} if token.scheme else {}
        async with httpx2.AsyncClient(
            base_url=stage.server.url, headers=headers, timeout=LIMIT_S, verify=TLS
        ) as http:
            for route in closed:
                answers = [await ask(http, route, conversation) for conversation in (ROOM, ABSENT)]
                where = f"{route.name} with {token.name}"
                for answer in answers:
                    assert answer.status_code == 401, where
                    assert answer.json()["code"] == "unauthorized", where
                    assert not stage.leaks(shown(answer), named=False), where
                    assert not token.text or token.text not in answer.text, where
                assert alike(answers[0]) == alike(answers[1]), where


async def test_a_token_in_the_address_is_not_looked_at(stage: Stage) -> None:
    async with stage.server.http() as http:
        for name in ("token", "access_token", "authorization", "Authorization"):
            answer = await http.get("/api/conversations", params={name: stage.tokens[OWNER]})
            assert answer.status_code == 401


async def test_public_routes_say_nothing_of_anybody(stage: Stage) -> None:
    async with stage.server.http() as http:
        for route in routes("public"):
            answer = await ask(http, route, ROOM)
            assert not stage.leaks(shown(answer), named=False), route.name
        # Whether there is such a user, and what its password is like, sounds the same.
        wrong = {"password": "not the password", "device": device_of("x")}
        answers = [
            await http.post("/api/auth/login", json={"username": name, **wrong})
            for name in (OWNER, "nobody.at.all")
        ]
        assert {answer.status_code for answer in answers} == {401}
        assert alike(answers[0]) == alike(answers[1])


# --- with the token of somebody else -------------------------------------------------------------


@pytest.mark.parametrize("user", [STRANGER, OTHER])
async def test_who_is_no_member_cannot_tell_the_room_from_nothing(stage: Stage, user: str) -> None:
    tried = 0
    async with stage.server.http(stage.tokens[user]) as http:
        for route in routes("member", "history"):
            for query in QUERIES.get(route.name, [{}]):
                for target in {MEMBER, user, "nobody.at.all"} if "{user}" in route.path else {MEMBER}:
                    answers = [
                        await ask(http, route, conversation, query=query, user=target)
                        for conversation in (ROOM, ABSENT)
                    ]
                    where = f"{route.name} {query} {target}"
                    assert answers[0].status_code == 404, where
                    assert answers[0].json()["code"] == "not_found", where
                    assert alike(answers[0]) == alike(answers[1]), where
                    assert not stage.leaks(shown(answers[0]), named=False), where
                    tried += 1
    assert tried >= 15
    await nothing_happened(stage)


async def nothing_happened(stage: Stage) -> None:
    """What the intruder tried is in no log, and no member is told of it."""
    async with stage.server.http(stage.tokens[OWNER]) as http:
        log = await http.get(f"/api/conversations/{ROOM}/messages")
        members = await http.get(f"/api/conversations/{ROOM}/members")
    assert log.status_code == members.status_code == 200
    assert "intruder" not in log.text
    assert STRANGER not in log.text
    assert members.json()["members"] == sorted([OWNER, MEMBER, LATER])


async def test_an_id_of_a_message_found_elsewhere_leads_nowhere(stage: Stage) -> None:
    async with stage.server.http(stage.tokens[OWNER]) as http:
        log = await http.get(f"/api/conversations/{ROOM}/messages")
    ids = [entry["id"] for entry in log.json()["messages"]]
    assert len(ids) >= 5
    async with stage.server.http(stage.tokens[STRANGER]) as http:
        for id in ids:
            answers = [
                await http.get(f"/api/conversations/{conversation}/messages", params={"since": since})
                for conversation in (ROOM, OWN, ABSENT)
                for since in (id, "a" * len(id))
            ]
            assert len({json.dumps(alike(answer)[1]) for answer in answers}) == 1
            assert {(answer.status_code, answer.content) for answer in answers} == {(404, answers[0].content)}
    async with stage.server.http(stage.tokens[FORMER]) as http:
        answers = [await http.get(f"/api/conversations/{ROOM}/messages", params={"since": id}) for id in ids]
    # Up to the entry that says it was removed; what came after might as well not exist.
    assert [answer.status_code for answer in answers] == [
        200 if seq <= stage.left_seq else 404 for seq in range(1, len(ids) + 1)
    ]


async def test_who_was_removed_sees_what_it_saw_and_nothing_after(stage: Stage) -> None:
    async with stage.server.http(stage.tokens[FORMER]) as http:
        for route in routes("member"):
            for query in QUERIES.get(route.name, [{}]):
                answers = [
                    await ask(http, route, conversation, query=query, user=MEMBER)
                    for conversation in (ROOM, ABSENT)
                ]
                assert answers[0].status_code == 404, route.name
                assert alike(answers[0]) == alike(answers[1]), route.name
        for query in QUERIES["get_messages"]:
            answer = await http.get(f"/api/conversations/{ROOM}/messages", params=query)
            assert answer.status_code == 200
            assert not stage.leaks(shown(answer), former=True)
            assert answer.json()["head"] == stage.left_seq
            assert all(entry["seq"] <= stage.left_seq for entry in answer.json()["messages"])
        whole = await http.get(f"/api/conversations/{ROOM}/messages")
        assert "body-c4n4ry-before" in whole.text
        # Leaving once more changes nothing, and tells nothing but what it knew.
        again = await http.delete(f"/api/conversations/{ROOM}/members/{FORMER}")
        assert again.status_code == 200
        assert not stage.leaks(shown(again), former=True)
        assert again.json()["members"] == []
        assert again.json()["seq"] == stage.left_seq
        listed = await http.get("/api/conversations")
        assert [one["id"] for one in listed.json()["conversations"]] == [OWN]


async def test_who_came_later_and_went_sees_that_stretch_alone(stage: Stage) -> None:
    async with stage.server.http(stage.tokens[OWNER]) as http:
        answer = await http.delete(f"/api/conversations/{ROOM}/members/{LATER}")
        assert answer.status_code == 200
    await stage.say("body-c4n4ry-last")
    async with stage.server.http(stage.tokens[LATER]) as http:
        answer = await http.get(f"/api/conversations/{ROOM}/messages", params={"since": "0"})
        assert answer.status_code == 200
        kinds = [json.loads(entry["body"])["action"] for entry in answer.json()["messages"]]
        assert kinds == ["joined", "removed"]
        assert not {"body-c4n4ry-last", *BEFORE[:3], *AFTER[:3]} & set(stage.leaks(answer.content))


async def test_taking_an_id_that_is_taken_tells_no_more_than_that(stage: Stage) -> None:
    async with stage.server.http(stage.tokens[STRANGER]) as http:
        for body in ({"id": ROOM}, {"id": ROOM, "title": "title-c4n4ry", "members": [MEMBER, OWNER, FORMER]}):
            answer = await http.post("/api/conversations", json=body)
            assert answer.status_code == 409
            assert not stage.leaks(shown(answer), named=False)
    async with stage.server.http(stage.tokens[FORMER]) as http:
        answer = await http.post("/api/conversations", json={"id": ROOM})
        assert answer.status_code == 409
        assert not stage.leaks(shown(answer), former=True, named=False)


async def test_members_are_let_in_everywhere(stage: Stage) -> None:
    """Or the matrix above would prove nothing."""
    async with stage.server.http(stage.tokens[MEMBER]) as http:
        for route in routes("member", "history", "own"):
            if route.name == "remove_member":
                continue
            answer = await ask(http, route, ROOM, query=(QUERIES.get(route.name) or [{}])[0])
            assert answer.status_code == route.status, (route.name, answer.text)
        log = await http.get(f"/api/conversations/{ROOM}/messages")
        assert {"body-c4n4ry-before", "body-c4n4ry-after", "title-c4n4ry"} <= set(stage.leaks(log.content))
        answer = await http.delete(f"/api/conversations/{ROOM}/members/{MEMBER}")
        assert answer.status_code == 200


# --- what is pushed ------------------------------------------------------------------------------


class Listener:
    """Everything an event stream or a series of polls brings, as bytes."""

    def __init__(self) -> None:
        self.seen = b""
        self.ready = asyncio.Event()

    async def stream(self, http: httpx2.AsyncClient, path: str, until: str) -> None:
        async with http.stream("GET", path) as response:
            assert response.status_code == 200
            async for part in response.aiter_bytes():
                self.seen += part
                self.ready.set()
                if until.encode() in self.seen:
                    return

    async def poll(self, http: httpx2.AsyncClient, until: str) -> None:
        sync = ""
        while until.encode() not in self.seen:
            self.ready.set()
            answer = await http.get("/api/poll", params={"sync": sync, "timeout": "5"} if sync else {})
            assert answer.status_code == 200
            self.seen += answer.content
            sync = answer.json()["sync"]


@pytest.mark.parametrize("user", [STRANGER, FORMER])
async def test_streams_and_polls_bring_nothing_of_the_room(
    stage: Stage, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    listeners = [Listener() for _ in range(3)]
    async with stage.server.http(stage.tokens[user]) as http:
        until = f"sentinel-{stage.stirred + 1}"
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            group.create_task(listeners[0].stream(http, "/api/events", until))
            group.create_task(listeners[1].stream(http, f"/api/conversations/{OWN}/events", until))
            # A poll between two others misses the event itself, and is told of it by the head.
            group.create_task(listeners[2].poll(http, f'"conversation":"{OWN}"'))
            for listener in listeners:
                await listener.ready.wait()
            await stage.stir()
    for listener in listeners:
        assert not stage.leaks(listener.seen, former=user == FORMER, named=user == FORMER)
        assert OWN.encode() in listener.seen
    # The libraries of the test's own clients log what they send; the server and its libraries must not.
    # (The access log is off in a server; here pytest turns it on.)
    logged = [
        record for record in caplog.records if record.name.startswith(("whimbrel.server", "uvicorn.error"))
    ]
    assert logged
    assert not stage.leaks("\n".join(record.getMessage() for record in logged), named=False)


async def test_a_stream_ends_with_the_membership(stage: Stage) -> None:
    """Who listens while it is removed hears so, and nothing of what is said then."""
    listeners = [Listener() for _ in range(2)]
    async with (
        stage.server.http(stage.tokens[LATER]) as http,
        asyncio.timeout(LIMIT_S),
        asyncio.TaskGroup() as group,
    ):
        one = group.create_task(listeners[0].stream(http, f"/api/conversations/{ROOM}/events", "never said"))
        everything = group.create_task(listeners[1].stream(http, "/api/events", '"left":true'))
        for listener in listeners:
            await listener.ready.wait()
        async with stage.server.http(stage.tokens[OWNER]) as owner:
            await owner.delete(f"/api/conversations/{ROOM}/members/{LATER}")
        await stage.say("said-afterwards")
        await asyncio.gather(one, everything)
    for listener in listeners:
        assert b"removed" in listener.seen
        assert b"said-afterwards" not in listener.seen
