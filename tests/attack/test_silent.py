"""Connections that say nothing: hundreds of them, more than there may be, more than there are files for."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.attack.conftest import PATIENCE_S
from tests.attack.rig import (
    LIMIT_S,
    Attacked,
    Raw,
    attacked_server,
    frame,
    handshaken,
    raw,
    served,
    unharmed,
)
from tests.rounds import Rounds

SILENT = 500
LINK_KIB_MAX = 64.0
"""What one silent connection may cost; half of it is what a task and its buffers need."""
HEALTH = b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n"
PARTIAL = frame(b" " * 60_000)[:-1]
Open = Callable[[Attacked], AbstractAsyncContextManager[Raw]]


@contextlib.asynccontextmanager
async def _partial(attacked: Attacked) -> AsyncIterator[Raw]:
    async with handshaken(attacked) as link:
        await link.write(PARTIAL)
        yield link


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            if done():
                return
            await asyncio.sleep(0.05)


SILENCES: dict[str, tuple[Open, int, float]] = {
    # How they begin, the code they are closed with, and what one may cost.
    "connected": (raw, 0, LINK_KIB_MAX),
    "handshaken": (handshaken, 1008, LINK_KIB_MAX),
    # What is unfinished has to be kept, up to the bound of who has not greeted.
    "with an unfinished message": (_partial, 1008, LINK_KIB_MAX + 2 * len(PARTIAL) / 1024),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", SILENCES)
async def test_hundreds_that_say_nothing_are_closed_and_cost_little(
    attacked_afresh: Attacked, rounds: Rounds, name: str
) -> None:
    opened, code, kib_max = SILENCES[name]
    attacked = attacked_afresh
    async with served(attacked) as others, contextlib.AsyncExitStack() as silent:
        await others.once_more(5)
        files = attacked.files
        async with attacked.bounded(growth_kib_max=int(kib_max * SILENT)) as growth:
            links = [await silent.enter_async_context(opened(attacked)) for _ in range(SILENT)]
            await others.once_more(3)
        assert set(await asyncio.gather(*(link.closed() for link in links))) == {code}
        await others.once_more(3)
        await silent.aclose()
        await _until(lambda: attacked.files <= files)
    rounds.figure(f"a silent connection, {name}", growth.kib / SILENT, "KiB", target=kib_max)


async def test_hundreds_that_greet_and_then_say_nothing(tmp_path: Path, rounds: Rounds) -> None:
    count = rounds.of(ci=200, soak=SILENT)
    settings = {"rate_limit": None, "silent_after_s": 2 * PATIENCE_S, "links_per_user_max": SILENT}
    with attacked_server(tmp_path, server=settings) as attacked:
        tokens = [await attacked.server.login("eve", n) for n in range(count)]
        async with served(attacked) as others, contextlib.AsyncExitStack() as idle:
            async with attacked.bounded(growth_kib_max=int(LINK_KIB_MAX * count)) as growth:
                links = [await idle.enter_async_context(handshaken(attacked, token)) for token in tokens]
                await others.once_more(3)
            assert set(await asyncio.gather(*(link.closed() for link in links))) == {1013}
            await others.once_more(3)
        unharmed(attacked)
    rounds.figure("an idle link", growth.kib / count, "KiB", target=LINK_KIB_MAX)


async def test_a_user_has_so_many_links_and_no_more(tmp_path: Path) -> None:
    with attacked_server(tmp_path, server={"rate_limit": None, "links_per_user_max": 3}) as attacked:
        tokens = [await attacked.server.login("eve", n) for n in range(4)]
        async with served(attacked) as others, contextlib.AsyncExitStack() as links:
            for token in tokens[:3]:
                await links.enter_async_context(handshaken(attacked, token))
            async with handshaken(attacked) as link:
                await link.write(frame(b'[{"t":"hello","token":"%s"}]' % tokens[3].encode()))
                assert await link.closed() == 1013
            async with attacked.server.http(tokens[3]) as http:
                for path in ("/api/events", "/api/poll"):
                    answer = await http.get(path)
                    assert answer.status_code == 429
                    assert answer.headers["retry-after"]
            await others.once_more(3)
        unharmed(attacked)


async def test_one_connection_too_many_is_told_so(tmp_path: Path) -> None:
    with attacked_server(tmp_path, connections_max=10) as attacked:
        tokens = [await attacked.server.login("eve", n) for n in range(8)]
        async with served(attacked) as others, contextlib.AsyncExitStack() as many:
            for token in tokens:  # and the two of the others
                # Greeted, they stay; idle between requests, they would be closed after some seconds.
                await many.enter_async_context(handshaken(attacked, token))
            # Both ways to greet are refused alike, before anything is read of them.
            for said in (HEALTH, b""):
                async with raw(attacked, said) as link:
                    answer = await link.rest()
                    assert answer.startswith(b"HTTP/1.1 503 ")
                    assert b"\r\nretry-after: 1\r\n" in answer
                    assert b'"code":"unavailable"' in answer
            # Far more than that many at once cost not even the answer.
            crowd = [await many.enter_async_context(raw(attacked, HEALTH)) for _ in range(200)]
            answers = await asyncio.gather(*(link.rest() for link in crowd))
            assert {answer[:13] for answer in answers} <= {b"HTTP/1.1 503 ", b""}
            assert b"" in answers
            await others.once_more(3)
        await _until(lambda: attacked.files < 40)
        unharmed(attacked)


async def test_with_few_files_the_server_keeps_what_it_needs_and_recovers(tmp_path: Path) -> None:
    with attacked_server(tmp_path, files=200) as attacked:
        async with served(attacked) as others, contextlib.AsyncExitStack() as many:
            before_s, began_s = attacked.cpu_s, time.monotonic()
            for _ in range(400):
                await many.enter_async_context(raw(attacked))
            # Its own bound refuses them, before the system would: there is always a file for what it needs.
            await others.once_more(20)
            assert attacked.files < 200
            assert attacked.cpu_s - before_s < 0.9 * (time.monotonic() - began_s) + 1.0
            async with handshaken_late(attacked) as link:
                assert link is not None
        unharmed(attacked)


async def test_without_any_file_left_it_neither_spins_nor_dies(tmp_path: Path) -> None:
    with attacked_server(tmp_path) as attacked:
        async with served(attacked) as others:
            # Something else in its process takes the files: its own bound on connections cannot know.
            room = attacked.files + 20
            resource.prlimit(attacked.process.pid, resource.RLIMIT_NOFILE, (room, room))
            async with contextlib.AsyncExitStack() as many:
                crowd = [await many.enter_async_context(raw(attacked, HEALTH)) for _ in range(60)]
                await others.once_more(10)
                before_s = attacked.cpu_s
                await asyncio.sleep(1.0)
                spent_s = attacked.cpu_s - before_s
                answers = await asyncio.gather(*(link.status() for link in crowd))
            assert spent_s < 0.5, "of a second in which it only served two who chat"
            assert 200 in answers
            assert 0 in answers, "closed at once: it is known that nobody will answer"
            await others.once_more(10)
            async with handshaken_late(attacked) as link:
                assert link is not None
        unharmed(attacked)


@contextlib.asynccontextmanager
async def handshaken_late(attacked: Attacked) -> AsyncIterator[Raw | None]:
    """Come in as soon as there is room."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            with contextlib.suppress(AssertionError, EOFError, ConnectionError):
                async with handshaken(attacked) as link:
                    yield link
                    return
            await asyncio.sleep(0.1)
