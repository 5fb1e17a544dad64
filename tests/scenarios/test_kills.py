"""Scenarios of apps that die: during send, during retry, closed and opened again."""

from __future__ import annotations

import asyncio
import random
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.client.real_server import LIMIT_S, PASSWORD
from tests.integration.programs import Book, Program
from tests.integration.rig import BEN, history, stage
from tests.rounds import Rounds
from tests.scenarios.rig import scene
from whimbrel import Client, ConnectionState, SendState
from whimbrel.testing.proxy_faults import Latency

COUNT = 12
SLOW = Latency(latency_s=0.06)
"""Answers take longer than the time until it is killed."""


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", ["fixed", "fresh"])
@pytest.mark.parametrize("state", ["sending", "retrying"])
async def test_kill_9_during_send_and_during_retry(
    state: str, which: str, rounds: Rounds, tmp_path: Path
) -> None:
    """Killed while its messages are on their way without an answer, or wait for their next attempt."""
    rng = random.Random(6 if which == "fixed" else rounds.fresh_seed())
    async with stage(tmp_path) as (server, proxy, conversation), Client(server.url, None, BEN) as ben:
        arguments = [f"http://127.0.0.1:{proxy.port}", str(tmp_path), conversation, str(COUNT), PASSWORD]
        book = Book(tmp_path / "writer.states")
        async with Program("scenarios/writer.py", arguments, book) as writer:
            # A first life makes the store and signs in, with nothing in the way yet.
            await writer.start()
            await writer.until("returned")
            await writer.kill()
            for _ in range(rounds.of(ci=2, soak=100)):
                trouble: AbstractContextManager[None]
                trouble = server.disk_full() if state == "retrying" else proxy.during(SLOW)
                with trouble:
                    arguments[3] = str(int(arguments[3]) + COUNT)
                    times = writer.times(state)
                    await writer.start()
                    await writer.until(state, times + 1)
                    await asyncio.sleep(rng.random() * 0.1)  # the instant is part of the test
                    await writer.kill()
            await writer.start()
            await writer.ended()
        seen = await history(ben, conversation, int(arguments[3]))
    assert [message.content for message in seen] == [f"text {number}" for number in range(int(arguments[3]))]
    rounds.figure(f"kills during {state}, {which} seed: none lost, none doubled", writer.kills, "kills")


async def test_app_closed_reopened_message_there_goes_out(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        async with here.network_gone():
            await here.until_state(ConnectionState.CONNECTED, other=True)
            sent = await here.send(3)
            report = await here.anna.close()
            assert report.pending == 3
            async with here.client() as again:
                page = await again.conversation(here.conversation).messages()
                assert [message.content for message in page if message.kind == "message"] == here.texts
                assert [message.id for message in await again.pending()] == [message.id for message in sent]
                assert (await again.status(sent[0].id)).state is SendState.OFFLINE
        async with here.client():
            await here.arrived()


async def test_10_messages_still_there_after_restart(tmp_path: Path) -> None:
    """Five delivered, five queued; the app is restarted, then the server too."""
    async with scene(tmp_path) as here:
        await here.send(5)
        assert await here.anna.flush(LIMIT_S) == 0
        async with here.network_gone():
            await here.send(5)
            await here.anna.close(0.0)
            await here.server.kill()
            async with here.client() as again:
                page = await again.conversation(here.conversation).messages()
                assert [message.content for message in page if message.kind == "message"] == here.texts
                assert len(await again.pending()) == 5
            await here.server.start()
        async with here.client():
            await here.arrived()


async def test_old_messages_readable_offline(tmp_path: Path) -> None:
    """No server, no network: conversations, pages and single messages, those of others too."""
    async with scene(tmp_path) as here:
        await here.send(20)
        for number in range(20):
            await here.ben.send(here.conversation, f"answer {number}")
        assert await here.anna.flush(LIMIT_S) == 0
        before = await history(here.anna, here.conversation, 40)
        await here.anna.close()
        await here.server.kill()
        async with here.client() as again:
            handle = again.conversation(here.conversation)
            assert [conversation.id for conversation in await again.conversations()] == [here.conversation]
            assert (await handle.info()).members == ("anna", "ben")
            newest = await handle.messages(limit=15)
            older = await handle.messages(before=newest[0].seq, limit=100)
            assert [message.id for message in older + newest if message.kind == "message"] == [
                message.id for message in before
            ]
            first = await again.message(before[0].id)
            assert first is not None
            assert first.content == before[0].content
            assert again.connection.state is not ConnectionState.CONNECTED
