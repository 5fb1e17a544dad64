"""Where the key of a store lives, and how it is found again.

Three places, and never a plain one unless it is asked for by name:

* ``keyring``: the key store of the operating system, one entry per store (needs the extra
  ``keyring`` and a real, unlocked key store);
* ``passphrase``: a file ``<store>.key`` sealed under a passphrase (``store.sealing``);
* ``file``: a plain file ``<store>.key`` that only its owner may read.

A new store takes the place named; else ``passphrase`` if one was given; else ``keyring`` if it works;
else ``passphrase`` if someone can be asked for one. An existing store's key is found where it was put;
if it cannot be found, that is an error, and never a new key: it would open nothing.
"""

from __future__ import annotations

import base64
import binascii
import enum
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whimbrel.errors import InvalidArgument, StoreError, StoreKeyError
from whimbrel.store.faults import store_error
from whimbrel.store.files import ProcessLock
from whimbrel.store.schema import KEY_BYTES
from whimbrel.store.sealing import read_key_file, seal, unseal, write_key_file

PASSPHRASE_VARIABLE = "WHIMBREL_PASSPHRASE"  # noqa: S105 - a name
SERVICE = "whimbrel"
_KEYRING_PRIORITY_MIN = 1
"""Backends below it are not recommended by keyring itself: plain files, and the one that always fails."""

_HINT = (
    "three ways: install whimbrel[keyring] where the system has an unlocked key store; give a passphrase"
    f" (or set {PASSPHRASE_VARIABLE}); or ask for a plain key file by name (key='file')"
)


class KeyPlace(enum.StrEnum):
    """Where the key of a store is kept."""

    KEYRING = "keyring"
    PASSPHRASE = "passphrase"  # noqa: S105 - a name
    FILE = "file"


def open_key(
    path: str | os.PathLike[str],
    *,
    place: KeyPlace | str | None = None,
    passphrase: str | None = None,
    prompt: Callable[[bool], str | None] | None = None,
) -> bytes:
    """Find the key of the store at ``path``, or make and keep one for a new store: 32 bytes.

    The passphrase is ``passphrase``, else the environment's, else what ``prompt(new)`` returns
    (``new``: it is being chosen, so ask twice; None or empty: the person gave up). Blocks: a
    passphrase takes about 0.2 s, a key store may ask the person. Raises ``StoreKeyError`` if the key
    is not to be had, with the ways out in its hint; ``InvalidArgument`` for an unknown ``place``.
    """
    wanted = _place(place)
    if passphrase == "":
        raise InvalidArgument("the passphrase is empty")
    store = Path(path).absolute()
    given = passphrase or os.environ.get(PASSPHRASE_VARIABLE) or None
    file = key_path(store)
    try:
        key = _find(store, wanted, given, prompt)
        if key is not None:
            return key
        # Two programs that start for the first time together must not make two keys.
        store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = ProcessLock(store)
        try:
            return _find(store, wanted, given, prompt) or _make(store, wanted, given, prompt)
        finally:
            lock.release()
    except OSError as error:
        raise store_error(error, file) from error


def _find(
    store: Path, wanted: KeyPlace | None, given: str | None, prompt: Callable[[bool], str | None] | None
) -> bytes | None:
    """The key of the store, or None if it is yet to be made: there is neither a key nor a store."""
    file = key_path(store)
    if file.exists():
        return _from_file(file, wanted, given, prompt)
    # With a passphrase for a store that is yet to be made, the key store is not asked: that may take time.
    if wanted is KeyPlace.KEYRING or (wanted is None and (given is None or _in_use(store))):
        key = _from_keyring(store, must=wanted is KeyPlace.KEYRING or _in_use(store))
        if key is not None:
            return key
    if _in_use(store):
        raise StoreKeyError(f"the key of {store} is missing: neither {file} nor the key store has it")
    return None


def key_path(store: Path) -> Path:
    """The file beside the store that holds its key, sealed or (by request) plain."""
    return store.with_name(store.name + ".key")


def forget_key(path: str | os.PathLike[str]) -> None:
    """Remove the key of the store at ``path`` from wherever it is: what is in the store is lost for good."""
    store = Path(path).absolute()
    key_path(store).unlink(missing_ok=True)
    backend = _backend()
    if backend is not None:
        try:
            if backend.get_password(SERVICE, str(store)) is not None:
                backend.delete_password(SERVICE, str(store))
        except Exception as error:
            raise StoreKeyError(f"the key store did not answer ({type(error).__name__})") from error


def _place(place: KeyPlace | str | None) -> KeyPlace | None:
    if place is None:
        return None
    try:
        return KeyPlace(place)
    except ValueError as error:
        names = ", ".join(KeyPlace)
        raise InvalidArgument(f"a key is kept in one of: {names}") from error


def _in_use(store: Path) -> bool:
    return store.exists() and store.stat().st_size > 0


def _from_file(
    file: Path, wanted: KeyPlace | None, given: str | None, prompt: Callable[[bool], str | None] | None
) -> bytes:
    content = read_key_file(file)
    if isinstance(content, bytes):
        if wanted is not KeyPlace.FILE:
            raise StoreKeyError(f"{file} is a plain key file", hint="ask for it by name: key='file'")
        return content
    if wanted is not None and wanted is not KeyPlace.PASSPHRASE:
        raise StoreKeyError(f"the key of this store is sealed in {file}, not kept in: {wanted}")
    words = given or _asked(prompt, new=False)
    if words is None:
        raise StoreKeyError(f"{file} needs its passphrase")
    return unseal(content, words, file)


def _make(
    store: Path, wanted: KeyPlace | None, given: str | None, prompt: Callable[[bool], str | None] | None
) -> bytes:
    key = os.urandom(KEY_BYTES)
    if wanted is KeyPlace.FILE:
        write_key_file(key_path(store), key)
        return key
    if wanted is KeyPlace.KEYRING or (wanted is None and given is None):
        if _to_keyring(store, key):
            return key
        if wanted is KeyPlace.KEYRING:
            raise StoreKeyError("there is no working key store on this system", hint=_HINT)
    words = given or _asked(prompt, new=True)
    if words is None:
        raise StoreKeyError("there is no place to keep the key of this store", hint=_HINT)
    write_key_file(key_path(store), seal(key, words))
    return key


def _asked(prompt: Callable[[bool], str | None] | None, *, new: bool) -> str | None:
    return (prompt(new) or None) if prompt is not None else None


# --- the key store of the operating system -----------------------------------------------------


def _backend() -> Any | None:
    """The key store to use, or None: the extra is not installed, or there is none that is safe."""
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        return None
    try:
        found = keyring.get_keyring()
        for backend in getattr(found, "backends", [found]):  # several at once, the best first
            if backend.priority >= _KEYRING_PRIORITY_MIN:
                return backend
    except Exception:  # noqa: BLE001 - a backend that cannot even be asked is none
        return None
    return None


def _from_keyring(store: Path, *, must: bool) -> bytes | None:
    """The key, or None if there is none. ``must``: a key store that does not answer is an error."""
    backend = _backend()
    if backend is None:
        if must:
            raise StoreKeyError(
                f"the key of {store} is missing, and there is no key store to ask", hint=_HINT
            )
        return None
    try:
        text = backend.get_password(SERVICE, str(store))
    except Exception as error:
        if not must:
            return None
        raise StoreKeyError(
            f"the key store did not answer ({type(error).__name__})", hint="unlock it, then try again"
        ) from error
    if text is None:
        return None
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise StoreKeyError(f"the entry of {store} in the key store is damaged")
    return key


def _to_keyring(store: Path, key: bytes) -> bool:
    """Keep the key, and prove that it can be had again; False if there is no key store that does."""
    backend = _backend()
    if backend is None:
        return False
    try:
        backend.set_password(SERVICE, str(store), base64.b64encode(key).decode())
        return _from_keyring(store, must=True) == key
    except StoreError:
        return False
    except Exception:  # noqa: BLE001 - backends raise what their system raises
        return False
