"""The server's SQLite files: opened encrypted, brought to the present schema, their errors made ours.

A file is encrypted with a raw 32-byte key, in WAL mode with ``synchronous=FULL``: a committed
transaction survives a power cut, and other processes read and write beside us (``user add`` while
the server runs). Migrations are numbered ``migrations/<name>_<number>.sql`` files; ``user_version``
says which have run, each runs in a transaction, and two processes that start at once run it once.

What the files hold is left to ``ledger_sqlite`` and ``accounts``.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from whimbrel.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreKeyError,
    StoreTooNew,
    StoreUnavailable,
)

KEY_BYTES = 32
BUSY_TIMEOUT_MS = 10_000
READERS_MAX = 8
PAGE_SIZE_BYTES = 2048
"""A batch touches the last page of many conversations, and each page is encrypted and written twice."""
CACHE_KIB = 32 * 1024
CHECKPOINT_PAGES = 8_000

MACHINE_ERRORS = (
    apsw.FullError,
    apsw.IOError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.ProtocolError,
    apsw.InterruptError,
    apsw.ConnectionClosedError,
    MemoryError,
)
"""What is the machine's doing, and not that of the row being written."""

_MIGRATIONS = Path(__file__).parent / "migrations"


def derive_key(key: bytes, purpose: str) -> bytes:
    """Give the key of one file from the server's own; knowing one of them tells nothing of the others."""
    return hashlib.blake2b(purpose.encode(), key=key, digest_size=KEY_BYTES, person=b"whimbrel").digest()


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Raise what SQLite says about the file ``path`` as one of our ``StoreError``s."""
    try:
        yield
    except apsw.Error as error:
        raise store_error(error, path) from error


def store_error(error: apsw.Error, path: Path) -> StoreError:
    """Say whose trouble an error of SQLite is; the text names the file and never a value."""
    match error:
        case apsw.FullError():
            return StoreFull(f"no space left for {path.name}")
        case apsw.NotADBError():
            return StoreKeyError(f"the key does not open {path.name}", hint="restore the server.key it had")
        case apsw.CorruptError():
            return StoreCorrupt(f"{path.name} is damaged", hint="restore it from a backup")
        case apsw.BusyError() | apsw.LockedError():
            return StoreInUse(f"{path.name} is locked by another process")
        case _:
            return StoreUnavailable(f"{path.name} cannot be used ({type(error).__name__})")


def connect(path: Path, key: bytes, *, writes: bool = True) -> apsw.Connection:
    """Open one connection with the raw ``key``; ``writes=False``: it refuses to change anything."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes")
    connection = apsw.Connection(str(path))
    try:
        # Until the key is proven, closing writes nothing of the log back; one that only reads never does.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.pragma("key", f"raw:{key.hex()}")
        # Heeded while the file is empty, and where a power cut tore its first page: what the log has of that
        # page can only be deciphered by who knows its size.
        connection.pragma("page_size", PAGE_SIZE_BYTES)
        if writes:
            if connection.pragma("journal_mode") != "wal":
                connection.pragma("journal_mode", "wal")
            # A power cut may undo the removal of the journal that making the file took, or that rolled a
            # cut-off attempt back: found again, it would undo everything committed since.
            sync_folder(path)
            connection.pragma("cache_size", -CACHE_KIB)
            connection.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        else:
            connection.pragma("query_only", True)
        connection.pragma("synchronous", "full")
        connection.pragma("temp_store", "memory")
        connection.pragma("trusted_schema", False)
        # The first read is where a wrong key shows.
        connection.pragma("user_version")
        if writes:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    except BaseException:
        connection.close()
        raise
    return connection


def sync_folder(path: Path) -> None:
    """Make the names in the folder of ``path`` durable. Raises ``apsw.IOError``."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise apsw.IOError(f"the folder of {path.name} cannot be synced") from error


def migrate(connection: apsw.Connection, name: str) -> None:
    """Run the migrations of ``name`` that this file has not seen. Raises ``StoreTooNew`` for a newer file."""
    scripts = sorted(_MIGRATIONS.glob(f"{name}_*.sql"))
    latest = len(scripts)
    if connection.pragma("user_version") == latest:
        return
    for number, script in enumerate(scripts, 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Asked again under the lock: another process may have come first.
            if connection.pragma("user_version") < number:
                connection.execute(script.read_text(encoding="utf-8"))
                connection.pragma("user_version", number)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    if connection.pragma("user_version") > latest:
        raise StoreTooNew(f"the {name} was written by a newer version")


class Readers:
    """Read-only connections to one file, lent to one thread at a time; at most ``READERS_MAX`` at once."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key
        self._slots = threading.BoundedSemaphore(READERS_MAX)
        self._lock = threading.Lock()
        self._idle: list[apsw.Connection] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"<Readers of {self._path.name}>"

    @contextmanager
    def snapshot(self) -> Iterator[apsw.Cursor]:
        """Lend a connection that sees one committed state until the block ends."""
        with self._slots:
            connection = self._take()
            try:
                cursor = connection.cursor()
                cursor.execute("BEGIN")
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                # What state it is in does not matter: a new one costs less than a millisecond.
                connection.close()
                raise
            self._give_back(connection)

    def _take(self) -> apsw.Connection:
        with self._lock:
            if self._closed:
                raise apsw.ConnectionClosedError("closed")
            if self._idle:
                return self._idle.pop()
        return connect(self._path, self._key, writes=False)

    def _give_back(self, connection: apsw.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle; what is lent is closed when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
