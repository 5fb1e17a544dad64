"""Whether a ledger is whole: looked at before the server takes anything from it, and again beside its work.

What is missing at its end is told by its mark (``whimbrel.mark``): the ledger's clock must not be behind
it. What is damaged within is found by reading: the cipher authenticates every page. A small ledger is read
through before serving; a larger one beside it, on a thread (``Watch``), so that damage is found while
backups from before it still exist.

A damaged ledger is left as it is and nothing is served from it: what the server has, it alone has, and which
backup to go back to is for people to decide.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

import apsw

from whimbrel.errors import StoreCorrupt
from whimbrel.mark import read_mark
from whimbrel.server.database import connect

_log = logging.getLogger(__name__)

READ_FIRST_BYTES = 64 * 1024 * 1024
"""Up to this size a ledger is read through before it is served from: some tenths of a second."""
ENDING_RETRY_S = 0.05
DAMAGE = (apsw.CorruptError, apsw.NotADBError)
"""What SQLite says of a page that is not what was written."""


def damaged(path: Path, reason: str) -> StoreCorrupt:
    """The error that says so, with the way out."""
    return StoreCorrupt(
        f"{path.name} is damaged: {reason}; nothing was changed",
        hint=f"restore a backup: whimbrel restore BACKUP --data {shlex.quote(str(path.parent))} --replace",
    )


def key_is_right(path: Path, key: bytes) -> bool:
    """Whether the mark says so: then a first page that does not open is damaged."""
    mark = read_mark(path, key)
    return mark is not None and mark.fits


def examine(db: apsw.Connection, path: Path, key: bytes) -> None:
    """Look at an open ledger, its log included. Raises ``StoreCorrupt``, ``apsw.Error``; writes nothing."""
    found = []
    if db.pragma("user_version"):
        found = db.execute("SELECT history, clock FROM meta").fetchall()
    mark = read_mark(path, key)
    if mark is not None and mark.fits:
        ((history, clock),) = found or [(mark.name, 0)]
        if history != mark.name:
            raise damaged(path, "it is not the one that was served from here")
        assert isinstance(clock, int)
        missing = mark.count - clock
        if missing > 0:
            raise damaged(path, f"its last {missing} commits are missing")
    size_bytes = int(db.pragma("page_count")) * int(db.pragma("page_size"))
    if size_bytes <= READ_FIRST_BYTES or mark is None:
        read_through(db, path)


def read_through(db: apsw.Connection, path: Path) -> None:
    """Read every page, and see that they fit together. Raises ``StoreCorrupt``, ``apsw.Error``."""
    for (finding,) in db.execute("PRAGMA quick_check(1)"):
        if finding != "ok":
            raise damaged(path, "its structure is broken")


class Watch:
    """Reads a ledger through, once, on a thread beside the server."""

    def __init__(self, path: Path, key: bytes, on_damage: Callable[[StoreCorrupt], None]) -> None:
        """``on_damage`` is called on its thread, at most once."""
        self._path = path
        self._key = key
        self._on_damage = on_damage
        self._db: apsw.Connection | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="ledger-check", daemon=True)

    def __repr__(self) -> str:
        return f"<Watch of {self._path.name}>"

    def start(self) -> None:
        """Begin, if it is too large to have been read before."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_size > READ_FIRST_BYTES:
                self._thread.start()

    def end(self) -> None:
        """Stop reading and wait until it has. May be called twice, or without ``start``."""
        self._ended = True
        while self._thread.is_alive():
            with self._lock:
                # Again and again: an interruption that comes before the reading begins is none.
                if self._db is not None:
                    self._db.interrupt()
            self._thread.join(ENDING_RETRY_S)

    def _read(self) -> None:
        try:
            db = connect(self._path, self._key, writes=False)
            with self._lock:
                self._db = db
                if self._ended:
                    return
            read_through(db, self._path)
            _log.info("%s was read through and is whole", self._path.name)
        except StoreCorrupt as error:
            self._on_damage(error)
        except DAMAGE:
            self._on_damage(damaged(self._path, "a page is not what was written"))
        except apsw.Error as error:
            if not self._ended:
                _log.warning("%s could not be read through: %s", self._path.name, type(error).__name__)
        finally:
            with self._lock:
                if self._db is not None:
                    self._db.close(True)
                    self._db = None
