"""kill -9 at random instants, with messages on their way: nothing lost, nothing doubled, in order."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.real_server import LIMIT_S, PASSWORD
from tests.integration.rig import ANNA, BEN, history, stage, until
from tests.integration.storm import Storm
from tests.rounds import Rounds
from whimbrel import Client
from whimbrel.testing.schedule import Stall

UNACKNOWLEDGED = 20
WHICH = ("fixed", "fresh")
CI_ROUNDS = {"fixed": 3, "fresh": 1}
"""Where only one side dies; the storm has three rounds with either seed."""
PROGRAM = Path(__file__).with_name("sender.py")


def lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


def grown(log: Path, count: int) -> Callable[[], bool]:
    return lambda: lines(log) >= count


def seed_of(which: str, rounds: Rounds, fixed: int) -> int:
    """The seed that stays, or a fresh one, which is told."""
    return fixed if which == "fixed" else rounds.fresh_seed()


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", WHICH)
async def test_killing_everyone_at_any_instant_loses_and_doubles_nothing(
    which: str, rounds: Rounds, tmp_path: Path
) -> None:
    """Both send and listen; clients and server are killed apart and together, opening and closing too."""
    seed = seed_of(which, rounds, 3)
    async with stage(tmp_path, seed=seed) as (server, proxy, conversation):
        async with Storm(tmp_path, server, conversation, seed, proxy=proxy) as storm:
            await storm.kill_in_rounds(rounds.of(ci=3, soak=300))
            await storm.finish()
        total = await storm.judge()
    rounds.figure(f"processes killed in a storm of kills, {which} seed", storm.kills, "kills")
    rounds.figure(f"messages in a storm of kills, {which} seed: none lost, none doubled", total, "messages")


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", WHICH)
async def test_killing_the_client_loses_and_doubles_nothing(
    which: str, rounds: Rounds, tmp_path: Path
) -> None:
    rng = random.Random(seed_of(which, rounds, 7))
    times = rounds.of(ci=CI_ROUNDS[which], soak=300)
    log = tmp_path / "sent.log"
    count = 40 * (times + 1)
    async with stage(tmp_path) as (server, proxy, conversation):
        url = f"http://127.0.0.1:{proxy.port}"

        async def start() -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                str(PROGRAM),
                url,
                str(tmp_path / "anna.db"),
                str(log),
                conversation,
                str(count),
                PASSWORD,
                stdout=asyncio.subprocess.PIPE,
            )

        process = await start()
        try:
            for _ in range(times):
                await until(grown(log, lines(log) + 1))
                with proxy.during(Stall()):
                    # What send() returned from now on cannot have been answered.
                    await until(grown(log, min(lines(log) + UNACKNOWLEDGED, count)))
                    await asyncio.sleep(rng.random() * 0.02)  # the instant is part of the test
                    process.kill()
                    await process.wait()
                process = await start()
            async with asyncio.timeout(LIMIT_S):
                assert process.stdout is not None
                assert await process.stdout.readline() == b"done\n"
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        async with Client(server.url, None, BEN) as ben:
            messages = await history(ben, conversation, count)
    assert [message.content for message in messages] == [f"text {number}" for number in range(count)]


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", WHICH)
async def test_killing_the_server_loses_and_doubles_nothing(
    which: str, rounds: Rounds, tmp_path: Path
) -> None:
    rng = random.Random(seed_of(which, rounds, 11))
    sent: list[str] = []
    async with stage(tmp_path) as (server, proxy, conversation):
        url = f"http://127.0.0.1:{proxy.port}"
        async with (
            Client(url, tmp_path / "anna.db", ANNA, key=b"k" * 32) as anna,
            Client(url, tmp_path / "ben.db", BEN, key=b"k" * 32) as ben,
        ):
            handle = anna.conversation(conversation)
            for round_number in range(rounds.of(ci=CI_ROUNDS[which], soak=300)):
                await anna.connected(LIMIT_S)
                with proxy.during(Stall(direction="down")):
                    # The server gets them; its answers do not arrive.
                    for number in range(UNACKNOWLEDGED + 5):
                        sent.append(f"round {round_number} text {number}")
                        await handle.send(sent[-1])
                    assert len(await anna.pending()) >= UNACKNOWLEDGED
                    await asyncio.sleep(rng.random() * 0.05)  # the instant is part of the test
                    await server.kill()
                    await server.start()
            async with asyncio.timeout(LIMIT_S):
                assert await anna.flush() == 0
            messages = await history(ben, conversation, len(sent))
            own = await history(anna, conversation, len(sent))
    assert [message.content for message in messages] == sent
    assert [message.id for message in own] == [message.id for message in messages]
