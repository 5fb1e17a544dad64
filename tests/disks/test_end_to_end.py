"""Full and failing disks, and clocks that are set by ten years, under a real client and a real server."""

import asyncio
import random
import time
from pathlib import Path

import pytest

from tests.client.real_server import LIMIT_S, RealServer
from tests.client.real_server import PASSWORD as REAL_PASSWORD
from tests.disks.odd_server import OddServer
from tests.disks.rig import KEY, disk_in
from tests.integration.rig import ANNA as REAL_ANNA
from tests.integration.rig import BEN as REAL_BEN
from tests.integration.rig import history
from tests.server.app_rig import PASSWORD
from whimbrel import Client, Credentials, StoreError
from whimbrel.testing.powerloss import Disk, Fault

YEARS_S = 10 * 365.25 * 24 * 3600.0
ANNA, BEN = Credentials("anna", PASSWORD), Credentials("ben", PASSWORD)
assert REAL_ANNA.password == REAL_PASSWORD


async def texts(url: str, credentials: Credentials, conversation: str, count: int) -> list[object]:
    async with Client(url, None, credentials) as client:
        await client.connected(LIMIT_S)
        return [message.content for message in await history(client, conversation, count)]


@pytest.mark.parametrize("kind", ["full", "write", "sync"])
async def test_the_disk_of_a_client_fails_for_a_while(tmp_path: Path, kind: str) -> None:
    with disk_in(tmp_path / "disk", random.Random(1)) as disk:
        async with RealServer(tmp_path / "server", ("anna", "ben")) as server:
            async with Client(server.url, disk.folder / "anna.db", REAL_ANNA, key=KEY) as anna:
                await anna.connected(LIMIT_S)
                conversation = await anna.create_conversation("ben")
                taken = await send_through_trouble(anna, conversation.id, disk, kind)
                assert await anna.flush(LIMIT_S) == 0
                assert not anna.closed
            found = await texts(server.url, REAL_BEN, conversation.id, len(taken))
    assert found == taken, "all that was taken, once, in order, and nothing that was refused"


async def send_through_trouble(anna: Client, conversation: str, disk: Disk, kind: str) -> list[object]:
    """Send while the disk is well, ill, and well again; gives what ``send`` returned for."""
    taken: list[object] = []
    refused = 0

    async def send(n: int) -> bool:
        text = f"{n} " + "x" * 3_000
        try:
            await anna.send(conversation, text)
        except StoreError:
            return False
        taken.append(text)
        return True

    for n in range(10):
        assert await send(n)
    if kind == "full":
        disk.size_bytes_max = disk.used_bytes() + 20_000
    else:
        disk.fail(Fault(kind=kind, lasting=True))
    n = 10
    async with asyncio.timeout(LIMIT_S):
        while refused < 10:
            refused += not await send(n)
            n += 1
    disk.size_bytes_max = None
    disk.repair()
    async with asyncio.timeout(LIMIT_S):
        # It comes back by itself; until then, refusals.
        while not await send(n):
            n += 1
            await asyncio.sleep(0.05)
    for later in range(n + 1, n + 11):
        assert await send(later)
    return taken


@pytest.mark.parametrize("trouble", ["full", "fail"])
async def test_the_disk_of_a_server_fails_for_a_while(tmp_path: Path, trouble: str) -> None:
    async with OddServer(tmp_path / "server", "anna", "ben") as server:
        async with Client(server.url, tmp_path / "anna.db", ANNA, key=KEY) as anna:
            await anna.connected(LIMIT_S)
            conversation = await anna.create_conversation("ben")
            before = [await conversation.send(f"before {n}") for n in range(5)]
            await before[-1].delivered(LIMIT_S)
            await server.tell(trouble)
            during = [await conversation.send(f"during {n} " + "x" * 10_000) for n in range(5)]
            with pytest.raises(TimeoutError):
                await during[0].delivered(2.0)
            assert len(await anna.pending()) >= 1, "acknowledged by a server that could not write it down"
            await server.tell("well")
            assert await anna.flush(LIMIT_S) == 0
        found = await texts(server.url, BEN, conversation.id, 10)
    assert found == [*(f"before {n}" for n in range(5)), *(f"during {n} " + "x" * 10_000 for n in range(5))]


@pytest.mark.parametrize("off_s", [YEARS_S, -YEARS_S])
@pytest.mark.parametrize("whose", ["server", "client"])
async def test_a_clock_is_set_by_ten_years(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str, off_s: float
) -> None:
    real, mine = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + mine[0])

    async with OddServer(tmp_path / "server", "anna", "ben") as server:

        async def shift(by_s: float) -> None:
            if whose == "server":
                await server.tell(f"clock {by_s}")
            else:
                mine[0] = by_s

        sent: list[str] = []
        conversation = ""
        for shifts in ((0.0, off_s), (off_s, 0.0), (0.0, off_s, 0.0)):
            # A new client each time: it signs in with what it kept, then the clock is set under its hands.
            async with Client(server.url, tmp_path / "anna.db", ANNA, key=KEY) as anna:
                await shift(shifts[0])
                await anna.connected(LIMIT_S)
                conversation = conversation or (await anna.create_conversation("ben")).id
                for by_s in shifts:
                    await shift(by_s)
                    for _ in range(3):
                        sent.append(f"text {len(sent)}")
                        message = await anna.send(conversation, sent[-1], expires_in=600.0)
                    await message.delivered(LIMIT_S)
                shown = await anna.conversation(conversation).messages(limit=100)
                assert [m.content for m in shown if m.kind == "message"] == sent, "by number, not by time"
            await shift(off_s)
        assert await texts(server.url, BEN, conversation, len(sent)) == list(sent)
