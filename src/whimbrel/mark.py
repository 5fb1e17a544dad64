"""The mark beside a database: which database it is, and what it must at least hold.

SQLite cannot tell that its log was lost, cut short, or replaced by an older one: it takes what it finds
for the truth, and committed transactions are missing without a word. So a database of ours counts its
transactions inside, and ``<file>.mark`` holds that count outside, written after each commit is on disk
and never synced: the write costs a microsecond. After ``kill -9`` the mark is exact; after a power cut it may
be some seconds old, and only ever says too little. **A database that counts less than its mark has lost
something.**

It also says whether a key is the right one, so that a wrong key and a damaged first page are told apart.
It holds nothing secret. A mark that is missing or unreadable proves nothing; then the database itself is
looked through.

Both sides use it: the client's store and the server's ledger.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from pathlib import Path

import msgspec

_RECORD = struct.Struct(">8sQ32s16s")
_MAGIC = b"whmark 1"
_SUM_BYTES = 8
_BYTES = _RECORD.size + _SUM_BYTES


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """What a mark says."""

    name: str
    """Of the database: the device of a store, the history of a ledger."""
    count: int
    fits: bool
    """Whether the key that was asked about is that of the database."""


def mark_path(database: Path) -> Path:
    """Where the mark of a database is."""
    return database.with_name(database.name + ".mark")


def read_mark(database: Path, key: bytes) -> Marked | None:
    """What the mark says of ``database`` and ``key``; None if there is none that can be read."""
    try:
        with mark_path(database).open("rb") as file:
            content = file.read(_BYTES + 1)
    except OSError:
        return None
    if len(content) != _BYTES or _sum(content[: _RECORD.size]) != content[_RECORD.size :]:
        return None
    magic, count, name, check = _RECORD.unpack(content[: _RECORD.size])
    if magic != _MAGIC:
        return None
    text = name.rstrip(b"\0").decode("ascii", "replace")
    return Marked(name=text, count=count, fits=check == _check(key))


def remove_mark(database: Path) -> None:
    """There is no such database any more."""
    mark_path(database).unlink(missing_ok=True)


class Mark:
    """The mark of an open database; ``note`` after each commit. For one thread at a time."""

    def __init__(self, database: Path, key: bytes, name: str, count: int) -> None:
        """Write the mark, durably. Raises OSError."""
        self._head = (name.encode("ascii"), _check(key))
        self._fd = os.open(mark_path(database), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._write(count)
            os.fsync(self._fd)
        except BaseException:
            self.close()
            raise

    def note(self, count: int) -> None:
        """The database has committed its transaction ``count``, durably. Never fails: a mark may be old."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._write(count)

    def close(self) -> None:
        """May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, count: int) -> None:
        name, check = self._head
        record = _RECORD.pack(_MAGIC, count, name, check)
        os.pwrite(self._fd, record + _sum(record), 0)


def _sum(record: bytes) -> bytes:
    return hashlib.blake2b(record, digest_size=_SUM_BYTES).digest()


def _check(key: bytes) -> bytes:
    """What shows that a key is the same, and nothing else about it."""
    return hashlib.blake2b(b"the key of this database", key=key, digest_size=16, person=b"whimbrel").digest()
