"""How ``Changes`` become one transaction.

The statements of ``apply`` and nothing else: which connection, which thread, and what a failure
means is the store's. After an exception nothing of the changes is in the database.
"""

from __future__ import annotations

import apsw

from whimbrel.core.contract import Changes
from whimbrel.store.rows import (
    INSERT_MESSAGE,
    PUT_CONVERSATION,
    UPDATE_MESSAGE,
    conversation_values,
    message_values,
    update_values,
)

# The highest arrival must outlive the rows a reset deletes: a durable consumer counts by it.
_KEEP_ARRIVAL = (
    "INSERT INTO marks SELECT 'arrival', max(arrival) FROM messages WHERE arrival IS NOT NULL"
    " HAVING max(arrival) IS NOT NULL"
    " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)"
)
_RESET = "DELETE FROM messages WHERE conversation = ? AND seq IS NOT NULL"
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


def write(db: apsw.Connection, changes: Changes) -> None:
    """Commit all of it, in the order ``Changes`` promises, or raise and commit none of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if changes.resets:
            db.execute(_KEEP_ARRIVAL)
            for id in changes.resets:
                db.execute(_RESET, (id,))
                db.execute(_RESET_MARK, (id,))
        if changes.messages:
            db.executemany(INSERT_MESSAGE, map(message_values, changes.messages.values()))
        if changes.updates:
            db.executemany(UPDATE_MESSAGE, map(update_values, changes.updates.values()))
        if changes.conversations:
            db.executemany(PUT_CONVERSATION, map(conversation_values, changes.conversations.values()))
        for id, (seq, at) in changes.reads.items():
            db.execute(_READ, (id, seq, at))
            db.execute(_MARK, (id, seq))
        if changes.meta:
            db.executemany(_META, changes.meta.items())
        db.execute("COMMIT")
    except BaseException:
        roll_back(db)
        raise


def roll_back(db: apsw.Connection) -> None:
    """End the transaction, if SQLite has not ended it by itself already."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def queues(changes: Changes) -> bool:
    """Whether an app put something new into the outbox: what a full disk refuses first."""
    return any(row.own and row.seq is None for row in changes.messages.values())
