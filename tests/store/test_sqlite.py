"""The store on disk: what its files hold, what it says when the machine fails it, what survives a kill."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from whimbrel.core.contract import Changes
from whimbrel.errors import (
    InvalidArgument,
    NotAStore,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreKeyError,
    StoreTooNew,
    StoreUnavailable,
)
from whimbrel.model import SendState
from whimbrel.store import schema
from whimbrel.store.files import BALLAST_BYTES
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.store_rows import changes, conversation, entry, queued, update

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
SECRET_TEXT = "the heron stands in the reeds"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, KEY)
    yield store
    store.close()


def files(path: Path) -> dict[str, bytes]:
    """All files of the store but the lock, with what is in them."""
    return {
        file.name: file.read_bytes()
        for file in sorted(path.parent.iterdir())
        if file.suffix not in (".lock", ".ballast") and not file.name.endswith("-shm")
    }


def writer(db: SqliteStore) -> apsw.Connection:
    assert db._db is not None
    return db._db


# --- the files ---------------------------------------------------------------------------------


def test_files_are_private(path: Path, store: SqliteStore) -> None:
    store.apply(changes(queued(1)))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes) >= {"store.db", "store.db-wal", "store.db.lock", "store.db.ballast"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_is_plain_on_disk(path: Path, store: SqliteStore) -> None:
    store.set_secret("refresh", SECRET_TEXT)
    store.apply(
        changes(
            queued(1, body=SECRET_TEXT),
            entry(1, arrival=1, body=SECRET_TEXT),
            conversations={"c1": conversation(title=SECRET_TEXT)},
        )
    )
    while_open = files(path)
    assert len(while_open["store.db-wal"]) > 0
    store.close()
    for name, content in [*while_open.items(), *files(path).items()]:
        assert SECRET_TEXT.encode() not in content, name
        assert b"CREATE TABLE" not in content, name
        assert KEY.hex().encode() not in content, name
        assert KEY not in content, name
    assert not files(path)["store.db"].startswith(b"SQLite format 3")


def test_representation_shows_no_key(store: SqliteStore) -> None:
    assert repr(store) == f"<SqliteStore {store._path}>"


def test_it_is_as_durable_as_sqlite_can_be(store: SqliteStore) -> None:
    db = writer(store)
    assert (db.pragma("journal_mode"), db.pragma("synchronous"), db.pragma("cipher")) == (
        "wal",
        2,
        "chacha20",
    )


# --- the key -----------------------------------------------------------------------------------


def test_a_wrong_key_leaves_the_file_as_it_is(path: Path, store: SqliteStore) -> None:
    store.apply(changes(queued(1)))
    store.close()
    before = files(path)
    with pytest.raises(StoreKeyError, match="key is wrong, or the file is no store"):
        SqliteStore(path, OTHER_KEY)
    assert files(path) == before
    again = SqliteStore(path, KEY)
    assert again.row(queued(1).id) == queued(1)
    again.close()


def test_a_wrong_key_leaves_a_log_that_was_not_written_back(path: Path) -> None:
    """After a kill, what was committed last is in the log: to be read with the right key only."""
    child = subprocess.Popen([sys.executable, "-c", WRITE_THEN_WAIT, str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
    finally:
        child.kill()
        child.communicate()
    before = files(path)
    assert len(before["store.db-wal"]) > 0
    for _ in range(2):
        with pytest.raises(StoreKeyError):
            SqliteStore(path, OTHER_KEY)
    assert files(path) == before
    again = SqliteStore(path, KEY)
    assert len(again.load().outbox) == 50
    again.close()


WRITE_THEN_WAIT = """
import sys
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.store_rows import changes, queued
store = SqliteStore(sys.argv[1], bytes(range(32)))
for n in range(50):
    store.apply(changes(queued(n)))
sys.stdout.write("written\\n")
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.parametrize("content", [b"not a database at all" * 300, b"SQLite format 3\0" + bytes(8000)])
def test_a_foreign_file_is_left_as_it_is(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(NotAStore):
        SqliteStore(path, KEY)
    assert path.read_bytes() == content


def test_a_key_of_another_size_is_refused(path: Path) -> None:
    with pytest.raises(InvalidArgument):
        SqliteStore(path, b"short")
    assert not path.parent.exists()


# --- places that do not work -------------------------------------------------------------------


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        SqliteStore(tmp_path / "file" / "store.db", KEY)
    with pytest.raises(StoreUnavailable):
        SqliteStore(Path("/proc/whimbrel/store.db"), KEY)


def test_a_folder_in_place_of_the_file(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreError):
        SqliteStore(path, KEY)


def test_a_database_that_may_not_be_written(store: SqliteStore) -> None:
    writer(store).pragma("query_only", 1)
    with pytest.raises(StoreUnavailable, match="may not be written"):
        store.apply(changes(queued(1)))
    writer(store).pragma("query_only", 0)
    store.apply(changes(queued(1)))


def test_a_value_out_of_range_is_a_store_error(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="out of range"):
        store.apply(changes(queued(1), entry(1 << 70, arrival=1)))
    with pytest.raises(StoreError, match="out of range"):
        store.apply(changes(queued(1), queued(2, body="\ud800")))
    assert store.load().outbox == []
    store.apply(changes(queued(1)))


def test_a_newer_schema_is_refused(path: Path, store: SqliteStore) -> None:
    writer(store).pragma("user_version", len(schema.migrations()) + 1)
    store.close()
    with pytest.raises(StoreTooNew):
        SqliteStore(path, KEY)
    db = schema.connect(path, KEY)
    assert db.pragma("user_version") == len(schema.migrations()) + 1
    db.close()


def test_a_failed_migration_leaves_the_schema_of_before(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.apply(changes(queued(1)))
    store.close()
    steps = schema.migrations()
    broken = [*steps, (len(steps) + 1, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1)")]
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: broken)
        with pytest.raises(StoreError):
            SqliteStore(path, KEY)
    again = SqliteStore(path, KEY)
    assert writer(again).pragma("user_version") == len(steps)
    assert writer(again).execute("SELECT name FROM sqlite_schema WHERE name = 'extra'").fetchall() == []
    assert len(again.load().outbox) == 1
    again.close()


# --- damage ------------------------------------------------------------------------------------


def test_damage_is_found(path: Path, store: SqliteStore) -> None:
    store.apply(changes(*(entry(seq, arrival=seq, body="x" * 500) for seq in range(1, 200))))
    store.close()
    content = bytearray(path.read_bytes())
    for place in range(4096 * 25 + 100, len(content), 4096):
        content[place] ^= 1  # one bit of every page but the first ones: the cipher authenticates each
    path.write_bytes(content)
    damaged = SqliteStore(path, KEY)
    for _ in range(2):
        with pytest.raises(StoreCorrupt):
            damaged.arrivals(0, 1000)
    # Beginning again makes it anew; what is told again comes from the server.
    assert [row.position for row in damaged.load().conversations] == [0]
    assert len(damaged.arrivals(0, 1000)) < 200
    damaged.close()


def test_it_opens_itself_again_after_an_io_error(path: Path, store: SqliteStore) -> None:
    store.apply(changes(queued(1)))
    old = writer(store)
    # What SQLite reports when the file is taken away under it is up to the system; this is the same class.
    old.set_exec_trace(_io_error)
    with pytest.raises(StoreUnavailable, match="I/O error"):
        store.apply(changes(queued(2)))
    assert [row.n for row in store.load().outbox] == [1]
    assert writer(store) is not old
    store.apply(changes(queued(2)))
    assert [row.n for row in store.load().outbox] == [1, 2]


def _io_error(cursor: object, sql: str, values: object) -> bool:
    if sql == "COMMIT":
        raise apsw.IOError("disk I/O error")
    return True


# --- the disk is full --------------------------------------------------------------------------


def limit_pages(store: SqliteStore, more: int) -> None:
    db = writer(store)
    db.pragma("max_page_count", db.pragma("page_count") + more)


def test_a_full_disk_refuses_what_is_new_and_keeps_the_rest(path: Path, store: SqliteStore) -> None:
    own = queued(1)
    store.apply(changes(own))
    limit_pages(store, 0)
    with pytest.raises(StoreFull):
        store.apply(changes(queued(2, body="x" * 50_000)))
    assert path.with_name("store.db.ballast").stat().st_size == BALLAST_BYTES
    delivered = update(own, state=SendState.DELIVERED, seq=1, arrival=1, delivered_at=5.0)
    store.apply(Changes(updates={own.id: delivered}))
    assert store.load().outbox == []
    limit_pages(store, 1000)
    store.apply(changes(queued(2, body="x" * 50_000)))


def test_what_drains_may_use_the_ballast(path: Path, store: SqliteStore) -> None:
    ballast = path.with_name("store.db.ballast")
    limit_pages(store, 0)
    with pytest.raises(StoreFull):
        store.apply(changes(entry(1, arrival=1, body="x" * 50_000)))
    assert not ballast.exists()
    limit_pages(store, 1000)
    store.apply(changes(entry(1, arrival=1, body="x" * 50_000)))
    assert not ballast.exists()
    store.apply(changes(queued(1)))  # the disk has room: the ballast is taken again first
    assert ballast.stat().st_size == BALLAST_BYTES


def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    try:
        fill_and_drain(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S607 - the system's, wherever it is


def fill_and_drain(disk: Path) -> None:
    store = SqliteStore(disk / "store.db", KEY)
    try:
        rows = [queued(n, body="x" * 1000) for n in range(20)]
        store.apply(changes(*rows, conversations={"c1": conversation(last_n=20)}))
        with (disk / "other").open("wb", buffering=0) as other:
            try:
                while True:
                    other.write(bytes(65536))
            except OSError:
                pass
        refused = 0
        for n in range(20, 400):
            try:
                store.apply(changes(queued(n, body="y" * 20_000)))
                rows.append(queued(n, body="y" * 20_000))
            except StoreFull:
                refused += 1
        assert refused > 0
        assert store.load().outbox == rows
        # The disk is as full as can be, and the outbox still drains: more is written than the ballast held.
        for turn in range(1, 1 + 2000 // len(rows)):
            for row in rows:
                sent = update(row, state=SendState.SENT, retry_count=turn)
                store.apply(Changes(updates={row.id: sent}, meta={"sync": f"{turn}"}))
        assert {row.retry_count for row in store.load().outbox} == {turn}
        for n, row in enumerate(rows, 1):
            done = update(row, state=SendState.DELIVERED, seq=n, arrival=n, delivered_at=5.0)
            store.apply(Changes(updates={row.id: done}))
        assert store.load().outbox == []
        with pytest.raises(StoreFull):
            store.apply(changes(queued(999, body="y" * 20_000)))
        (disk / "other").unlink()
        store.apply(changes(queued(999, body="y" * 20_000)))
        assert (disk / "store.db.ballast").stat().st_size == BALLAST_BYTES
    finally:
        store.close()


# --- one process, and what a kill leaves -------------------------------------------------------

OPEN_THEN_WAIT = """
import sys
from whimbrel.store.sqlite import SqliteStore
store = SqliteStore(sys.argv[1], bytes(range(32)))
sys.stdout.write("open\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_one_process_has_the_store_until_it_ends(path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", OPEN_THEN_WAIT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(StoreInUse):
            SqliteStore(path, KEY)
    finally:
        child.kill()
        child.communicate()
    store = SqliteStore(path, KEY)
    with pytest.raises(StoreInUse):
        SqliteStore(path, KEY)
    store.apply(changes(queued(1)))  # the second opener did not harm the first
    store.close()
    SqliteStore(path, KEY).close()


WRITE_UNTIL_KILLED = """
import sys
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.store_rows import changes, conversation, queued
store = SqliteStore(sys.argv[1], bytes(range(32)))
talks = store.load().conversations
n = talks[0].last_n if talks else 0
while True:
    rows = [queued(n + k, body="x" * 300) for k in range(1, 4)]
    n += 3
    store.apply(changes(*rows, conversations={"c1": conversation(last_n=n)}))
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
"""


def test_a_killed_writer_loses_nothing_it_reported(path: Path) -> None:
    reported = 0
    for turn in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)], stdout=subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            for _ in range(20 + 13 * turn):  # killed at another place each time, while it writes on
                reported = int(child.stdout.readline())
        finally:
            os.kill(child.pid, signal.SIGKILL)
            rest, _ = child.communicate()
        whole = rest[: rest.rfind(b"\n") + 1].split()
        reported = int(whole[-1]) if whole else reported
        store = SqliteStore(path, KEY)
        snapshot = store.load()
        store.close()
        last = snapshot.conversations[0].last_n
        assert last >= reported
        assert [row.n for row in snapshot.outbox] == list(range(1, last + 1))
        reported = last


def test_reading_never_waits_for_the_writer(store: SqliteStore) -> None:
    store.apply(changes(queued(1)))
    answers: list[int] = []

    def look() -> None:
        answers.append(len(store.load().outbox))

    writer(store).execute("BEGIN IMMEDIATE")
    try:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(timeout=30)
        assert answers == [1]
    finally:
        writer(store).execute("ROLLBACK")
