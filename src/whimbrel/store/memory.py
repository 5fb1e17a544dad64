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
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Self

from whimbrel.core.contract import (
    Changes,
    ConversationRow,
    HandedOver,
    MessageRow,
    Snapshot,
    TakeHandoff,
)
from whimbrel.core.rows import conversation_of
from whimbrel.errors import StoreError, StoreUnavailable
from whimbrel.model import Conversation, Message
from whimbrel.store.device import new_device_id
from whimbrel.store.handoff import TAKEN_AT_ONCE, Limits, Outcome
from whimbrel.store.handoff_memory import MemoryHandoff, Unclaimed
from whimbrel.store.merge import LIMIT_MAX, displaced, merged, read_by_all, shown, updated, waiting


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

    blocking = False
    """A commit waits for nothing."""

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
        self._handoff = MemoryHandoff(self._meta["device"])

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
                _handoff=self._handoff.copy(),
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

    def apply(self, changes: Changes) -> list[MessageRow]:
        """Write all of it, or raise and write none of it."""
        with self._open():
            device = changes.meta.get("device")
            if device is not None and device != self._meta["device"]:
                raise StoreError(
                    "this store belongs to another device", hint="sign in as the device of the store"
                )
            self._handoff.check(changes)
            self._commit(changes)
            return [copy.copy(row) for row in self._displaced(changes.resets)] if changes.resets else []

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
        self._handoff.settle(changes)
        for id in set(changes.resets):
            self._displace(id)

    def conversations(self) -> list[Conversation]:
        """List all conversations, by id."""
        with self._open():
            return [
                conversation_of(row, pending=len(self._index(id).outbox) + len(self._handed(id)))
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
            tail += self._handed(conversation) if before is None else []
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
            row = self._rows.get(id) or self._handoff.row(id)
            return None if row is None else shown(row, self._read_to(row.conversation), self._user())

    def row(self, id: str) -> MessageRow | None:
        """The stored row of a message."""
        with self._open():
            row = self._rows.get(id) or self._handoff.row(id)
            return None if row is None else copy.copy(row)

    def pending(self) -> list[Message]:
        """Own messages that are not settled, in queue order per conversation."""
        with self._open():
            rows = self._outbox() + self._handoff.rows(self._rows.get)
            rows.sort(key=lambda row: row.conversation)
            return [shown(row, 0, self._user()) for row in rows]

    def pending_count(self) -> int:
        """How many own messages are not settled."""
        with self._open():
            return len(self._outbox()) + len(self._handoff.rows(self._rows.get))

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

    def claim_consumer(self, name: str) -> Unclaimed:
        """Be the only one that reads as this consumer: nobody else can."""
        with self._open():
            return Unclaimed()

    @property
    def guest(self) -> bool:
        """Whether another process syncs it: never."""
        return False

    @property
    def path(self) -> None:
        """Where it is: nowhere that another could open it."""
        return

    def take_over(self) -> bool:
        """Be the one that syncs it: it always is."""
        return True

    def data_version(self) -> int:
        """A number that changes when somebody else writes, who is not there."""
        return 0

    def hand_over(self, commands: Sequence[tuple[HandedOver, float]], limits: Limits) -> list[Outcome]:
        """Take commands in for who syncs it; see ``store.handoff``."""
        with self._open():
            left = {id for id, row in self._conversations.items() if row.left}
            return self._handoff.hand_over(
                commands, limits, known=self._rows.get, left=left.__contains__, queued=self._outbox()
            )

    def handed_over(self, after: int, limit: int = TAKEN_AT_ONCE) -> list[TakeHandoff]:
        """What waits to be taken, in order, with a number above ``after``."""
        with self._open():
            return self._handoff.handed_over(after, limit, self._rows.get)

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

    def _handed(self, conversation: str) -> list[MessageRow]:
        return [row for row in self._handoff.rows(self._rows.get) if row.conversation == conversation]

    def _displaced(self, conversations: list[str]) -> list[MessageRow]:
        return [row for row in self._outbox() if row.stream == 0 and row.conversation in conversations]

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
            _set(index.tail, id, row.arrival is None or (row.seq is None and waiting(row)))
            _set(index.unread, id, row.seq is not None and row.read_at is None)

    def _reset(self, conversation: str) -> None:
        """Take their places from the entries of the log; forget those that lay beyond a gap."""
        index = self._index(conversation)
        for _, id in index.log.copy():
            row = self._rows[id]
            self._put(row, displaced(row, 0))
            if not row.own and row.arrival is None:
                del self._rows[id]

    def _displace(self, conversation: str) -> None:
        """Number all that waits there, in the order of sending, which is that of the rows."""
        outbox = self._index(conversation).outbox
        for n, id in enumerate([id for id in self._rows if id in outbox and self._rows[id].seq is None], 1):
            out = copy.copy(self._rows[id])
            out.stream, out.n = 0, n
            self._put(self._rows[id], out)


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
