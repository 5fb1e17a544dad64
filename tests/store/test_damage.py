"""Whatever is done to a store's files: harmless, or found; nothing wrong, nothing missing without a word."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.rounds import Rounds
from tests.store import damage
from whimbrel.core.contract import Changes, MessageRow, SendMessage
from whimbrel.errors import NotAStore, StoreCorrupt, StoreKeyError, StoreUnavailable
from whimbrel.mark import mark_path
from whimbrel.model import FailureReason, SendState, StoreRebuilt, message_id
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.store.handoff import Limits
from whimbrel.store.salvage import REPORT
from whimbrel.store.schema import connect
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.store_rows import changes, conversation, entry, queued, update

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
CONVERSATIONS = ("c1", "c2", "c3")
ENTRIES = 60
UNSENT = 8


def own(store: SqliteStore, conversation: str, n: int, **fields: Any) -> MessageRow:
    key = f"{conversation}-{n}"
    return queued(n, conversation=conversation, id=message_id(store.device, key), key=key, **fields)


def fill(store: SqliteStore, *, rounds: int = ENTRIES) -> None:
    """A life: entries of others, own ones delivered, some given up, some waiting, a guest's handed over."""
    arrival = 0
    for seq in range(1, rounds + 1):
        rows, updates = [], {}
        for name in CONVERSATIONS:
            arrival += 1
            if seq % 10 == 0:
                row = own(store, name, seq // 10, body=f"own {seq} " + "o" * (seq * 7 % 300))
                store.apply(changes(row))
                place = {"state": SendState.DELIVERED, "seq": seq, "arrival": arrival, "delivered_at": 1.0}
                updates[row.id] = update(row, **place)
            else:
                size = 9_000 if seq == 33 else seq * 13 % 400
                rows.append(entry(seq, arrival=arrival, conversation=name, body=f"entry {seq} " + "x" * size))
        conversations = {
            name: conversation(name, position=seq, head=seq, last_n=seq // 10) for name in CONVERSATIONS
        }
        store.apply(
            Changes(
                messages={row.id: row for row in rows},
                updates=updates,
                conversations=conversations,
                meta={"user": "anna", "sync": f"s{seq}"},
            )
        )
    first = rounds // 10 + 1
    for name in CONVERSATIONS:
        gone = own(store, name, first, state=SendState.CANCELLED)
        failed = own(store, name, first + 1, state=SendState.FAILED, reason=FailureReason.REJECTED)
        store.apply(changes(gone, failed))
    for n in range(first + 2, first + 2 + UNSENT):
        for name in CONVERSATIONS:
            row = own(store, name, n, body=f"unsent {n} " + "u" * (20_000 if n % 5 == 0 else n * 31 % 700))
            counters = {name: conversation(name, position=rounds, head=rounds, last_n=n)}
            store.apply(changes(row, conversations=counters))
    store.set_secret("tokens", '{"user": "anna"}')
    store.set_consumer_position("bot", 5)


class Stores:
    """Folders to damage copies of, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others = folder / "others"
        self.others.mkdir()
        self.killed, self.closed = folder / "killed", folder / "closed"
        live = folder / "live"
        store = SqliteStore(live / "store.db", KEY)
        fill(store, rounds=ENTRIES // 2)
        shutil.copy(live / "store.db-wal", self.others / "older-wal")
        damage.copy(live, folder / "older")
        fill_more(store)
        guest = SqliteStore(live / "store.db", KEY, shared=True)
        command = SendMessage(conversation="c1", key="by-guest", format="text", body="of a guest")
        assert guest.hand_over([(command, 5.0)], Limits()) == [None]
        guest.close()
        damage.copy(live, self.killed)
        self.device = store.device
        self.truth = everything(store)
        self.waiting = list(store.load().outbox)
        store.close()
        damage.copy(live, self.closed)
        for name, key in (("same-key", KEY), ("other-key", OTHER_KEY)):
            other = SqliteStore(folder / name / "store.db", key)
            fill(other, rounds=20)
            shutil.copy(folder / name / "store.db-wal", self.others / f"{name}-wal")
            other.close()


def fill_more(store: SqliteStore) -> None:
    """What comes after the older copies were made: half of what waited is delivered, other messages wait."""
    rows = store.load().outbox
    arrival, seq = store.load().arrival, {row.id: row.position for row in store.load().conversations}
    for row in rows[: len(rows) // 2]:
        arrival += 1
        seq[row.conversation] += 1
        place = {"seq": seq[row.conversation], "arrival": arrival, "delivered_at": 2.0}
        known = conversation(row.conversation, position=place["seq"], head=place["seq"], last_n=100)
        store.apply(
            Changes(
                updates={row.id: update(row, state=SendState.DELIVERED, **place)},
                conversations={row.conversation: known},
            )
        )
    for n in range(101, 101 + UNSENT):
        for name in CONVERSATIONS:
            store.apply(changes(own(store, name, n, body=f"late {n} " + "l" * (n * 17 % 900))))


def everything(store: SqliteStore) -> dict[str, Any]:
    """All that an app can read."""
    snapshot = store.load()
    return {
        "messages": {name: store.messages(name, limit=10_000) for name in CONVERSATIONS},
        "arrivals": store.arrivals(0, 10_000),
        "pending": store.pending(),
        "conversations": snapshot.conversations,
        "outbox": snapshot.outbox,
        "meta": snapshot.meta,
        "handed over": store.handed_over(0),
        "tokens": store.get_secret("tokens"),
        "consumer": store.consumer_position("bot"),
    }


def report_of(store: SqliteStore) -> StoreRebuilt | None:
    text = store.get_secret(REPORT)
    return None if text is None else msgspec.json.decode(text, type=StoreRebuilt)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


@pytest.mark.soak
def test_any_damage_is_harmless_or_found(stores: Stores, tmp_path: Path, rounds: Rounds) -> None:
    counts: Counter[str] = Counter()
    fixed, fresh = rounds.seeds(1)
    half = rounds.of(ci=30, soak=1_000)
    for number, seed in [(n, fixed) for n in range(half)] + [(n, fresh) for n in range(half)]:
        folder = tmp_path / f"{seed}-{number}"
        counts += judged(stores, folder, random.Random(f"{seed} {number}"))
        shutil.rmtree(folder)
    assert counts["found"] > half
    rounds.figure("damages to a store found or harmless", counts["rounds"], "damages", ok=True)
    rounds.figure("unsent messages salvaged", 100 * counts["salvaged"] / counts["unsent"], "%")


def judged(stores: Stores, folder: Path, chance: random.Random) -> Counter[str]:
    base = chance.choice((stores.killed, stores.killed, stores.closed))
    path = damage.copy(base, folder) / "store.db"
    how = damage.damage(path, chance, stores.others)
    before = {
        file.name: file.read_bytes() for file in (path, path.with_name("store.db-wal")) if file.exists()
    }
    try:
        return _judged(stores, path, before)
    except BaseException as error:
        error.add_note(f"{base.name}: {how}")
        raise


def _judged(stores: Stores, path: Path, before: dict[str, bytes]) -> Counter[str]:
    store = SqliteStore(path, KEY)
    try:
        try:
            found = everything(store)
        except StoreCorrupt:
            store.load()
            found = everything(store)
        report = report_of(store)
        if report is None:
            assert found == stores.truth
            return Counter(rounds=1, harmless=1)
        assert report.kept_at is not None
        aside = Path(report.kept_at)
        if before.get(path.name):  # an empty one SQLite has begun to make into a database
            assert aside.read_bytes() == before[path.name]
        counts = _rebuilt(stores, store, report)
        # It lives on, and is found whole the next time.
        store.apply(changes(own(store, "c1", 10_000)))
        store.set_secret(REPORT, None)
        store.close()
        again = SqliteStore(path, KEY)
        assert report_of(again) is None
        assert again.row(message_id(again.device, "c1-10000")) is not None
        again.close()
        return counts
    finally:
        store.close()


def _rebuilt(stores: Stores, store: SqliteStore, report: StoreRebuilt) -> Counter[str]:
    assert store.device == stores.device
    unsent = {row.id: row for row in stores.waiting}
    written = {message.id: message for messages in stores.truth["messages"].values() for message in messages}
    snapshot = store.load()
    waiting = [row for row in snapshot.outbox if row.stream]
    named = {lost.id for lost in report.lost} | {(lost.conversation, lost.n) for lost in report.lost}
    for id, row in unsent.items():
        there = store.row(id)
        if there is None:
            assert report.lost_unknown or id in named or (row.conversation, row.n) in named
        else:
            assert (there.body, there.key, there.conversation) == (row.body, row.key, row.conversation)
    for row in snapshot.outbox:
        # What waits now was waiting, or had been delivered and is offered again: the ledger knows it.
        message = written[row.id]
        assert (row.conversation, row.key) == (message.conversation, message.key)
        assert message.content == row.body
    for name in CONVERSATIONS:
        mine = [row for row in waiting if row.conversation == name]
        assert [row.n for row in mine] == list(range(1, len(mine) + 1))
        order = [row.id for row in mine if row.id in unsent]
        assert order == [id for id in unsent if id in set(order)]
        if mine:
            assert {row.stream for row in mine} == {mine[0].stream}
            assert mine[0].stream > 1
    for message in store.arrivals(0, 10_000):
        assert message.content == written[message.id].content
    assert {(known.position, known.head) for known in snapshot.conversations} <= {(0, 0)}
    assert snapshot.meta.get("sync") is None
    assert report.salvaged >= len(waiting)
    kept = sum(1 for id in unsent if store.row(id) is not None)
    return Counter(rounds=1, found=1, unsent=len(unsent), salvaged=kept)


def opened(stores: Stores, folder: Path, *, base: str = "closed") -> Path:
    return damage.copy(getattr(stores, base), folder) / "store.db"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


@pytest.mark.parametrize("base", ["killed", "closed"])
def test_a_wrong_key_is_never_damage(stores: Stores, tmp_path: Path, base: str) -> None:
    path = opened(stores, tmp_path / "store", base=base)
    for mark in (True, False):
        if not mark:
            mark_path(path).unlink()
        before = contents(path.parent)
        with pytest.raises(StoreKeyError):
            SqliteStore(path, OTHER_KEY)
        assert contents(path.parent) == before
    store = SqliteStore(path, KEY)
    assert report_of(store) is None
    assert everything(store) == stores.truth
    store.close()


def test_another_database_is_refused_where_no_store_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SqliteLedger(path, OTHER_KEY).close()
    mark_path(path).unlink()
    before = contents(tmp_path)
    with pytest.raises(NotAStore):
        SqliteStore(path, KEY)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_moved_store_is_whole_without_its_mark(stores: Stores, tmp_path: Path) -> None:
    path = opened(stores, tmp_path / "store")
    mark_path(path).write_bytes(mark_path(path).read_bytes()[:-1] + b"?")
    store = SqliteStore(path, KEY)
    assert report_of(store) is None
    assert everything(store) == stores.truth
    store.close()


def test_a_lost_message_is_named(stores: Stores, tmp_path: Path) -> None:
    """Page by page: whatever waits is there, or lost by its very id, for as long as the index is whole."""
    path = opened(stores, tmp_path / "store")
    whole = path.read_bytes()
    named = 0
    unsent = {row.id for row in stores.waiting}
    for page in range(1, len(whole) // damage.PAGE_BYTES, 3):
        for file in list(path.parent.iterdir()):
            file.unlink()
        for file in stores.closed.iterdir():
            shutil.copy(file, path.parent / file.name)
        content = bytearray(whole)
        content[page * damage.PAGE_BYTES + 999] ^= 2
        path.write_bytes(content)
        store = SqliteStore(path, KEY)
        store._fault(apsw.CorruptError("met by somebody else"))
        waiting = {row.id for row in store.load().outbox}
        report = report_of(store)
        assert report is not None
        lost = {gone.id for gone in report.lost}
        assert not lost & waiting
        if not report.lost_unknown:
            assert unsent <= waiting | lost
            named += len(lost)
        store.close()
    assert named > 0


def test_without_its_device_nothing_is_offered_again(stores: Stores, tmp_path: Path) -> None:
    """Under another device the ledger could not tell repeats: what waited is named instead."""
    path = opened(stores, tmp_path / "store")
    mark_path(path).unlink()
    db = connect(path, KEY)
    root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'meta'").get
    db.close()
    content = bytearray(path.read_bytes())
    content[(root - 1) * damage.PAGE_BYTES + 100] ^= 1
    path.write_bytes(content)
    store = SqliteStore(path, KEY)
    report = report_of(store)
    assert report is not None
    assert store.device != stores.device
    assert store.load().outbox == []
    assert store.handed_over(0) == []
    assert {row.id for row in stores.waiting} == {gone.id for gone in report.lost}
    store.close()


def test_what_was_set_aside_is_never_overwritten(stores: Stores, tmp_path: Path) -> None:
    path = opened(stores, tmp_path / "store", base="killed")
    kept = set()
    for number in range(3):
        path.write_bytes(bytes([number]) * 8192)
        store = SqliteStore(path, KEY)
        report = report_of(store)
        assert report is not None
        assert report.kept_at is not None
        kept.add(report.kept_at)
        store.close()
    assert len(kept) == 3
    assert sorted(Path(file).read_bytes()[0] for file in kept) == [0, 1, 2]


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_crash_while_it_is_made_anew(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """Cut off before, between and after the renames: the next start ends what was begun."""
    path = opened(stores, tmp_path / "store", base="killed")
    log = path.with_name("store.db-wal")
    content = bytearray(log.read_bytes())
    content[20] ^= 1  # the log's salt: nothing of it is taken for committed now
    log.write_bytes(content)
    renames = 0
    rename = Path.rename

    def cut_off(self: Path, target: Path) -> Path:
        nonlocal renames
        if renames == done:
            raise OSError(5, "cut off")
        renames += 1
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut_off)
        if done < 3:
            with pytest.raises(StoreUnavailable):
                SqliteStore(path, KEY)
        else:
            SqliteStore(path, KEY).close()
    assert renames == done
    store = SqliteStore(path, KEY)
    report = report_of(store)
    assert report is not None
    assert report.kept_at is not None
    unsent = {row.id for row in stores.waiting}
    found = {row.id for row in store.load().outbox}
    assert report.lost_unknown
    assert len(found & unsent) >= len(unsent) // 2
    store.close()
    again = SqliteStore(path, KEY)
    assert {row.id for row in again.load().outbox} == found
    again.close()
    assert not path.with_name("store.db.rebuilding").exists()


def test_guests_find_the_new_store(stores: Stores, tmp_path: Path) -> None:
    path = opened(stores, tmp_path / "store")
    store = SqliteStore(path, KEY)
    guest = SqliteStore(path, KEY, shared=True)
    assert guest.guest
    store._fault(apsw.CorruptError("met by somebody"))
    store.load()
    command = SendMessage(conversation="c2", key="late", format="text", body="of a guest")
    assert guest.hand_over([(command, 6.0)], Limits()) == [None]
    taken = [handoff.command for handoff in store.handed_over(0)]
    assert command in [SendMessage(**msgspec.structs.asdict(one)) for one in taken if one is not None]
    guest.close()
    store.close()


def test_what_is_applied_never_goes_into_a_store_made_anew_meanwhile(stores: Stores, tmp_path: Path) -> None:
    """Changes rest on what was read before: they are refused until it was read again."""
    path = opened(stores, tmp_path / "store")
    store = SqliteStore(path, KEY)
    store._fault(apsw.IOError("the disk was gone for a moment"))
    content = bytearray(path.read_bytes())
    content[:4096] = bytes(4096)
    path.write_bytes(content)
    late = own(store, "c1", 500)
    for _ in range(2):
        with pytest.raises(StoreCorrupt):
            store.apply(changes(late))
    assert {row.position for row in store.load().conversations} == {0}
    store.apply(changes(late))
    assert report_of(store) is not None
    store.close()
