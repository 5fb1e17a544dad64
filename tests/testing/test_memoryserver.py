"""The server in memory does wrong when it is told to, and keeps its promises all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from whimbrel import (
    Client,
    ConnectionState,
    ConversationHandle,
    DeliveryFailed,
    DeliveryPending,
    Unauthorized,
)
from whimbrel.testing import MemoryServer, VirtualClock


def texts(server: MemoryServer) -> list[object]:
    return [message.content for message in server.messages("room")]


async def room_of(client: Client) -> ConversationHandle:
    return await client.create_conversation(id="room")


async def test_what_it_shows_is_what_it_has(whimbrel_server: MemoryServer) -> None:
    server = whimbrel_server
    async with server.client("ann") as ann, server.client("ben") as ben:
        await ben.connected(10)
        room = await ann.create_conversation("ben", id="room", title="T")
        sent = await room.send({"n": 1}, metadata={"m": 2})
        await sent.delivered(10)
        (message,) = server.messages("room")
        assert (message.id, message.sender, message.seq) == (sent.id, "ann", 2)
        assert (message.content, message.metadata) == ({"n": 1}, {"m": 2})
        assert [entry.kind for entry in server.messages("room", kind=None)] == ["info", "message"]
        assert server.conversations() == ["room"]
        assert server.members("room") == ("ann", "ben")
    assert server.messages("elsewhere") == []


async def test_a_refusal_for_now_is_tried_again(whimbrel_server: MemoryServer) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        whimbrel_server.refuse_next("unavailable", count=2)
        message = await (await room.send("x")).delivered(60)
        assert message.retry_count == 2
        assert whimbrel_server.script.refused == 2


async def test_a_refusal_for_good_is_told_and_others_go_on(whimbrel_server: MemoryServer) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        whimbrel_server.refuse_next("invalid", text="not like this")
        refused, behind = await room.send("refused"), await room.send("behind")
        with pytest.raises(DeliveryFailed):
            await refused.delivered(60)
        await behind.delivered(60)
        assert texts(whimbrel_server) == ["behind"]


async def test_a_refusal_can_be_for_one_user(whimbrel_server: MemoryServer) -> None:
    async with whimbrel_server.client("ann") as ann, whimbrel_server.client("ben") as ben:
        await ben.connected(10)
        room = await ann.create_conversation("ben", id="room")
        whimbrel_server.refuse_next("forbidden", user="ben")
        await (await room.send("ann's")).delivered(60)
        with pytest.raises(DeliveryFailed):
            await (await ben.send("room", "ben's")).delivered(60)
        assert texts(whimbrel_server) == ["ann's"]


async def test_a_failed_commit_writes_nothing_and_costs_nothing(whimbrel_server: MemoryServer) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        whimbrel_server.fail_commits(2)
        await (await room.send("x")).delivered(60)
        assert texts(whimbrel_server) == ["x"]
        assert whimbrel_server.script.commits_failed == 2


@pytest.mark.parametrize("crash", [False, True])
async def test_a_lost_answer_doubles_nothing(
    whimbrel_server: MemoryServer, virtual_clock: VirtualClock, crash: bool
) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        whimbrel_server.lose_answers(crash=crash)
        message = await room.send("once")
        if crash:
            await virtual_clock.until(lambda: not whimbrel_server.is_up)
            assert texts(whimbrel_server) == ["once"]
            assert not message.status.settled
            await whimbrel_server.start()
        await message.delivered(60)
        assert texts(whimbrel_server) == ["once"]
        assert whimbrel_server.script.answers_lost == 1


async def test_held_answers_come_when_they_are_let_go(whimbrel_server: MemoryServer) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        with whimbrel_server.holding_answers():
            message = await room.send("x")
            with pytest.raises(DeliveryPending):
                await message.delivered(30)
            assert texts(whimbrel_server) == ["x"]
        await message.delivered(30)
        assert texts(whimbrel_server) == ["x"]


async def test_unavailable_is_obeyed(whimbrel_server: MemoryServer, virtual_clock: VirtualClock) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        whimbrel_server.crash()
        await whimbrel_server.start()
        with whimbrel_server.unavailable(retry_after_s=20):
            message = await room.send("x")
            began = virtual_clock.passed_s
            await asyncio.sleep(30)
            assert ann.connection.state is ConnectionState.RECONNECTING
        await message.delivered(60)
        assert virtual_clock.passed_s - began >= 30


async def test_nobody_signs_in_while_it_is_refused(whimbrel_server: MemoryServer) -> None:
    with whimbrel_server.rejecting_auth():
        async with whimbrel_server.client("ann") as ann:
            with pytest.raises(Unauthorized):
                await ann.connected(60)
    async with whimbrel_server.client("ann") as ann:
        await ann.connected(60)


async def test_revoked_tokens_are_worth_nothing(whimbrel_server: MemoryServer, tmp_path: Path) -> None:
    key = b"k" * 32
    async with whimbrel_server.client("ann", tmp_path / "ann.db", key=key) as ann:
        room = await room_of(ann)
        whimbrel_server.revoke("ann")
        # She has her password still, and signs in again.
        await (await room.send("x")).delivered(60)
    whimbrel_server.revoke("ann")
    async with Client(whimbrel_server.url, tmp_path / "ann.db", key=key) as without_password:
        with pytest.raises(Unauthorized):
            await without_password.connected(60)


async def test_what_was_delivered_survives_every_way_of_going_down(whimbrel_server: MemoryServer) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        for number, down in enumerate([whimbrel_server.restart, whimbrel_server.stop, None]):
            if down is not None:
                await down()
            else:
                whimbrel_server.crash()
            message = await room.send(number)
            await whimbrel_server.start()
            await message.delivered(60)
        assert texts(whimbrel_server) == [0, 1, 2]
        assert whimbrel_server.restarts == 3


async def test_a_restored_server_is_offered_again_what_it_lacks(
    whimbrel_server: MemoryServer, virtual_clock: VirtualClock
) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        await (await room.send("kept")).delivered(60)
        backup = whimbrel_server.backup()
        lost = await room.send("lost with the disk")
        await lost.delivered(60)
        await whimbrel_server.restore(backup)
        assert texts(whimbrel_server) == ["kept"]
        message = await room.send("later")
        await message.delivered(60)
        await whimbrel_server.settled()
        assert texts(whimbrel_server)[0] == "kept"
        assert "later" in texts(whimbrel_server)


async def test_the_rate_limit_is_the_real_one(
    whimbrel_server: MemoryServer, virtual_clock: VirtualClock
) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await room_of(ann)
        for number in range(200):
            await room.send(number)
        await ann.flush(120)
        assert texts(whimbrel_server) == list(range(200))
        assert virtual_clock.passed_s > 8, "ten a second after a burst of a hundred"
