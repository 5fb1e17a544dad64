"""Scenarios of a server in trouble: errors, limits, failures that are taken up again by tapping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.client.real_server import LIMIT_S
from tests.scenarios.rig import scene, until_status
from whimbrel import FailureReason, SendState, Settings
from whimbrel.server.settings import ServerSettings


@asynccontextmanager
async def answering(port: int, status: str) -> AsyncIterator[list[bytes]]:
    """Something before the server that answers every request like this, as a load balancer does."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0])
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield asked


async def test_500s_of_a_server_that_cannot_write(tmp_path: Path) -> None:
    """Its disk is full: every message is answered with an error, until there is room again."""
    async with scene(tmp_path) as here:
        with here.server.disk_full():
            (sent,) = await here.send()
            await until_status(sent, lambda status: status.state is SendState.RETRYING)
            assert sent.status.mark == f"⟳ 1/{sent.status.retry_max}"
            await here.send(4)
        own = await here.arrived()
        assert own[0].retry_count >= 1
        explained = await sent.explain()
        assert explained.attempts[0].reason is FailureReason.SERVER_ERROR


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Unavailable"])
async def test_500s_of_what_stands_before_the_server(status: str, tmp_path: Path) -> None:
    """No link can be made: that costs no message an attempt."""
    async with scene(tmp_path) as here:
        await here.server.kill()
        async with answering(here.server.port, status) as asked:
            await here.send(5)
            async with asyncio.timeout(LIMIT_S):
                while len(asked) < 2:  # noqa: ASYNC110 - it is Anna's and Ben's clients that ask
                    await asyncio.sleep(0.01)
        await here.server.start()
        own = await here.arrived()
        assert [message.retry_count for message in own] == [0] * 5


async def test_429(tmp_path: Path) -> None:
    """Far over the rate: the queue waits, uses no attempt, and goes out in order."""
    limited = ServerSettings(rate_limit=20.0, rate_burst=5, rate_retry_s_min=0.2)
    async with scene(tmp_path, server=limited) as here:
        await here.send(30)
        own = await here.arrived()
        assert [message.retry_count for message in own] == [0] * 30
        first, last = own[0].delivered_at, own[-1].delivered_at
        assert first is not None
        assert last is not None
        assert last - first > 0.8 * (30 - limited.rate_burst) / 20.0, "the limit did not bind"
        told = await here.told()
        assert not [status for statuses in told.values() for status in statuses if status.reason]


async def test_failed_tapped(tmp_path: Path) -> None:
    """Its retries are used up and nothing takes it up by itself: ⚠ stays until somebody taps on it."""
    settings = Settings(retries_server_error=1, backoff_base_s=0.05, auto_resume=False)
    async with scene(tmp_path, settings=settings) as here:
        with here.server.disk_full():
            first, second = await here.send(2)
            await until_status(first, lambda status: status.state is SendState.FAILED)
            assert (first.status.mark, first.status.can_retry) == ("⚠", True)
            assert first.status.reason is FailureReason.SERVER_ERROR
            assert first.status.reason.friendly
            explained = await first.explain()
            assert len(explained.attempts) == 2
            assert explained.unblocked_by
            assert second.status.state is not SendState.DELIVERED
        # The server is well again, and nobody tapped.
        await here.ben.send(here.conversation, "are you there?")
        assert await here.ben.flush(LIMIT_S) == 0
        # A copy on a link that was lost meanwhile may have got through by itself; else it needs the tap.
        if first.status.state is SendState.FAILED:
            await first.retry()
        await first.delivered(LIMIT_S)
        await here.anna.retry_all()
        assert await here.anna.flush(LIMIT_S) == 0
        texts = [
            message.content
            for message in await here.anna.conversation(here.conversation).messages()
            if message.sender == "anna" and message.kind == "message"
        ]
        assert texts == here.texts
