"""A client's store through power cuts: what a client writes, by chance, and what must be found again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.disks.rig import KEY, Life
from whimbrel.core.contract import Changes, ConversationRow, MessageRow
from whimbrel.errors import StoreError, StoreFull
from whimbrel.model import Attempt, FailureReason, SendState
from whimbrel.store import schema
from whimbrel.store.memory import MemoryStore
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.powerloss import Disk
from whimbrel.testing.store_rows import changes, conversation, entry, queued, update

CONVERSATIONS = ("c1", "c2", "c3")


def contents(store: SqliteStore | MemoryStore) -> list[Any]:
    """All that a store gives of what is in it."""
    return [
        store.load(),
        store.pending(),
        store.arrivals(0, 10_000),
        store.conversations(),
        [store.messages(id, limit=10_000) for id in CONVERSATIONS],
        store.get_secret("tokens"),
        store.consumer_position("bot"),
    ]


class StoreWork:
    """What a client writes, by chance: each step follows from what the store holds."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._beyond: set[int | None] = set()

    def step(self, model: MemoryStore) -> Callable[[SqliteStore | MemoryStore], Any]:
        """The next write, as a function of a store."""
        match self.rng.randrange(12):
            case 0:
                token = f"token {self.rng.random()}" * self.rng.choice((1, 200))
                return lambda store: store.set_secret("tokens", token)
            case 1:
                position = self.rng.randint(0, model.load().arrival)
                return lambda store: store.set_consumer_position("bot", position)
            case _:
                made = self._changes(model)
                return lambda store: store.apply(made)

    def _changes(self, model: MemoryStore) -> Changes:
        snapshot = model.load()
        known = {row.id: row for row in snapshot.conversations}
        id = self.rng.choice(CONVERSATIONS)
        row = known.get(id) or conversation(id, epoch="e1")
        waiting = [own for own in snapshot.outbox if own.conversation == id]
        self._beyond = {entry.seq for entry in snapshot.buffered if entry.conversation == id}
        kinds = ["sends", "sends", "events", "buffered", "receipts", "reset"]
        if waiting:
            kinds += ["retries", "delivered", "delivered", "delivered"]
        if any(own.stream == 0 for own in waiting):
            kinds = ["queued_again"]
        made = getattr(self, "_" + self.rng.choice(kinds))(row, waiting, snapshot.arrival)
        assert isinstance(made, Changes)
        made.meta = {"sync": f"{self.rng.random()}", "user": "anna"}
        return made

    def _text(self) -> str:
        return "x" * self.rng.choice((5, 200, 200, 3_000, 9_000)) + f"{self.rng.random()}"

    def _sends(self, row: ConversationRow, waiting: list[MessageRow], arrival: int) -> Changes:
        count = self.rng.choice((1, 1, 1, 5, 20))
        rows = [
            queued(n, conversation=row.id, stream=row.stream, body=self._text())
            for n in range(row.last_n + 1, row.last_n + 1 + count)
        ]
        return changes(*rows, conversations={row.id: _with(row, last_n=row.last_n + count)})

    def _delivered(self, row: ConversationRow, waiting: list[MessageRow], arrival: int) -> Changes:
        if row.position + 1 in self._beyond:
            return self._events(row, waiting, arrival)
        done = waiting[: self.rng.randint(1, len(waiting))]
        updates = {}
        for own in done:
            if row.position + 1 in self._beyond:
                break
            row = _with(row, position=row.position + 1, head=row.position + 1)
            arrival += 1
            updates[own.id] = update(
                own, state=SendState.DELIVERED, seq=row.position, arrival=arrival, delivered_at=5.0
            )
        return Changes(updates=updates, conversations={row.id: row})

    def _retries(self, row: ConversationRow, waiting: list[MessageRow], arrival: int) -> Changes:
        attempt = Attempt(at=7.5, reason=FailureReason.TIMEOUT, text="no answer")
        return Changes(
            updates={
                own.id: update(
                    own, state=SendState.RETRYING, retry_count=own.retry_count + 1, attempts=(attempt,)
                )
                for own in waiting[:3]
            }
        )

    def _events(self, row: ConversationRow, waiting: list[MessageRow], arrival: int) -> Changes:
        rows = []
        for _ in range(self.rng.choice((1, 3, 30))):
            row = _with(row, position=row.position + 1, head=row.position + 1)
            arrival += 1
            rows.append(entry(row.position, arrival=arrival, conversation=row.id, body=self._text()))
        return changes(*rows, conversations={row.id: row})

    def _buffered(self, row: ConversationRow, waiting: list[MessageRow], arrival: int) -> Changes:
        # A gap, closed by the same number of a later `_events` (its rows then exist already).
        beyond = entry(row.position + 2, arrival=None, conversation=row.id)
        return changes(beyond, conversations={row.id: _with(row, head=max(row.head, row.position + 2))})

    def _receipts(self, row: ConversationRow, waiting: list[MessageRow], arrival: int) -> Changes:
        read = ("ben", row.position, row.position)
        return Changes(
            conversations={row.id: _with(row, receipts=(read,))}, reads={row.id: (row.position, 9.0)}
        )

    def _queued_again(self, row: ConversationRow, waiting: list[MessageRow], arrival: int) -> Changes:
        # Own messages of a history that was replaced, and whatever waited behind them.
        stream = row.stream + 1
        updates = {own.id: update(own, stream=stream, n=n) for n, own in enumerate(waiting, 1)}
        fresh = _with(row, stream=stream, last_n=len(waiting))
        return Changes(updates=updates, conversations={row.id: fresh})

    def _reset(self, row: ConversationRow, waiting: list[MessageRow], arrival: int) -> Changes:
        fresh = _with(row, epoch=f"e{self.rng.random()}", position=0, head=0, receipts=())
        return Changes(resets=[row.id], conversations={row.id: fresh})


def _with(row: ConversationRow, **fields: Any) -> ConversationRow:
    names = ConversationRow.__struct_fields__
    return ConversationRow(**{**{name: getattr(row, name) for name in names}, **fields})


class StoreLife(Life[SqliteStore, MemoryStore]):
    """One store."""

    name = "store"
    errors = (StoreError,)
    full = StoreFull
    restarts_log_after = (8, 64, schema.WAL_PAGES)

    def __init__(self, disk: Disk, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        self._work = StoreWork(rng)
        """What the next steps are."""
        super().__init__(disk, rng, patch)

    def reseed(self, seed: int) -> None:
        self._work = StoreWork(random.Random(seed))

    def open(self) -> SqliteStore:
        return SqliteStore(self.path, KEY)

    def close(self, opened: SqliteStore) -> None:
        opened.close()

    def log_pages(self, pages: int) -> None:
        self.patch.setattr(schema, "WAL_PAGES", pages)

    def new_model(self, opened: SqliteStore) -> MemoryStore:
        model = MemoryStore(device=opened.device)
        assert contents(opened) == contents(model), "a new store is empty"
        return model

    def same(self, opened: SqliteStore, model: MemoryStore) -> bool:
        return opened.device == model.device and contents(opened) == contents(model)

    def write(self, opened: SqliteStore, model: MemoryStore) -> Iterator[MemoryStore]:
        write = self._work.step(model)
        after = model.copy()
        write(after)
        yield after
        write(opened)
