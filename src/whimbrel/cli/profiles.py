"""Profiles: which server, which user, which store, by name.

One file each, ``$XDG_CONFIG_HOME/whimbrel/profiles/<name>.json``, which only its owner may read. A
profile holds no secret: the tokens are in the encrypted store, the store's key where ``store.keys``
keeps it. Stores are made in ``$XDG_DATA_HOME/whimbrel/stores``, one per server and user, so that
logging in again finds what was queued.

A file is replaced as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from whimbrel.errors import InvalidArgument, StoreFull, StoreUnavailable

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
_PLAIN = re.compile(r"[^a-z0-9._-]", re.ASCII)
_FILE_BYTES_MAX = 64 * 1024


class Profile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``login`` found out and the other commands use."""

    url: str
    user: str
    store: str
    """The path of the store."""
    key: str | None = None
    """The place of the store's key, if it was asked for by name (``file``)."""
    insecure: bool = False


def load(name: str) -> Profile | None:
    """Read a profile; None if there is none. Raises ``StoreUnavailable`` if it cannot be read."""
    path = path_of(name)
    with _file_errors(path):
        try:
            with path.open("rb") as file:
                text = file.read(_FILE_BYTES_MAX)
        except FileNotFoundError:
            return None
    try:
        return msgspec.json.decode(text, type=Profile)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise StoreUnavailable(
            f"the profile {path} is damaged", hint="remove that file and log in again"
        ) from error


def save(name: str, profile: Profile) -> None:
    """Write a profile. Raises ``StoreUnavailable``, ``StoreFull``."""
    path = path_of(name)
    with _file_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(profile)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            made.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                made.unlink()
            raise


def remove(name: str) -> None:
    """Forget a profile; the store stays."""
    path = path_of(name)
    with _file_errors(path):
        path.unlink(missing_ok=True)


def path_of(name: str) -> Path:
    """The file of a profile. Raises ``InvalidArgument`` for a name that cannot be one."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument("a profile's name has 1 to 64 of A-Z a-z 0-9 . _ -", hint="choose another name")
    return _folder("XDG_CONFIG_HOME", ".config") / "profiles" / f"{name}.json"


def store_path(url: str, user: str) -> Path:
    """Where the store of this user on this server is kept."""
    parts = urlsplit(url)
    server = f"{parts.hostname or ''}_{parts.port or parts.scheme}{parts.path.rstrip('/')}"
    return _folder("XDG_DATA_HOME", ".local/share") / "stores" / _plain(server) / f"{_plain(user)}.db"


def server_data_path() -> Path:
    """Where a server keeps its data unless told otherwise."""
    return _folder("XDG_DATA_HOME", ".local/share") / "server"


def _folder(variable: str, otherwise: str) -> Path:
    # The specification of these folders: a relative path is to be ignored.
    given = os.environ.get(variable, "")
    if given.startswith("/"):
        return Path(given) / "whimbrel"
    try:
        return Path.home() / otherwise / "whimbrel"
    except RuntimeError as error:
        raise StoreUnavailable("there is no home folder", hint=f"set HOME or {variable}") from error


def _plain(name: str) -> str:
    """A name that is one part of a path, whatever was in it."""
    return _PLAIN.sub("_", name.strip().casefold()).lstrip(".")[:100] or "_"


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"the disk of {path} is full") from error
        raise StoreUnavailable(f"{path} cannot be used: {error.strerror}") from error
