"""The data folder: made at the first start, open to one server, useless without its key."""

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import pytest

from whimbrel.errors import StoreInUse, StoreKeyError, StoreUnavailable
from whimbrel.server.data import ServerData, open_accounts, open_data
from whimbrel.testing.ledger_conformance_settle import append, create, log, one

PASSWORD = "correct horse"


def quick() -> argon2.PasswordHasher:
    return argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def open_(folder: Path) -> ServerData:
    return open_data(folder, hasher=quick())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_first_start_makes_a_private_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    with open_(folder):
        assert mode(folder) == 0o700
        assert mode(folder / "server.key") == 0o600
        assert len((folder / "server.key").read_bytes()) == 32
        left = {path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm"))}
        assert left == {"server.key", "server.lock", "ledger.db", "ledger.db.mark", "accounts.db"}


def test_everything_is_there_at_the_next_start(tmp_path: Path) -> None:
    with open_(tmp_path) as data:
        data.ledger.apply([create(), append(1)], 1.0)
        data.accounts.add_user("ann", PASSWORD)
        events, key = log(data.ledger), (tmp_path / "server.key").read_bytes()
        access, _ = data.access_tokens.issue("ann", "a" * 26)
        sync = data.sync_tokens.encode(data.ledger.history, data.ledger.commit, "ann")
    data.close()
    with open_(tmp_path) as data:
        assert log(data.ledger) == events
        assert data.access_tokens.verify(access).user == "ann"
        assert data.sync_tokens.decode(sync, "ann") == (data.ledger.history, data.ledger.commit)
        assert data.accounts.verify("ann", PASSWORD)
        assert (tmp_path / "server.key").read_bytes() == key
        assert key.hex() not in repr(data)


def test_second_server_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from whimbrel.server.data import open_data\n"
        "from whimbrel.errors import StoreInUse\n"
        "try: open_data(sys.argv[1])\n"
        "except StoreInUse: sys.exit(7)"
    )
    with open_(tmp_path):
        with pytest.raises(StoreInUse):
            open_(tmp_path)
        child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=100)
        assert child.returncode == 7
    open_(tmp_path).close()


def test_accounts_open_beside_a_server_and_before_the_first(tmp_path: Path) -> None:
    accounts = open_accounts(tmp_path / "d", hasher=quick())
    accounts.add_user("ann", PASSWORD)
    accounts.close()
    with open_(tmp_path / "d") as data:
        beside = open_accounts(tmp_path / "d", hasher=quick())
        beside.add_user("ben", PASSWORD)
        beside.close()
        assert data.accounts.users_exist(["ann", "ben"]) == {"ann", "ben"}


def test_starting_at_once_agrees_on_one_key(tmp_path: Path) -> None:
    def add(n: int) -> None:
        accounts = open_accounts(tmp_path / "d", hasher=quick())
        accounts.add_user(f"user{n}", PASSWORD)
        accounts.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(6)))
    with open_(tmp_path / "d") as data:
        names = {f"user{n}" for n in range(6)}
        assert data.accounts.users_exist(names) == names


def test_lost_wrong_and_damaged_keys(tmp_path: Path) -> None:
    open_(tmp_path).close()
    key = tmp_path / "server.key"
    good = key.read_bytes()
    key.unlink()
    with pytest.raises(StoreKeyError, match="missing"):
        open_(tmp_path)
    assert not key.exists()
    key.write_bytes(b"x" * 32)
    with pytest.raises(StoreKeyError):
        open_(tmp_path)
    key.write_bytes(good[:31])
    with pytest.raises(StoreKeyError):
        open_(tmp_path)
    key.write_bytes(good)
    open_(tmp_path).close()


def test_what_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    open_(tmp_path).close()
    (tmp_path / "server.key").chmod(0o644)
    tmp_path.chmod(0o755)
    open_(tmp_path).close()
    assert mode(tmp_path / "server.key") == 0o600
    assert mode(tmp_path) == 0o700


def test_unusable_folders(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for folder in (file, file / "below"):
        with pytest.raises(StoreUnavailable):
            open_(folder)
    (tmp_path / "odd" / "ledger.db").mkdir(parents=True)
    with pytest.raises(StoreKeyError):
        open_(tmp_path / "odd")


def test_failed_opening_lets_go_of_everything(tmp_path: Path) -> None:
    open_(tmp_path).close()
    (tmp_path / "accounts.db").rename(tmp_path / "aside")
    (tmp_path / "accounts.db").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StoreUnavailable):
        open_(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    (tmp_path / "accounts.db").rmdir()
    (tmp_path / "aside").rename(tmp_path / "accounts.db")
    with open_(tmp_path) as data:
        assert one(data.ledger, create()).info.id == "c1"
