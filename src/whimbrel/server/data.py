"""The server's data folder: what is in it, who may open it, and with which key.

    server.key    32 random bytes, 0600: every database is encrypted with a key derived from it
    server.lock   held (flock) by the one process that serves from here
    ledger.db     the permanent record        accounts.db   users, sessions, the server's secrets
    ledger.db.mark   what the ledger must at least hold (``whimbrel.mark``)

The folder is 0700. The key lies beside what it protects, so it guards a copied database or a backup
without the key, not a stolen folder: keep them apart in backups. It is made at the first start and
never again: databases without their key are an error, not a reason for a new one.

Copies are made by ``backup``. ``open_data`` is for the process that serves; ``open_accounts`` for those
that work beside it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import argon2

from whimbrel.errors import StoreFull, StoreInUse, StoreKeyError, StoreUnavailable
from whimbrel.server.accounts import Accounts
from whimbrel.server.auth import AccessTokens
from whimbrel.server.database import KEY_BYTES, derive_key
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.server.synctoken import SyncTokens

_log = logging.getLogger(__name__)

KEY_FILE = "server.key"
LOCK_FILE = "server.lock"
LEDGER_FILE = "ledger.db"
ACCOUNTS_FILE = "accounts.db"
OPENING_MAX_S = 30.0
OPENING_RETRY_S = 0.02


class ServerData:
    """Everything a server keeps, open; a context manager."""

    def __init__(self, *, ledger: SqliteLedger, accounts: Accounts, lock: int) -> None:
        self.ledger = ledger
        self.accounts = accounts
        self.access_tokens: AccessTokens = accounts.access_tokens
        self.sync_tokens = SyncTokens(accounts.secret("sync"))
        self._lock: int | None = lock

    def __repr__(self) -> str:
        return f"<ServerData {self.ledger!r}>"

    def close(self) -> None:
        """Close the databases, then let go of the folder. May be called twice."""
        self.ledger.close()
        self.accounts.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def __enter__(self) -> ServerData:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_data(
    path: str | Path,
    *,
    clock: Callable[[], float] = time.time,
    hasher: argon2.PasswordHasher | None = None,
) -> ServerData:
    """Open the data folder to serve from it, making it at the first start.

    Raises ``StoreInUse`` if another server has it, ``StoreKeyError`` if the key is missing or does
    not fit, ``StoreFull``, ``StoreCorrupt``, ``StoreTooNew``, ``StoreUnavailable``.
    """
    folder = Path(path)
    with _folder_errors(folder), contextlib.ExitStack() as undo:
        _make_folder(folder)
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreInUse(
                f"another server uses {folder}", hint="stop it, or give this one a folder of its own"
            ) from error
        key = _key(folder)
        ledger = SqliteLedger(folder / LEDGER_FILE, derive_key(key, "ledger"))
        undo.callback(ledger.close)
        accounts = _open_accounts(folder, key, clock, hasher)
        undo.callback(accounts.close)
        data = ServerData(ledger=ledger, accounts=accounts, lock=lock)
        undo.pop_all()
        return data


def open_accounts(
    path: str | Path,
    *,
    clock: Callable[[], float] = time.time,
    hasher: argon2.PasswordHasher | None = None,
) -> Accounts:
    """Open only the accounts, also while a server runs; the folder is made if it is not there."""
    folder = Path(path)
    with _folder_errors(folder):
        _make_folder(folder)
        return _open_accounts(folder, _key(folder), clock, hasher)


def _open_accounts(
    folder: Path, key: bytes, clock: Callable[[], float], hasher: argon2.PasswordHasher | None
) -> Accounts:
    """Open them one process at a time: SQLite does not bear two that make the same file at once."""
    turn = os.open(folder / KEY_FILE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + OPENING_MAX_S
        while True:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StoreInUse(f"another process keeps opening {folder}") from error
                time.sleep(OPENING_RETRY_S)
        return Accounts(folder / ACCOUNTS_FILE, derive_key(key, "accounts"), clock=clock, hasher=hasher)
    finally:
        os.close(turn)


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
        _log.warning("others could enter the data folder: closed it to them")


def _key(folder: Path) -> bytes:
    """Read the key, or make it if there is nothing yet that another key could have encrypted."""
    file = folder / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        return _read_key(file)
    if any((folder / name).exists() for name in (LEDGER_FILE, ACCOUNTS_FILE)):
        # Another process may have made the key, then a database, since we looked.
        with contextlib.suppress(FileNotFoundError):
            return _read_key(file)
        raise StoreKeyError(f"{file} is missing", hint="put back the key these databases were made with")
    # Whole or not at all, and the first of two processes wins: a link does not replace.
    made = folder / f".{KEY_FILE}.{secrets.token_hex(8)}"
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(made, file)
    finally:
        made.unlink()
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return _read_key(file)


def _read_key(file: Path) -> bytes:
    key = file.read_bytes()
    if len(key) != KEY_BYTES:
        raise StoreKeyError(f"{file} is not a key", hint="put back the key these databases were made with")
    if file.stat().st_mode & 0o077:
        file.chmod(0o600)
        _log.warning("others could read %s: closed it to them", file.name)
    return key


@contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space left for {folder}") from error
        raise StoreUnavailable(f"{folder} cannot be used: {error.strerror}") from error
