"""A client whose store is damaged, at its start or under it: all comes back, and what waited arrives once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.client.real_server import PASSWORD, RealServer
from tests.store import damage
from whimbrel import Client, Credentials, StoreRebuilt
from whimbrel.model import Message
from whimbrel.store.sqlite import SqliteStore

KEY = bytes(range(32))
LIMIT_S = 60.0
MESSAGES = 120

pytestmark = pytest.mark.timeout(300)


def client_of(server: RealServer, folder: Path, user: str = "ann") -> Client:
    return Client(server.url, folder / "store.db", Credentials(user, PASSWORD), key=KEY)


async def said(client: Client) -> list[object]:
    messages: list[Message] = []
    while page := await client.conversation("team").messages(
        after=messages[-1].seq if messages else 0, limit=100
    ):
        messages += page
        if messages[-1].seq is None:
            break
    return [message.content for message in messages if message.kind == "message"]


async def settled(client: Client, wanted: list[object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        await client.connected()
        await client.flush()
        async with client.events() as events:
            while await said(client) != wanted:
                await anext(events)


async def lived(server: RealServer, folder: Path) -> list[object]:
    """A conversation with many messages, and some that wait in the store of ann, whose program was killed."""
    ann = client_of(server, folder / "live")
    await ann.open()
    team = await ann.create_conversation("bob", id="team")
    for n in range(MESSAGES):
        await team.send(f"message {n} " + "m" * 300)
    await ann.flush(LIMIT_S)
    await settled(ann, [f"message {n} " + "m" * 300 for n in range(MESSAGES)])
    await server.kill()
    for n in range(10):
        await team.send(f"waiting {n}")
    # As the disk is between two commits: the copy of one half written down would be damaged already.
    assert ann._session is not None
    await ann._session.write(lambda: damage.copy(folder / "live", folder / "killed"))
    await ann.close(0.0)
    await server.start()
    return [f"message {n} " + "m" * 300 for n in range(MESSAGES)]


def spoil(path: Path, pages: range) -> None:
    """In its place: who has it open would take a file that is cut and written again for another damage."""
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        for page in pages:
            if (page + 1) * 4096 <= size_bytes:
                file.seek(page * 4096 + 1234)
                (byte,) = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte ^ 16]))


async def test_a_store_damaged_while_it_was_closed(tmp_path: Path) -> None:
    async with RealServer(tmp_path / "server", ("ann", "bob")) as server:
        history = await lived(server, tmp_path)
        waiting = [f"waiting {n}" for n in range(10)]
        store = tmp_path / "killed" / "store.db"
        SqliteStore(store, KEY).close()  # what the log had is in the file now
        spoil(store, range(store.stat().st_size // 4096 // 3))
        async with client_of(server, tmp_path / "killed") as ann:
            report = ann.rebuilt
            assert report is not None
            assert report.kept_at is not None
            assert Path(report.kept_at).parent == tmp_path / "killed"
            async with ann.events() as events:
                assert await anext(events) == report
            assert (report.salvaged, report.lost) == (10, ())
            await settled(ann, history + waiting)
        async with client_of(server, tmp_path / "bob", "bob") as bob:
            await settled(bob, history + waiting)
        async with client_of(server, tmp_path / "killed") as ann:
            assert ann.rebuilt is None
            assert await said(ann) == history + waiting


async def test_a_store_whose_log_was_deleted(tmp_path: Path) -> None:
    async with RealServer(tmp_path / "server", ("ann", "bob")) as server:
        history = await lived(server, tmp_path)
        waiting = [f"waiting {n}" for n in range(10)]
        (tmp_path / "killed" / "store.db-wal").unlink()
        async with client_of(server, tmp_path / "killed") as ann:
            report = ann.rebuilt
            assert report is not None
            assert "transactions are missing" in report.reason
            assert report.lost_unknown
            await (await ann.conversation("team").send("another")).delivered(LIMIT_S)
            # Of those that waited, what was written back before the log was deleted.
            kept = [content for content in await said(ann) if content in waiting]
            assert kept == waiting[: len(kept)]
            await settled(ann, [*history, *kept, "another"])


async def test_a_store_damaged_under_a_running_client(tmp_path: Path) -> None:
    async with RealServer(tmp_path / "server", ("ann", "bob")) as server:
        history = await lived(server, tmp_path)
        waiting = [f"waiting {n}" for n in range(10)]
        folder = tmp_path / "killed"
        # Written back, so that there is a file to damage under the client, and closed in order.
        SqliteStore(folder / "store.db", KEY).close()
        async with client_of(server, folder) as ann:
            events = ann.events()
            await settled(ann, history + waiting)
            # What was read is in no memory any more: a page of SQLite's own would hide the damage.
            SqliteStore(folder / "store.db", KEY, shared=True).close()
            session = ann._session
            assert session is not None
            assert isinstance(session.store, SqliteStore)
            session.store._readers.close()
            size = (folder / "store.db").stat().st_size // 4096
            spoil(folder / "store.db", range(size // 3, size))
            await said(ann)  # meets the damage, and goes on once the store is made anew
            async with asyncio.timeout(LIMIT_S):
                while not isinstance(event := await anext(events), StoreRebuilt):
                    pass
            assert event.kept_at is not None
            await settled(ann, history + waiting)
            await ann.conversation("team").send("and on")
            await settled(ann, [*history, *waiting, "and on"])
        async with client_of(server, tmp_path / "bob", "bob") as bob:
            await settled(bob, [*history, *waiting, "and on"])
