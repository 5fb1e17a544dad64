"""The store on disk: one encrypted SQLite file, one writer, a few readers.

Always encrypted (ChaCha20-Poly1305 on every page and on the log, raw key), always durable
(``synchronous=FULL``): when ``apply`` returns, its changes survive a power cut.

States: open → closed; while open, *sound* or *broken*. An I/O error makes it broken: the next call
closes all connections and opens the file afresh, and raises if that fails. One process at a time has
the store; the lock is held from opening to closing.

When the disk is full, what an app newly queues is refused first. What drains the outbox may use the
ballast, room kept on the disk for that; it is taken again when the disk has space.

Left to others: which key (``store.keys``), what to write (the engine), on which thread (the driver).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw

from whimbrel.core.contract import Changes, MessageRow, Snapshot
from whimbrel.errors import InvalidArgument, StoreError, StoreFull, StoreUnavailable
from whimbrel.model import Conversation, Message
from whimbrel.store import reader
from whimbrel.store.device import new_device_id
from whimbrel.store.faults import store_error
from whimbrel.store.files import Ballast, ProcessLock
from whimbrel.store.reader import Readers
from whimbrel.store.schema import KEY_BYTES, connect, migrate
from whimbrel.store.writer import queues, roll_back, write

_FAULTS = (apsw.Error, OSError, OverflowError, UnicodeError)


class SqliteStore:
    """The encrypted store at ``path`` under a raw ``key`` of 32 bytes; implements ``Store``, ``Secrets``.

    Made if it is missing, its folder too. Raises ``StoreInUse``, ``StoreKeyError`` (the file is left
    as it is), ``StoreTooNew``, ``StoreCorrupt``, ``StoreFull``, ``StoreUnavailable``.
    """

    def __init__(self, path: str | os.PathLike[str], key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise InvalidArgument(f"the key of a store has {KEY_BYTES} bytes, not {len(key)}")
        self._path = Path(path).absolute()
        self._key = key
        self._write_lock = threading.RLock()
        self._db: apsw.Connection | None = None
        self._broken = False
        self._closed = False
        self._readers = Readers(lambda: connect(self._path, self._key, reader=True))
        self._ballast = Ballast(self._path)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = ProcessLock(self._path)
        except OSError as error:
            raise store_error(error, self._path) from error
        try:
            self._db = self._open()
            self._device = self._made_device(self._db)
        except BaseException as error:
            self._disconnect()
            self._lock.release()
            if isinstance(error, _FAULTS):
                raise store_error(error, self._path, opening=True) from error
            raise
        self._ballast.fill()

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}>"

    @property
    def device(self) -> str:
        """The id of this device: made with the store, 26 characters, never changed."""
        return self._device

    # --- writing -------------------------------------------------------------------------------

    def apply(self, changes: Changes) -> None:
        """Write all of it durably, or raise ``StoreError`` and write none of it."""
        device = changes.meta.get("device")
        if device is not None and device != self._device:
            raise StoreError(
                "this store belongs to another device", hint="sign in as the device of the store"
            )
        queued = queues(changes)
        with self._writing() as db:
            # Without the ballast the disk was full a moment ago: the last of it belongs to what drains.
            if queued and self._ballast.spent():
                raise StoreFull(f"the disk of {self._path} is full")
            try:
                write(db, changes)
            except (apsw.FullError, apsw.IOError) as error:
                full = isinstance(store_error(error, self._path), StoreFull)
                if queued or not full or not self._ballast.free():
                    raise
                write(db, changes)

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
            try:
                db.execute(sql, values)
            except BaseException:
                roll_back(db)
                raise

    # --- reading -------------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """Read what the engine starts from."""
        with self._reading() as db:
            return reader.snapshot(db)

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
            return reader.shown_rows(db, reader.outbox(db))

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
        if self._closed or self._broken:
            with self._write_lock:
                self._sound()
        try:
            with self._readers.borrow() as db:
                yield db
        except _FAULTS as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> StoreError:
        fault = store_error(error, self._path)
        # A full disk is no reason: opening needs room too.
        if isinstance(error, apsw.IOError | apsw.CantOpenError) and not isinstance(fault, StoreFull):
            self._broken = True
        return fault

    def _sound(self) -> apsw.Connection:
        """The writing connection, of a file opened afresh if it broke. Under the write lock."""
        if self._closed:
            raise StoreUnavailable(f"{self._path} is closed", hint="open it again")
        if self._broken or self._db is None:
            self._disconnect()
            try:
                self._db = self._open()
            except _FAULTS as error:
                raise store_error(error, self._path) from error
            self._broken = False
        return self._db

    def _open(self) -> apsw.Connection:
        """Open the file, made private if it is missing, and bring its schema up to date."""
        made = not self._path.exists()
        if made:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = connect(self._path, self._key)
        try:
            migrate(db, self._path)
            if made:
                folder = os.open(self._path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)  # or a power cut may forget the name of the new file
                finally:
                    os.close(folder)
        except BaseException:
            db.close(True)
            raise
        return db

    def _made_device(self, db: apsw.Connection) -> str:
        db.execute("INSERT OR IGNORE INTO meta VALUES ('device', ?)", (new_device_id(),))
        device: str = reader.value(db, "SELECT value FROM meta WHERE name = 'device'")
        return device

    def _disconnect(self) -> None:
        """Close all connections, the writer last: it alone knows how much of the log is committed."""
        self._readers.close()
        db, self._db = self._db, None
        if db is not None:
            db.close(True)
