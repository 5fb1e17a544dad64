"""Backups are whole or not there, and going back to one begins a new history."""

from __future__ import annotations

import errno
import stat
import threading
from pathlib import Path

import argon2
import pytest

from whimbrel.errors import (
    InvalidArgument,
    StoreCorrupt,
    StoreFull,
    StoreInUse,
    StoreKeyError,
    StoreUnavailable,
)
from whimbrel.server import ledger as led
from whimbrel.server.backup import MANIFEST_FILE, back_up, restore
from whimbrel.server.data import ServerData, open_data
from whimbrel.testing.ledger_conformance_settle import append, create, log

PASSWORD = "correct horse"


def open_(folder: Path) -> ServerData:
    return open_data(folder, hasher=argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with open_(tmp_path / "data") as data:
        data.accounts.add_user("ann", PASSWORD)
        data.ledger.apply([create(), *[append(n) for n in range(1, 20)]], 1.0)
    return tmp_path / "data"


def entries(folder: Path) -> list[tuple[int, str, str]]:
    with open_(folder) as data:
        return [(event.seq, event.id, event.body) for event in log(data.ledger)]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_what_is_backed_up_comes_back(data: Path, tmp_path: Path) -> None:
    before = entries(data)
    backup = tmp_path / "backups" / "one"
    manifest = back_up(data, backup)
    assert names(backup) == {"ledger.db", "accounts.db", "server.key", MANIFEST_FILE}
    assert {stat.S_IMODE(file.stat().st_mode) for file in backup.iterdir()} == {0o600}
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700
    with open_(data) as served:
        assert (manifest.history, manifest.commit) == (served.ledger.history, served.ledger.commit)
        served.ledger.apply([append(20)], 2.0)
    assert restore(backup, tmp_path / "new") is None
    assert entries(tmp_path / "new") == before
    with open_(tmp_path / "new") as served:
        assert served.accounts.verify("ann", PASSWORD)
        assert served.ledger.history != manifest.history
        # A stream of the old history: what was settled in it after the backup cannot be known.
        (outcome,) = served.ledger.apply([append(20)], 3.0)
        assert not isinstance(outcome, led.Committed)
        (outcome,) = served.ledger.apply([append(1, "c1-1-19", stream=2)], 3.0)
        assert isinstance(outcome, led.Committed)
        assert outcome.repeated


def test_a_backup_of_a_running_server_is_one_committed_state(tmp_path: Path) -> None:
    folder, stop = tmp_path / "data", threading.Event()
    with open_(folder) as data:
        data.ledger.apply([create()], 1.0)

        def work() -> None:
            n = 0
            while not stop.is_set() and n < 20_000:
                # Two to a transaction: half of one must never be seen.
                data.ledger.apply([append(n + 1, body="x" * 700), append(n + 2, body="y" * 700)], 2.0)
                n += 2

        worker = threading.Thread(target=work)
        worker.start()
        try:
            made = [back_up(folder, tmp_path / f"backup-{number}") for number in range(5)]
        finally:
            stop.set()
            worker.join()
    assert [manifest.commit for manifest in made] == sorted(manifest.commit for manifest in made)
    for number, manifest in enumerate(made):
        restore(tmp_path / f"backup-{number}", tmp_path / f"restored-{number}")
        found = entries(tmp_path / f"restored-{number}")
        assert [seq for seq, _, _ in found] == list(range(1, len(found) + 1))
        messages = [body[0] for _, _, body in found if body and body[0] in "xy"]
        assert len(messages) == 2 * (manifest.commit - 1)
        assert "".join(messages) == "xy" * (manifest.commit - 1)


def test_nothing_is_overwritten(data: Path, tmp_path: Path) -> None:
    back_up(data, tmp_path / "one")
    with pytest.raises(InvalidArgument, match="there already"):
        back_up(data, tmp_path / "one")
    with pytest.raises(InvalidArgument, match="not empty") as raised:
        restore(tmp_path / "one", data)
    assert "--replace" in raised.value.hint
    before = entries(data)
    for _ in range(2):
        kept = restore(tmp_path / "one", data, replace=True)
        assert kept is not None
        assert kept.name.startswith("data.replaced-")
        assert entries(kept) == before
    assert len(list(tmp_path.glob("data.replaced-*"))) == 2


def test_a_folder_in_use_is_not_replaced(data: Path, tmp_path: Path) -> None:
    back_up(data, tmp_path / "one")
    with open_(data) as served:
        with pytest.raises(StoreInUse):
            restore(tmp_path / "one", data, replace=True)
        served.ledger.apply([append(20)], 2.0)
    assert names(tmp_path) == {"data", "one"}


def test_the_key_may_be_kept_apart(data: Path, tmp_path: Path) -> None:
    back_up(data, tmp_path / "one", with_key=False)
    assert "server.key" not in names(tmp_path / "one")
    with pytest.raises(StoreKeyError, match="no key"):
        restore(tmp_path / "one", tmp_path / "new")
    (tmp_path / "wrong").write_bytes(bytes(32))
    with pytest.raises(StoreKeyError):
        restore(tmp_path / "one", tmp_path / "new", key_file=tmp_path / "wrong")
    assert not (tmp_path / "new").exists()
    restore(tmp_path / "one", tmp_path / "new", key_file=data / "server.key")
    assert entries(tmp_path / "new") == entries(data)


@pytest.mark.parametrize("name", ["ledger.db", "accounts.db", "server.key", MANIFEST_FILE])
def test_a_backup_that_was_changed_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    back_up(data, tmp_path / "one")
    file = tmp_path / "one" / name
    good = file.read_bytes()
    for bad in (good[: len(good) // 2], bytes([good[0] ^ 1]) + good[1:], None):
        file.unlink(missing_ok=True)
        if bad is not None:
            file.write_bytes(bad)
        with pytest.raises((StoreCorrupt, InvalidArgument)):
            restore(tmp_path / "one", data, replace=True)
        assert names(tmp_path) == {"data", "one"}
    file.write_bytes(good)
    restore(tmp_path / "one", data, replace=True)


def test_damage_is_not_backed_up(data: Path, tmp_path: Path) -> None:
    ledger = data / "ledger.db"
    content = bytearray(ledger.read_bytes())
    content[-1_000] ^= 1
    ledger.write_bytes(content)
    with pytest.raises(StoreCorrupt):
        back_up(data, tmp_path / "one")
    assert names(tmp_path) == {"data"}


def test_there_is_nothing_to_back_up_or_restore(tmp_path: Path) -> None:
    with pytest.raises(StoreKeyError):
        back_up(tmp_path / "nowhere", tmp_path / "one")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "server.key").write_bytes(bytes(32))
    with pytest.raises(StoreUnavailable, match="no ledger"):
        back_up(tmp_path / "half", tmp_path / "one")
    with pytest.raises(InvalidArgument, match="no backup"):
        restore(tmp_path / "half", tmp_path / "new")
    assert names(tmp_path) == {"half"}


def test_a_folder_that_cannot_be_replaced_keeps_its_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(data, tmp_path / "one")
    before = entries(data)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise OSError(errno.ENOSPC, "no space left")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(StoreFull):
            restore(tmp_path / "one", data, replace=True)
    assert names(tmp_path) == {"data", "one"}
    assert entries(data) == before


def test_the_name_given_is_the_one_it_was_kept_under(data: Path, tmp_path: Path) -> None:
    back_up(data, tmp_path / "one")
    later = tmp_path / "data.replaced-99991231T000000Z-001"  # by a clock that was wrong
    later.mkdir()
    kept = restore(tmp_path / "one", data, replace=True)
    assert kept is not None
    assert kept != later
    assert "ledger.db" in names(kept)


def test_a_key_that_cannot_be_read(data: Path, tmp_path: Path) -> None:
    back_up(data, tmp_path / "one", with_key=False)
    with pytest.raises(StoreUnavailable):
        restore(tmp_path / "one", tmp_path / "new", key_file=tmp_path)
