"""The network comes back: until the first waiting message is delivered, over many outages of every kind.

Twenty clients, each behind a fault proxy of its own, talk to one real server. Again and again the network of
each goes, for 3 to 30 seconds, in one of three ways, while three messages are handed over; then it comes
back, and the clock runs until the first of them is in the server's permanent store and the client knows.

    silence   nothing flows, bytes and new connections are held and go on in the end
    cut       whatever is sent vanishes, on open connections and on those opened meanwhile, for ever
    refusal   connections are reset, new ones refused

The server runs all the time: its start is not in it. All is real time; clients and proxies share one process
and its event loop, whose own delays are in the figures.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.figures import Figure, Settings, figure, show_progress
from benchmarks.stand import (
    RunningServer,
    add_users,
    alone,
    create_rooms,
    credentials,
    own_folder,
    percentile,
    running_server,
)
from whimbrel import Client, SentMessage
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.proxy_faults import AnyFault, HalfOpen, Refuse, Reset, Stall

CLIENTS, TRIALS = 20, 10
CLIENTS_QUICK, TRIALS_QUICK = 6, 1
OUTAGE_S, OUTAGE_QUICK_S = (3.0, 30.0), (3.0, 5.0)
CALM_S = (1.0, 4.0)
"""Between two outages the link stands so long."""
CONNECT_WITHIN_S = 60.0
DELIVER_WITHIN_S = 60.0
WAYS: dict[str, tuple[AnyFault, ...]] = {
    "silence": (Stall(),),
    "cut": (HalfOpen(),),
    "refusal": (Refuse(), Reset()),
}
SEED = 20


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One outage, and how soon it was over for the app."""

    way: str
    outage_s: float
    delivered_s: float
    """From the network's return until the first message that waited was delivered."""


def measure(settings: Settings) -> Iterable[Figure]:
    """Outages by the hundred."""
    with own_folder(settings, "back") as folder:
        trials = asyncio.run(_trials(folder, quick=settings.quick))
    took = [trial.delivered_s for trial in trials]
    yield figure("network back → first delivered, median", median(took), "s", "<= 0.3", note=_of(trials))
    yield figure("network back → first delivered, 99th percentile", percentile(took, 99), "s", "<= 1")
    for way in WAYS:
        chosen = [trial.delivered_s for trial in trials if trial.way == way]
        note = f"at most {max(chosen):.2f} s"
        yield figure(f"network back after {way} → first delivered, median", median(chosen), "s", note=note)


def _of(trials: list[Trial]) -> str:
    low, high = (pick(trial.outage_s for trial in trials) for pick in (min, max))
    return f"{len(trials)} outages of {low:.0f} to {high:.0f} s"


async def _trials(folder: Path, *, quick: bool) -> list[Trial]:
    clients, each = (CLIENTS_QUICK, TRIALS_QUICK) if quick else (CLIENTS, TRIALS)
    names = [f"sailor-{number}" for number in range(clients)]
    add_users(folder, [*names, "harbour"])
    create_rooms(folder, {f"with-{name}": (name, "harbour") for name in names})
    trials: list[Trial] = []
    async with running_server(folder) as server, asyncio.TaskGroup() as group:
        for number, name in enumerate(names):
            sailor = _Sailor(name, server, folder, seed=SEED + number, quick=quick)
            group.create_task(sailor.live(number, each, trials))
    return trials


class _Sailor:
    """One client behind its proxy."""

    def __init__(self, name: str, server: RunningServer, folder: Path, *, seed: int, quick: bool) -> None:
        self._name = name
        self._proxy = FaultProxy("127.0.0.1", server.port, seed=seed)
        self._store = folder / f"{name}.db"
        self._rng = random.Random(seed)
        self._outage_s = OUTAGE_QUICK_S if quick else OUTAGE_S

    async def live(self, number: int, trials: int, found: list[Trial]) -> None:
        """Go through so many outages."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._proxy)
            url = f"http://127.0.0.1:{self._proxy.port}"
            client = Client(url, self._store, credentials(self._name), key=b"k" * 32)
            await stack.enter_async_context(client)
            await client.connected(CONNECT_WITHIN_S)
            for trial in range(trials):
                await asyncio.sleep(self._rng.uniform(*CALM_S))
                # Every client goes through all ways, and at any time some are in each of them.
                way = list(WAYS)[(number + trial) % len(WAYS)]
                found.append(await self._outage(client, way, self._rng.uniform(*self._outage_s)))
                if len(found) % 20 == 0:
                    show_progress(f"{len(found)} outages")

    async def _outage(self, client: Client, way: str, outage_s: float) -> Trial:
        waiting: list[SentMessage] = []
        began_at_s = time.monotonic()
        with self._proxy.during(*WAYS[way]):
            for part in (0.1, 0.5, 0.95):
                await asyncio.sleep(max(0.0, began_at_s + part * outage_s - time.monotonic()))
                waiting.append(await client.send(f"with-{self._name}", f"message at {part}"))
            await asyncio.sleep(max(0.0, began_at_s + outage_s - time.monotonic()))
        back_at_s = time.monotonic()
        async with asyncio.timeout(DELIVER_WITHIN_S):
            await waiting[0].delivered()
            delivered_s = time.monotonic() - back_at_s
            for message in waiting[1:]:
                await message.delivered()
        return Trial(way=way, outage_s=outage_s, delivered_s=delivered_s)


if __name__ == "__main__":
    raise SystemExit(alone(measure))
