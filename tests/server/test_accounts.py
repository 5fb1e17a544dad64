"""Users and sessions: passwords, devices, and refresh tokens that survive a lost answer and no theft."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import argon2
import pytest

from whimbrel.errors import Conflict, InvalidArgument, NotFound, StoreKeyError, StoreUnavailable, Unauthorized
from whimbrel.server.accounts import FAMILY_TOKENS_MAX, REFRESH_LIFETIME_S, Accounts
from whimbrel.server.database import connect

KEY = b"k" * 32
DEVICE = "a" * 26
OTHER_DEVICE = "b" * 26
PASSWORD = "correct horse"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def quick() -> argon2.PasswordHasher:
    return argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "accounts.db"


@pytest.fixture
def accounts(path: Path, clock: Clock) -> Iterator[Accounts]:
    accounts = Accounts(path, KEY, clock=clock, hasher=quick())
    accounts.add_user("ann", PASSWORD)
    accounts.add_user("ben", PASSWORD)
    try:
        yield accounts
    finally:
        accounts.close()


# --- users ---------------------------------------------------------------------------------------


def test_names_have_one_form(accounts: Accounts) -> None:
    assert accounts.add_user(" Eve.Adams ", PASSWORD) == "eve.adams"
    with pytest.raises(Conflict):
        accounts.add_user("EVE.ADAMS", PASSWORD)
    assert accounts.verify("Eve.ADAMS", PASSWORD)
    assert accounts.users_exist(["ann", "eve.adams", "nobody", ""]) == {"ann", "eve.adams"}


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "a/b", "a\0", "\ud800"])
def test_bad_names(accounts: Accounts, name: str) -> None:
    with pytest.raises(InvalidArgument):
        accounts.add_user(name, PASSWORD)
    assert not accounts.verify(name, PASSWORD)
    with pytest.raises(Unauthorized):
        accounts.login(name, PASSWORD, DEVICE)


@pytest.mark.parametrize("password", ["", "seven77", "x" * 1025, "\ud800 and more"])
def test_bad_passwords(accounts: Accounts, password: str) -> None:
    with pytest.raises(InvalidArgument):
        accounts.add_user("eve", password)
    assert accounts.users_exist(["eve"]) == set()
    assert not accounts.verify("ann", password)


def test_password_is_checked_whole(accounts: Accounts) -> None:
    accounts.set_password("ann", "x" * 1024)
    assert accounts.verify("ann", "x" * 1024)
    assert not accounts.verify("ann", "x" * 1025)
    assert not accounts.verify("ann", "x" * 1023)
    assert not accounts.verify("nobody", "x" * 1024)


def test_unknown_user_costs_a_hash_as_well(path: Path) -> None:
    verified: list[str] = []

    class Counting(argon2.PasswordHasher):
        def verify(self, *arguments: Any) -> Literal[True]:
            verified.append(str(arguments[0]).split("p=1")[0])
            return super().verify(*arguments)

    accounts = Accounts(path, KEY, hasher=Counting(time_cost=1, memory_cost=8, parallelism=1))
    try:
        accounts.add_user("ann", PASSWORD)
        for name in ("ann", "nobody", "not a name"):
            assert not accounts.verify(name, "wrong password")
    finally:
        accounts.close()
    # Three times, and with the same parameters.
    assert len(verified) == 3
    assert len(set(verified)) == 1


def test_default_hash_is_argon2id(path: Path) -> None:
    accounts = Accounts(path, KEY)
    try:
        accounts.add_user("ann", PASSWORD)
        assert accounts.verify("ann", PASSWORD)
        stored = accounts._connection.execute("SELECT password FROM users").get
        assert isinstance(stored, str)
        assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    finally:
        accounts.close()


def test_new_password_signs_out_every_device(accounts: Accounts) -> None:
    tokens = [accounts.login("ann", PASSWORD, device) for device in (DEVICE, OTHER_DEVICE)]
    other = accounts.login("ben", PASSWORD, "c" * 26)
    accounts.set_password("Ann", "another horse")
    for signed_in in tokens:
        with pytest.raises(Unauthorized):
            accounts.refresh(signed_in.refresh)
    accounts.refresh(other.refresh)
    assert accounts.verify("ann", "another horse")
    assert not accounts.verify("ann", PASSWORD)
    with pytest.raises(NotFound):
        accounts.set_password("nobody", PASSWORD)


# --- devices -------------------------------------------------------------------------------------


def test_login_gives_an_access_token_of_user_and_device(accounts: Accounts) -> None:
    tokens = accounts.login("ANN", PASSWORD, DEVICE)
    assert (tokens.user, tokens.device, tokens.access_expires_in_s) == ("ann", DEVICE, 900)
    access = accounts.access_tokens.verify(tokens.access)
    assert (access.user, access.device) == ("ann", DEVICE)


def test_wrong_password_and_unknown_user_read_the_same(accounts: Accounts) -> None:
    texts = set()
    for name in ("ann", "nobody"):
        with pytest.raises(Unauthorized) as error:
            accounts.login(name, "wrong password", DEVICE)
        texts.add(str(error.value))
    assert len(texts) == 1


def test_device_belongs_to_its_first_user(accounts: Accounts) -> None:
    mine = accounts.login("ann", PASSWORD, DEVICE)
    with pytest.raises(Conflict):
        accounts.login("ben", PASSWORD, DEVICE)
    accounts.logout(mine.refresh)
    # For ever: what ann's device settled is under this id.
    with pytest.raises(Conflict):
        accounts.login("ben", PASSWORD, DEVICE)
    with pytest.raises(Unauthorized):
        accounts.login("ben", "wrong password", DEVICE)
    accounts.login("ann", PASSWORD, DEVICE)


@pytest.mark.parametrize("device", ["", "a" * 25, "a" * 27, "A" * 26, "1" * 26, "a" * 25 + "\n", "ä" * 26])
def test_bad_devices(accounts: Accounts, device: str) -> None:
    with pytest.raises(InvalidArgument):
        accounts.login("ann", PASSWORD, device)


def test_login_ends_the_former_session_of_the_device(accounts: Accounts) -> None:
    former = accounts.login("ann", PASSWORD, DEVICE)
    elsewhere = accounts.login("ann", PASSWORD, OTHER_DEVICE)
    present = accounts.login("ann", PASSWORD, DEVICE)
    with pytest.raises(Unauthorized):
        accounts.refresh(former.refresh)
    accounts.refresh(present.refresh)
    accounts.refresh(elsewhere.refresh)


# --- refreshing ----------------------------------------------------------------------------------


def test_tokens_rotate(accounts: Accounts) -> None:
    tokens = accounts.login("ann", PASSWORD, DEVICE)
    seen = {tokens.refresh}
    for _ in range(5):
        tokens = accounts.refresh(tokens.refresh)
        assert tokens.refresh not in seen
        seen.add(tokens.refresh)
        assert accounts.access_tokens.verify(tokens.access).device == DEVICE


def test_lost_answers_cost_nothing(accounts: Accounts) -> None:
    tokens = accounts.login("ann", PASSWORD, DEVICE)
    for _ in range(4):
        for _ in range(3):
            accounts.refresh(tokens.refresh)  # the answer never came
        tokens = accounts.refresh(tokens.refresh)


def test_replay_after_use_revokes_the_family(accounts: Accounts) -> None:
    first = accounts.login("ann", PASSWORD, DEVICE)
    second = accounts.refresh(first.refresh)
    third = accounts.refresh(second.refresh)
    with pytest.raises(Unauthorized):
        accounts.refresh(first.refresh)
    for token in (second, third):
        with pytest.raises(Unauthorized):
            accounts.refresh(token.refresh)


@pytest.mark.parametrize("thief_is_first", [True, False])
def test_stolen_token_ends_the_session_for_both(accounts: Accounts, thief_is_first: bool) -> None:
    stolen = accounts.login("ann", PASSWORD, DEVICE)
    thief, owner = (accounts.refresh(stolen.refresh) for _ in range(2))
    # Both hold a good successor; who uses his first has the session, until the other one moves.
    first, second = (thief, owner) if thief_is_first else (owner, thief)
    kept = accounts.refresh(first.refresh)
    with pytest.raises(Unauthorized):
        accounts.refresh(second.refresh)
    with pytest.raises(Unauthorized):
        accounts.refresh(kept.refresh)
    accounts.login("ann", PASSWORD, DEVICE)


def test_theft_on_one_device_leaves_the_others(accounts: Accounts) -> None:
    first = accounts.login("ann", PASSWORD, DEVICE)
    other = accounts.login("ann", PASSWORD, OTHER_DEVICE)
    accounts.refresh(accounts.refresh(first.refresh).refresh)
    with pytest.raises(Unauthorized):
        accounts.refresh(first.refresh)
    accounts.refresh(other.refresh)


def test_refreshes_at_once_with_one_token_all_succeed(accounts: Accounts) -> None:
    tokens = accounts.login("ann", PASSWORD, DEVICE)
    for _ in range(5):
        barrier = threading.Barrier(4)

        def refresh(token: str = tokens.refresh, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            return accounts.refresh(token).refresh

        with ThreadPoolExecutor(4) as pool:
            given = [future.result() for future in [pool.submit(refresh) for _ in range(4)]]
        assert len(set(given)) == 4
        # Any of them goes on.
        tokens = accounts.refresh(given[2])


def test_logout_ends_the_session(accounts: Accounts) -> None:
    first = accounts.login("ann", PASSWORD, DEVICE)
    second = accounts.refresh(first.refresh)
    accounts.logout(first.refresh)
    for token in (first.refresh, second.refresh):
        with pytest.raises(Unauthorized):
            accounts.refresh(token)
    accounts.logout(first.refresh)
    accounts.logout("nothing of the kind")


def test_sessions_run_out(accounts: Accounts, clock: Clock) -> None:
    tokens = accounts.login("ann", PASSWORD, DEVICE)
    clock.now += REFRESH_LIFETIME_S - 1
    tokens = accounts.refresh(tokens.refresh)
    clock.now += REFRESH_LIFETIME_S - 1
    tokens = accounts.refresh(tokens.refresh)
    clock.now += REFRESH_LIFETIME_S
    with pytest.raises(Unauthorized):
        accounts.refresh(tokens.refresh)


@pytest.mark.parametrize("token", ["", "x", "wr_" + "a" * 43, "wr_" + "a" * 42 + "\n", "\ud800"])
def test_what_is_no_token_is_unauthorized(accounts: Accounts, token: str) -> None:
    with pytest.raises(Unauthorized):
        accounts.refresh(token)


def test_tokens_kept_are_bounded(accounts: Accounts) -> None:
    tokens = accounts.login("ann", PASSWORD, DEVICE)
    accounts.refresh(tokens.refresh)
    db = accounts._connection
    # As many refreshes whose answers were lost, without the time they take.
    with accounts._transaction():
        db.executemany(
            "INSERT INTO tokens (digest, family, parent, expires_at) SELECT ?, family, parent, 0 FROM tokens"
            " WHERE parent IS NOT NULL LIMIT 1",
            [(n.to_bytes(32, "big"),) for n in range(FAMILY_TOKENS_MAX + 50)],
        )
    # The token in use is the oldest of all, and good for as long as none of its successors was used.
    for _ in range(3):
        successor = accounts.refresh(tokens.refresh)
    assert db.execute("SELECT count(*) FROM tokens").get == FAMILY_TOKENS_MAX + 1
    accounts.refresh(successor.refresh)


# --- the file ------------------------------------------------------------------------------------


def test_everything_is_there_after_reopening(accounts: Accounts, path: Path, clock: Clock) -> None:
    tokens = accounts.login("ann", PASSWORD, DEVICE)
    secret = accounts.secret("sync")
    accounts.close()
    accounts.close()
    with pytest.raises(StoreUnavailable):
        accounts.refresh(tokens.refresh)
    again = Accounts(path, KEY, clock=clock, hasher=quick())
    try:
        assert again.verify("ann", PASSWORD)
        assert again.access_tokens.verify(tokens.access).user == "ann"
        assert again.secret("sync") == secret
        assert len(secret) == 32
        assert again.secret("other") != secret
        again.refresh(tokens.refresh)
    finally:
        again.close()
    with pytest.raises(StoreKeyError):
        Accounts(path, b"x" * 32)


def test_tokens_and_passwords_are_kept_as_digests_and_never_shown(accounts: Accounts, path: Path) -> None:
    tokens = accounts.login("ann", PASSWORD, DEVICE)
    db = connect(path, KEY)
    tables = ("users", "devices", "families", "tokens")
    kept = repr([db.execute(f"SELECT * FROM {table}").fetchall() for table in tables])
    db.close()
    shown = repr(tokens) + repr(accounts)
    for secret in (PASSWORD, tokens.refresh, tokens.refresh[3:], tokens.access):
        assert secret not in kept
        assert secret not in shown


def test_user_added_by_another_process(accounts: Accounts, path: Path) -> None:
    code = (
        "import sys; from whimbrel.server.accounts import Accounts\n"
        "accounts = Accounts(sys.argv[1], b'k' * 32)\n"
        "for n in range(3): accounts.add_user(f'from-outside-{n}', 'correct horse')\n"
        "accounts.close()"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        tokens = accounts.login("ann", PASSWORD, DEVICE)
        while child.poll() is None:
            tokens = accounts.refresh(tokens.refresh)
            # SQLite's lock is not fair: taken again at once, without end, it is never the other's.
            time.sleep(0.01)
    finally:
        child.kill()
        assert child.wait() == 0
    assert accounts.users_exist(f"from-outside-{n}" for n in range(3)) == {
        f"from-outside-{n}" for n in range(3)
    }


def test_failed_call_leaves_the_next_one_working(accounts: Accounts) -> None:
    calls: list[Callable[[], object]] = [
        lambda: accounts.add_user("ann", PASSWORD),
        lambda: accounts.login("ben", PASSWORD, DEVICE),
    ]
    accounts.login("ann", PASSWORD, DEVICE)
    for call in calls:
        with pytest.raises(Conflict):
            call()
    assert accounts.add_user("eve", PASSWORD) == "eve"


def test_a_password_changed_while_it_is_checked_signs_nobody_in(path: Path, clock: Clock) -> None:
    class Slow(argon2.PasswordHasher):
        meanwhile: Callable[[], None] | None = None

        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
            good = super().verify(hash, password)
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            return good

    hasher = Slow(time_cost=1, memory_cost=8, parallelism=1)
    accounts = Accounts(path, KEY, clock=clock, hasher=hasher)
    other = Accounts(path, KEY, clock=clock, hasher=quick())
    try:
        accounts.add_user("ann", PASSWORD)
        hasher.meanwhile = lambda: other.set_password("ann", "another password")
        with pytest.raises(Unauthorized):
            accounts.login("ann", PASSWORD, DEVICE)
        assert accounts.login("ann", "another password", DEVICE).user == "ann"
    finally:
        accounts.close()
        other.close()


def test_who_is_a_user_is_told_while_another_thread_writes(accounts: Accounts) -> None:
    with accounts._transaction() as db:
        db.execute("UPDATE users SET password = password")
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(accounts.users_exist, ["ann", "nobody"])
            try:
                assert asked.result(60) == {"ann"}
            finally:
                asked.cancel()
