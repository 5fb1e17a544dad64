"""Opening a store's file with open eyes: is it ours, is it whole, is anything missing at its end?

What is looked at costs nothing per message: the first pages, which the cipher authenticates, and the
count of transactions against the mark (``whimbrel.mark``). Every other page is authenticated when it is
read. A store without a readable mark (moved here without it, or of an older version) is looked through
as a whole, this once.

What is not whole is told as ``Damage``, and nothing was written then: SQLite would take the end of a
log that it cannot read for nothing and write over it. A file that is evidently none of ours is refused
(``NotAStore``) and left alone, as it is with a key that does not fit; neither is ever set aside. Whether
a first page that does not open is damaged or under another key is told by the mark, else by any other
page that opens.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import apsw

from whimbrel.errors import NotAStore, StoreCorrupt
from whimbrel.mark import Marked, read_mark, remove_mark
from whimbrel.store import reader, salvage
from whimbrel.store.pages import HEADER, Pages
from whimbrel.store.schema import connect, migrate

_log = logging.getLogger("whimbrel")


class Damage(StoreCorrupt):
    """The store is damaged, and can be made anew."""

    def __init__(self, path: Path, reason: str, *, missing: int = 0) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.reason = reason
        self.missing = missing
        """How many whole transactions are gone."""


def open_whole(path: Path, key: bytes) -> apsw.Connection:
    """Open the store, made if it is missing and brought up to this version's schema.

    Raises ``Damage``, ``NotAStore``, ``StoreTooNew``, ``apsw.NotADBError`` (the key is wrong) and other
    ``apsw.Error``, OSError.
    """
    salvage.finish(path)
    mark = read_mark(path, key)
    made = not path.exists()
    if made:
        if _has_log(path) and _opens(path, key):
            raise Damage(path, "only its log is left")
        remove_mark(path)  # of a store that somebody took away
        mark = None
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    elif path.stat().st_size == 0 and _has_log(path) and _opens(path, key):
        raise Damage(path, "it is empty")  # SQLite would throw the log away
    try:
        db = connect(path, key)
    except apsw.CorruptError as error:
        raise Damage(path, "a page is not what was written") from error
    except apsw.NotADBError as error:
        if (mark is not None and mark.fits) or _opens(path, key):
            raise Damage(path, "its first page is not what was written") from error
        if not _looks_like_a_store(path):
            raise NotAStore(f"{path} is not a store of whimbrel") from error
        raise
    try:
        _check(db, path, mark)
        migrate(db, path)
        if made:
            _sync_folder(path)
    except apsw.CorruptError as error:
        leave(db)
        raise Damage(path, "a page is not what was written") from error
    except BaseException:
        leave(db)
        raise
    return db


def make_anew(path: Path, key: bytes, damage: Damage, *, device: str = "") -> None:
    """Set a damaged store aside and make it anew; the report is in the new one.

    ``device``: if it is known from before the damage. Raises ``apsw.Error``, OSError.
    """
    mark = read_mark(path, key)
    known = mark is not None and mark.fits
    report = salvage.rebuild(
        path,
        key,
        device=mark.name if mark is not None and known else device,
        count=mark.count if mark is not None and known else 0,
        reason=damage.reason,
        short=damage.missing > 0,
    )
    _log.warning(
        "the store was damaged (%s) and made anew; the old one is %s; kept to send: %d, lost: %d%s",
        report.reason,
        report.kept_at,
        report.salvaged,
        len(report.lost),
        " and perhaps more" if report.lost_unknown else "",
    )


def leave(db: apsw.Connection) -> None:
    """Close it and write nothing back: the log may hold what is still to be read."""
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.close(True)


def committed(db: apsw.Connection, device: str) -> int:
    """How many transactions the store has counted."""
    count: int | None = reader.value(
        db, "SELECT value FROM marks WHERE name = ?", (salvage.count_name(device),)
    )
    return count or 0


def _check(db: apsw.Connection, path: Path, mark: Marked | None) -> None:
    device, count = "", 0
    if db.pragma("user_version"):
        device = reader.value(db, "SELECT value FROM meta WHERE name = 'device'") or ""
        count = committed(db, device)
    if mark is None or not mark.fits:
        for (finding,) in db.execute("PRAGMA quick_check(1)"):
            if finding != "ok":
                raise Damage(path, "its structure is broken")
        return
    if device != mark.name:
        raise Damage(path, "it is another store's, or empty", missing=mark.count)
    if count < mark.count:
        missing = mark.count - count
        raise Damage(path, f"its last {missing} transactions are missing", missing=missing)


def _opens(path: Path, key: bytes) -> bool:
    with Pages(path, key) as pages:
        return pages.authentic()


def _looks_like_a_store(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(24)
    return head[16:24] == HEADER and path.stat().st_size >= 4096


def _has_log(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or a power cut may forget the name of the new file
    finally:
        os.close(folder)
