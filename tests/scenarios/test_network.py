"""Scenarios of a bad network, over real sockets: nothing lost, nothing doubled, in order, nothing failed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.client.real_server import LIMIT_S
from tests.integration.rig import stage
from tests.integration.storm import USERS, Storm
from tests.rounds import Rounds
from tests.scenarios.rig import Scene, scene
from whimbrel import ConnectionState, SendState, SendStatus
from whimbrel.testing.proxy_faults import AnyFault, HalfOpen, Latency, LimitCapacity, Reset, Stall


def never_failed(told: Iterable[list[SendStatus]]) -> None:
    """No message was ever shown with an error, none was sent by tapping."""
    assert not [status for statuses in told for status in statuses if status.state is SendState.FAILED]


@pytest.mark.parametrize("how", ["cut", "silence", "half_open", "fresh"])
async def test_network_lost_during_send(how: str, rounds: Rounds, tmp_path: Path) -> None:
    rng = random.Random(rounds.fresh_seed() if how == "fresh" else 1)
    if how == "fresh":
        how = rng.choice(("cut", "silence", "half_open"))
    async with scene(tmp_path) as here:
        sending = asyncio.create_task(write_on(here, 25, 0.02))
        await asyncio.sleep(rng.random() * 0.3)  # the instant is part of the test
        if how == "cut":
            async with here.network_gone():
                await asyncio.sleep(rng.random())
        else:
            with here.proxy.during(Stall() if how == "silence" else HalfOpen()):
                await asyncio.sleep(rng.random())
        await sending
        await here.arrived()
        never_failed((await here.told()).values())


async def write_on(here: Scene, count: int, pause_s: float) -> None:
    """Anna goes on writing, whatever the network does."""
    for _ in range(count):
        await here.send()
        await asyncio.sleep(pause_s)


async def test_5_queued_offline_then_online(rounds: Rounds, tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        async with here.network_gone():
            await here.until_state(ConnectionState.CONNECTED, other=True)
            queued = await here.send(5)
            assert [message.status.state for message in queued] == [SendState.OFFLINE] * 5
            assert {message.status.mark for message in queued} == {"⏰"}
            assert [message.content for message in await here.anna.pending()] == here.texts
            explained = await queued[4].explain()
            assert (explained.ahead, bool(explained.blocked_by)) == (4, True)
        began_s = time.monotonic()
        await queued[0].delivered(LIMIT_S)
        rounds.figure(
            "network back to delivered, over real sockets", time.monotonic() - began_s, "s", target=2.0
        )
        await here.arrived()
        never_failed((await here.told()).values())


async def test_5_s_outage(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.send(2)
        sending = asyncio.create_task(write_on(here, 12, 0.4))
        with here.proxy.during(Stall()):
            await asyncio.sleep(5.0)
        await sending
        await here.arrived()
        never_failed((await here.told()).values())


@pytest.mark.parametrize("which", ["fixed", "fresh"])
async def test_subway(which: str, rounds: Rounds, tmp_path: Path) -> None:
    """Tunnels and stations: silence again and again, some connections dead behind it, a slow link between."""
    rng = random.Random(2 if which == "fixed" else rounds.fresh_seed())
    async with scene(tmp_path) as here:
        sending = asyncio.create_task(write_on(here, 30, 0.1))
        for _ in range(4):
            tunnel: AnyFault = rng.choice((Stall(), HalfOpen()))
            with here.proxy.during(tunnel):
                await asyncio.sleep(rng.uniform(0.2, 0.8))
            with here.proxy.during(Latency(latency_s=0.1, jitter_s=0.08)):
                await asyncio.sleep(rng.uniform(0.1, 0.4))
        await sending
        await here.arrived()
        never_failed((await here.told()).values())


async def test_airplane_mode(tmp_path: Path) -> None:
    """All is gone at once and comes back at once, twice."""
    async with scene(tmp_path) as here:
        for _ in range(2):
            async with here.network_gone():
                await here.until_state(ConnectionState.CONNECTED, other=True)
                await here.send(3)
            await here.anna.connected(LIMIT_S)
        await here.arrived()
        never_failed((await here.told()).values())


@pytest.mark.parametrize("told_of_it", [True, False])
async def test_wifi_to_cellular(told_of_it: bool, tmp_path: Path) -> None:
    """The address changes: old connections are dead without a word, the new way is another one."""
    async with scene(tmp_path) as here:
        await here.send(3)
        with here.proxy.during(HalfOpen()):  # what was open stays dead for ever
            await here.send(3)
        cellular = (
            Latency(latency_s=0.04, jitter_s=0.03),
            LimitCapacity(trace="att-lte-driving-2016", offset_s=20.0),
        )
        with here.proxy.during(cellular[0]), here.proxy.during(cellular[1]):
            if told_of_it:  # as a network monitor does
                await here.anna.reconnect()
            await here.send(3)
            await here.arrived()
        never_failed((await here.told()).values())


async def test_roaming(tmp_path: Path) -> None:
    """From network to network: the address changes with each, and each is slower than the one before."""
    async with scene(tmp_path) as here:
        for latency_s in (0.02, 0.08, 0.2):
            with here.proxy.during(Latency(latency_s=latency_s, jitter_s=latency_s / 2)):
                await here.anna.connected(LIMIT_S)
                await here.send(3)
                here.proxy.reset_connections()
                await here.send(3)
        await here.arrived()
        never_failed((await here.told()).values())


@pytest.mark.soak
async def test_cut_every_5_s_while_sending(rounds: Rounds, tmp_path: Path) -> None:
    """Here every half second, which is harder; every 5 s in virtual time."""
    async with scene(tmp_path) as here:
        with here.proxy.during(Reset(every_s=0.5)):
            await write_on(here, rounds.of(ci=60, soak=6_000), 0.05)
        assert here.proxy.counters.resets >= 3
        await here.arrived()
        if not rounds.soak:
            never_failed((await here.told()).values())


@pytest.mark.parametrize("which", ["fixed", "fresh"])
async def test_battery_saver(which: str, rounds: Rounds, tmp_path: Path) -> None:
    """The system stops the app's process for a while, again and again."""
    seed = 4 if which == "fixed" else rounds.fresh_seed()
    async with (
        stage(tmp_path, seed=seed) as (server, proxy, conversation),
        Storm(tmp_path, server, conversation, seed, proxy=proxy, session_max=500, pause_s=0.1) as storm,
    ):
        await storm.moved_on()
        for _ in range(3):
            app = storm.talkers[storm.rng.choice(USERS)]
            app.pause()
            await asyncio.sleep(storm.rng.uniform(0.3, 1.5))
            app.resume()
            await storm.moved_on()
        await storm.finish()
        await storm.judge()
