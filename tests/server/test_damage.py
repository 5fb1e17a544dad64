"""A damaged ledger is found before anything is served from it, or while it is; and left as it is."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from pathlib import Path

import apsw
import pytest

from tests.rounds import Rounds
from tests.store import damage
from whimbrel import protocol as p
from whimbrel.errors import StoreCorrupt, StoreKeyError
from whimbrel.server import integrity
from whimbrel.server.data import LEDGER_FILE
from whimbrel.server.integrity import Watch
from whimbrel.server.ledger import LedgerUnavailable
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.testing.ledger_conformance_settle import append, create, log

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
MESSAGES = 300


def fill(ledger: SqliteLedger, first: int, last: int) -> None:
    for n in range(first, last):
        body = f"message {n} " + "m" * (9_000 if n % 50 == 0 else n * 7 % 500)
        ledger.apply([append(n, body=body)], float(n))


def everything(ledger: SqliteLedger) -> dict[str, object]:
    """All that clients can be told."""
    first = append(1)
    stream = (first.device, first.send.conversation, first.send.stream)
    return {
        "clock": (ledger.history, ledger.commit),
        "log": log(ledger),
        "heads": ledger.heads(first.user, 0),
        "settled": [ledger.settled(*stream, n) for n in range(1, MESSAGES)],
        "found": [ledger.find(first.user, first.send.conversation, event.id) for event in log(ledger)],
    }


class Ledgers:
    """Folders to damage copies of, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.others = folder / "others"
        self.others.mkdir()
        self.killed, self.closed = folder / "killed", folder / "closed"
        live = folder / "live"
        live.mkdir()
        ledger = SqliteLedger(live / LEDGER_FILE, KEY)
        ledger.apply([create()], 0.5)
        fill(ledger, 1, MESSAGES // 2)
        shutil.copy(live / f"{LEDGER_FILE}-wal", self.others / "older-wal")
        # What the log has so far goes into the file: the next log begins in the middle of the life.
        ledger.close()
        ledger = SqliteLedger(live / LEDGER_FILE, KEY)
        fill(ledger, MESSAGES // 2, MESSAGES)
        damage.copy(live, self.killed)
        self.truth = everything(ledger)
        ledger.close()
        damage.copy(live, self.closed)
        for name, key in (("same-key", KEY), ("other-key", OTHER_KEY)):
            (folder / name).mkdir()
            other = SqliteLedger(folder / name / LEDGER_FILE, key)
            other.apply([create()], 0.5)
            fill(other, 1, 20)
            shutil.copy(folder / name / f"{LEDGER_FILE}-wal", self.others / f"{name}-wal")
            other.close()


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Ledgers:
    return Ledgers(tmp_path_factory.mktemp("ledgers"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


@pytest.mark.soak
def test_any_damage_is_harmless_or_found(ledgers: Ledgers, tmp_path: Path, rounds: Rounds) -> None:
    counts: Counter[str] = Counter()
    fixed, fresh = rounds.seeds(1)
    half = rounds.of(ci=30, soak=1_000)
    for number, seed in [(n, fixed) for n in range(half)] + [(n, fresh) for n in range(half)]:
        folder = tmp_path / f"{seed}-{number}"
        chance = random.Random(f"{seed} {number}")
        base = chance.choice((ledgers.killed, ledgers.killed, ledgers.closed))
        path = damage.copy(base, folder) / LEDGER_FILE
        how = damage.damage(path, chance, ledgers.others)
        try:
            counts[judged(ledgers, path)] += 1
        except BaseException as error:
            error.add_note(f"{base.name}: {how}")
            raise
        shutil.rmtree(folder)
    assert counts["found"] > half
    rounds.figure("damages to a ledger found or harmless", 2 * half, "damages", ok=True)


def opened(path: Path) -> tuple[SqliteLedger | None, StoreCorrupt | None]:
    try:
        return SqliteLedger(path, KEY), None
    except StoreCorrupt as error:
        return None, error


def judged(ledgers: Ledgers, path: Path) -> str:
    before = contents(path.parent)
    ledger, found = opened(path)
    if ledger is None:
        assert found is not None
        assert "whimbrel restore" in found.hint
        assert path.name in str(found)
        after = contents(path.parent)
        for name, content in before.items():
            # An empty file SQLite has begun to make into a database; its log is of no use then.
            if before[path.name]:
                assert after[name] == content, name
        return "found"
    try:
        assert everything(ledger) == ledgers.truth
    finally:
        ledger.close()
    return "harmless"


def test_a_wrong_key_is_not_damage(ledgers: Ledgers, tmp_path: Path) -> None:
    for base in (ledgers.killed, ledgers.closed):
        folder = damage.copy(base, tmp_path / base.name)
        before = contents(folder)
        with pytest.raises(StoreKeyError):
            SqliteLedger(folder / LEDGER_FILE, OTHER_KEY)
        assert contents(folder) == before
        ledger = SqliteLedger(folder / LEDGER_FILE, KEY)
        assert everything(ledger) == ledgers.truth
        ledger.close()


def test_a_ledger_that_is_gone_is_missed(ledgers: Ledgers, tmp_path: Path) -> None:
    folder = damage.copy(ledgers.closed, tmp_path / "gone")
    (folder / LEDGER_FILE).unlink()
    with pytest.raises(StoreCorrupt, match="not there any more"):
        SqliteLedger(folder / LEDGER_FILE, KEY)
    assert not (folder / LEDGER_FILE).exists()


def test_without_a_mark_a_whole_ledger_is_taken_and_a_damaged_one_is_not(
    ledgers: Ledgers, tmp_path: Path
) -> None:
    folder = damage.copy(ledgers.closed, tmp_path / "moved")
    (folder / f"{LEDGER_FILE}.mark").unlink()
    ledger = SqliteLedger(folder / LEDGER_FILE, KEY)
    assert everything(ledger) == ledgers.truth
    ledger.close()
    (folder / f"{LEDGER_FILE}.mark").write_bytes(b"nonsense")
    spoil(folder / LEDGER_FILE)
    with pytest.raises(StoreCorrupt):
        SqliteLedger(folder / LEDGER_FILE, KEY)


def spoil(path: Path) -> None:
    """One bit of every page but the first ones."""
    content = bytearray(path.read_bytes())
    for place in range(2048 * 20 + 77, len(content), 2048):
        content[place] ^= 4
    path.write_bytes(content)


def test_damage_that_is_met_while_running_ends_every_answer(ledgers: Ledgers, tmp_path: Path) -> None:
    folder = damage.copy(ledgers.closed, tmp_path / "live")
    ledger = SqliteLedger(folder / LEDGER_FILE, KEY)
    told: list[StoreCorrupt] = []
    ledger.watch(told.append)
    spoil(folder / LEDGER_FILE)
    first = append(1)
    with pytest.raises(LedgerUnavailable):
        ledger.page(first.user, first.send.conversation, since=MESSAGES // 2, limit=100)
    assert [type(error) for error in told] == [StoreCorrupt]
    for call in (
        lambda: ledger.heads(first.user, 0),
        lambda: ledger.apply([append(MESSAGES)], 1.0),
        lambda: ledger.conversations(first.user),
    ):
        with pytest.raises(LedgerUnavailable, match="damaged"):
            call()
    ledger.close()
    assert len(told) == 1


def test_a_large_ledger_is_read_through_beside_the_work(
    ledgers: Ledgers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "READ_FIRST_BYTES", 1)
    folder = damage.copy(ledgers.closed, tmp_path / "large")
    spoil(folder / LEDGER_FILE)
    ledger = SqliteLedger(folder / LEDGER_FILE, KEY)
    found = threading.Event()
    ledger.watch(lambda error: found.set())
    assert found.wait(60.0)
    with pytest.raises(LedgerUnavailable, match="damaged"):
        ledger.apply([append(MESSAGES)], 1.0)
    ledger.close()


def test_every_commit_is_marked(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / LEDGER_FILE, KEY)
    ledger.apply([create()], 1.0)
    page = ledger.page(append(1).user, append(1).send.conversation)
    assert isinstance(page, p.Page)
    ledger.begin_new_history()
    ledger.close()
    again = SqliteLedger(tmp_path / LEDGER_FILE, KEY)
    assert again.commit == ledger.commit
    again.close()


def test_reading_through_ends_though_it_was_not_yet_begun(
    ledgers: Ledgers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damage.copy(ledgers.closed, tmp_path / "data") / LEDGER_FILE
    opened, told = threading.Event(), threading.Event()

    def long(db: apsw.Connection, path: Path) -> None:
        opened.set()
        told.wait()  # an interruption that comes now interrupts nothing
        db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")

    class Telling(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            told.set()
            super().join(60 if timeout is None else timeout)

    monkeypatch.setattr(integrity, "READ_FIRST_BYTES", 0)
    monkeypatch.setattr(integrity, "read_through", long)
    monkeypatch.setattr(threading, "Thread", Telling)
    found: list[StoreCorrupt] = []
    watch = Watch(path, KEY, found.append)
    watch.start()
    assert opened.wait(60)
    watch.end()
    assert not watch._thread.is_alive()
    assert not found
