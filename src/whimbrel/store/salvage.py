"""A damaged store is set aside and made anew, with everything in it that is still whole.

What is kept: own messages that are not delivered, in their order, under their keys and ids; own messages that
were given up; what the app was already told of, so that it is not told twice; the device, the tokens,
consumers' positions. Entries of the log lose their place, as when a history is replaced: they come again
from the server. Every conversation goes on in a **new stream**, since the old counters may be behind what
the server has seen; the ledger finds by its id what it has already.

What could not be read is named: by id where an index still has it, by conversation and number
otherwise. If not even that can be known, the report says so.

The steps survive a crash: the new store is made whole as ``<name>.rebuilding``, then the damaged one gets
its name ``<name>.corrupt-<UTC time>`` (never that of an earlier one), then the new one its own. A new
store without the old beside it is always whole.

Under the lock of the store, with no connection open.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import apsw
import msgspec

from whimbrel.core.contract import ConversationRow, MessageRow
from whimbrel.model import LostMessage, SendState, StoreRebuilt, message_id
from whimbrel.store.device import new_device_id
from whimbrel.store.merge import displaced, waiting
from whimbrel.store.pages import Damaged, Pages, Row
from whimbrel.store.rows import (
    PUT_CONVERSATION,
    conversation_row,
    conversation_values,
    insert_messages,
    message_row,
    message_values,
)
from whimbrel.store.schema import connect, migrate

REPORT = "rebuilt"
"""The secret that holds the report until the app was told."""
LOST_NAMED_MAX = 10_000
_META = ("device", "user", "history", "sync")
_COUNT = "commit "
_AHEAD = 1_000
"""The new store counts on from here: a guest may count a few more in the old one, before it finds the new."""

_encode = msgspec.json.Encoder().encode


def count_name(device: str) -> str:
    """Under which mark a store counts its transactions: another store's page does not pass for its own."""
    return _COUNT + device


class Found:
    """What could be read of a damaged store, and what is known to be missing."""

    def __init__(self) -> None:
        self.messages: dict[str, MessageRow] = {}
        self.rowids: set[int] = set()
        self.conversations: dict[str, ConversationRow] = {}
        self.handoff: dict[int, dict[str, Any]] = {}
        self.texts: dict[str, str] = {}
        """Of meta and secrets."""
        self.consumers: dict[str, int] = {}
        self.count = 0
        self.devices: set[str] = set()
        """Whose pages these are; more than one: pages of several stores."""
        self.lost: list[LostMessage] = []
        self.unknown = False
        """There may be lost messages of which not even the name is known."""

    def __repr__(self) -> str:
        return f"<Found {len(self.messages)} messages>"


def rebuild(path: Path, key: bytes, *, device: str, count: int, reason: str, short: bool) -> StoreRebuilt:
    """Make the store anew. ``device`` ("": not known) and ``count`` are what the mark says.

    ``short``: whole transactions are missing. Raises ``apsw.Error``, OSError: then the damaged store is where
    it was, and it may be tried again.
    """
    fresh = path.with_name(path.name + ".rebuilding")
    _remove(fresh)
    if not path.exists():  # only its log is left; else a crash would leave a new one that is taken for whole
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        _sync(path.parent)
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with _new_database(fresh, key) as db:
        found = _read(path, key, _columns(db), device)
        found.unknown = found.unknown or short
        kept_at = _name_aside(path)
        report = _write(db, found, device or found.texts.get("device", ""), max(count, found.count) + _AHEAD)
        report = _with_former(report, found)
        report = msgspec.structs.replace(report, reason=reason, kept_at=str(kept_at), at=time.time())
        db.execute("INSERT OR REPLACE INTO secrets VALUES (?, ?)", (REPORT, _encode(report).decode()))
    _sync(fresh)
    _set_aside(path, kept_at)
    fresh.rename(path)
    _sync(path.parent)
    return report


def finish(path: Path) -> None:
    """End what a crash interrupted: a rebuilt store takes the place of the one that was set aside."""
    fresh = path.with_name(path.name + ".rebuilding")
    if not fresh.exists():
        return
    if path.exists():
        _remove(fresh)
        return
    _set_aside(path, _name_aside(path))  # its log, perhaps
    fresh.rename(path)
    _sync(path.parent)


# --- the files ---------------------------------------------------------------------------------


def _name_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    number = 1
    while True:
        more = f"-{number}" if number > 1 else ""
        aside = path.with_name(f"{path.name}.corrupt-{stamp}{more}")
        if not aside.exists() and not _wal(aside).exists():
            return aside
        number += 1


def _set_aside(path: Path, aside: Path) -> None:
    """The file first: while it is there, the new store is not taken for whole."""
    for old, new in ((path, aside), (_wal(path), _wal(aside))):
        with contextlib.suppress(FileNotFoundError):
            old.rename(new)
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    _sync(path.parent)


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _new_database(path: Path, key: bytes) -> Iterator[apsw.Connection]:
    """One transaction on a new store; when it ends, all of it is in the file."""
    db = connect(path, key)
    try:
        migrate(db, path)
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
        db.pragma("wal_checkpoint", "truncate")
    finally:
        db.close(True)


def _columns(db: apsw.Connection) -> dict[str, list[str]]:
    """The columns that a record of each table holds, in their order (generated ones are not stored)."""
    tables = ("messages", "conversations", "handoff")
    return {
        table: [
            name for _, name, _, _, _, _, hidden in db.execute(f"PRAGMA table_xinfo({table})") if not hidden
        ]
        for table in tables
    }


# --- reading -----------------------------------------------------------------------------------


def _read(path: Path, key: bytes, columns: dict[str, list[str]], device: str) -> Found:
    found = _read_pages(path, key, columns, log=True)
    for log in (False, None):
        if not device or found.devices <= {device}:
            break
        # Another store's log lies here, or its file: of a store under the same key, or it would not open.
        found = _read_pages(path, key, columns, log=log) if log is not None else Found()
        found.unknown = True
    device = device or found.texts.get("device", "")
    for row in [row for row in found.messages.values() if row.own]:
        if row.key is None or row.id != message_id(device, row.key):
            # Under another device the ledger could not tell what it has: offering it might double it.
            if waiting(row):
                found.lost.append(LostMessage(id=row.id, conversation=row.conversation, n=row.n))
            del found.messages[row.id]
    if not device:
        found.handoff.clear()
        found.unknown = True
    found.lost = [lost for lost in found.lost if lost.id is None or lost.id not in found.messages]
    return found


def _read_pages(path: Path, key: bytes, columns: dict[str, list[str]], *, log: bool) -> Found:
    found = Found()
    with Pages(path, key, log=log) as pages:
        for number in range(1, pages.count + 1):
            page = pages.page(number)
            if page is not None:
                _take_page(found, pages, page, number, columns)
        _take_trees(found, pages)
        for page, newer in pages.loose():
            _take_page(found, pages, page, 2, columns, loose=True, newer=newer)
        found.unknown = found.unknown or pages.torn
    return found


def _take_page(
    found: Found,
    pages: Pages,
    page: bytes,
    number: int,
    columns: dict[str, list[str]],
    *,
    loose: bool = False,
    newer: bool = True,
) -> None:
    messages, conversations, handoff = columns["messages"], columns["conversations"], columns["handoff"]
    for rowid, row in pages.rows(page, number, whole_only=loose):
        try:
            if row[0] is None and 30 <= len(row) <= len(messages):
                _take_message(found, message_row(_in_order(MessageRow, messages, row)))
                found.rowids.add(rowid)
            elif isinstance(row[0], str) and 15 <= len(row) <= len(conversations):
                _take_conversation(found, conversation_row(_in_order(ConversationRow, conversations, row)))
            elif handoff and row[0] is None and len(row) == len(handoff):
                found.handoff[rowid] = dict(zip(handoff, (rowid, *row[1:]), strict=True))
        except (TypeError, ValueError, msgspec.MsgspecError):
            continue
    for row in pages.pairs(page, number):
        if isinstance(row[0], str) and isinstance(row[1], str):
            if newer or row[0] not in found.texts:
                found.texts[row[0]] = row[1]
            if row[0] == "device":
                found.devices.add(row[1])
        elif isinstance(row[0], str) and isinstance(row[1], int) and row[0].startswith(_COUNT):
            found.count = max(found.count, row[1])
            found.devices.add(row[0].removeprefix(_COUNT))


def _in_order(kind: type[msgspec.Struct], columns: list[str], row: Row) -> tuple[Any, ...]:
    """The values in the order of the struct's fields; what an older row does not have is the default."""
    given = dict(zip(columns, row, strict=False))
    return tuple(given.get(name, default) for name, default in _fields(kind))


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.default) for field in msgspec.structs.fields(kind))


def _take_message(found: Found, row: MessageRow) -> None:
    for text in (row.id, row.conversation, row.kind, row.sender, row.body, row.format):
        if not isinstance(text, str):
            raise TypeError
    old = found.messages.get(row.id)
    if old is None or _settled(row) > _settled(old):
        found.messages[row.id] = row


def _settled(row: MessageRow) -> int:
    """Of two versions of a message, the one that is further: a decision once taken is not taken back."""
    if row.seq is not None or row.state is SendState.DELIVERED:
        return 3
    if row.state is SendState.CANCELLED or row.void is not None:
        return 2
    return 1 if row.own and not waiting(row) else 0


def _take_conversation(found: Found, row: ConversationRow) -> None:
    old = found.conversations.get(row.id)
    if old is None or (row.stream, row.last_n, row.position) > (old.stream, old.last_n, old.position):
        found.conversations[row.id] = row


def _take_trees(found: Found, pages: Pages) -> None:
    """What only the trees tell: consumers, and the names of waiting messages whose rows are gone."""
    try:
        roots = {str(row[1]): row[3] for row in pages.walk(1) if len(row) == 5 and isinstance(row[3], int)}
        missing = [row for row in pages.walk(roots["outbox"], values=4) if row[-1] not in found.rowids]
    except (Damaged, KeyError):
        found.unknown = True
        return
    ids: dict[object, object] = {}
    with contextlib.suppress(Damaged, KeyError):
        if missing:
            ids = {row[1]: row[0] for row in pages.walk(roots["sqlite_autoindex_messages_1"], values=2)}
    for row in missing[:LOST_NAMED_MAX]:
        conversation, _, n, rowid = row
        id = ids.get(rowid)
        found.lost.append(
            LostMessage(
                id=id if isinstance(id, str) else None,
                conversation=str(conversation),
                n=n if isinstance(n, int) else 0,
            )
        )
    found.unknown = found.unknown or len(missing) > LOST_NAMED_MAX
    with contextlib.suppress(Damaged, KeyError):
        for name, position in pages.walk(roots["consumers"], values=2):
            if isinstance(name, str) and isinstance(position, int):
                found.consumers[name] = position
    if "handoff" in roots:
        try:
            live = set(pages.rowids(roots["handoff"]))
        except Damaged:
            found.unknown = True
        else:
            found.handoff = {id: row for id, row in found.handoff.items() if id in live}


# --- writing -----------------------------------------------------------------------------------


def _write(db: apsw.Connection, found: Found, device: str, count: int) -> StoreRebuilt:
    """Fill the new store; gives the report, as far as it is known here."""
    now = int(time.time() * 1e6)
    device = device or new_device_id()
    # Beyond whatever was given before: no store gives a number each microsecond.
    arrival = max(now, 1 + max((row.arrival or 0 for row in found.messages.values()), default=0))
    unsent = _put_messages(db, found, now)
    secrets = {name: text for name, text in found.texts.items() if name not in (*_META, REPORT)}
    meta = {"device": device} | ({"user": found.texts["user"]} if "user" in found.texts else {})
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))
    db.executemany("INSERT OR REPLACE INTO secrets VALUES (?, ?)", list(secrets.items()))
    db.executemany("INSERT OR REPLACE INTO consumers VALUES (?, ?)", list(found.consumers.items()))
    marks = [("arrival", arrival), (count_name(device), count)]
    db.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?)", marks)
    # Its names are the columns of the table that was made just now (``_columns``), nothing that was read.
    handed = [row for row in found.handoff.values() if row.get("message") not in found.messages]
    for row in handed:
        names = ", ".join(row)
        db.execute(
            f"INSERT OR IGNORE INTO handoff ({names}) VALUES ({', '.join('?' * len(row))})",  # noqa: S608 - our own names
            tuple(row.values()),
        )
    # Who reads on in this table does so by number: none is given again.
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'handoff'")
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('handoff', ?)", (now,))
    queued = sum(1 for row in handed if row.get("message") is not None)
    return StoreRebuilt(salvaged=unsent + queued, lost=tuple(found.lost), lost_unknown=found.unknown)


def _with_former(report: StoreRebuilt, found: Found) -> StoreRebuilt:
    """With what was lost the last time, if the app was not told of that yet."""
    text = found.texts.get(REPORT)
    if text is None:
        return report
    try:
        former = msgspec.json.decode(text, type=StoreRebuilt)
    except msgspec.DecodeError:
        return msgspec.structs.replace(report, lost_unknown=True)
    lost = dict.fromkeys((*former.lost, *report.lost))
    return msgspec.structs.replace(
        report,
        lost=tuple(one for one in lost if one.id is None or one.id not in found.messages),
        lost_unknown=report.lost_unknown or former.lost_unknown,
    )


def _put_messages(db: apsw.Connection, found: Found, stream: int) -> int:
    """All rows in their new form, each conversation with its new stream; gives how many wait to go out."""
    rows = sorted(found.messages.values(), key=lambda row: (row.conversation, row.stream, row.n, row.id))
    last_n: dict[str, int] = {}
    streams: dict[str, int] = {}
    for row in rows:
        known = streams.get(row.conversation) or _stream(found, row.conversation, stream)
        streams[row.conversation] = max(known, row.stream + 1)
    unsent = 0
    out: list[MessageRow] = []
    for row in rows:
        if row.seq is not None or row.state in (SendState.DELIVERED, SendState.READ):
            if row.own or row.arrival is not None:
                out.append(displaced(row, len(out) + 1))
        elif waiting(row) and row.stream:
            unsent += 1
            last_n[row.conversation] = row.n = last_n.get(row.conversation, 0) + 1
            row.stream = streams[row.conversation]
            if row.state in (SendState.SENDING, SendState.SENT, SendState.RETRYING, None):
                row.state = SendState.PENDING
            out.append(row)
        elif row.own or row.arrival is not None:
            row.n = row.n if row.stream else len(out) + 1
            out.append(row)
    db.executemany(insert_messages(1), map(message_values, out))
    conversations = [
        msgspec.structs.replace(
            found.conversations.get(id) or ConversationRow(id=id),
            position=0,
            head=0,
            floor=0,
            stream=streams.get(id, 0) or _stream(found, id, stream),
            last_n=last_n.get(id, 0),
            synced_at=None,
        )
        for id in sorted(found.conversations.keys() | streams.keys())
    ]
    db.executemany(PUT_CONVERSATION, map(conversation_values, conversations))
    return unsent


def _stream(found: Found, conversation: str, stream: int) -> int:
    """A stream that the device has not used in this conversation, as far as anybody can know."""
    old = found.conversations.get(conversation)
    return max(stream, old.stream + 1 if old is not None else 0)
