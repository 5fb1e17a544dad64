"""Damage that no commit meets, to secrets, positions and what was handed over: it is mended too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from whimbrel import Client, ClientClosed, StoreCorrupt, StoreRebuilt
from whimbrel.client.mending import Mending
from whimbrel.client.outgoing import outgoing
from whimbrel.store.handoff import Limits
from whimbrel.store.schema import PAGE_BYTES, connect
from whimbrel.store.sqlite import SqliteStore

KEY = b"k" * 32
LIMIT_S = 60.0


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nobody listens, and that nobody else can get meanwhile."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def made(path: Path) -> dict[str, int]:
    """A store with something in each of its small tables; gives the pages at which they begin."""
    store = SqliteStore(path, KEY)
    store.set_secret("handoff", "a secret")
    store.set_consumer_position("bot", 1)
    command = outgoing(
        "c", "hello", key="k", metadata=None, reply_to=None, role="user", expires_in=None, on_reject="skip"
    )
    assert store.hand_over([(command, 1.0)], Limits()) == [None]
    assert store._db is not None
    pages = dict(store._db.execute("SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'"))
    store.close()  # all of it is in the file now
    return pages


def spoil(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES + 1234)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize("table", ["secrets", "handoff"])
async def test_a_store_damaged_where_only_opening_reads_it(nowhere: str, tmp_path: Path, table: str) -> None:
    path = tmp_path / "store.db"
    spoil(path, made(path)[table])
    async with asyncio.timeout(LIMIT_S), Client(nowhere, path, key=KEY) as client:
        assert client.rebuilt is not None
        await client.send("c", "it works")


async def test_what_was_handed_over_is_damaged_under_who_takes_it(nowhere: str, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    pages = made(path)
    SqliteStore(path, KEY).close()
    async with asyncio.timeout(LIMIT_S), Client(nowhere, path, key=KEY) as client:
        events = client.events()
        session = client._session
        assert session is not None
        assert isinstance(session.store, SqliteStore)
        await session.settled()
        await session.write(lambda: checkpointed(path))
        session.store._readers.close()
        spoil(path, pages["handoff"])
        session.driver.taking.look()
        while not isinstance(await anext(events), StoreRebuilt):
            pass


async def test_a_position_is_saved_although_its_page_is_damaged(nowhere: str, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    pages = made(path)
    async with asyncio.timeout(LIMIT_S), Client(nowhere, path, key=KEY) as client:
        spoil(path, pages["consumers"])
        await client.save_position("bot", 7)
        assert await client.consumer_position("bot") == 7
        async with client.events() as events:
            assert isinstance(await anext(events), StoreRebuilt)


async def test_who_meets_damage_while_it_closes_is_not_left_waiting() -> None:
    mending = Mending(lambda: None)
    mending.end(ClientClosed("the client is closed"))
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ClientClosed):
            await mending.done(StoreCorrupt("damaged"))


def checkpointed(path: Path) -> None:
    """All of the log is in the file."""
    db = connect(path, KEY)
    try:
        assert db.pragma("wal_checkpoint", "truncate") is not None
    finally:
        db.close(True)
