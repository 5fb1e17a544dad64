"""Making a store anew beside guests, twice in a row, and after a crash with nothing but a log left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import msgspec
import pytest

from whimbrel.core.contract import Changes, SendMessage
from whimbrel.errors import StoreCorrupt, StoreUnavailable
from whimbrel.mark import mark_path
from whimbrel.model import LostMessage, StoreRebuilt, message_id
from whimbrel.store import salvage, sqlite
from whimbrel.store.files import ProcessLock
from whimbrel.store.handoff import Limits
from whimbrel.store.pages import Damaged, Pages
from whimbrel.store.salvage import REPORT
from whimbrel.store.schema import PAGE_BYTES, connect
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.store_rows import changes, conversation, queued

KEY = bytes(range(32))
MET = apsw.CorruptError("met by somebody")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def owner(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, KEY)
    yield store
    store.close()


def send(store: SqliteStore, n: int, *, stream: int = 1, body: str = "unsent") -> str:
    """Queue a message, as the engine does; gives its id."""
    id = message_id(store.device, f"k{n}")
    row = queued(n, conversation="c1", id=id, key=f"k{n}", body=body, stream=stream)
    store.apply(changes(row, conversations={"c1": conversation("c1", stream=stream, last_n=n)}))
    return id


def waiting(store: SqliteStore) -> list[str]:
    return [row.id for row in store.load().outbox]


def report_of(store: SqliteStore) -> StoreRebuilt:
    text = store.get_secret(REPORT)
    assert text is not None
    return msgspec.json.decode(text, type=StoreRebuilt)


def put_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.corrupt-*"))


def kill(store: SqliteStore) -> None:
    """What is left when its process is killed: the log is not written back."""
    for db in (store._db, store._former):
        if db is not None:
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    store.close()


def test_a_guest_that_met_damage_leaves_the_file_to_its_owner(owner: SqliteStore, path: Path) -> None:
    first = send(owner, 1)
    guest = SqliteStore(path, KEY, shared=True)
    guest._fault(MET)
    assert waiting(guest) == [first]  # it reads on as far as it can, and makes nothing anew
    assert put_aside(path) == []
    second = send(owner, 2)
    owner.close()
    again = SqliteStore(path, KEY)
    assert waiting(again) == [first, second]
    again.close()
    guest.close()


def test_a_guest_never_makes_a_store_anew(owner: SqliteStore, path: Path) -> None:
    guest = SqliteStore(path, KEY, shared=True)
    guest._fault(MET)
    with pytest.raises(StoreCorrupt):
        guest._rebuild()
    assert put_aside(path) == []
    guest.close()


def test_damage_met_as_a_guest_is_looked_for_again_by_the_owner(owner: SqliteStore, path: Path) -> None:
    id = send(owner, 1)
    guest = SqliteStore(path, KEY, shared=True)
    guest._fault(MET)
    assert guest._db is not None
    guest._db.pragma("wal_checkpoint", "truncate")
    kill(owner)
    content = bytearray(path.read_bytes())
    content[:PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(content)
    assert guest.take_over()
    assert waiting(guest) == [id]
    assert len([file for file in put_aside(path) if not file.name.endswith("-wal")]) == 1
    guest.close()


def test_taking_over_a_replaced_store_leaves_the_log_of_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is made anew, used and killed between the guest's last look and its taking the lock."""
    owner = SqliteStore(path, KEY)
    send(owner, 1)
    guest = SqliteStore(path, KEY, shared=True)
    ids = []

    def locked(store: Path) -> ProcessLock:
        for number in range(2, 6):
            owner._fault(MET)
            owner.load()
            ids.append(send(owner, number))
        kill(owner)
        assert path.with_name("store.db-wal").stat().st_size > 0
        return ProcessLock(store)

    with monkeypatch.context() as patched:
        patched.setattr(sqlite, "ProcessLock", locked)
        assert guest.take_over()
    assert set(ids) <= set(waiting(guest))
    assert guest.get_secret(REPORT) is not None
    guest.close()


@pytest.mark.parametrize("cut_at", ["_new_database", "_read", "_write", "_set_aside"])
def test_a_crash_while_only_a_log_is_left(
    owner: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: str
) -> None:
    """Whoever removed the file: what the log has is kept, however often its salvage is cut off."""
    ids = [send(owner, n) for n in range(1, 4)]
    kill(owner)
    path.unlink()

    def cut_off(*_: object, **__: object) -> None:
        raise OSError(5, "cut off")

    with monkeypatch.context() as patched:
        patched.setattr(salvage, cut_at, cut_off)
        with pytest.raises(StoreUnavailable):
            SqliteStore(path, KEY)
    store = SqliteStore(path, KEY)
    assert waiting(store) == ids
    assert report_of(store).salvaged == 3
    store.close()


def test_what_was_lost_once_is_told_after_a_second_time_too(owner: SqliteStore, path: Path) -> None:
    owner._fault(MET)
    owner.load()
    lost = LostMessage(id="m", conversation="c1", n=7)
    report = msgspec.structs.replace(report_of(owner), lost=(lost,), lost_unknown=True)
    owner.set_secret(REPORT, msgspec.json.encode(report).decode())
    owner._fault(MET)
    owner.load()
    assert report_of(owner).lost == (lost,)
    assert report_of(owner).lost_unknown
    # Once the app knows it is not told again.
    owner.set_secret(REPORT, None)
    owner._fault(MET)
    owner.load()
    assert report_of(owner).lost == ()


def test_what_the_log_had_before_it_was_begun_anew_is_not_newer(owner: SqliteStore, path: Path) -> None:
    """Its old frames lie behind the new ones: they hold tokens that were replaced long ago."""
    owner.set_secret("tokens", "first")
    for n in range(1, 30):
        send(owner, n)
    owner.set_secret("tokens", "second")
    db = connect(path, KEY)
    assert db.pragma("wal_checkpoint", "restart")[0] == 0
    db.close(True)
    owner.set_secret("tokens", "third")
    owner._fault(MET)
    assert len(owner.load().outbox) == 29
    assert owner.get_secret("tokens") == "third"


def test_streams_that_are_ahead_of_the_clock_keep_the_order(owner: SqliteStore, path: Path) -> None:
    """The clock was set back after an earlier making anew, and some rows are found as they were before."""
    ahead = 1 << 60
    ids = [send(owner, n) for n in range(1, 3)]
    ids += [send(owner, n, stream=ahead) for n in range(3, 5)]
    owner.apply(Changes(conversations={"c1": conversation("c1", stream=1, last_n=2)}))
    owner._fault(MET)
    outbox = owner.load().outbox
    assert [row.id for row in outbox] == ids
    assert [row.n for row in outbox] == [1, 2, 3, 4]
    assert {row.stream for row in outbox} == {ahead + 1}


def test_trees_of_pages_from_several_times_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are whole each, but not of one time, may lead in circles, or to other tables' rows."""
    owner = SqliteStore(path, KEY)
    for n in range(1, 200):
        send(owner, n, body="b" * 900)
    db = connect(path, KEY, reader=True)
    roots = dict(db.execute("SELECT name, rootpage FROM sqlite_schema"))
    db.close(True)
    owner.close()
    with Pages(path, KEY) as pages:
        root = roots["messages"]
        assert len(list(pages.walk(root))) == 199
        plain = pages.page
        child = int.from_bytes((plain(root) or b"")[8:12], "big")
        monkeypatch.setattr(pages, "page", lambda number: plain(root if number == child else number))
        with pytest.raises(Damaged):
            list(pages.walk(root))

    page = Pages.page
    others = {roots["outbox"]: roots["meta"], roots["consumers"]: roots["log"]}

    def shifted(self: Pages, number: int) -> bytes | None:
        return page(self, others.get(number, number))

    with monkeypatch.context() as patched:
        patched.setattr(Pages, "page", shifted)
        mark_path(path).unlink()
        again = SqliteStore(path, KEY)
        again._fault(MET)
        assert len(again.load().outbox) == 199
        assert report_of(again).lost_unknown
        again.close()


def test_handed_over_bytes_are_bytes(owner: SqliteStore, path: Path) -> None:
    """The limit is in bytes, however many characters they are."""
    guest = SqliteStore(path, KEY, shared=True)
    bodies = ["é" * 30, "é" * 30]
    commands = [
        (SendMessage(conversation="c1", key=f"k{n}", format="text", body=body), 1.0)
        for n, body in enumerate(bodies)
    ]
    first, second = guest.hand_over(list(commands), Limits(bytes_max=100))
    assert first is None
    assert second is not None
    guest.close()
