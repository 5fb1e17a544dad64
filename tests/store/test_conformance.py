"""The conformance suite, run against both stores."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whimbrel.core.contract import Changes
from whimbrel.errors import StoreFull
from whimbrel.store.memory import MemoryStore
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.store_conformance import StoreConformance
from whimbrel.testing.store_conformance_resets import FullStore

KEY = bytes(range(32))


class FaultyMemoryStore(MemoryStore):
    """The memory store with the simulator's disk: one that can be full."""

    full = False

    def _commit(self, changes: Changes) -> None:
        if self.full:
            raise StoreFull("the simulated disk is full")
        super()._commit(changes)


class TestMemoryStore(StoreConformance):
    def make(self, path: Path) -> FullStore:
        return FaultyMemoryStore()

    def reopen(self, store: FullStore) -> FullStore:
        assert isinstance(store, FaultyMemoryStore)
        store.close()
        return store.copy()

    @contextmanager
    def failing(self, store: FullStore) -> Iterator[None]:
        assert isinstance(store, FaultyMemoryStore)
        store.full = True
        yield
        store.full = False

    def test_a_copy_shares_nothing(self, store: FullStore) -> None:
        assert isinstance(store, FaultyMemoryStore)
        store.apply(Changes(meta={"sync": "1"}))
        copied = store.copy()
        store.apply(Changes(meta={"sync": "2"}))
        copied.set_consumer_position("bot", 4)
        assert (copied.load().meta["sync"], store.load().meta["sync"]) == ("1", "2")
        assert store.consumer_position("bot") == 0


class TestSqliteStore(StoreConformance):
    def make(self, path: Path) -> FullStore:
        return SqliteStore(path, KEY)

    def reopen(self, store: FullStore) -> FullStore:
        assert isinstance(store, SqliteStore)
        store.close()
        return SqliteStore(store._path, KEY)

    @contextmanager
    def failing(self, store: FullStore) -> Iterator[None]:
        """SQLite's own limit on the size of the file: the same error as a full disk, at any page."""
        assert isinstance(store, SqliteStore)
        assert store._db is not None
        store._db.pragma("max_page_count", store._db.pragma("page_count") + 4)
        yield
        store._db.pragma("max_page_count", 1 << 30)
