"""``flush()`` returns when what it waited for is in the store, and not before."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.client.real_server import LIMIT_S
from tests.integration.rig import ANNA, stage
from whimbrel import Client, SendState
from whimbrel.core.contract import Changes, MessageRow
from whimbrel.store.sqlite import SqliteStore

COMMIT_S = 0.1


async def test_once_flushed_the_store_says_delivered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apply = SqliteStore.apply

    def slow(store: SqliteStore, changes: Changes) -> list[MessageRow]:
        time.sleep(COMMIT_S)  # a disk that takes its time; this is the writer thread
        return apply(store, changes)

    monkeypatch.setattr(SqliteStore, "apply", slow)
    async with (
        stage(tmp_path) as (server, _, conversation),
        Client(server.url, tmp_path / "anna.db", ANNA, key=b"k" * 32) as anna,
    ):
        await anna.connected(LIMIT_S)
        for number in range(3):
            sent = await anna.send(conversation, f"text {number}")
            assert await anna.flush(LIMIT_S) == 0
            assert await anna.pending() == []
            message = await anna.message(sent.id)
            assert message is not None
            assert message.status is not None
            assert message.status.state is SendState.DELIVERED
