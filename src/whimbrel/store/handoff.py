"""What one process writes into the store for another: commands handed over to the one that syncs it.

One process syncs a store. Every other one is its guest: it reads, and what its app wants done it
writes into a table of the store, durably and in order. The syncing process reads on in that table
(``handed_over``), feeds its engine, and has each command deleted in the very transaction that does
what the command says (``Changes.handoffs``). So a command is carried out once, whoever dies when.

A message is its app's from the moment it is handed over: it has its id, reads show it as pending,
and its key names it for ever. A key that two processes use at the same instant for different
content is refused to the one that comes second; ``settle`` sees to it where that is the syncing one.

Here are the table's statements and rules. Which connection and thread is the store's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

import apsw
import msgspec

from whimbrel.core.contract import (
    CancelMessage,
    Changes,
    HandedOver,
    MarkRead,
    MessageRow,
    RetryMessage,
    SendMessage,
    TakeHandoff,
)
from whimbrel.core.rows import is_repeat, queued_row
from whimbrel.errors import KeyReused, NotFound, QueueFull, StoreError, WhimbrelError
from whimbrel.model import SendState, message_id
from whimbrel.protocol import BODY_BYTES_MAX

COMMANDS_MAX = 20_000
"""How many commands other than messages may wait to be taken."""
TAKEN_AT_ONCE = 500

Outcome: TypeAlias = WhimbrelError | None
"""What came of handing a command over: None, it is on disk; else why it was refused."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What may wait in the outbox, handed over or queued."""

    messages_max: int = 10_000
    bytes_max: int = 64 * 1024 * 1024


class KeyRaced(StoreError):
    """Another process used the key of ``message`` for other content at the same instant; nothing was kept."""

    code = "key_raced"

    def __init__(self, message: str) -> None:
        super().__init__("a key was used by two programs at once; nothing was kept", hint="send it again")
        self.message = message


class Handoff(Protocol):
    """The port of what is handed over; every store has it."""

    def hand_over(self, commands: Sequence[tuple[HandedOver, float]], limits: Limits) -> list[Outcome]:
        """Write commands, each with its wall time, in this order and durably; what came of each.

        All that are accepted are there when it returns. Raises ``StoreError``; then none is. A message
        that is there already is accepted again, without a second one.
        """

    def handed_over(self, after: int, limit: int = TAKEN_AT_ONCE) -> list[TakeHandoff]:
        """What waits to be taken, in order, with a number above ``after``."""


class _Send(SendMessage, frozen=True, kw_only=True, tag="send", tag_field="do", omit_defaults=True):
    pass


class _Retry(RetryMessage, frozen=True, kw_only=True, tag="retry", tag_field="do"):
    pass


class _Cancel(CancelMessage, frozen=True, kw_only=True, tag="cancel", tag_field="do"):
    pass


class _MarkRead(MarkRead, frozen=True, kw_only=True, tag="read", tag_field="do"):
    pass


_Written: TypeAlias = _Send | _Retry | _Cancel | _MarkRead
_decoder: msgspec.json.Decoder[_Written] = msgspec.json.Decoder(_Written)


_WRITTEN: dict[type[HandedOver], type[_Written]] = {
    SendMessage: _Send,
    RetryMessage: _Retry,
    CancelMessage: _Cancel,
    MarkRead: _MarkRead,
}
_MEANT = {written: command for command, written in _WRITTEN.items()}


def written(command: HandedOver) -> str:
    """The command as the table has it."""
    row = _WRITTEN[type(command)](**msgspec.structs.asdict(command))
    return msgspec.json.encode(row).decode()


def understood(text: str) -> HandedOver | None:
    """The command again; None: it is of a kind that this version does not know."""
    try:
        row = _decoder.decode(text)
    except msgspec.DecodeError:
        return None
    return _MEANT[type(row)](**msgspec.structs.asdict(row))


def pending_row(command: SendMessage, id: str, at: float) -> MessageRow:
    """How a message reads before it is taken: pending, without a number."""
    row = queued_row(command, id, sender="", at=at)
    row.state = SendState.PENDING
    return row


class Fill(msgspec.Struct, kw_only=True):
    """What waits already, and how much may."""

    limits: Limits
    messages: int
    size_bytes: int
    others: int
    """Handed over commands that are not new messages."""

    def admit(self, command: HandedOver, known: MessageRow | None, *, left: bool) -> bool:
        """Count a command in; False: it is the message of ``known`` again. Raises why it is refused."""
        if not isinstance(command, SendMessage):
            if self.others >= COMMANDS_MAX:
                raise QueueFull("too many commands wait for the program that syncs this store")
            self.others += 1
            return True
        if known is not None:
            if is_repeat(known, command):
                return False
            raise KeyReused("this key was used before for other content")
        if left:
            raise NotFound("you are no longer a member of this conversation")
        if self.messages >= self.limits.messages_max:
            raise QueueFull(f"{self.limits.messages_max} messages wait already")
        size_bytes = len(command.body.encode())
        if self.size_bytes + size_bytes > self.limits.bytes_max:
            raise QueueFull(f"{self.limits.bytes_max} bytes wait already")
        self.messages += 1
        self.size_bytes += size_bytes
        return True


# --- the table ---------------------------------------------------------------------------------

_ANY = "SELECT EXISTS (SELECT 1 FROM handoff)"
_WAITING = (
    "SELECT count(*), coalesce(sum(octet_length(body)), 0) FROM messages WHERE (waiting OR below) AND waiting"
)
_AT_MOST = "SELECT count(*) FROM messages WHERE (waiting OR below)"
_HANDED = "SELECT count(message), coalesce(sum(size_bytes), 0), count(*) FROM handoff"
_LEFT = 'SELECT "left" FROM conversations WHERE id = ?'
_INSERT = "INSERT INTO handoff (message, conversation, size_bytes, command, at) VALUES (?, ?, ?, ?, ?)"
_TAKE = (
    "SELECT h.id, command, at, message IS NOT NULL AND EXISTS (SELECT 1 FROM messages m WHERE m.id = message)"
    " FROM handoff h WHERE h.id > ? ORDER BY h.id LIMIT ?"
)
_NEW = "message IS NOT NULL AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = message)"
_ROWS = f"SELECT message, command, at FROM handoff WHERE {_NEW}"  # noqa: S608 - our own names
_COUNTS = f"SELECT conversation, count(*) FROM handoff WHERE {_NEW} GROUP BY 1"  # noqa: S608 - our own names
_DELETE = "DELETE FROM handoff WHERE id = ?"
_RACED = (
    "SELECT h.message, h.command, m.conversation, m.format, m.body, m.role, m.reply_to, m.metadata"
    " FROM handoff h JOIN messages m ON m.id = h.message"
)


def rows(db: apsw.Connection, conversation: str | None = None) -> list[MessageRow]:
    """Messages that were handed over and not taken, in that order."""
    if conversation is None:
        return _as_rows(db.execute(f"{_ROWS} ORDER BY id"))
    return _as_rows(db.execute(f"{_ROWS} AND conversation = ? ORDER BY id", (conversation,)))


def row(db: apsw.Connection, id: str) -> MessageRow | None:
    """The row of a message that was handed over and not taken."""
    found = _as_rows(db.execute(f"{_ROWS} AND message = ?", (id,)))
    return found[0] if found else None


def counts(db: apsw.Connection) -> dict[str, int]:
    """How many messages wait to be taken, by conversation."""
    return dict(db.execute(_COUNTS))


def _as_rows(found: Iterable[tuple[str, str, float]]) -> list[MessageRow]:
    out = []
    for id, text, at in found:
        command = understood(text)
        if isinstance(command, SendMessage):
            out.append(pending_row(command, id, at))
    return out


def insert(
    db: apsw.Connection,
    device: str,
    commands: Sequence[tuple[HandedOver, float]],
    limits: Limits,
    known: Callable[[str], MessageRow | None],
) -> list[Outcome]:
    """Write commands inside the caller's transaction; ``known`` gives the row of a message, if any."""
    handed, handed_bytes, all_handed = next(db.execute(_HANDED))
    queued, queued_bytes = _queued(db, limits, handed + len(commands), handed_bytes)
    fill = Fill(
        limits=limits,
        messages=queued + handed,
        size_bytes=queued_bytes + handed_bytes,
        others=all_handed - handed,
    )
    out: list[Outcome] = []
    for command, at in commands:
        id = conversation = row = None
        left, size_bytes = False, 0
        if isinstance(command, SendMessage):
            id, conversation = message_id(device, command.key), command.conversation
            size_bytes = len(command.body.encode())
            row = known(id)
            left = any(value for (value,) in db.execute(_LEFT, (conversation,)))
        try:
            new = fill.admit(command, row, left=left)
        except WhimbrelError as error:
            out.append(error)
            continue
        if new:
            db.execute(_INSERT, (id, conversation, size_bytes, written(command), at))
        out.append(None)
    return out


def _queued(db: apsw.Connection, limits: Limits, others: int, others_bytes: int) -> tuple[int, int]:
    """How many messages are queued and how large they are; (0, 0) where no limit can be near."""
    # The index alone says how many at most; looking at each costs a millisecond a thousand.
    at_most: int = next(db.execute(_AT_MOST))[0]
    few = at_most + others <= limits.messages_max
    if few and (at_most + others) * BODY_BYTES_MAX + others_bytes <= limits.bytes_max:
        return 0, 0
    queued, size_bytes = next(db.execute(_WAITING))
    return queued, size_bytes


def waiting(db: apsw.Connection, after: int, limit: int) -> list[TakeHandoff]:
    """What is to be taken; without its command where that is done already. What is not understood stays."""
    out: list[TakeHandoff] = []
    while len(out) < limit:
        found = list(db.execute(_TAKE, (after, limit)))
        for number, text, at, known in found:
            command = understood(text)
            if command is not None:
                out.append(TakeHandoff(number=number, command=None if known else command, at=at))
            after = number
        if len(found) < limit:
            break
    return out[:limit]


def settle(db: apsw.Connection, changes: Changes) -> None:
    """Delete what these changes carry out, inside their transaction. Raises ``KeyRaced``.

    Whatever is still handed over and a row now as well is a key that two processes used at once; with
    the same content it is the same message, and will be found done when it is taken.
    """
    if changes.handoffs:
        db.executemany(_DELETE, ((number,) for number in changes.handoffs))
    if changes.messages and next(db.execute(_ANY))[0]:
        for message, text, conversation, format, body, role, reply_to, metadata in db.execute(_RACED):
            command = understood(text)
            row = MessageRow(
                id=message,
                conversation=conversation,
                format=format,
                body=body,
                role=role,
                reply_to=reply_to,
                metadata=metadata,
            )
            if isinstance(command, SendMessage) and not is_repeat(row, command):
                raise KeyRaced(message)
