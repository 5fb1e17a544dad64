"""Every item a client can send, from everyone who has no business with the conversation it names.

The matrix is made from the protocol's own list of items, and of calls from the operations the server knows.
An item without a rule here fails the first test.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.attack.access_rig import (
    ABSENT,
    FORMER,
    LATER,
    MEMBER,
    OTHER,
    OWN,
    OWNER,
    ROOM,
    STRANGER,
    Stage,
    Wire,
    anonymous,
    stage_on,
)
from whimbrel import protocol as p
from whimbrel.server import batches, hub, outcomes

ITEMS: tuple[type[msgspec.Struct], ...] = typing.get_args(p.ClientItem)
OPS: list[str] = sorted(
    {
        op
        for module in (outcomes, hub, batches)
        for op in re.findall(r'\.op == "(\w+)"', inspect.getsource(module))
    }
)
"""The operations of a call, as the server tells them apart."""
TALK: dict[type, list[p.ClientItem]] = {
    # About the link, not about a conversation; `hello` and `auth` have tests of their own below.
    p.Hello: [],
    p.Auth: [],
    p.Ping: [p.Ping(id=1)],
    p.Compare: [p.Compare(version=0), p.Compare(version=10**9)],
    p.Bye: [],
}
"""Items that name no conversation."""
ABOUT: dict[type, Callable[[str], list[p.ClientItem]]] = {
    p.Send: lambda room: [
        p.Send(conversation=room, stream=1, n=1, key="i1", body="intruder"),
        p.Send(conversation=room, stream=1, n=2, key="i2", body="intruder", on_reject="block"),
        p.Send(conversation=room, stream=1, n=9, key="i9", body="intruder"),
        p.Send(conversation=room, stream=2, n=1, key="key-of-another", body="intruder", role="system"),
        p.Send(conversation=room, stream=3, n=1, key="i3", body="intruder", reply_to="a" * 26),
    ],
    p.Void: lambda room: [
        p.Void(conversation=room, stream=4, n=1, key="v1"),
        p.Void(conversation=room, stream=4, n=5, key="v5"),
    ],
    p.Fetch: lambda room: [
        p.Fetch(conversation=room),
        p.Fetch(conversation=room, since=4, limit=1),
        p.Fetch(conversation=room, since=10**9),
    ],
    p.Status: lambda room: [
        p.Status(conversation=room, stream=1, numbers=(1, 2, 3)),
        p.Status(conversation=room, stream=7, numbers=(1,)),
    ],
    p.Received: lambda room: [p.Received(conversation=room, seq=3)],
    p.Read: lambda room: [p.Read(conversation=room, seq=10**6)],
    p.Typing: lambda room: [p.Typing(conversation=room), p.Typing(conversation=room, on=False)],
    p.Call: lambda room: [call for op in OPS if op not in ("create", "list") for call in calls(op, room)],
}
"""Items that name one."""


def calls(op: str, room: str) -> list[p.ClientItem]:
    return [
        p.Call(id=f"{op} {number}", op=op, conversation=room, user=user)
        for number, user in enumerate((STRANGER, MEMBER, "nobody.at.all", ""))
    ]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage_on(tmp_path) as stage:
        yield stage


def test_every_item_and_every_call_has_a_rule() -> None:
    assert set(ITEMS) == set(TALK) | set(ABOUT)
    assert not set(TALK) & set(ABOUT)
    for kind in ITEMS:
        assert ("conversation" in kind.__struct_fields__) == (kind in ABOUT), kind
        assert kind in TALK or ABOUT[kind](ROOM), kind
    assert OPS == ["add", "create", "list", "remove"], "a new call needs rules here"


# --- who did not greet, or with what is no token -------------------------------------------------


async def test_nothing_is_heard_before_the_greeting(stage: Stage) -> None:
    for kind in ITEMS:
        if kind in (p.Hello, p.Ping, p.Bye):
            continue
        said = ABOUT[kind](ROOM) if kind in ABOUT else TALK[kind] or [p.Auth(token=stage.tokens[OWNER])]
        async with Wire.opened(stage) as wire:
            await wire.say(*said)
            await wire.ended()
        assert [type(item) for item in wire.items] == [p.Error], kind
        assert wire.items[0].code == "unauthorized"
        assert wire.close_code == 1008
        assert not any(stage.leaks(frame, named=False) for frame in wire.seen)


async def test_only_an_access_token_of_this_server_greets(stage: Stage) -> None:
    answers = set()
    for token in stage.bad_tokens():
        if token.scheme == "Basic":
            continue  # a link knows no schemes
        async with Wire.opened(stage) as wire:
            # What follows in the same frame is not heard either.
            await wire.say(p.Hello(token=token.text), p.Fetch(conversation=ROOM), p.Call(id="l", op="list"))
            await wire.ended()
        assert wire.close_code == 1008, token.name
        assert not any(stage.leaks(frame, named=False) for frame in wire.seen), token.name
        answers.add(tuple(wire.seen))
    assert len(answers) == 1, "nobody is told what was wrong with a token"


async def test_a_link_cannot_become_somebody_else(stage: Stage) -> None:
    for items in (
        [p.Hello(token=stage.tokens[OWNER])],
        [p.Auth(token=stage.tokens[OWNER])],
        [p.Auth(token=stage.tokens[OWNER]), p.Fetch(conversation=ROOM)],
    ):
        async with Wire.of(stage, STRANGER) as wire:
            await wire.say(*items)
            await wire.ended()
        assert isinstance(wire.items[-1], p.Error)
        assert not any(stage.leaks(frame, named=False) for frame in wire.seen)


async def test_a_bad_renewal_changes_nothing(stage: Stage) -> None:
    bad = [token for token in stage.bad_tokens() if token.scheme != "Basic"]
    for token in bad[:: len(bad) // 4]:
        async with Wire.of(stage, STRANGER) as wire:
            await wire.say(p.Auth(token=token.text))
            await wire.say(*ABOUT[p.Fetch](ROOM))
            await wire.settled()
        assert not any(stage.leaks(frame, named=False) for frame in wire.seen if b"not_found" not in frame)
        assert {item.code for item in wire.items if isinstance(item, p.Error)} == {
            "unauthorized",
            "not_found",
        }


# --- who greeted, and is no member ---------------------------------------------------------------


async def answers_to(stage: Stage, user: str, items: list[p.ClientItem], device: int) -> Wire:
    async with Wire.of(stage, user, device) as wire:
        wire.items.clear()
        wire.seen.clear()
        for item in items:
            await wire.say(item)
            await wire.settled()
    return wire


@pytest.mark.parametrize("user", [STRANGER, OTHER])
async def test_who_is_no_member_cannot_tell_the_room_from_nothing(stage: Stage, user: str) -> None:
    for kind, about in ABOUT.items():
        there = await answers_to(stage, user, about(ROOM), 2)
        nowhere = await answers_to(stage, user, about(ABSENT), 3)
        # Ids of messages are made of device and key, and two devices asked: they are blotted out as well.
        assert blotted(there.items, ROOM) == blotted(nowhere.items, ABSENT), kind
        assert not any(stage.leaks(frame) for frame in there.seen), kind
        assert not any(isinstance(item, p.Delivered | p.Page | p.Event) for item in there.items), kind
        assert bool(there.items) == (kind not in (p.Received, p.Read, p.Typing)), kind
    async with stage.server.http(stage.tokens[OWNER]) as http:
        log = await http.get(f"/api/conversations/{ROOM}/messages")
        members = await http.get(f"/api/conversations/{ROOM}/members")
    assert "intruder" not in log.text
    assert members.json()["members"] == sorted([OWNER, MEMBER, LATER])


def blotted(items: list[Any], conversation: str) -> list[bytes]:
    return [re.sub(rb"[a-z2-7]{26}", b"?", item) for item in anonymous(items, conversation)]


async def test_taking_a_taken_id_tells_no_more_than_that(stage: Stage) -> None:
    async with Wire.of(stage, STRANGER) as wire:
        await wire.say(
            p.Call(id="c1", op="create", conversation=ROOM),
            p.Call(id="c2", op="create", conversation=ROOM, title="title-c4n4ry", members=(MEMBER, OWNER)),
            p.Call(id="c3", op="list"),
        )
        await wire.settled()
    answers = {item.id: item for item in wire.items if isinstance(item, p.Answer)}
    assert {answers["c1"].code, answers["c2"].code} == {"conflict"}
    assert [info.id for info in answers["c3"].conversations] == [OWN]
    assert not any(stage.leaks(frame, named=False) for frame in wire.seen)


# --- who was removed -----------------------------------------------------------------------------


async def test_who_was_removed_sees_what_it_saw_and_nothing_after(stage: Stage) -> None:
    for kind, about in ABOUT.items():
        async with Wire.of(stage, FORMER, 2, sync=stage.former_sync) as wire:
            greeted = wire.items[0]
            for item in about(ROOM):
                await wire.say(item)
                await wire.settled()
        assert not any(stage.leaks(frame, former=True) for frame in wire.seen), kind
        [head] = [head for head in greeted.heads if head.conversation == ROOM]
        assert (head.left, head.seq, head.members) == (True, stage.left_seq, None)
        for item in wire.items:
            if isinstance(item, p.Page):
                assert item.head == stage.left_seq
                assert all(event.seq <= stage.left_seq for event in item.events)
        assert any(b"body-c4n4ry-before" in frame for frame in wire.seen) == (kind is p.Fetch)
    # Nothing it does is heard by those who are there.
    async with Wire.of(stage, MEMBER, 2) as member:
        await member.say(p.Fetch(conversation=ROOM))
        await member.settled()
    assert not any(b"intruder" in frame for frame in member.seen)


# --- what is pushed ------------------------------------------------------------------------------


@pytest.mark.parametrize("user", [STRANGER, FORMER])
async def test_nothing_of_the_room_is_pushed(stage: Stage, user: str) -> None:
    async with Wire.of(stage, user, 2) as wire, Wire.of(stage, MEMBER, 2) as member:
        await stage.stir()
        await member.heard("typing_of")
        # What the owner said last in the other conversation came behind everything of the room.
        await wire.heard(f"sentinel-{stage.stirred}")
        await wire.settled()
    assert not any(stage.leaks(frame, former=user == FORMER, named=user == FORMER) for frame in wire.seen)
    # It did happen: a member was told of all of it.
    kinds = {type(item) for item in member.items}
    assert {p.Event, p.TypingOf, p.Heads} <= kinds


async def test_a_sync_token_of_a_member_opens_nothing(stage: Stage) -> None:
    """It says how far, not who."""
    token = await stage.server.login(STRANGER, 2)
    async with Wire.opened(stage) as wire:
        await wire.say(p.Hello(token=token, sync=stage.refresh["sync"]))
        await wire.settled()
    assert isinstance(wire.items[0], p.Welcome)
    assert not any(stage.leaks(frame, named=False) for frame in wire.seen)


async def test_who_is_removed_hears_that_and_nothing_behind_it(stage: Stage) -> None:
    async with Wire.of(stage, LATER, 2) as wire, Wire.of(stage, OWNER, 2) as owner:
        await owner.say(
            p.Send(conversation=ROOM, stream=1, n=1, key="a", body="said-before"),
            p.Call(id="r", op="remove", conversation=ROOM, user=LATER),
            p.Send(conversation=ROOM, stream=1, n=2, key="b", body="said-behind"),
        )
        await owner.settled()
        await owner.say(p.Typing(conversation=ROOM))
        await owner.settled()
        await wire.settled()
        await wire.say(
            p.Fetch(conversation=ROOM), p.Send(conversation=ROOM, stream=1, n=1, key="x", body="y")
        )
        await wire.settled()
    seen = b"".join(wire.seen)
    assert b"said-before" in seen
    assert b'"left":true' in seen
    assert b"said-behind" not in seen
    assert b"typing_of" not in seen
    [rejected] = [item for item in wire.items if isinstance(item, p.Rejected)]
    assert rejected.code == "not_found"
