"""The SQL of the ledger: its records read from, and a batch of them written to, one connection.

``LedgerRows`` is ``Records`` over a cursor. It remembers the conversations, members and streams it has
read or written, at most ``REMEMBERED_MAX`` of each, so that a busy conversation is not read again for
every batch. That is right for the only writer of a file, as long as it forgets after every rollback,
and for a reader within one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import apsw
import msgspec

from whimbrel import protocol as p
from whimbrel.lots import execute_in_lots, places
from whimbrel.server.records import Batch, Conversation, Entry, Member, Number, StreamName, is_unicode

REMEMBERED_MAX = 10_000

_SHIFT = 36
_SEQ = (1 << _SHIFT) - 1
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict).decode

_CONVERSATION = "c.no, c.id, c.title, c.epoch, c.seq, c.changed, c.log_changed, c.members_changed, c.made_of"
_MEMBER = "m.user, m.floor, m.left_at, m.joined, m.left_commit, m.received, m.read, m.receipt_changed"
_ENTRY = "position, id, sender, kind, body, format, alg, role, metadata, reply_to, sent_at, at, digest"

# Both ways to a user's changed conversations; CROSS JOIN makes SQLite take the tables in this order.
_CHANGED_BY_COMMIT = f"""
    SELECT {_CONVERSATION}, {_MEMBER} FROM conversations c CROSS JOIN members m
    ON m.user = ?1 AND m.conversation = c.no WHERE c.changed > ?2 ORDER BY c.id"""  # noqa: S608 - constants
_CHANGED_BY_USER = f"""
    SELECT {_CONVERSATION}, {_MEMBER} FROM members m CROSS JOIN conversations c
    ON c.no = m.conversation WHERE m.user = ?1 AND c.changed > ?2 ORDER BY c.id"""  # noqa: S608 - constants
_CONVERSATION_BY_ID = f"SELECT {_CONVERSATION} FROM conversations c WHERE c.id = ?"  # noqa: S608
_MEMBER_OF = f"SELECT {_MEMBER} FROM members m WHERE m.user = ? AND m.conversation = ?"  # noqa: S608
_VERSION = """
    SELECT coalesce(sum(c.seq), 0) FROM members m CROSS JOIN conversations c ON c.no = m.conversation
    WHERE m.user = ? AND m.left_at IS NULL"""
_PRESENT = f"""
    SELECT {_MEMBER} FROM members m INDEXED BY members_conversation
    WHERE m.conversation = ? AND m.left_at IS NULL ORDER BY m.user"""  # noqa: S608 - constants
_EVENTS_UP = f"SELECT {_ENTRY} FROM entries WHERE position BETWEEN ? AND ? ORDER BY position LIMIT ?"  # noqa: S608
_EVENTS_DOWN = f"SELECT {_ENTRY} FROM entries WHERE position BETWEEN ? AND ? ORDER BY position DESC LIMIT ?"  # noqa: S608
_ENTRY_AT = f"SELECT {_ENTRY} FROM entries WHERE position = ?"  # noqa: S608
_LOCATED = "SELECT position FROM entries WHERE id = ?"
_STREAM = "SELECT no, last_n FROM streams WHERE device = ? AND conversation = ? AND stream = ?"
_NUMBER_COLUMNS = "position, seq, id, digest, reason, code, text"
_NUMBER = "SELECT seq, id, digest, reason, code, text FROM numbers WHERE position = ?"
_COUNT_CHANGED = "SELECT count(*) FROM (SELECT 1 FROM conversations WHERE changed > ? LIMIT ?)"
_INSERT_CONVERSATION = (
    "INSERT INTO conversations"
    " (id, title, epoch, seq, changed, log_changed, members_changed, made_of) VALUES (?,?,?,?,?,?,?,?)"
)
_UPDATE_CONVERSATION = (
    "UPDATE conversations SET seq = ?, changed = ?, log_changed = ?, members_changed = ? WHERE no = ?"
)
_UPSERT_MEMBER = (
    "INSERT INTO members (user, floor, left_at, joined, left_commit, received, read, receipt_changed,"
    " conversation) VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT (user, conversation) DO UPDATE SET"
    " floor = excluded.floor, left_at = excluded.left_at, joined = excluded.joined,"
    " left_commit = excluded.left_commit, received = excluded.received, read = excluded.read,"
    " receipt_changed = excluded.receipt_changed"
)


@cache
def _insert_entries(count: int) -> str:
    columns = _ENTRY.count(",") + 1
    return f"INSERT INTO entries ({_ENTRY}) VALUES {places(columns, count)}"  # noqa: S608 - constants


@cache
def _insert_numbers(count: int) -> str:
    columns = _NUMBER_COLUMNS.count(",") + 1
    return f"INSERT INTO numbers ({_NUMBER_COLUMNS}) VALUES {places(columns, count)}"  # noqa: S608 - constants


def position(no: int, seq: int) -> int:
    """Name entry ``seq`` of conversation ``no``, or number ``seq`` of stream ``no``, by one integer."""
    return no << _SHIFT | seq


class LedgerRows:
    """``Records`` over one cursor."""

    def __init__(self, cursor: apsw.Cursor) -> None:
        self._cursor = cursor
        self._execute = cursor.execute
        self._conversation_nos: dict[str, int] = {}
        self._conversations: dict[str, Conversation] = {}
        self._members: dict[tuple[str, str], Member] = {}
        self._stream_nos: dict[StreamName, int] = {}
        self._streams: dict[StreamName, int] = {}

    def forget(self) -> None:
        """Forget all that was read or written: it was rolled back, or changed behind our back."""
        self._conversation_nos.clear()
        self._conversations.clear()
        self._members.clear()
        self._stream_nos.clear()
        self._streams.clear()

    def make_room(self) -> None:
        """Forget all if it has become too much. Call it between transactions."""
        if max(len(self._conversations), len(self._members), len(self._streams)) > REMEMBERED_MAX:
            self.forget()

    def clock(self) -> tuple[str, int]:
        """Give (history, commit)."""
        history, commit = self._one("SELECT history, clock FROM meta") or ("", 0)
        return history, commit

    @property
    def renewed(self) -> bool:
        """See ``Records``."""
        row = self._one("SELECT renewed FROM meta")
        return row is not None and bool(row[0])

    # --- Records -------------------------------------------------------------------------------

    def conversation(self, id: str) -> Conversation | None:
        """See ``Records``."""
        if known := self._conversations.get(id):
            return known
        row = self._one(_CONVERSATION_BY_ID, (id,)) if is_unicode(id) else None
        if row is None:
            return None
        self._conversation_nos[id] = row[0]
        found = self._conversations[id] = _conversation(row)
        return found

    def member(self, conversation: str, user: str) -> Member | None:
        """See ``Records``."""
        if known := self._members.get((conversation, user)):
            return known
        no = self._conversation_no(conversation)
        row = None if no is None else self._one(_MEMBER_OF, (user, no))
        if row is None:
            return None
        found = self._members[conversation, user] = _member(conversation, row)
        return found

    def members(self, conversation: str) -> list[Member]:
        """Give the present members, by name."""
        no = self._conversation_no(conversation)
        return [] if no is None else [_member(conversation, row) for row in self._execute(_PRESENT, (no,))]

    def version(self, user: str) -> int:
        """See ``Ledger``."""
        row = self._one(_VERSION, (user,))
        return 0 if row is None else int(row[0])

    def present(self, conversation: str) -> set[str]:
        """See ``Records``."""
        return {member.user for member in self.members(conversation)}

    def last_n(self, stream: StreamName) -> int | None:
        """See ``Records``."""
        known = self._streams.get(stream)
        if known is not None:
            return known
        row = self._one(_STREAM, stream) if is_unicode(stream[0]) and is_unicode(stream[1]) else None
        if row is None:
            return None
        self._stream_nos[stream] = row[0]
        last_n: int = row[1]
        self._streams[stream] = last_n
        return last_n

    def number(self, stream: StreamName, n: int) -> Number | None:
        """See ``Records``."""
        no = self._stream_nos.get(stream)
        if no is None:
            return None
        row = self._one(_NUMBER, (position(no, n),))
        if row is None:
            return None
        seq, id, digest, reason, code, text = row
        return Number(seq=seq, id=id, digest=digest, reason=reason or "", code=code or "", text=text or "")

    def entry(self, conversation: str, seq: int) -> Entry | None:
        """See ``Records``."""
        known = self.conversation(conversation)
        if known is None:
            return None
        row = self._one(_ENTRY_AT, (position(self._conversation_nos[conversation], seq),))
        return None if row is None else Entry(event=_event(known, row), digest=row[12])

    def located(self, id: str) -> tuple[str, int] | None:
        """See ``Records``."""
        row = self._one(_LOCATED, (id,)) if is_unicode(id) else None
        if row is None:
            return None
        conversation = self._one("SELECT id FROM conversations WHERE no = ?", (row[0] >> _SHIFT,))
        return None if conversation is None else (conversation[0], row[0] & _SEQ)

    # --- for readers ---------------------------------------------------------------------------

    def changed(self, user: str, since_commit: int, by_commit_max: int) -> list[tuple[Conversation, Member]]:
        """Give the user's conversations, past ones too, changed after a commit, by id.

        Costs as many lookups as conversations changed anywhere, or as this user has, if more than
        ``by_commit_max`` changed.
        """
        row = self._one(_COUNT_CHANGED, (since_commit, by_commit_max + 1))
        few = row is not None and row[0] <= by_commit_max
        sql = _CHANGED_BY_COMMIT if few else _CHANGED_BY_USER
        found = []
        for row in self._execute(sql, (user, since_commit)).fetchall():
            conversation = _conversation(row)
            self._conversation_nos[conversation.id] = row[0]
            self._conversations[conversation.id] = conversation
            found.append((conversation, _member(conversation.id, row[9:])))
        return found

    def events(
        self, conversation: Conversation, first: int, last: int, limit: int, *, newest: bool
    ) -> Iterator[p.Event]:
        """Read at most ``limit`` of these entries: the ``newest`` downwards, or the oldest upwards."""
        no = self._conversation_no(conversation.id)
        if no is None or first > last:
            return
        sql = _EVENTS_DOWN if newest else _EVENTS_UP
        for row in self._execute(sql, (position(no, first), position(no, last), limit)):
            yield _event(conversation, row)

    # --- writing -------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """Write all that a batch staged, and its commit as the clock."""
        for conversation in batch.conversations.values():
            self._write_conversation(conversation)
        for member in batch.members.values():
            self._execute(
                _UPSERT_MEMBER,
                (
                    member.user,
                    member.floor,
                    member.left_at,
                    member.joined,
                    member.left_commit,
                    member.received,
                    member.read,
                    member.receipt_changed,
                    self._conversation_nos[member.conversation],
                ),
            )
        for stream, last_n in batch.streams.items():
            self._write_stream(stream, last_n)
        nos = self._conversation_nos
        execute_in_lots(
            self._cursor,
            _insert_entries,
            [
                _entry_values(position(nos[conversation], seq), entry)
                for (conversation, seq), entry in batch.entries.items()
            ],
        )
        execute_in_lots(
            self._cursor,
            _insert_numbers,
            [
                (
                    position(self._stream_nos[stream], n),
                    number.seq,
                    number.id,
                    number.digest,
                    number.reason or None,
                    number.code or None,
                    number.text or None,
                )
                for (stream, n), number in batch.numbers.items()
            ],
        )
        self._execute("UPDATE meta SET clock = ?", (batch.commit,))
        self._conversations.update(batch.conversations)
        self._members.update(batch.members)
        self._streams.update(batch.streams)

    def _write_conversation(self, conversation: Conversation) -> None:
        no = self._conversation_no(conversation.id)
        changed = (conversation.changed, conversation.log_changed, conversation.members_changed)
        if no is not None:
            self._execute(_UPDATE_CONVERSATION, (conversation.seq, *changed, no))
            return
        self._execute(
            _INSERT_CONVERSATION,
            (
                conversation.id,
                conversation.title,
                conversation.epoch,
                conversation.seq,
                *changed,
                conversation.made_of,
            ),
        )
        self._conversation_nos[conversation.id] = self._cursor.connection.last_insert_rowid()

    def _write_stream(self, stream: StreamName, last_n: int) -> None:
        no = self._stream_nos.get(stream)
        if no is not None:
            self._execute("UPDATE streams SET last_n = ? WHERE no = ?", (last_n, no))
            return
        self._execute(
            "INSERT INTO streams (device, conversation, stream, last_n) VALUES (?,?,?,?)", (*stream, last_n)
        )
        self._stream_nos[stream] = self._cursor.connection.last_insert_rowid()

    def _conversation_no(self, id: str) -> int | None:
        no = self._conversation_nos.get(id)
        if no is None and self.conversation(id) is not None:
            no = self._conversation_nos[id]
        return no

    def _one(self, sql: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        return self._execute(sql, values).fetchone()


def _conversation(row: tuple[Any, ...]) -> Conversation:
    return Conversation(
        id=row[1],
        title=row[2],
        epoch=row[3],
        seq=row[4],
        changed=row[5],
        log_changed=row[6],
        members_changed=row[7],
        made_of=row[8],
    )


def _member(conversation: str, row: tuple[Any, ...]) -> Member:
    return Member(
        conversation=conversation,
        user=row[0],
        floor=row[1],
        left_at=row[2],
        joined=row[3],
        left_commit=row[4],
        received=row[5],
        read=row[6],
        receipt_changed=row[7],
    )


def _event(conversation: Conversation, row: tuple[Any, ...]) -> p.Event:
    return p.Event(
        conversation=conversation.id,
        epoch=conversation.epoch,
        seq=row[0] & _SEQ,
        id=row[1],
        sender=row[2],
        kind=row[3],
        body=row[4],
        format=row[5],
        alg=row[6],
        role=row[7],
        metadata=None if row[8] is None else _decode(row[8]),
        reply_to=row[9],
        sent_at=row[10],
        at=row[11],
    )


def _entry_values(at: int, entry: Entry) -> tuple[Any, ...]:
    event = entry.event
    return (
        at,
        event.id,
        event.sender,
        event.kind,
        event.body,
        event.format,
        event.alg,
        event.role,
        None if event.metadata is None else _encode(event.metadata).decode(),
        event.reply_to,
        event.sent_at,
        event.at,
        entry.digest,
    )
