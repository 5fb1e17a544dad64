"""Every fault of the proxy between two clients and a real server: all arrives, once, in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.real_server import LIMIT_S
from tests.integration.rig import ANNA, BEN, history, stage
from tests.rounds import Rounds
from whimbrel import Client, Message
from whimbrel.testing.proxy_counters import ProxyCounters
from whimbrel.testing.schedule import (
    AnyFault,
    ChunkLoss,
    DropAnswer,
    HalfOpen,
    Latency,
    LimitCapacity,
    Refuse,
    Reset,
    Stall,
)

FAULTS: list[AnyFault] = [
    Latency(latency_s=0.05, jitter_s=0.04),
    LimitCapacity(bytes_per_s=4_000),
    LimitCapacity(trace="tmobile-umts-driving", offset_s=30.0),
    Stall(),
    Stall(direction="down"),
    HalfOpen(),
    Reset(every_s=0.2),
    ChunkLoss(probability=0.2, older_than_s=0.1),
    Refuse(),
    DropAnswer(times_max=5),
]
STRUCK: dict[type[AnyFault], Callable[[ProxyCounters], float]] = {
    Latency: lambda counters: counters.chunks_delayed_up,
    LimitCapacity: lambda counters: counters.chunks_delayed_up,
    Stall: lambda counters: counters.stalled_down_s,
    HalfOpen: lambda counters: counters.bytes_swallowed_up,
    Reset: lambda counters: counters.resets,
    ChunkLoss: lambda counters: counters.chunks_dropped_down,
    Refuse: lambda counters: counters.resets,
    DropAnswer: lambda counters: counters.answers_dropped,
}
"""Where a fault shows that it struck: one that did not proves nothing."""


@pytest.mark.soak
@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_both_sides_send_through(fault: AnyFault, rounds: Rounds, tmp_path: Path) -> None:
    for number in range(rounds.of(ci=1, soak=20)):
        seeds = rounds.seeds(1 + number)
        # Both at once: they wait more than they work.
        async with asyncio.TaskGroup() as group:
            for name, seed in zip(("fixed", "fresh"), seeds, strict=True):
                group.create_task(sent_through(fault, tmp_path / f"{name}-{number}", seed))


async def sent_through(fault: AnyFault, folder: Path, seed: int) -> None:
    folder.mkdir()
    async with stage(folder, seed=seed) as (_, proxy, conversation):
        url = f"http://127.0.0.1:{proxy.port}"
        async with (
            Client(url, folder / "anna.db", ANNA, key=b"k" * 32) as anna,
            Client(url, None, BEN) as ben,
        ):
            await anna.connected(LIMIT_S)
            await ben.connected(LIMIT_S)

            async def talk(client: Client, name: str, rng: random.Random) -> None:
                for number in range(30):
                    await client.conversation(conversation).send(f"{name} {number}")
                    await asyncio.sleep(0.1 * rng.random())

            applied = proxy.apply(fault)
            if isinstance(fault, Refuse):
                proxy.reset_connections()  # those that are open it leaves alone
            pace = random.Random(seed), random.Random(seed + 1)
            await asyncio.gather(talk(anna, "anna", pace[0]), talk(ben, "ben", pace[1]))
            assert STRUCK[type(fault)](proxy.counters) > 0
            proxy.lift(applied)
            async with asyncio.timeout(LIMIT_S):
                assert await anna.flush() == 0
                assert await ben.flush() == 0
            seen = [await history(client, conversation, 60) for client in (anna, ben)]
    assert [message.id for message in seen[0]] == [message.id for message in seen[1]]
    for name in ("anna", "ben"):
        texts = [text for text in map(text_of, seen[0]) if text.startswith(name)]
        assert texts == [f"{name} {number}" for number in range(30)]


async def test_what_is_twice_in_the_log_is_found(tmp_path: Path) -> None:
    """Every run on a stage ends with this look; here is something to find."""

    async def run() -> None:
        async with stage(tmp_path) as (server, _, conversation), Client(server.url, None, ANNA) as anna:
            for text in ("once", "again", "again"):
                await anna.send(conversation, text)
            assert await anna.flush(LIMIT_S) == 0

    with pytest.raises(AssertionError, match=r"more than once in the log: \[\('anna', 'again'\)\]"):
        await run()


def text_of(message: Message) -> str:
    assert isinstance(message.content, str)
    return message.content
