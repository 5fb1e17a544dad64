"""Backups of a data folder, taken while the server runs, and going back to one.

A backup is a folder of its own: consistent copies of both databases, encrypted as they are, the key they
are under (unless it is to be kept apart), and a manifest with digests. The ledger is copied first, so
that everyone it names is in the accounts. A backup is read through before it gets its name, and is synced:
a folder of that name is whole, or it was changed later, which the digests tell.

Going back begins a **new history**: what was settled after the backup is unknown to it, so clients
must not take the restored log for the one they know. They fetch it anew, and offer again what it lacks.
The restored folder, too, is made beside and renamed. The one it replaces is kept under a name that says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import msgspec

from whimbrel.errors import (
    InvalidArgument,
    StoreCorrupt,
    StoreFull,
    StoreInUse,
    StoreKeyError,
    StoreTooNew,
    StoreUnavailable,
)
from whimbrel.server.data import ACCOUNTS_FILE, KEY_FILE, LEDGER_FILE, LOCK_FILE
from whimbrel.server.database import KEY_BYTES, connect, derive_key, store_errors
from whimbrel.server.integrity import DAMAGE, damaged, read_through
from whimbrel.server.ledger_sqlite import SqliteLedger

MANIFEST_FILE = "backup.json"
MANIFEST_BYTES_MAX = 64 * 1024
FORMAT = 1
PAGES_AT_ONCE = 2_000
_PURPOSES = {LEDGER_FILE: "ledger", ACCOUNTS_FILE: "accounts"}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says of itself."""

    format: int = FORMAT
    made_at: float
    """Wall clock."""
    history: str
    commit: int
    """Up to which commit of which history it goes."""
    files: dict[str, str]
    """File → BLAKE2b digest, in hex."""


def back_up(data: Path, target: Path, *, with_key: bool = True) -> Manifest:
    """Copy the data folder ``data``, also while it is served from, into the new folder ``target``.

    Durable on return. ``with_key=False``: without ``server.key``, to be kept elsewhere; whoever has both can
    read everything. Raises ``InvalidArgument`` if ``target`` is there already, ``StoreKeyError``,
    ``StoreCorrupt`` if what was copied is damaged, ``StoreFull``, ``StoreUnavailable``; then there is no
    ``target``.
    """
    if target.exists():
        raise InvalidArgument(f"{target} is there already", hint="give the name of a new folder")
    with _folder_errors(target), _made_beside(target) as folder:
        key = _key_of(data / KEY_FILE)
        for name, purpose in _PURPOSES.items():
            if not (data / name).exists():
                raise StoreUnavailable(f"there is no {name} in {data}", hint="give the server's data folder")
            _copy_database(data / name, folder / name, derive_key(key, purpose))
        with store_errors(folder / LEDGER_FILE):
            db = connect(folder / LEDGER_FILE, derive_key(key, "ledger"), writes=False)
            try:
                history, commit = db.execute("SELECT history, clock FROM meta").get
            finally:
                db.close()
        if with_key:
            _write(folder / KEY_FILE, key)
        files = {file.name: _digest(file) for file in sorted(folder.iterdir())}
        manifest = Manifest(made_at=time.time(), history=history, commit=commit, files=files)
        _write(folder / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def restore(backup: Path, data: Path, *, key_file: Path | None = None, replace: bool = False) -> Path | None:
    """Make ``data`` what the backup holds, with a new history. No server may run on it.

    ``key_file``: the key, if the backup was made without. ``replace``: a folder that is there is kept under
    another name, which is given. Durable on return. Raises ``InvalidArgument`` if there is something at
    ``data`` and ``replace`` was not said, ``StoreInUse`` while a server runs there, ``StoreCorrupt`` for a
    backup that is not whole, ``StoreKeyError``, ``StoreTooNew``, ``StoreFull``, ``StoreUnavailable``; then
    ``data`` is as it was.
    """
    manifest = _checked(backup)
    with _folder_errors(data), contextlib.ExitStack() as undo:
        key = _key_of(key_file if key_file is not None else backup / KEY_FILE)
        there = data.exists() and (not data.is_dir() or any(data.iterdir()))
        if there and not replace:
            raise InvalidArgument(
                f"{data} is not empty", hint="with --replace it is kept under another name, and replaced"
            )
        if there and data.is_dir():
            undo.enter_context(_alone(data))
        kept = _free_name(data) if there or data.is_symlink() else None
        with _made_beside(data, kept=kept) as folder:
            for name, purpose in _PURPOSES.items():
                shutil.copyfile(backup / name, folder / name)
                (folder / name).chmod(0o600)
                _read_whole(folder / name, derive_key(key, purpose))
            _write(folder / KEY_FILE, key)
            ledger = SqliteLedger(folder / LEDGER_FILE, derive_key(key, "ledger"))
            try:
                if (ledger.history, ledger.commit) != (manifest.history, manifest.commit):
                    raise damaged(backup / LEDGER_FILE, "it is not the one of its manifest")
                ledger.begin_new_history()
            finally:
                ledger.close()
        return kept if there else None


def _checked(backup: Path) -> Manifest:
    """Read the manifest and compare every file with it."""
    with _folder_errors(backup):
        file = backup / MANIFEST_FILE
        if not file.is_file():
            raise InvalidArgument(f"{backup} is no backup", hint="give a folder that `whimbrel backup` made")
        try:
            if file.stat().st_size > MANIFEST_BYTES_MAX:
                raise ValueError
            manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
        except ValueError as error:
            raise StoreCorrupt(f"{file} is damaged", hint="use another backup") from error
        if manifest.format > FORMAT:
            raise StoreTooNew(f"{backup} was made by a newer version")
        for name in (*_PURPOSES, *(name for name in manifest.files if name == KEY_FILE)):
            copy = backup / name
            if not copy.is_file() or _digest(copy) != manifest.files.get(name):
                raise StoreCorrupt(f"{copy} is missing or damaged", hint="use another backup")
    return manifest


def _copy_database(source: Path, target: Path, key: bytes) -> None:
    """One committed state of an open database, whole and in one file."""
    with store_errors(source):
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            reading = connect(source, key, writes=False)
            try:
                writing = connect(target, key)
                try:
                    # A transaction holds one state still: else every commit would begin the copy anew.
                    reading.execute("BEGIN")
                    reading.execute("SELECT count(*) FROM sqlite_schema").fetchall()
                    with writing.backup("main", reading, "main") as copying:
                        while not copying.done:
                            copying.step(PAGES_AT_ONCE)
                    reading.execute("COMMIT")
                    writing.pragma("journal_mode", "delete")
                finally:
                    writing.close()
            finally:
                reading.close()
        except DAMAGE as error:
            if isinstance(error, apsw.NotADBError):
                raise
            raise damaged(source, "a page is not what was written") from error
    _read_whole(target, key)
    _sync(target)


def _read_whole(file: Path, key: bytes) -> None:
    with store_errors(file):
        db = connect(file, key, writes=False)
        try:
            read_through(db, file)
        finally:
            db.close()


def _key_of(file: Path) -> bytes:
    try:
        key = file.read_bytes()
    except FileNotFoundError as error:
        raise StoreKeyError(f"there is no key at {file}", hint="give it with --key-file") from error
    if len(key) != KEY_BYTES:
        raise StoreKeyError(f"{file} is not a key")
    return key


# --- folders -----------------------------------------------------------------------------------


@contextmanager
def _made_beside(folder: Path, *, kept: Path | None = None) -> Iterator[Path]:
    """A new folder that gets its name when all is in it and synced; none is left if that fails.

    ``kept``: the name that what is there now gets, and loses again if that fails. An empty folder gives way.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    try:
        yield made
        for file in made.iterdir():
            _sync(file)
        _sync(made)
        if kept is not None:
            folder.rename(kept)
        try:
            made.rename(folder)
        except BaseException:
            if kept is not None:
                with contextlib.suppress(OSError):
                    kept.rename(folder)
            raise
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _free_name(folder: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    number = 1
    while True:
        kept = folder.with_name(f"{folder.name}.replaced-{stamp}-{number:03}")
        if not kept.exists():
            return kept
        number += 1


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """While no server has the data folder, and none takes it."""
    lock = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StoreInUse(f"a server uses {data}", hint="stop it first") from error
    finally:
        os.close(lock)


def _write(file: Path, content: bytes) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(content)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"{error.filename or folder}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space left for {folder}") from error
        raise StoreUnavailable(text) from error
