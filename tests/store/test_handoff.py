"""What is handed over: both stores, and two openers of one file."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from whimbrel.core.contract import Changes, SendMessage
from whimbrel.errors import StoreFull, StoreInUse, StoreKeyError, StoreTooNew
from whimbrel.store import sharing
from whimbrel.store.files import ProcessLock
from whimbrel.store.memory import MemoryStore
from whimbrel.store.schema import connect, migrations
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.handoff_conformance import HandoffConformance, SharedStore, hand, send, taken
from whimbrel.testing.store_rows import changes, queued

KEY = bytes(range(32))


class TestMemoryHandoff(HandoffConformance):
    def make(self, path: Path) -> SharedStore:
        return MemoryStore()

    def reopen(self, store: SharedStore) -> SharedStore:
        assert isinstance(store, MemoryStore)
        store.close()
        return store.copy()

    def test_a_copy_shares_nothing(self, store: SharedStore) -> None:
        assert isinstance(store, MemoryStore)
        copied = store.copy()
        hand(store, send("a"))
        assert copied.handed_over(0) == []


class TestSqliteHandoff(HandoffConformance):
    def make(self, path: Path) -> SharedStore:
        return SqliteStore(path, KEY)

    def reopen(self, store: SharedStore) -> SharedStore:
        assert isinstance(store, SqliteStore)
        store.close()
        return SqliteStore(store.path, KEY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def owner(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, KEY, shared=True)
    yield store
    store.close()


@pytest.fixture
def guest(path: Path, owner: SqliteStore) -> Iterator[SqliteStore]:
    store = SqliteStore(path, KEY, shared=True)
    yield store
    store.close()


def test_a_guest_reads_and_hands_over_and_nothing_else(owner: SqliteStore, guest: SqliteStore) -> None:
    assert (owner.guest, guest.guest) == (False, True)
    assert guest.device == owner.device
    owner.apply(changes(queued(1)))
    assert [row.n for row in guest.load().outbox] == [1]
    with pytest.raises(StoreInUse):
        guest.apply(changes(queued(2)))
    assert hand(guest, send("a")) == [None]
    assert [row.command for row in owner.handed_over(0)] == [send("a")]
    version = owner.data_version()
    guest.set_consumer_position("bot", 3)
    assert owner.data_version() != version
    assert owner.consumer_position("bot") == 3


def test_the_guest_takes_over_when_the_owner_is_gone(owner: SqliteStore, guest: SqliteStore) -> None:
    assert not guest.take_over()
    hand(guest, send("a"))
    owner.close()
    assert guest.take_over()
    assert guest.take_over(), "once more changes nothing"
    assert not guest.guest
    (found,) = guest.handed_over(0)
    row = taken(guest, send("a"), 1)
    guest.apply(Changes(messages={row.id: row}, handoffs=[found.number]))
    with pytest.raises(StoreInUse):
        SqliteStore(guest.path, KEY)


def test_a_consumers_name_is_one_programs(owner: SqliteStore, guest: SqliteStore) -> None:
    claim = owner.claim_consumer("bot / ☕")
    with pytest.raises(StoreInUse, match="bot / ☕"):
        guest.claim_consumer("bot / ☕")
    other = guest.claim_consumer("another")
    claim.release()
    again = guest.claim_consumer("bot / ☕")
    for lock in (other, again):
        lock.release()


def test_two_names_of_one_file_have_one_owner(owner: SqliteStore, path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(StoreInUse):
        SqliteStore(link, KEY)


def test_a_guest_waits_until_the_store_is_made(path: Path) -> None:
    lock = ProcessLock(path)
    opened: list[SqliteStore] = []
    thread = threading.Thread(target=lambda: opened.append(SqliteStore(path, KEY, shared=True)))
    thread.start()
    # It cannot go on before there is a store, whatever is there already.
    path.touch()
    db = connect(path, KEY)
    db.execute(migrations()[0][1])
    db.pragma("user_version", 1)
    assert not opened
    for number, sql in migrations()[1:]:
        db.execute(sql)
        db.pragma("user_version", number)
    db.execute("INSERT INTO meta VALUES ('device', 'made by another program now')")
    thread.join(30)
    db.close()
    lock.release()
    (store,) = opened
    assert store.guest
    assert store.device == "made by another program now"
    store.close()


def test_beside_an_owner_of_another_version_there_are_no_guests(
    owner: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert owner._db is not None
    monkeypatch.setattr(sharing, "MAKING_S", 0.05)
    owner._db.pragma("user_version", len(migrations()) - 1)
    with pytest.raises(StoreInUse, match="older version"):
        SqliteStore(path, KEY, shared=True)
    owner._db.pragma("user_version", len(migrations()) + 1)
    with pytest.raises(StoreTooNew):
        SqliteStore(path, KEY, shared=True)
    owner._db.pragma("user_version", len(migrations()))


def test_a_guest_needs_the_key(owner: SqliteStore, path: Path) -> None:
    with pytest.raises(StoreKeyError):
        SqliteStore(path, bytes(32), shared=True)


def test_what_a_newer_version_hands_over_stays_and_is_passed_over(owner: SqliteStore) -> None:
    assert owner._db is not None
    owner._db.execute(
        "INSERT INTO handoff (size_bytes, command, at) VALUES (0, ?, 1.0)", ('{"do":"of tomorrow"}',)
    )
    hand(owner, send("a"))
    (found,) = owner.handed_over(0)
    assert found.command == send("a")
    owner.apply(Changes(handoffs=[found.number]))
    assert list(owner._db.execute("SELECT command FROM handoff")) == [('{"do":"of tomorrow"}',)]


def test_what_is_passed_over_stops_nothing_behind_it(owner: SqliteStore) -> None:
    assert owner._db is not None
    unknown = [(7, '{"do": "from the future"}', 1.0)] * 7
    owner._db.executemany("INSERT INTO handoff (size_bytes, command, at) VALUES (?, ?, ?)", unknown)
    assert hand(owner, send("a"), send("b"), send("c")) == [None] * 3
    assert [one.command for one in owner.handed_over(0, 2)] == [send("a"), send("b")]
    assert [one.command for one in owner.handed_over(3, 20)] == [send("a"), send("b"), send("c")]


def test_a_guest_hands_nothing_over_on_a_full_disk(
    owner: SqliteStore, guest: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest._ballast, "gone", lambda: True)
    with pytest.raises(StoreFull):
        hand(guest, send("a"))
    monkeypatch.undo()
    assert hand(guest, send("a")) == [None]


def test_a_replaced_file_is_opened_again_and_nothing_goes_into_the_old_one(path: Path) -> None:
    owner = SqliteStore(path, KEY)
    guest = SqliteStore(path, KEY, shared=True)
    try:
        assert guest.load().outbox == []
        # What becomes of a damaged store: it is set aside, and another made under its name.
        owner.close()
        aside = path.with_name("aside.db")
        path.rename(aside)
        new = SqliteStore(path, KEY)
        try:
            assert hand(guest, send("a")) == [None]
            assert [row.command for row in new.handed_over(0)] == [send("a")]
            assert guest.device == new.device
            assert guest.load() == new.load()
        finally:
            new.close()
        old = SqliteStore(aside, KEY)
        assert old.handed_over(0) == []
        old.close()
    finally:
        guest.close()
        owner.close()


HAND_OVER = """
import signal, sys
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.handoff_conformance import hand, send
store = SqliteStore(sys.argv[1], bytes(range(32)), shared=True)
assert store.guest
n = 0
while True:
    assert hand(store, *(send(f"{sys.argv[2]} {n + k}") for k in range(3))) == [None] * 3
    n += 3
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
    if n >= 3000:
        signal.pause()
"""


def test_killed_guests_lose_nothing_they_reported_and_take_nothing_with_them(
    owner: SqliteStore, path: Path
) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", HAND_OVER, str(path), name], stdout=subprocess.PIPE)
        for name in ("x", "y")
    ]
    reported: list[int] = []
    try:
        for child in children:
            assert child.stdout is not None
            for _ in range(20):
                assert child.stdout.readline()
            child.kill()
            rest, _ = child.communicate()
            whole = rest[: rest.rfind(b"\n") + 1].split()
            reported.append(int(whole[-1]) if whole else 60)
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
    began_s = time.monotonic()
    found = [row.command for row in owner.handed_over(0, 100_000)]
    for name, count in zip(("x", "y"), reported, strict=True):
        mine = [command for command in found if isinstance(command, SendMessage) and name in command.key]
        assert len(mine) >= count
        assert mine == [send(f"{name} {n}") for n in range(len(mine))]
        assert len(mine) % 3 == 0, "a transaction is whole or not there"
    row = taken(owner, send("own"), 1)
    owner.apply(Changes(messages={row.id: row}))
    assert time.monotonic() - began_s < 60, "nobody holds a lock any more"


def test_writing_waits_for_the_other_process_and_does_not_fail(owner: SqliteStore, path: Path) -> None:
    """Two connections write at the same time: both come through."""
    other = connect(path, KEY)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Event()

    def write() -> None:
        owner.apply(changes(queued(1)))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert not done.wait(0.05)
        other.execute("COMMIT")
        assert done.wait(30)
    finally:
        thread.join()
        assert isinstance(other, apsw.Connection)
        other.close()
