"""Opening a client's store: in memory without a path, else the encrypted file and its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from whimbrel.client.driver import ClientStore
from whimbrel.errors import InvalidArgument
from whimbrel.store.keys import open_key
from whimbrel.store.memory import MemoryStore
from whimbrel.store.sqlite import SqliteStore


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
        return SqliteStore(path, key)
    return SqliteStore(path, open_key(path, place=key, passphrase=passphrase, prompt=prompt))
