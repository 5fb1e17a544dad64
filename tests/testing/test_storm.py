"""Storms are the same for the same seed, strike with everything, and their judge sees what is broken."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.rounds import Rounds
from whimbrel import Client
from whimbrel.testing import FAULT_KINDS, MemoryServer, Storm, StormBroke, World, storm_plan
from whimbrel.testing.proxy_counters import ProxyCounters
from whimbrel.testing.proxy_faults import Kill
from whimbrel.testing.schedule import Schedule

KEY = b"k" * 32
MESSAGES = 8


def test_the_same_seed_is_the_same_plan_and_another_seed_another() -> None:
    assert storm_plan(7, apps=2).to_json() == storm_plan(7, apps=2).to_json()
    assert len({storm_plan(seed).to_json() for seed in range(50)}) == 50


def test_plans_hold_every_kind_of_fault_and_end_calm() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(30):
        plan = storm_plan(seed, duration_s=100, apps=3)
        for fault in plan.faults:
            kinds[fault.target if isinstance(fault, Kill) else type(fault).__name__] += 1
            ends_at_s = fault.restart_at_s if isinstance(fault, Kill) else fault.until_s
            assert ends_at_s is not None
            assert ends_at_s <= 90
        servers = [fault for fault in plan.faults if isinstance(fault, Kill) and fault.target == "server"]
        for former, later in itertools.pairwise(servers):
            assert former.restart_at_s is not None
            assert former.restart_at_s <= later.at_s, "it is up before it is killed again"
    assert len(kinds) == len(FAULT_KINDS) - 1 + 3
    assert min(kinds.values()) > 10


def test_plans_hold_only_what_was_asked_for() -> None:
    plan = storm_plan(1, faults=("cut", "app_crash"))
    assert {type(fault).__name__ for fault in plan.faults} == {"Reset"}
    with pytest.raises(ValueError, match="hail"):
        storm_plan(1, faults=("cut", "hail"))
    with pytest.raises(ValueError, match="some of"):
        storm_plan(1, faults=())


async def busy(server: MemoryServer, storm: Storm, folder: Path) -> None:
    """Two users who talk, one of them from a disk, one as an app that is killed."""

    async def parrot() -> None:
        async with server.client("ben", folder / "ben.db", key=KEY) as ben:
            async for event in ben.events(consumer="parrot"):
                if event.message.sender == "ann" and event.message.kind == "message":
                    await ben.send("room", f"re {event.message.content!r}", key=event.id)
                await event.done()

    server.user("ben")
    app = storm.app("ben", parrot)
    async with server.client("ann", folder / "ann.db", key=KEY) as ann:
        room = await ann.create_conversation("ben", id="room")
        async with storm:
            for number in range(MESSAGES):
                await room.send(number)
                await asyncio.sleep(storm.random.uniform(0, 20))
        await storm.until(lambda: len(server.messages("room")) == 2 * MESSAGES)
        said = [message.content for message in server.messages("room")]
        assert [one for one in said if isinstance(one, int)] == list(range(MESSAGES))
        assert [one for one in said if isinstance(one, str)] == [f"re {number}" for number in range(MESSAGES)]
    assert app.running


def outcome(seed: int, folder: Path) -> tuple[list[str], list[object]]:
    folder.mkdir()
    with World(seed=seed, duration_s=150) as world:
        world.run(busy(world.server, world.storm, folder))
        log: list[object] = [(one.content, one.delivered_at) for one in world.server.messages("room")]
        return world.storm.story, log


def test_the_same_seed_is_the_same_run_to_the_microsecond(tmp_path: Path) -> None:
    assert outcome(3, tmp_path / "once") == outcome(3, tmp_path / "again")


@pytest.mark.soak
def test_storms_break_nothing(tmp_path: Path, rounds: Rounds) -> None:
    for number in range(rounds.of(ci=1, soak=500)):
        seed = rounds.fresh_seed() if number else 5
        outcome(seed, tmp_path / str(seed))


STRUCK: dict[str, Callable[[ProxyCounters], float]] = {
    "dead_zone": lambda counters: counters.stalled_up_s + counters.stalled_down_s,
    "cut": lambda counters: counters.resets,
    "half_open": lambda counters: counters.bytes_swallowed_up + counters.bytes_swallowed_down,
    "slow": lambda counters: counters.chunks_delayed_up,
    "narrow": lambda counters: counters.chunks_delayed_up,
    "loss": lambda counters: counters.chunks_dropped_up + counters.chunks_dropped_down,
    "lost_answers": lambda counters: counters.answers_dropped,
    "refused": lambda counters: min(counters.refused_windows, counters.resets),
}


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_every_kind_of_fault_strikes_and_alone_breaks_nothing(kind: str, tmp_path: Path) -> None:
    with World(seed=2, duration_s=150, faults=(kind,)) as world:
        world.run(busy(world.server, world.storm, tmp_path))
        if kind in STRUCK:
            assert sum(STRUCK[kind](road.counters) for road in world.virtual_loop.network.roads) > 0
        else:
            who = {"server_crash": "server", "app_crash": "client:1"}[kind]
            assert any(f"{who} killed" in line for line in world.storm.story)


# --- the judge ---------------------------------------------------------------------------------


def lose(server: MemoryServer) -> None:
    entries = server.ledger.state.entries["room"]
    entries.pop()
    conversation = server.ledger.state.conversations["room"]
    server.ledger.state.conversations["room"] = msgspec.structs.replace(
        conversation, seq=conversation.seq - 1
    )


def change(server: MemoryServer) -> None:
    entries = server.ledger.state.entries["room"]
    entries[1] = msgspec.structs.replace(
        entries[1], event=msgspec.structs.replace(entries[1].event, body="9")
    )


def reorder(server: MemoryServer) -> None:
    entries = server.ledger.state.entries["room"]
    first, second = entries[1].event, entries[2].event
    entries[1] = msgspec.structs.replace(entries[1], event=msgspec.structs.replace(second, seq=2))
    entries[2] = msgspec.structs.replace(entries[2], event=msgspec.structs.replace(first, seq=3))


def double(server: MemoryServer) -> None:
    entries = server.ledger.state.entries["room"]
    entries[2] = msgspec.structs.replace(entries[2], event=msgspec.structs.replace(entries[1].event, seq=3))


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        (lose, "was sent and is lost"),
        (change, "was changed on its way"),
        (reorder, "overtook one that was sent before it"),
        (double, "is in the log twice"),
    ],
)
async def test_the_judge_finds(
    whimbrel_server: MemoryServer, storm: Storm, wrong: Callable[[MemoryServer], None], finding: str
) -> None:
    async with whimbrel_server.client("ann") as ann, whimbrel_server.client("ben") as ben:
        await ben.connected(10)
        room = await ann.create_conversation("ben", id="room")
        for number in range(3):
            await room.send(number)
        await ann.flush(60)
        await storm.over()  # nothing is wrong yet
        wrong(whimbrel_server)
        with pytest.raises(StormBroke, match=finding) as broke:
            await storm.over()
        assert "storm 1 broke a promise" in str(broke.value)
        assert any("BROKEN" in line for line in storm.story)


async def test_the_judge_finds_a_client_that_has_something_else(
    whimbrel_server: MemoryServer, storm: Storm
) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await ann.create_conversation(id="room")
        await (await room.send("x")).delivered(10)
        change(whimbrel_server)
        with pytest.raises(StormBroke, match="ann has something else at 2 of room"):
            await storm.over()


async def test_a_message_in_a_store_that_nobody_opens_is_lost(
    whimbrel_server: MemoryServer, storm: Storm
) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await ann.create_conversation(id="room")
        whimbrel_server.crash()
        await room.send("in memory only")
        await ann.close(timeout=0)
    with pytest.raises(StormBroke, match="no open client has it"):
        await storm.over()


async def test_what_never_gets_quiet_is_told(whimbrel_server: MemoryServer, storm: Storm) -> None:
    async with whimbrel_server.client("ann") as ann:
        room = await ann.create_conversation(id="room")
        storm.quiet_within_s = 60
        whimbrel_server.refuse_next(count=10_000)
        await room.send("x")
        with pytest.raises(StormBroke, match="60 s after storm 1, 1 messages of ann are queued"):
            await storm.over()
        whimbrel_server.script.refusals.clear()


async def test_an_app_that_fails_by_itself_is_told(storm: Storm) -> None:
    async def fails() -> None:
        raise LookupError("no such thing")

    storm.app("clumsy", fails)
    with pytest.raises(StormBroke, match=r"app clumsy failed: LookupError"):
        async with storm:
            pass


async def test_an_error_of_the_test_ends_the_storm_and_stays_itself(storm: Storm) -> None:
    with pytest.raises(ZeroDivisionError):
        async with storm:
            _ = 1 / 0
    with pytest.raises(RuntimeError, match="blows once"):
        storm.begin()


async def test_an_app_is_killed_where_it_stands_and_started_again(
    whimbrel_server: MemoryServer, storm: Storm
) -> None:
    steps: list[str] = []

    async def app() -> None:
        try:
            async with Client(whimbrel_server.url, None, whimbrel_server.user("ann")) as ann:
                await ann.connected(60)
                steps.append("connected")
                await asyncio.sleep(3600)
        finally:
            steps.append("gone")

    handle = storm.app("ann", app)
    storm.schedule = Schedule(
        name="one kill",
        duration_s=100,
        faults=(Kill(at_s=10, target="client:1", restart_at_s=20), Kill(at_s=30, target="client:9")),
    )
    async with storm:
        pass
    assert handle.starts == 2
    assert steps == ["connected", "gone", "connected"]
    assert any("client:1 killed" in line for line in storm.story)
    assert storm.witness.clients[0].user == "ann"


async def test_an_app_that_takes_its_killing_for_the_end_of_its_work_is_started_again(storm: Storm) -> None:
    async def app() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    handle = storm.app("stubborn", app)
    await asyncio.sleep(0)
    await handle.kill()
    assert not handle.running
    handle.start()
    assert (handle.starts, handle.running) == (2, True)


async def test_the_judge_finds_a_client_that_lacks_the_beginning(
    whimbrel_server: MemoryServer, storm: Storm
) -> None:
    async with whimbrel_server.client("ann") as ann, whimbrel_server.client("ben") as ben:
        room = await ann.create_conversation(id="room")
        await (await room.send("before")).delivered(10)
        whimbrel_server.user("ben")
        await room.add_member("ben")
        await (await room.send("since")).delivered(10)
        await storm.over()  # who joined later lacks nothing
        members = whimbrel_server.ledger.state.members["room"]
        members["ben"] = msgspec.structs.replace(members["ben"], floor=0)
        with pytest.raises(StormBroke, match="ben does not have all of room"):
            await storm.over()
        assert await ben.pending() == []
