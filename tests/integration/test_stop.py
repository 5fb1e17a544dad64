"""Processes that are stopped for a while and go on (SIGSTOP, SIGCONT): nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.programs import Book, Program
from tests.integration.rig import stage, until
from tests.integration.storm import Storm
from tests.rounds import Rounds

SERVER_STOPPED_S = 10.0
"""Longer than a client takes to find the link dead, and to try a second one beside it."""


@asynccontextmanager
async def talking(folder: Path, seed: int) -> AsyncIterator[tuple[Storm, Program]]:
    """Two talkers on a server behind a proxy, each in a process of its own; judged at the end."""
    book = Book(folder / "proxy.port")
    async with (
        stage(folder, seed=seed) as (server, _, conversation),
        Program("integration/proxy_process.py", [str(server.port), str(book.path)], book) as proxy,
    ):
        await proxy.start()
        await until(lambda: book.last() != "")
        port = int(book.last().split()[1])
        one = Storm(folder, server, conversation, seed, port=port, session_max=500, pause_s=0.1)
        async with one as storm:
            await storm.moved_on()
            yield storm, proxy
            await storm.finish()
        await storm.judge()


async def stopped(whom: str, folder: Path, seed: int, stop_s: float) -> float:
    """Stop one process for so long while the others go on; gives how long until all was as before."""
    folder.mkdir()
    rng = random.Random(seed)
    async with talking(folder, seed) as (storm, proxy):
        await asyncio.sleep(rng.random() * 0.3)  # the instant is part of the test
        one = storm.talkers[rng.choice(sorted(storm.talkers))]
        if whom == "server":
            storm.server.signal(signal.SIGSTOP)
        else:
            (proxy if whom == "proxy" else one).pause()
        try:
            await asyncio.sleep(stop_s)
        finally:
            if whom == "server":
                storm.server.signal(signal.SIGCONT)
            else:
                (proxy if whom == "proxy" else one).resume()
        began_s = time.monotonic()
        await storm.moved_on()
        return time.monotonic() - began_s


@pytest.mark.soak
@pytest.mark.timeout(180)
@pytest.mark.parametrize("whom", ["server", "client", "proxy"])
async def test_a_process_stopped_for_seconds_costs_nothing(whom: str, rounds: Rounds, tmp_path: Path) -> None:
    stop_s = SERVER_STOPPED_S if whom == "server" else float(rounds.of(ci=4, soak=30))
    for number in range(rounds.of(ci=1, soak=10)):
        seeds = rounds.seeds(21 + number)
        folders = [tmp_path / f"{number}-{name}" for name in ("fixed", "fresh")]
        # Both at once: stopped processes need no processor.
        async with asyncio.TaskGroup() as group:
            took = [
                group.create_task(stopped(whom, folder, seed, stop_s))
                for folder, seed in zip(folders, seeds, strict=True)
            ]
    rounds.figure(f"{whom} stopped {stop_s:g} s: talking as before after", max(t.result() for t in took), "s")
