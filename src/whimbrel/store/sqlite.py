"""The store on disk: one encrypted SQLite file, one writer, a few readers.

Always encrypted (ChaCha20-Poly1305 on every page and on the log, raw key), always durable
(``synchronous=FULL``): when ``apply`` returns, its changes survive a power cut.

States: open → closed; while open, *sound* or *broken*. An I/O error makes it broken: the next call
closes all connections and opens the file afresh, and raises if that fails. One process at a time
owns the store; the lock is held from opening to closing. Opened ``shared``, it may be a guest beside
the owner (``store.sharing``), and the owner later on (``take_over``). A guest whose file was replaced
by another under its name opens that one.

When the disk is full, what an app newly queues is refused first. What drains the outbox may use the
ballast, room kept on the disk for that; it is taken again when the disk has space.

Left to others: which key (``store.keys``), what to write (the engine), on which thread (the driver).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import apsw

from whimbrel.core.contract import Changes, HandedOver, MessageRow, Snapshot, TakeHandoff
from whimbrel.errors import InvalidArgument, StoreCorrupt, StoreError, StoreFull, StoreInUse, StoreUnavailable
from whimbrel.mark import Mark
from whimbrel.model import Conversation, Message
from whimbrel.store import handoff, reader
from whimbrel.store.device import new_device_id
from whimbrel.store.faults import store_error
from whimbrel.store.files import Ballast, ProcessLock
from whimbrel.store.handoff import Limits, Outcome
from whimbrel.store.integrity import Damage, committed, leave, make_anew, open_whole
from whimbrel.store.reader import Readers
from whimbrel.store.schema import KEY_BYTES, connect
from whimbrel.store.sharing import enter
from whimbrel.store.writer import counted, queues, roll_back, write

_FAULTS = (apsw.Error, OSError, OverflowError, UnicodeError)
_REPLACED_MAX = 3
_REBUILDS_MAX = 3


class SqliteStore:
    """The encrypted store at ``path`` under a raw ``key`` of 32 bytes; implements ``Store``, ``Secrets``.

    Made if it is missing, its folder too. Raises ``StoreInUse``, ``StoreKeyError`` (the file is left
    as it is), ``StoreTooNew``, ``StoreCorrupt``, ``StoreFull``, ``StoreUnavailable``. ``shared``: if
    another process has it, be a guest.
    """

    def __init__(self, path: str | os.PathLike[str], key: bytes, *, shared: bool = False) -> None:
        if len(key) != KEY_BYTES:
            raise InvalidArgument(f"the key of a store has {KEY_BYTES} bytes, not {len(key)}")
        # Two names of one file must not mean two owners of it.
        self._path = Path(os.path.realpath(path))
        self._key = key
        self._write_lock = threading.RLock()
        self._db: apsw.Connection | None = None
        self._former: apsw.Connection | None = None
        self._broken = False
        self._closed = False
        self._readers = Readers(lambda: connect(self._path, self._key, reader=True))
        self._ballast = Ballast(self._path)
        self._file: tuple[int, int] | None = None
        """Which file it is, by device and inode."""
        self._damage: Damage | None = None
        """What is wrong with it, from being found until it is made anew."""
        self._mark: Mark | None = None
        self._lock: ProcessLock | None = None
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = enter(self._path, key) if shared else ProcessLock(self._path)
        except _FAULTS as error:
            opening = not isinstance(error, OSError)
            raise store_error(error, self._path, opening=opening) from error
        try:
            self._db = self._open(first=True)
            self._device = self._made_device(self._db)
        except BaseException as error:
            self._disconnect()
            if self._lock is not None:
                self._lock.release()
            if isinstance(error, _FAULTS):
                raise store_error(error, self._path, opening=True) from error
            raise
        if self._lock is not None:
            self._ballast.fill()

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}>"

    @property
    def device(self) -> str:
        """The id of this device: made with the store, 26 characters, never changed."""
        return self._device

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    @property
    def blocking(self) -> bool:
        """Whether a commit may wait for a disk: it does."""
        return True

    # --- sharing -------------------------------------------------------------------------------

    @property
    def guest(self) -> bool:
        """Whether another process syncs it."""
        return self._lock is None

    def take_over(self) -> bool:
        """Become its owner if nobody else is; True once it is. Raises ``StoreError``."""
        with self._write_lock:
            self._sound()
            if self._lock is not None:
                return True
            try:
                lock = self._lock = ProcessLock(self._path)
            except StoreInUse:
                return False
            except OSError as error:
                raise store_error(error, self._path) from error
            try:
                # Afresh: the file may be another, and its schema is this one's now.
                self._disconnect()
                self._damage = None  # what a guest met is looked for anew, and found if it is still there
                self._db = self._open(first=True)
                self._device = self._made_device(self._db)
            except BaseException as error:
                self._broken, self._lock = True, None
                lock.release()
                if isinstance(error, _FAULTS):
                    raise store_error(error, self._path) from error
                raise
        self._ballast.fill()
        return True

    def hand_over(self, commands: Sequence[tuple[HandedOver, float]], limits: Limits) -> list[Outcome]:
        """Write commands for the process that syncs it; see ``store.handoff``."""
        for _ in range(_REPLACED_MAX):
            with self._writing() as db:
                if self._ballast.gone():
                    raise StoreFull(f"the disk of {self._path} is full")
                db.execute("BEGIN IMMEDIATE")
                try:
                    out = handoff.insert(db, self._device, commands, limits, lambda id: reader.row(db, id))
                    count = counted(db)
                    db.execute("COMMIT")
                except BaseException:
                    roll_back(db)
                    raise
                # A file that was replaced meanwhile took it into oblivion: once more, into the new one.
                if not self._replaced():
                    self._note(count)
                    return out
        raise StoreUnavailable(f"{self._path} is being replaced", hint="try again")

    def handed_over(self, after: int, limit: int = handoff.TAKEN_AT_ONCE) -> list[TakeHandoff]:
        """What waits to be taken, in order, with a number above ``after``."""
        with self._reading() as db:
            return handoff.waiting(db, after, limit)

    def data_version(self) -> int:
        """A number that changes when another process writes."""
        with self._writing() as db:
            version: int = db.pragma("data_version")
            return version

    def claim_consumer(self, name: str) -> ProcessLock:
        """Be the only one that reads as this consumer, until released. Raises ``StoreInUse``."""
        try:
            return ProcessLock(self._path, name)
        except OSError as error:
            raise store_error(error, self._path) from error

    # --- writing -------------------------------------------------------------------------------

    def apply(self, changes: Changes) -> list[MessageRow]:
        """Write all of it durably, or raise ``StoreError`` and write none of it."""
        device = changes.meta.get("device")
        if device is not None and device != self._device:
            raise StoreError(
                "this store belongs to another device", hint="sign in as the device of the store"
            )
        queued = queues(changes)
        if self._lock is None:
            raise StoreInUse(f"another program, or another client in this one, syncs {self._path}")
        with self._writing() as db:
            # Without the ballast the disk was full a moment ago: the last of it belongs to what drains.
            if queued and self._ballast.spent():
                raise StoreFull(f"the disk of {self._path} is full")
            try:
                return write(db, changes, self._note)
            except (apsw.FullError, apsw.IOError) as error:
                full = isinstance(store_error(error, self._path), StoreFull)
                if queued or not full or not self._ballast.free():
                    raise
                return write(db, changes, self._note)

    def set_consumer_position(self, name: str, position: int) -> None:
        """Record, durably, that a consumer is done up to ``position``; never goes back."""
        self._execute(
            "INSERT INTO consumers VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET position = max(position, excluded.position)",
            (name, position),
        )

    def set_secret(self, name: str, value: str | None) -> None:
        """Keep ``value`` under ``name``, durably, inside the encrypted file; None removes it."""
        if value is None:
            self._execute("DELETE FROM secrets WHERE name = ?", (name,))
        else:
            self._execute("INSERT OR REPLACE INTO secrets VALUES (?, ?)", (name, value))

    def _execute(self, sql: str, values: tuple[str | int, ...]) -> None:
        with self._writing() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                db.execute(sql, values)
                count = counted(db)
                db.execute("COMMIT")
            except BaseException:
                roll_back(db)
                raise
            self._note(count)

    # --- reading -------------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """Read what the engine starts from; of a store that was found damaged, once it is made anew."""
        for _ in range(_REBUILDS_MAX):
            if self._damage is None or self.guest:
                try:
                    with self._reading() as db:
                        return reader.snapshot(db)
                except StoreCorrupt:
                    if self.guest:
                        raise
            self._rebuild()
        raise StoreCorrupt(f"{self._path} is damaged again and again", hint="check the disk")

    def conversations(self) -> list[Conversation]:
        """List all conversations, by id, with the count of own messages that wait."""
        with self._reading() as db:
            return reader.conversations(db)

    def messages(
        self, conversation: str, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> list[Message]:
        """A page of a conversation, oldest first."""
        with self._reading() as db:
            return reader.page(db, conversation, before, after, limit)

    def message(self, id: str) -> Message | None:
        """One message by id, with its status."""
        with self._reading() as db:
            return reader.message(db, id)

    def row(self, id: str) -> MessageRow | None:
        """The stored row of a message."""
        with self._reading() as db:
            return reader.row(db, id)

    def pending(self) -> list[Message]:
        """Own messages that are not settled, in queue order per conversation."""
        with self._reading() as db:
            return reader.pending(db)

    def pending_count(self) -> int:
        """How many own messages are not settled."""
        with self._reading() as db:
            return reader.pending_count(db)

    def arrivals(self, after: int, limit: int = 100) -> list[Message]:
        """Log entries in the order they came to this store, with ``position`` > ``after``."""
        with self._reading() as db:
            return reader.arrivals(db, after, limit)

    def consumer_position(self, name: str) -> int:
        """How far a durable consumer has come; 0 for a new one."""
        with self._reading() as db:
            return reader.value(db, "SELECT position FROM consumers WHERE name = ?", (name,)) or 0

    def get_secret(self, name: str) -> str | None:
        """The value under ``name``, or None."""
        with self._reading() as db:
            secret: str | None = reader.value(db, "SELECT value FROM secrets WHERE name = ?", (name,))
            return secret

    def close(self) -> None:
        """Release the file; further calls raise ``StoreUnavailable``. May be called twice."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            self._disconnect()
            if self._lock is not None:
                self._lock.release()

    # --- inside --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[apsw.Connection]:
        with self._write_lock:
            db = self._sound()
            try:
                yield db
            except _FAULTS as error:
                raise self._fault(error) from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        if self._closed or self._broken or self._replaced():
            with self._write_lock:
                self._sound()
        try:
            with self._readers.borrow() as db:
                yield db
        except _FAULTS as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> StoreError:
        fault = store_error(error, self._path)
        if isinstance(fault, StoreCorrupt):
            self._damage = self._damage or Damage(self._path, "a page is not what was written")
        # A full disk is no reason: opening needs room too.
        if isinstance(error, apsw.IOError | apsw.CantOpenError) and not isinstance(fault, StoreFull):
            self._broken = True
        return fault

    def _sound(self) -> apsw.Connection:
        """The writing connection, of a file opened afresh if it broke. Under the write lock."""
        if self._closed:
            raise StoreUnavailable(f"{self._path} is closed", hint="open it again")
        if self._broken or self._db is None or self._replaced():
            # The last connection stays until there is another: it keeps the index of the log, by which what
            # a failed commit left in the log does not exist. Read anew, it would be taken for committed.
            if self._db is not None and not self._db.in_transaction and not self._replaced():
                self._former, self._db = self._db, None
            try:
                self._disconnect()
                self._db = self._open()
                self._device = self._made_device(self._db)
            except _FAULTS as error:
                raise store_error(error, self._path) from error
            finally:
                if self._db is None:
                    self._db, self._former = self._former, None
                elif self._former is not None:
                    self._former.close(True)
                    self._former = None
            self._broken = False
        return self._db

    def _replaced(self) -> bool:
        """Whether a guest's file is not the one under its name any more."""
        return self._lock is None and self._file is not None and _file_at(self._path) != self._file

    def _open(self, *, first: bool = False) -> apsw.Connection:
        """Open the file; as its owner, made private if it is missing, and with its schema up to date.

        ``first``: nothing was read from it yet, so a damaged one may be made anew.
        """
        self._file = None
        if self._lock is None:
            self._damage = None
            file = _file_at(self._path)
            db = connect(self._path, self._key)
            self._file = file
            return db
        try:
            return open_whole(self._path, self._key)
        except Damage as damage:
            if not first:
                self._damage = damage  # who works with what was read before must read anew: ``load``
                raise
            self._make_anew(damage)
            return open_whole(self._path, self._key)

    def _rebuild(self) -> None:
        """Make a store that was found damaged anew. Whoever has read from it must read again (``load``)."""
        with self._write_lock:
            if self._closed:
                raise StoreUnavailable(f"{self._path} is closed", hint="open it again")
            if self._lock is None:
                raise StoreCorrupt(f"{self._path} is damaged", hint="the program that syncs it makes it anew")
            if self._damage is None:
                return
            self._disconnect()
            try:
                self._make_anew(self._damage, self._device)
                self._damage = None
                self._sound()
            except _FAULTS as error:
                raise store_error(error, self._path) from error

    def _make_anew(self, damage: Damage, device: str = "") -> None:
        if self._former is not None:
            leave(self._former)
            self._former = None
        make_anew(self._path, self._key, damage, device=device)

    def _made_device(self, db: apsw.Connection) -> str:
        if self._lock is not None:
            db.execute("INSERT OR IGNORE INTO meta VALUES ('device', ?)", (new_device_id(),))
        device: str = reader.value(db, "SELECT value FROM meta WHERE name = 'device'")
        self._mark = Mark(self._path, self._key, device, committed(db, device))
        return device

    def _note(self, count: int) -> None:
        if self._mark is not None:
            self._mark.note(count)

    def _disconnect(self) -> None:
        """Close all connections, the writer last: it alone knows how much of the log is committed."""
        self._readers.close()
        if self._mark is not None:
            self._mark.close()
        db, self._db = self._db, None
        if db is not None:
            self._let_go(db)

    def _let_go(self, db: apsw.Connection) -> None:
        # The last connection to a file removes the log, by its name: never that of the file's successor.
        if self._damage is not None or self._replaced():
            leave(db)
        db.close(True)


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
