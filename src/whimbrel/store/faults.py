"""What an error of SQLite or of the file system means to the one who uses the store.

The one place that says which ``StoreError`` it is and what to do next. Texts name the file, never
what is in it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import apsw

from whimbrel.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreKeyError,
    StoreUnavailable,
)

NO_ROOM_BYTES = 64 * 1024
"""With less than this free, a failed write is put down to a full disk (SQLite reports some as I/O errors)."""


def store_error(error: Exception, path: Path, *, opening: bool = False) -> StoreError:
    """Translate; ``opening``: the key was not proven yet, so a file that makes no sense may be another's."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, OSError):
        return _of_system(error, path)
    if isinstance(error, apsw.FullError):
        return StoreFull(f"the disk of {path} is full")
    if isinstance(error, apsw.IOError):
        if free_bytes(path.parent) < NO_ROOM_BYTES:
            return StoreFull(f"the disk of {path} is full")
        return StoreUnavailable(
            f"the disk of {path} failed (I/O error)", hint="check the disk; the store tries again by itself"
        )
    if isinstance(error, apsw.NotADBError) and opening:
        return StoreKeyError(f"{path} does not open with this key: the key is wrong, or the file is no store")
    for kinds, meaning, text in _MEANINGS:
        if isinstance(error, kinds):
            return meaning(f"{path} {text}")
    return StoreError(f"{path}: {type(error).__name__}")


_MEANINGS: tuple[tuple[tuple[type[Exception], ...], type[StoreError], str], ...] = (
    ((apsw.NotADBError, apsw.CorruptError), StoreCorrupt, "is damaged"),
    ((apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError), StoreUnavailable, "may not be written"),
    ((apsw.CantOpenError,), StoreUnavailable, "cannot be opened"),
    ((apsw.BusyError, apsw.LockedError), StoreInUse, "is held locked by another program"),
    ((OverflowError, UnicodeError), StoreError, "cannot hold one of the values: out of range"),
)


def _of_system(error: OSError, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"the disk of {path} is full")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreUnavailable(f"{path} cannot be opened: {reason}")


def free_bytes(folder: Path) -> int:
    """What this process may still write on the disk of ``folder``; 0 if that cannot be told."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize
