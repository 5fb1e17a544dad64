"""How the store's database is opened: the cipher, its settings, and the numbered migrations.

Every connection goes through ``connect``, so none can be plain. The key is raw (32 random bytes): it
is used as it is, without the derivation a passphrase needs. The schema's version is SQLite's
``user_version``; migration *n* takes a file from *n - 1* to *n*, in one transaction.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import apsw

from whimbrel.errors import StoreTooNew, StoreUnavailable

CIPHER = "chacha20"
KEY_BYTES = 32
BUSY_TIMEOUT_MS = 10_000
CACHE_KIB = 8 * 1024
WAL_PAGES = 512
"""How long the log gets before it is written back to the file: 2 MiB."""
PAGE_BYTES = 4096


def connect(path: Path, key: bytes, *, reader: bool = False) -> apsw.Connection:
    """Open the existing (or empty) file under ``key``. Raises ``apsw.NotADBError`` if it does not fit.

    A key that does not fit leaves the file as it is, and the log beside it, which may hold committed
    pages: until the key is proven, closing the connection writes nothing back.
    """
    flags = apsw.SQLITE_OPEN_READONLY if reader else apsw.SQLITE_OPEN_READWRITE
    db = apsw.Connection(str(path), flags=flags, statementcachesize=64)
    try:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        if db.pragma("cipher", CIPHER) != CIPHER:
            raise StoreUnavailable(
                "this SQLite cannot encrypt",
                hint="install apsw-sqlite3mc, and remove the plain apsw, which hides it",
            )
        db.pragma("key", f"raw:{key.hex()}")
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        # Heeded while the file is empty, and where a power cut tore its first page: what the log has of that
        # page can only be deciphered by who knows its size.
        db.pragma("page_size", PAGE_BYTES)
        db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        db.pragma("cache_size", -CACHE_KIB)
        db.pragma("temp_store", "memory")
        if not reader:
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            db.pragma("journal_mode", "wal")
            # A power cut may undo the removal of the journal that making the file took, or that rolled a
            # cut-off attempt back: found again, it would undo everything committed since.
            sync_folder(path)
            db.pragma("synchronous", "full")
            db.pragma("fullfsync", 1)  # where fsync alone does not reach the disk
            db.pragma("wal_autocheckpoint", WAL_PAGES)
            db.pragma("journal_size_limit", WAL_PAGES * PAGE_BYTES)
    except BaseException:
        db.close(True)
        raise
    return db


def sync_folder(path: Path) -> None:
    """Make the names in the folder of ``path`` durable. Raises OSError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def migrations() -> list[tuple[int, str]]:
    """All migrations as (version, SQL), contiguous from 1."""
    folder = resources.files("whimbrel.store").joinpath("migrations")
    found = sorted(
        (int(file.name.split("_", 1)[0]), file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    )
    assert [version for version, _ in found] == list(range(1, len(found) + 1)), "migrations have a gap"
    return found


def migrate(db: apsw.Connection, path: Path) -> None:
    """Bring the schema up to this version. Raises ``StoreTooNew`` and changes nothing if it is beyond it."""
    steps = migrations()
    version = db.pragma("user_version")
    if version > len(steps):
        raise StoreTooNew(f"{path} has schema {version}, this version of whimbrel knows {len(steps)}")
    for number, sql in steps[version:]:
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(sql)
            db.pragma("user_version", number)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
