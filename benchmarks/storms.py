"""The storm of the demo, again and again: nothing lost, and how soon messages go on after the server is back.

Each run is the storm that `whimbrel demo` shows: a server process, two client processes behind one fault
proxy, a minute of silence, resets, a slow link, kill -9 of the server and of a client, and losses. The judge
of the demo reads what the processes wrote down.

The server's own start, from its kill until it listens, is measured apart. From then on counts: until a sender
is told of the first message delivered after that. A message that was only handed over later counts from its
own `send()`, so that a pause in the talk is not taken for slowness. With the server the network is well too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.figures import Figure, Settings, figure, invalid, show_progress
from benchmarks.stand import alone, own_folder
from whimbrel.cli.demo_words import CONVERSATION, USERS, small_talk
from whimbrel.cli.judge import Judge, Verdict
from whimbrel.cli.storm_stage import Cast, Stage
from whimbrel.testing.schedule import STORM, Kill, ProcessAction, run_schedule

RUNS = 10
AT_ONCE = 2
APART_S = 7.0
"""Runs side by side begin so far apart that one's server does not start while the other's does."""
READY_WITHIN_S = 60.0
ARRIVE_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.002


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one storm."""

    verdict: Verdict
    planned: int
    queued: int
    server_start_s: float
    """From its kill until it listened again."""
    first_delivered_s: float
    """From then on until the first message was delivered."""

    @property
    def broken(self) -> int:
        """How many promises were broken."""
        found = self.verdict
        kept_back = self.planned - found.sent + self.queued
        return found.lost + found.doubled + found.out_of_order + found.changed + found.unsent + kept_back


def measure(settings: Settings) -> Iterable[Figure]:
    """Storms, and how soon messages go on in them."""
    runs = asyncio.run(_runs(settings))
    broken = sum(run.broken for run in runs)
    said = sum(run.verdict.sent for run in runs)
    name = f"{len(runs)} storms: lost, doubled, out of order, changed or left"
    yield figure(name, broken, "messages", "<= 0", note=f"of {said} messages to {len(USERS)} members each")
    first = [run.first_delivered_s for run in runs]
    name, target = "storms: server back → first message delivered", "<= 0.4"
    if broken:
        yield invalid(f"{name}, at most", "s", target, why="promises were broken")
        return
    yield figure(f"{name}, at most", max(first), "s", target, note=f"the slowest of {len(runs)} storms")
    yield figure(f"{name}, median", median(first), "s", target)
    start = [run.server_start_s for run in runs]
    yield figure("storms: kill -9 of the server → it listens again, median", median(start), "s")


async def _runs(settings: Settings) -> list[Run]:
    count = 1 if settings.quick else RUNS
    seconds = STORM.duration_s / 3 if settings.quick else STORM.duration_s
    seeds = iter(range(1, count + 1))
    runs: list[Run] = []

    async def lane(number: int) -> None:
        await asyncio.sleep(number * APART_S)
        for seed in seeds:
            with own_folder(settings, "storm") as folder:
                runs.append(await storm(folder, seconds=seconds, seed=seed))
            show_progress(f"storm {seed} of {count}: server back → {runs[-1].first_delivered_s:.3f} s")

    async with asyncio.TaskGroup() as group:
        for number in range(min(AT_ONCE, count)):
            group.create_task(lane(number))
    return runs


async def storm(folder: Path, *, seconds: float, seed: int) -> Run:
    """Live through one storm."""
    cast = Cast(
        users=tuple((user,) for user in USERS),
        members={CONVERSATION: USERS},
        titles={CONVERSATION: "a walk in the storm"},
        plan=small_talk(seconds, seed),
    )
    killed_at_s = back_at_s = 0.0
    stage = Stage(cast, folder, seed=seed, one_proxy=True, report_every_s=0.2, screen=CONVERSATION)

    async def see_server() -> float:
        while not stage.serving:  # noqa: ASYNC110 - the stage itself looks only every 50 ms
            await asyncio.sleep(_LOOK_EVERY_S)
        return time.monotonic()

    async def act(fault: Kill, action: ProcessAction) -> None:
        nonlocal killed_at_s, back_at_s
        if fault.target != "server":
            actor = stage.actors[int(fault.target.partition(":")[2])]
            await (actor.child.kill() if action == "kill" else actor.start())
        elif action == "kill":
            killed_at_s = time.monotonic()
            await stage.server.kill()
        else:
            seeing = asyncio.create_task(see_server())
            try:
                await stage.start_server()
                back_at_s = await seeing
            finally:
                seeing.cancel()

    async with stage:
        await stage.make_ready(READY_WITHIN_S)
        await stage.go()
        speed = STORM.duration_s / seconds
        await run_schedule(STORM, stage.proxies[0], on_process_fault=act, speed=speed)
        await stage.until(
            lambda: stage.drained and stage.received >= stage.expected, ARRIVE_WITHIN_S, "all to arrive"
        )
        queued = await stage.stop_actors()
        judge = stage.judge()
        return Run(
            verdict=judge.verdict(final=True),
            planned=len(cast.plan),
            queued=queued,
            server_start_s=back_at_s - killed_at_s,
            first_delivered_s=first_delivered_s(judge, back_at_s),
        )


def first_delivered_s(judge: Judge, back_at_s: float) -> float:
    """How long the first message delivered after a moment took, from then or from its own `send()` on."""
    after = [told for told in judge.delivered.values() if told.at_s > back_at_s]
    first = min(after, key=lambda told: told.at_s)
    return first.at_s - max(back_at_s, judge.sent[first.label].called_at_s)


if __name__ == "__main__":
    raise SystemExit(alone(measure))
