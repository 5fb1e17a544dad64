"""The questions a store is asked, as statements on one connection, and the connections to ask them on.

A reader sees the last commit before it began and never waits for the writer. Questions of several
statements run in one read transaction (``Readers.borrow`` begins and ends it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from whimbrel.core.contract import ConversationRow, MessageRow, Snapshot
from whimbrel.core.rows import conversation_of
from whimbrel.model import Conversation, Message
from whimbrel.store import handoff
from whimbrel.store.merge import LIMIT_MAX, read_by_all, shown
from whimbrel.store.rows import CONVERSATION_COLUMNS, MESSAGE_COLUMNS, conversation_row, message_row

READERS_MAX = 4
"""How many questions are answered at once; more wait their turn."""

# `waiting OR below` is what the index `outbox` holds; a statement must say so to be given it.
_MESSAGES = f"SELECT {MESSAGE_COLUMNS} FROM messages"  # noqa: S608 - our own names
_BY_ID = f"{_MESSAGES} WHERE id = ?"
_OUTBOX = f"{_MESSAGES} WHERE (waiting OR below) AND waiting ORDER BY conversation, stream, n"
_LOG = f"{_MESSAGES} WHERE conversation = ? AND seq IS NOT NULL AND arrival IS NOT NULL"
_NEWEST = f"{_LOG} AND seq < ? ORDER BY seq DESC LIMIT ?"
_OLDEST = f"{_LOG} AND seq > ? AND seq < ? ORDER BY seq LIMIT ?"
_DISPLACED = (
    f"{_MESSAGES} WHERE conversation = ? AND stream = 0 AND (waiting OR below) AND waiting ORDER BY n"
)
_TAIL = f"{_MESSAGES} WHERE conversation = ? AND (waiting OR below) AND (below OR seq IS NULL) ORDER BY"
_TAIL_NEWEST = f"{_TAIL} stream DESC, n DESC LIMIT ?"
_TAIL_OLDEST = f"{_TAIL} stream, n LIMIT ?"
_BUFFERED = f"{_MESSAGES} WHERE conversation = ? AND seq IS NOT NULL AND seq > ? ORDER BY seq"
_ARRIVALS = f"{_MESSAGES} WHERE arrival IS NOT NULL AND arrival > ? ORDER BY arrival LIMIT ?"
_CONVERSATIONS = f"SELECT {CONVERSATION_COLUMNS} FROM conversations"  # noqa: S608 - our own names
_ARRIVAL = (
    "SELECT max(coalesce((SELECT max(arrival) FROM messages WHERE arrival IS NOT NULL), 0),"
    " coalesce((SELECT value FROM marks WHERE name = 'arrival'), 0))"
)
_WAITING = "SELECT conversation, count(*) FROM messages WHERE (waiting OR below) AND waiting GROUP BY 1"
_SEQ_MAX = (1 << 63) - 1


def value(db: apsw.Connection, sql: str, values: tuple[str, ...] = ()) -> Any:
    """The one value that ``sql`` gives, or None if it gives no row."""
    found = db.execute(sql, values).fetchall()
    return found[0][0] if found else None


def snapshot(db: apsw.Connection) -> Snapshot:
    """What the engine starts from. Takes time in proportion to what is unsettled, not to history."""
    conversations = _conversations(db)
    return Snapshot(
        meta=dict(db.execute("SELECT name, value FROM meta")),
        conversations=conversations,
        outbox=outbox(db),
        buffered=[
            message_row(values)
            for row in conversations
            for values in db.execute(_BUFFERED, (row.id, row.position))
        ],
        arrival=value(db, _ARRIVAL),
    )


def outbox(db: apsw.Connection) -> list[MessageRow]:
    """Own messages that are not settled, by (conversation, stream, n)."""
    return [message_row(values) for values in db.execute(_OUTBOX)]


def pending(db: apsw.Connection) -> list[Message]:
    """Own messages that are not settled, by conversation in the order of their queues."""
    rows = outbox(db) + handoff.rows(db)
    rows.sort(key=lambda row: row.conversation)
    return shown_rows(db, rows)


def pending_count(db: apsw.Connection) -> int:
    """How many own messages are not settled."""
    queued: dict[str, int] = dict(db.execute(_WAITING))
    return sum(queued.values()) + sum(handoff.counts(db).values())


def displaced(db: apsw.Connection, conversation: str) -> list[MessageRow]:
    """Own messages that wait for the new history of their conversation, in the order of the old one."""
    return [message_row(values) for values in db.execute(_DISPLACED, (conversation,))]


def conversations(db: apsw.Connection) -> list[Conversation]:
    """All conversations, by id."""
    waiting: dict[str, int] = dict(db.execute(_WAITING))
    handed = handoff.counts(db)
    return [
        conversation_of(row, pending=waiting.get(row.id, 0) + handed.get(row.id, 0))
        for row in _conversations(db)
    ]


def _conversations(db: apsw.Connection) -> list[ConversationRow]:
    return [conversation_row(values) for values in db.execute(f"{_CONVERSATIONS} ORDER BY id")]


def page(
    db: apsw.Connection, conversation: str, before: int | None, after: int | None, limit: int
) -> list[Message]:
    """A page of a conversation, oldest first; what ``Store.messages`` says.

    Messages that are handed over and not taken are its last.
    """
    limit = min(max(limit, 0), LIMIT_MAX)
    handed = handoff.rows(db, conversation) if before is None else []
    if after is None:
        handed = handed[max(len(handed) - limit, 0) :]
        rows = _queued_and_log(db, conversation, before, None, limit - len(handed))
    else:
        rows = _queued_and_log(db, conversation, before, after, limit)
    return shown_rows(db, (rows + handed)[:limit])


def _queued_and_log(
    db: apsw.Connection, conversation: str, before: int | None, after: int | None, limit: int
) -> list[MessageRow]:
    below = _SEQ_MAX if before is None else before
    if after is not None:
        found = db.execute(_OLDEST, (conversation, after, below, limit)).fetchall()
        if before is None and len(found) < limit:
            found += db.execute(_TAIL_OLDEST, (conversation, limit - len(found))).fetchall()
    else:
        found = []
        if before is None:
            found += db.execute(_TAIL_NEWEST, (conversation, limit)).fetchall()
        if len(found) < limit:
            found += db.execute(_NEWEST, (conversation, below, limit - len(found))).fetchall()
        found.reverse()
    return [message_row(values) for values in found]


def arrivals(db: apsw.Connection, after: int, limit: int) -> list[Message]:
    """Log entries in the order they came."""
    found = db.execute(_ARRIVALS, (after, min(max(limit, 0), LIMIT_MAX)))
    return shown_rows(db, [message_row(values) for values in found.fetchall()])


def message(db: apsw.Connection, id: str) -> Message | None:
    """One message by id."""
    found = row(db, id)
    return None if found is None else shown_rows(db, [found])[0]


def row(db: apsw.Connection, id: str) -> MessageRow | None:
    """The stored row of a message, or what it will be when it is taken."""
    found = db.execute(_BY_ID, (id,)).fetchall()
    return message_row(found[0]) if found else handoff.row(db, id)


def shown_rows(db: apsw.Connection, rows: list[MessageRow]) -> list[Message]:
    """Read the rows as messages, ``read`` where the receipts of all others say so."""
    read_to: dict[str, int] = {}
    own = any(row.own for row in rows)
    user = str(value(db, "SELECT value FROM meta WHERE name = 'user'") or "") if own else ""
    for id in {row.conversation for row in rows if row.own and row.seq is not None and row.read_at is None}:
        for values in db.execute(f"{_CONVERSATIONS} WHERE id = ?", (id,)):
            read_to[id] = read_by_all(conversation_row(values), user)
    return [shown(row, read_to.get(row.conversation, 0), user) for row in rows]


class Readers:
    """A few connections for reading, opened when first needed, each used by one thread at a time."""

    def __init__(self, connect: Callable[[], apsw.Connection]) -> None:
        self._connect = connect
        self._turns = threading.BoundedSemaphore(READERS_MAX)
        self._idle: list[apsw.Connection] = []

    @contextmanager
    def borrow(self) -> Iterator[apsw.Connection]:
        """One connection, in a read transaction that sees every commit before it."""
        with self._turns:
            try:
                db = self._idle.pop()
            except IndexError:
                db = self._connect()
            try:
                db.execute("BEGIN")
                yield db
                db.execute("COMMIT")
            except BaseException:
                db.close(True)
                raise
            self._idle.append(db)

    def close(self) -> None:
        """Wait for the questions under way, then close all connections; later ones open new ones."""
        for _ in range(READERS_MAX):
            self._turns.acquire()
        try:
            while self._idle:
                self._idle.pop().close(True)
        finally:
            for _ in range(READERS_MAX):
                self._turns.release()
