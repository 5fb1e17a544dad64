"""The app is killed while it is offline: what it had queued goes out when the network is back, all of it.

    0 s    an app begins to send 20 messages a second, to a real server through a fault proxy
    5 s    its network goes
    10 s   kill -9 of the app, with about a hundred messages that never left
    11 s   the app is started again, still without a network; what it has to say meanwhile is queued as well
    15 s   the network comes back

Right after the kill its store is opened and compared with what the app had written down: every message whose
`send()` had returned must be there. The app, started again, repeats each under the same key, as apps should;
that must not be what saves a message. In the end the judge of the demo reads what both sides wrote down.

Three ways for a network to go: silence (bytes and connections are held, and go on in the end), cut (whatever
is sent vanishes, on all connections, unheard) and refusal (connections are reset, new ones refused).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.figures import Figure, Settings, figure, invalid, show_progress
from benchmarks.stand import alone, own_folder
from whimbrel.cli.judge import Judge, Verdict
from whimbrel.cli.storm_stage import Actor, Cast, Stage
from whimbrel.cli.storm_words import PlanLine
from whimbrel.store.keys import open_key
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.proxy_faults import AnyFault, HalfOpen, Refuse, Reset, Stall

SENDER, RECEIVER = "anna", "ben"
CONVERSATION = "harbour"
MESSAGES_PER_S = 20
GONE_AT_S, KILLED_AT_S, STARTED_AT_S, BACK_AT_S, DURATION_S = 5.0, 10.0, 11.0, 15.0, 18.0
READY_WITHIN_S = 60.0
ARRIVE_WITHIN_S = 60.0
WAYS: dict[str, tuple[AnyFault, ...]] = {
    "silence": (Stall(),),
    "cut": (HalfOpen(),),
    "refusal": (Refuse(), Reset()),
}
PEERS = "each of the six libraries compared lost the about 97 messages queued at the kill"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run."""

    verdict: Verdict
    planned: int
    queued_at_kill: int
    """Messages handed over before the kill, and not delivered then."""
    lost_at_kill: int
    """Of those, how many were not in the store."""
    left: int
    first_delivered_s: float
    """From the network's return on."""
    all_delivered_s: float
    """Until the last message handed over before it."""

    @property
    def broken(self) -> int:
        """How many promises were broken."""
        found = self.verdict
        kept_back = self.planned - found.sent + self.left
        found_lost = found.lost + self.lost_at_kill
        return found_lost + found.doubled + found.out_of_order + found.changed + found.unsent + kept_back


def measure(settings: Settings) -> Iterable[Figure]:
    """Offline, then killed: what is left of it, and how soon it goes on."""
    ways = ["cut"] if settings.quick else list(WAYS)
    runs = asyncio.run(_runs(settings, ways))
    every = [run for of_way in runs.values() for run in of_way]
    broken = sum(run.broken for run in every)
    queued = [run.queued_at_kill for run in every]
    note = f"{len(every)} runs, {min(queued)} to {max(queued)} messages queued at the kill; {PEERS}"
    name = f"offline, then kill -9: lost, doubled or out of order ({', '.join(ways)})"
    yield figure(name, broken, "messages", "<= 0", note=note)
    for way, of_way in runs.items():
        name, target = f"offline, then kill -9: network back ({way}) → first delivered", "<= 0.4"
        if broken:
            yield invalid(name, "s", target, why="promises were broken")
            continue
        first = [run.first_delivered_s for run in of_way]
        every_s = max(run.all_delivered_s for run in of_way)
        note = (
            f"median of {len(first)}, the slowest {max(first):.2f} s; the last waiting after {every_s:.2f} s"
        )
        yield figure(name, median(first), "s", target, note=note)


async def _runs(settings: Settings, ways: list[str]) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {way: [] for way in ways}

    async def lane(number: int, way: str) -> None:
        # Begun apart, so that what one needs the processor for does not fall on what counts in another.
        await asyncio.sleep(number * 1.5)
        for again in range(settings.rounds):
            with own_folder(settings, "crash") as folder:
                run = await run_once(folder, WAYS[way], seed=10 * again + number)
            show_progress(f"{way}: {run.first_delivered_s:.2f} s, {run.broken} broken")
            runs[way].append(run)

    async with asyncio.TaskGroup() as group:
        for number, way in enumerate(ways):
            group.create_task(lane(number, way))
    return runs


async def run_once(folder: Path, faults: tuple[AnyFault, ...], *, seed: int) -> Run:
    """Play it once, with this kind of absence of the network."""
    count = int(DURATION_S * MESSAGES_PER_S)
    plan = tuple(
        PlanLine(
            user=SENDER,
            conversation=CONVERSATION,
            line=number,
            at_s=number / MESSAGES_PER_S,
            text=f"buoy {number} is in its place",
        )
        for number in range(count)
    )
    cast = Cast(
        users=((SENDER,), (RECEIVER,)), members={CONVERSATION: (SENDER, RECEIVER)}, titles={}, plan=plan
    )
    async with Stage(cast, folder, seed=seed, report_every_s=0.2) as stage:
        await stage.make_ready(READY_WITHIN_S)
        app, proxy = stage.actors[0], stage.proxies[0]
        began_at_s = await stage.go()
        with contextlib.ExitStack() as gone:
            await _at(began_at_s + GONE_AT_S)
            gone.enter_context(proxy.during(*faults))
            await _at(began_at_s + KILLED_AT_S)
            await app.child.kill()
            queued, lost = await asyncio.to_thread(_look, stage.judge(), app)
            await _at(began_at_s + STARTED_AT_S)
            await app.start()
            await _at(began_at_s + BACK_AT_S)
        back_at_s = time.monotonic()
        await stage.until(
            lambda: stage.drained and stage.received >= stage.expected, ARRIVE_WITHIN_S, "all to arrive"
        )
        left = await stage.stop_actors()
        judge = stage.judge()
        delivered = [told.at_s for told in judge.delivered.values() if told.at_s > back_at_s]
        waiting = {label for label, sent in judge.sent.items() if sent.returned_at_s < back_at_s}
        return Run(
            verdict=judge.verdict(final=True),
            planned=len(plan),
            queued_at_kill=queued,
            lost_at_kill=lost,
            left=left,
            first_delivered_s=min(delivered) - back_at_s,
            all_delivered_s=max(judge.delivered[label].at_s for label in waiting) - back_at_s,
        )


async def _at(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - time.monotonic()))


def _look(judge: Judge, app: Actor) -> tuple[int, int]:
    """How many messages the dead app had promised and not seen delivered, and how many its store lacks."""
    promised = {label: sent.id for label, sent in judge.sent.items() if label not in judge.delivered}
    path = app.folder / f"{SENDER}.db"
    store = SqliteStore(path, open_key(path, place="file", passphrase=None, prompt=None))
    try:
        return len(promised), sum(store.row(id) is None for id in promised.values())
    finally:
        store.close()


if __name__ == "__main__":
    raise SystemExit(alone(measure))
