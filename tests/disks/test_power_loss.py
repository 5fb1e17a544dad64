"""Power cuts at any operation of the disk: nothing reported is lost, nothing is there by halves.

The same lives with ``synchronous=NORMAL`` must lose something: else the disk forgets nothing, and the first
test shows nothing.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.disks.rig import KEY, Life, disk_in
from tests.disks.server_life import AccountsLife, LedgerLife
from tests.disks.store_life import StoreLife
from tests.rounds import Rounds
from whimbrel.server import database
from whimbrel.server import ledger as led
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.store import schema
from whimbrel.testing.ledger_conformance_settle import NOW, append, create

STEPS = 10
NORMAL_CUTS_MAX = 100
Kind = type[Life[Any, Any]]
FULL_WITHIN = 100
"""Cuts among which there surely is a full disk; fewer may be spared it."""
CUTS: list[tuple[Kind, tuple[int, int]]] = [
    (StoreLife, (180, 5_000)),
    (LedgerLife, (180, 5_000)),
    (AccountsLife, (60, 1_000)),
]
"""How many cuts in every run, and for a release."""


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "cuts_wanted"), CUTS)
def test_full_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds, kind: Kind, cuts_wanted: tuple[int, int]
) -> None:
    wanted = rounds.of(ci=cuts_wanted[0], soak=cuts_wanted[1])
    cuts: Counter[str] = Counter()
    fates: Counter[str] = Counter()
    done = whole = refused = 0
    for seed in rounds.seeds(11):
        with disk_in(tmp_path / f"disk-{seed}", random.Random(seed)) as disk:
            life = kind(disk, disk.rng, monkeypatch)
            for _ in range(wanted // 2):
                life.round(STEPS)
            assert life.lost == 0
            cuts += life.cuts
            fates += disk.chance.fates
            done += life.rounds
            whole += life.whole
            refused += life.refused
    rounds.figure(f"power cuts survived by the {life.name}", done, "cuts", target=wanted)
    # It struck wherever it can, and left every kind of disk behind.
    strikes = {what.partition(" ")[0] for what in cuts}
    assert {"create", "work", "close", "idle", "write", "sync"} <= strikes, cuts
    assert any(what.startswith("write") and what.endswith(".db") for what in cuts), "no checkpoint was cut"
    assert {"kept", "lost", "torn", "garbage", "name kept", "name lost"} <= set(fates), fates
    assert whole, "a change under way was never found whole"
    assert refused or done < FULL_WITHIN, "the disk was never full"


@pytest.mark.parametrize("kind", [StoreLife, LedgerLife, AccountsLife])
def test_normal_would_lose_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    monkeypatch.setattr("whimbrel.mark.Mark._write", lambda *_: None)  # a mark would tell of it
    with disk_in(tmp_path / "disk", random.Random(7), synchronous="normal") as disk:
        life = kind(disk, disk.rng, monkeypatch)
        for _ in range(NORMAL_CUTS_MAX):
            life.round(STEPS)  # what is left is still one of the states there were
            if life.lost:
                return
    pytest.fail(f"{NORMAL_CUTS_MAX} cuts and nothing lost: the disk forgets nothing")


LATER = """
CREATE TABLE later (id TEXT PRIMARY KEY, length INTEGER) STRICT;
INSERT INTO later SELECT id, length(body) FROM messages;
ALTER TABLE messages ADD COLUMN later TEXT;
CREATE INDEX messages_later ON messages (later, conversation);
UPDATE messages SET later = upper(id);
"""


@pytest.mark.soak
def test_a_migration_cut_anywhere_is_done_or_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds
) -> None:
    steps = schema.migrations()
    with disk_in(tmp_path / "disk", random.Random(3)) as disk:
        life = StoreLife(disk, disk.rng, monkeypatch)
        life.begin_anew()
        life.live(40, "idle")
        disk.restart()
        before = disk.image()
        monkeypatch.setattr(schema, "migrations", lambda: [*steps, (len(steps) + 1, LATER)])
        counted = disk.operations
        life.live(0, "idle")
        operations = disk.operations - counted
        disk.restart()
        found: Counter[int] = Counter()
        for cut in range(1, operations + 1, rounds.of(ci=max(1, operations // 40), soak=1)):
            disk.restore(before)
            disk.cut_at = disk.operations + cut
            life.live(0, "idle")
            disk.restart()
            db = schema.connect(disk.folder / "store.db", KEY)
            version = db.pragma("user_version")
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema").fetchall()}
            if version == len(steps):
                assert not tables & {"later", "messages_later"}
            else:
                (same,) = db.execute(
                    "SELECT count(*) = (SELECT count(*) FROM messages WHERE later = upper(id)) FROM later"
                ).fetchall()
                assert (version, same) == (len(steps) + 1, (1,))
            db.close()
            found[version] += 1
            life.live(0, "idle")  # what is not done yet is done now, and all that was there is
            disk.restart()
        assert set(found) == {len(steps), len(steps) + 1}


# --- what the cuts found -------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [slice(16, 24), slice(0, 512), slice(0, None)])
def test_a_torn_first_page_does_not_lock_the_ledger_out(tmp_path: Path, torn: slice) -> None:
    """The log has the page whole; who does not know its size cannot decipher it."""
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path, KEY)
    ledger.apply([create(), append(1)], NOW)
    reader = database.connect(path, KEY, writes=False)
    try:
        assert ledger._writer is not None
        ledger._writer.close()
        ledger._writer = None
        ledger.apply([append(2)], NOW)
        files = {name: path.with_name(name).read_bytes() for name in ("ledger.db", "ledger.db-wal")}
    finally:
        reader.close()
        ledger.close()
    folder = tmp_path / "after"
    folder.mkdir()
    page = bytearray(files["ledger.db"])
    page[torn] = random.Random(5).randbytes(len(page[torn]))
    (folder / "ledger.db").write_bytes(page)
    (folder / "ledger.db-wal").write_bytes(files["ledger.db-wal"])
    again = SqliteLedger(folder / "ledger.db", KEY)
    try:
        assert again.settled("a" * 26, "c1", 1, 9) == led.Ahead(expected=3)
    finally:
        again.close()


@pytest.mark.parametrize("kind", [StoreLife, LedgerLife, AccountsLife])
def test_the_journal_of_a_creation_cut_short_never_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Its removal is durable before anything is reported; found again it would undo all that was."""
    with disk_in(tmp_path / "disk", random.Random(5)) as disk:
        life = kind(disk, disk.rng, monkeypatch)
        for operation in ("create", "write", "sync"):
            life.begin_anew()
            # Cut off when the journal is gone and the log is new: the removal is undone, the log stays.
            monkeypatch.setattr(
                disk, "names_kept", lambda name, changes: 0 if name.endswith("-journal") else changes
            )
            disk.cut_on = f"{operation} {life.name}.db-wal"
            life.live(1, "idle")
            disk.restart()
            # Opened again, it is rolled back and removed, and that is undone too.
            for _ in range(2):
                life.live(2, "idle")
                monkeypatch.setattr(disk, "names_kept", lambda name, changes: 0)
                disk.restart()
            assert life.lost == 0


def test_a_new_history_killed_before_its_mark_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of the old history would say that this is another ledger."""
    ledger = SqliteLedger(tmp_path / "ledger.db", KEY)
    ledger.apply([create(), append(1)], NOW)

    def killed(_: SqliteLedger) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SqliteLedger, "_new_mark", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.begin_new_history()
    history = ledger.history
    ledger.close()
    again = SqliteLedger(tmp_path / "ledger.db", KEY)
    try:
        assert again.history == history
        assert again.settled("a" * 26, "c1", 1, 9) == led.Ahead(expected=0)
    finally:
        again.close()
