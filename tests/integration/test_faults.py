"""Every fault of the proxy between two clients and a real server: all arrives, once, in order."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.client.real_server import LIMIT_S
from tests.integration.rig import ANNA, BEN, history, stage
from tests.rounds import Rounds
from whimbrel import Client, Message
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

FAULTS = [
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
            pace = random.Random(seed), random.Random(seed + 1)
            await asyncio.gather(talk(anna, "anna", pace[0]), talk(ben, "ben", pace[1]))
            proxy.lift(applied)
            async with asyncio.timeout(LIMIT_S):
                assert await anna.flush() == 0
                assert await ben.flush() == 0
            seen = [await history(client, conversation, 60) for client in (anna, ben)]
    assert [message.id for message in seen[0]] == [message.id for message in seen[1]]
    for name in ("anna", "ben"):
        texts = [text for text in map(text_of, seen[0]) if text.startswith(name)]
        assert texts == [f"{name} {number}" for number in range(30)]


def text_of(message: Message) -> str:
    assert isinstance(message.content, str)
    return message.content
