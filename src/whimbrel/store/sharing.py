"""Who syncs a store: the process that holds its lock. Every other one is a guest in it.

A guest opens the same file under the same key: it reads as the owner does, and writes only what is
its own (``store.handoff``, the positions of its consumers). It neither makes the file nor changes its
schema: that is the owner's, so a guest waits until the owner has done it.
"""

from __future__ import annotations

import time
from pathlib import Path

import apsw

from whimbrel.errors import StoreInUse, StoreTooNew
from whimbrel.store.files import ProcessLock
from whimbrel.store.schema import connect, migrations

MAKING_S = 10.0
"""How long another process may take to make the store, or to bring its schema up to date."""
_LOOK_AGAIN_S = 0.02


def enter(path: Path, key: bytes) -> ProcessLock | None:
    """The lock of the store, or None when another process has it and the store can be used beside it.

    Raises ``StoreInUse`` if it cannot: its owner is of an older version, or does not come to an end
    with making it. Raises ``StoreTooNew``, and what ``connect`` raises.
    """
    until = time.monotonic() + MAKING_S
    while True:
        try:
            return ProcessLock(path)
        except StoreInUse:
            if _is_ready(path, key):
                return None
        if time.monotonic() >= until:
            raise StoreInUse(
                f"the program that syncs {path} is of an older version, or still making it",
                hint="close it; then it works with this one",
            )
        time.sleep(_LOOK_AGAIN_S)


def _is_ready(path: Path, key: bytes) -> bool:
    """Whether the store is made, and of the schema that this version knows."""
    try:
        db = connect(path, key, reader=True)
    except (apsw.CantOpenError, apsw.BusyError):
        return False
    try:
        version, newest = db.pragma("user_version"), len(migrations())
        if version > newest:
            raise StoreTooNew(f"{path} has schema {version}, this version of whimbrel knows {newest}")
        return version == newest and bool(db.execute("SELECT 1 FROM meta WHERE name = 'device'").fetchall())
    finally:
        db.close(True)
