"""The store without a disk: for ``store=None``, and for the simulator, whose disk it is.

It keeps what ``store.sqlite`` keeps and gives the same answers; both run the conformance suite. What
is durable there lasts here as long as the object, or its ``copy()``. Rows inside are never changed
in place, only replaced: so ``copy()`` is shallow, and what was handed in or out is never shared.

A simulator subclasses it and overrides ``_commit``: raising before it calls the original is a failed
commit, raising after it is a crash once the data was safe. To restart after a crash, go on with
``copy()``.
"""

from __future__ import annotations

import copy
import threading
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from typing import Self

from whimbrel.core.contract import Changes, ConversationRow, MessageRow, Snapshot
from whimbrel.core.rows import conversation_of
from whimbrel.errors import StoreError, StoreUnavailable
from whimbrel.model import Conversation, Message
from whimbrel.store.device import new_device_id
from whimbrel.store.merge import LIMIT_MAX, merged, read_by_all, shown, updated, waiting


class _Index:
    """The ids of one conversation, by what is asked of them."""

    __slots__ = ("log", "outbox", "tail", "unread")

    def __init__(self) -> None:
        self.log: list[tuple[int, str]] = []
        """(seq, id), sorted."""
        self.outbox: set[str] = set()
        self.tail: set[str] = set()
        self.unread: set[str] = set()

    def copy(self) -> _Index:
        out = _Index()
        out.log = self.log.copy()
        out.outbox = self.outbox.copy()
        out.tail = self.tail.copy()
        out.unread = self.unread.copy()
        return out


class MemoryStore:
    """A store that lasts as long as the process; implements ``Store`` and ``Secrets``."""

    def __init__(self, *, device: str | None = None) -> None:
        self._lock = threading.RLock()
        self._closed = False
        self._meta = {"device": device or new_device_id()}
        self._secrets: dict[str, str] = {}
        self._consumers: dict[str, int] = {}
        self._conversations: dict[str, ConversationRow] = {}
        self._rows: dict[str, MessageRow] = {}
        self._indexes: dict[str, _Index] = {}
        self._arrivals: list[tuple[int, str]] = []
        self._arrival = 0

    def __repr__(self) -> str:
        return f"<MemoryStore of device {self._meta['device']}>"

    def copy(self) -> Self:
        """The same store as it is now, open, sharing nothing that changes: what a restart finds."""
        with self._lock:
            out = copy.copy(self)
            vars(out).update(
                _lock=threading.RLock(),
                _closed=False,
                _meta=self._meta.copy(),
                _secrets=self._secrets.copy(),
                _consumers=self._consumers.copy(),
                _conversations=self._conversations.copy(),
                _rows=self._rows.copy(),
                _indexes={id: index.copy() for id, index in self._indexes.items()},
                _arrivals=self._arrivals.copy(),
            )
            return out

    @property
    def device(self) -> str:
        """The id of this device."""
        return self._meta["device"]

    def load(self) -> Snapshot:
        """Read what the engine starts from."""
        with self._open():
            buffered = []
            for id, conversation in sorted(self._conversations.items()):
                log = self._index(id).log
                start = bisect_left(log, (conversation.position + 1, ""))
                buffered += [copy.copy(self._rows[message]) for _, message in log[start:]]
            return Snapshot(
                meta=self._meta.copy(),
                conversations=[self._conversations[id] for id in sorted(self._conversations)],
                outbox=[copy.copy(row) for row in self._outbox()],
                buffered=buffered,
                arrival=self._arrival,
            )

    def apply(self, changes: Changes) -> None:
        """Write all of it, or raise and write none of it."""
        with self._open():
            device = changes.meta.get("device")
            if device is not None and device != self._meta["device"]:
                raise StoreError(
                    "this store belongs to another device", hint="sign in as the device of the store"
                )
            self._commit(changes)

    def _commit(self, changes: Changes) -> None:
        """Carry the changes out, in their order. Cannot fail by itself; a simulator makes it fail."""
        for id in changes.resets:
            self._reset(id)
        for new in changes.messages.values():
            row = self._rows.get(new.id)
            self._put(row, copy.copy(new) if row is None else merged(row, new))
        for update in changes.updates.values():
            row = self._rows.get(update.id)
            if row is not None:
                self._put(row, updated(row, update))
        self._conversations.update(changes.conversations)
        for id, (seq, at) in changes.reads.items():
            for message in list(self._index(id).unread):
                row = self._rows[message]
                if row.seq is not None and row.seq <= seq:
                    out = copy.copy(row)
                    out.read_at = at
                    self._put(row, out)
        self._meta.update(changes.meta)

    def conversations(self) -> list[Conversation]:
        """List all conversations, by id."""
        with self._open():
            return [
                conversation_of(row, pending=len(self._index(id).outbox))
                for id, row in sorted(self._conversations.items())
            ]

    def messages(
        self, conversation: str, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> list[Message]:
        """A page of a conversation, oldest first."""
        limit = min(max(limit, 0), LIMIT_MAX)
        with self._open():
            index = self._index(conversation)
            start = 0 if after is None else bisect_left(index.log, (after + 1, ""))
            stop = len(index.log) if before is None else bisect_left(index.log, (before, ""))
            rows: list[MessageRow] = []
            if after is not None:
                rows += islice(self._log_rows(index, range(start, stop)), limit)
            tail = [self._rows[id] for id in index.tail] if before is None else []
            tail.sort(key=lambda row: (row.stream, row.n))
            if after is not None:
                rows += tail[: limit - len(rows)]
            else:
                rows += tail[max(len(tail) - limit, 0) :][::-1]
                rows += islice(self._log_rows(index, range(stop - 1, start - 1, -1)), limit - len(rows))
                rows.reverse()
            read_to = self._read_to(conversation)
            return [shown(row, read_to, self._user()) for row in rows]

    def message(self, id: str) -> Message | None:
        """One message by id, with its status."""
        with self._open():
            row = self._rows.get(id)
            return None if row is None else shown(row, self._read_to(row.conversation), self._user())

    def row(self, id: str) -> MessageRow | None:
        """The stored row of a message."""
        with self._open():
            row = self._rows.get(id)
            return None if row is None else copy.copy(row)

    def pending(self) -> list[Message]:
        """Own messages that are not settled, in queue order per conversation."""
        with self._open():
            return [shown(row, 0, self._user()) for row in self._outbox()]

    def arrivals(self, after: int, limit: int = 100) -> list[Message]:
        """Log entries in the order they came to this store."""
        with self._open():
            start = bisect_left(self._arrivals, (after + 1, ""))
            ids = [id for _, id in self._arrivals[start : start + min(max(limit, 0), LIMIT_MAX)]]
            rows = [self._rows[id] for id in ids]
            return [shown(row, self._read_to(row.conversation), self._user()) for row in rows]

    def consumer_position(self, name: str) -> int:
        """How far a durable consumer has come."""
        with self._open():
            return self._consumers.get(name, 0)

    def set_consumer_position(self, name: str, position: int) -> None:
        """Record that a consumer is done up to ``position``; never goes back."""
        with self._open():
            self._consumers[name] = max(position, self._consumers.get(name, 0))

    def get_secret(self, name: str) -> str | None:
        """The value under ``name``, or None."""
        with self._open():
            return self._secrets.get(name)

    def set_secret(self, name: str, value: str | None) -> None:
        """Keep ``value`` under ``name``; None removes it."""
        with self._open():
            if value is None:
                self._secrets.pop(name, None)
            else:
                self._secrets[name] = value

    def close(self) -> None:
        """Refuse further calls; may be called twice."""
        with self._lock:
            self._closed = True

    # --- inside, under the lock ----------------------------------------------------------------

    def _open(self) -> threading.RLock:
        if self._closed:
            raise StoreUnavailable("the store is closed", hint="open it again")
        return self._lock

    def _index(self, conversation: str) -> _Index:
        index = self._indexes.get(conversation)
        if index is None:
            index = self._indexes[conversation] = _Index()
        return index

    def _log_rows(self, index: _Index, places: range) -> Iterator[MessageRow]:
        for place in places:
            row = self._rows[index.log[place][1]]
            if row.arrival is not None:  # what lies beyond a gap is not the app's yet
                yield row

    def _outbox(self) -> list[MessageRow]:
        rows = [self._rows[id] for index in self._indexes.values() for id in index.outbox]
        return sorted(rows, key=lambda row: (row.conversation, row.stream, row.n, row.id))

    def _user(self) -> str:
        return self._meta.get("user", "")

    def _read_to(self, conversation: str) -> int:
        return read_by_all(self._conversations.get(conversation), self._meta.get("user", ""))

    def _put(self, old: MessageRow | None, row: MessageRow) -> None:
        id = row.id
        self._rows[id] = row
        index = self._index(row.conversation)
        if old is None or old.seq != row.seq:
            if old is not None and old.seq is not None:
                _remove(index.log, (old.seq, id))
            if row.seq is not None:
                insort(index.log, (row.seq, id))
        if old is None or old.arrival != row.arrival:
            if old is not None and old.arrival is not None:
                _remove(self._arrivals, (old.arrival, id))
            if row.arrival is not None:
                insort(self._arrivals, (row.arrival, id))
                self._arrival = max(self._arrival, row.arrival)
        if row.own:
            _set(index.outbox, id, waiting(row))
            _set(index.tail, id, row.arrival is None)
            _set(index.unread, id, row.seq is not None and row.read_at is None)

    def _reset(self, conversation: str) -> None:
        """Forget the entries with a ``seq``; the arrival numbers they had are not given again."""
        index = self._index(conversation)
        for _, id in index.log:
            row = self._rows.pop(id)
            if row.arrival is not None:
                _remove(self._arrivals, (row.arrival, id))
            index.outbox.discard(id)
            index.tail.discard(id)
            index.unread.discard(id)
        index.log = []


def _remove(entries: list[tuple[int, str]], entry: tuple[int, str]) -> None:
    at = bisect_left(entries, entry)
    assert at < len(entries), "an index lost an entry"
    assert entries[at] == entry, "an index lost an entry"
    del entries[at]


def _set(ids: set[str], id: str, member: bool) -> None:
    if member:
        ids.add(id)
    else:
        ids.discard(id)
