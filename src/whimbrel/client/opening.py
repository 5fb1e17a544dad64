"""Opening a client's store: in memory without a path, else the encrypted file and its key.

A file may be open in several clients, of one process or many: one syncs it, the others are its guests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from whimbrel.client.role import ClientStore
from whimbrel.errors import InvalidArgument, StoreInUse
from whimbrel.store.keys import open_key
from whimbrel.store.memory import MemoryStore
from whimbrel.store.sharing import MAKING_S
from whimbrel.store.sqlite import SqliteStore

_AGAIN_S = 0.05


def open_store(
    path: Path | None,
    key: bytes | str | None,
    passphrase: str | None,
    prompt: Callable[[bool], str | None] | None,
) -> ClientStore:
    """Open or make the store. Blocks. Raises ``StoreError``; then nothing is left open."""
    if path is None:
        if key is not None or passphrase is not None:
            raise InvalidArgument("a key or passphrase needs a store on disk", hint="give store=path")
        return MemoryStore()
    if isinstance(key, bytes):
        if passphrase is not None:
            raise InvalidArgument("give a key or a passphrase, not both")
        return SqliteStore(path, key, shared=True)
    until = time.monotonic() + MAKING_S
    while True:
        try:
            raw = open_key(path, place=key, passphrase=passphrase, prompt=prompt)
            break
        except StoreInUse:  # another program is making the store, and its key, at this instant
            if time.monotonic() >= until:
                raise
            time.sleep(_AGAIN_S)  # on a thread: it blocks, as it says
    return SqliteStore(path, raw, shared=True)
