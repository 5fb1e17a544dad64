"""The one that syncs a store, asked by guests over a real socket: bugs and bounds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from whimbrel import protocol as p
from whimbrel.client import doorway, relay
from whimbrel.client.credentials import Credentials
from whimbrel.client.host import Host
from whimbrel.core.contract import Connect, SetTyping
from whimbrel.model import ConnectionChanged, ConnectionState, Explanation

LIMIT_S = 30.0
SECRET = "a secret of the store"


class Buggy:
    """Answers with a bug."""

    def state(self) -> relay.State:
        return relay.State(
            connection=ConnectionChanged(state=ConnectionState.OFFLINE),
            user=None,
            failure=None,
            possible=False,
            last_error="",
        )

    def look(self) -> None:
        pass

    def post(self, command: SetTyping | Connect) -> None:
        pass

    async def explain(self, id: str) -> Explanation | None:
        raise KeyError(f"what nobody may see: {id}")

    async def settled(self) -> None:
        pass

    async def call(self, call: p.Call, timeout_s: float) -> p.Answer | None:
        return None

    async def sign_in(self, credentials: Credentials) -> None:
        pass

    async def sign_out(self) -> None:
        pass


@asynccontextmanager
async def hosting(store: Path) -> AsyncIterator[Path]:
    """A host; gives the address of its doorway."""
    host = Host(Buggy(), SECRET)
    await host.start(store)
    address = doorway.address_of(store)
    assert address is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            yield address
    finally:
        host.close()
        await host.leave()


async def heard(line: relay.Line) -> relay.HostFrame | None:
    frame: relay.HostFrame | None = await line.receive(relay.host_frames)
    return frame


async def entered(address: Path) -> relay.Line:
    line = await doorway.connect(address)
    assert line is not None
    assert await relay.enter(line, SECRET)
    assert isinstance(await heard(line), relay.State)
    return line


async def test_a_question_that_meets_a_bug_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(tmp_path / "s") as address:
        line = await entered(address)
        line.send(relay.Ask(number=1, question=relay.Explain(message="m")))
        reply = await heard(line)
        assert isinstance(reply, relay.Reply)
        assert reply.number == 1
        assert reply.failure is not None
        assert "KeyError" in caplog.text
        assert "nobody may see" not in caplog.text + repr(reply.failure)
        # And it goes on.
        line.send(relay.Ask(number=2, question=relay.Settle()))
        assert await heard(line) == relay.Reply(number=2)
        await line.close()


async def test_who_does_not_say_who_it_is_takes_a_place_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorway, "GUESTS_MAX", 2)
    async with hosting(tmp_path / "s") as address:
        silent = []
        for _ in range(2):
            line = await doorway.connect(address)
            assert line is not None
            assert isinstance(await heard(line), relay.Challenge)
            silent.append(line)
        third = await doorway.connect(address)
        assert third is not None
        assert await heard(third) is None, "cut off"
        await third.close()
        for line in silent:
            line.cut()
        while True:  # as soon as the host has seen that, there is a place again
            line = await doorway.connect(address)
            assert line is not None
            if isinstance(await heard(line), relay.Challenge):
                break
            await line.close()
        await line.close()
