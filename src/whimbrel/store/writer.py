"""How ``Changes`` become one transaction.

The statements of ``apply`` and nothing else: which connection, which thread, and what a failure
means is the store's. After an exception nothing of the changes is in the database.
"""

from __future__ import annotations

from collections.abc import Callable

import apsw

from whimbrel.core.contract import Changes, MessageRow
from whimbrel.lots import execute_in_lots
from whimbrel.store import handoff
from whimbrel.store.reader import displaced
from whimbrel.store.rows import (
    PUT_CONVERSATION,
    conversation_values,
    insert_messages,
    message_values,
    update_messages,
    update_values,
)

# The highest arrival must outlive the entry it was given to: a durable consumer counts by it.
_KEEP_ARRIVAL = (
    "INSERT INTO marks SELECT 'arrival', max(arrival) FROM messages WHERE arrival IS NOT NULL"
    " HAVING max(arrival) IS NOT NULL"
    " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)"
)
# What a reset does, in this order: to own entries, to those the app has, to those beyond a gap.
_RESETS = (
    "UPDATE messages SET stream = 0, n = 0, seq = NULL, state = 'pending', reason = NULL, can_retry = 0,"
    " retry_count = 0, rounds = 0, void = NULL, expires_at = NULL, delivered_at = NULL, read_at = NULL"
    " WHERE conversation = ? AND seq IS NOT NULL AND own",
    "UPDATE messages SET seq = NULL WHERE conversation = ? AND seq IS NOT NULL AND arrival IS NOT NULL",
    "DELETE FROM messages WHERE conversation = ? AND seq IS NOT NULL",
)
# At the end: what waited already keeps its place among them. Rows are entered in the order of sending.
_DISPLACE = (
    "UPDATE messages SET stream = 0, n = place"
    " FROM (SELECT entry AS at, row_number() OVER (ORDER BY entry) AS place"
    " FROM messages WHERE conversation = ? AND (waiting OR below) AND waiting AND seq IS NULL)"
    " WHERE entry = at"
)
_RESET_MARK = "DELETE FROM read_marks WHERE conversation = ?"
_READ = (
    "UPDATE messages SET read_at = ?3"
    " WHERE conversation = ?1 AND seq IS NOT NULL AND seq <= ?2 AND own = 1 AND read_at IS NULL"
    " AND seq > coalesce((SELECT seq FROM read_marks WHERE conversation = ?1), 0)"
)
# Not beyond the position: what is still missing there is to be marked when it has come.
_MARK = (
    "INSERT INTO read_marks SELECT id, min(position, ?2) FROM conversations WHERE id = ?1"
    " ON CONFLICT (conversation) DO UPDATE SET seq = max(seq, excluded.seq)"
)
_META = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


# Counted in every transaction: whether the last ones are still there is told by the mark beside the file.
_COUNT = (
    "INSERT INTO marks SELECT 'commit ' || value, 1 FROM meta WHERE name = 'device'"
    " ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
)


def counted(db: apsw.Connection) -> int:
    """Count this transaction, inside it; gives its number."""
    ((count,),) = db.execute(_COUNT).fetchall()
    assert isinstance(count, int)
    return count


def write(db: apsw.Connection, changes: Changes, note: Callable[[int], None]) -> list[MessageRow]:
    """Commit all of it, in the order ``Changes`` promises, or raise and commit none of it.

    Gives what ``Store.apply`` gives; ``note`` is told the number of the transaction once it is on disk.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        if changes.resets:
            db.execute(_KEEP_ARRIVAL)
        for id in changes.resets:
            for statement in _RESETS:
                db.execute(statement, (id,))
            db.execute(_RESET_MARK, (id,))
        if changes.messages:
            execute_in_lots(db, insert_messages, list(map(message_values, changes.messages.values())))
        if changes.updates:
            execute_in_lots(db, update_messages, list(map(update_values, changes.updates.values())))
        if changes.conversations:
            db.executemany(PUT_CONVERSATION, map(conversation_values, changes.conversations.values()))
        for id, (seq, at) in changes.reads.items():
            db.execute(_READ, (id, seq, at))
            db.execute(_MARK, (id, seq))
        if changes.meta:
            db.executemany(_META, changes.meta.items())
        handoff.settle(db, changes)
        out: list[MessageRow] = []
        for id in sorted(set(changes.resets)):
            db.execute(_DISPLACE, (id,))
            out += displaced(db, id)
        count = counted(db)
        db.execute("COMMIT")
    except BaseException:
        roll_back(db)
        raise
    note(count)
    return out


def roll_back(db: apsw.Connection) -> None:
    """End the transaction, if SQLite has not ended it by itself already."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def queues(changes: Changes) -> bool:
    """Whether an app put something new into the outbox: what a full disk refuses first.

    What was handed over is on this disk already, and only changes its place.
    """
    return not changes.handoffs and any(row.own and row.seq is None for row in changes.messages.values())
