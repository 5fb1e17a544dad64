"""How rows of the database become the rows of ``core.contract``, and back.

One list of columns for every statement, so that reading and writing cannot disagree. Values of an
unknown kind, from a newer version, are read as what an app can show.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec

from whimbrel.core.contract import ConversationRow, MessageRow, OutboxUpdate
from whimbrel.lots import places
from whimbrel.model import Attempt, FailureReason, SendState

T = TypeVar("T")

_STATES = {state.value: state for state in SendState}
_REASONS = {reason.value: reason for reason in FailureReason}
_attempts = msgspec.json.Decoder(tuple[Attempt, ...])
_members = msgspec.json.Decoder(tuple[str, ...])
_receipts = msgspec.json.Decoder(tuple[tuple[str, int, int], ...])
_encode = msgspec.json.Encoder().encode

_MESSAGE = MessageRow.__struct_fields__
_CONVERSATION = ConversationRow.__struct_fields__

MESSAGE_COLUMNS = ", ".join(_MESSAGE)
CONVERSATION_COLUMNS = ", ".join(f'"{name}"' for name in _CONVERSATION)

_UPDATE = OutboxUpdate.__struct_fields__


@cache
def insert_messages(count: int) -> str:
    """The statement that writes so many messages."""
    return (
        f"INSERT INTO messages ({MESSAGE_COLUMNS}) VALUES {places(len(_MESSAGE), count)}"  # noqa: S608 - constants
        " ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, arrival = coalesce(arrival, excluded.arrival),"
        " delivered_at = excluded.delivered_at, void = excluded.void,"
        " state = CASE WHEN excluded.state IS NULL AND own THEN 'delivered' ELSE excluded.state END"
    )


@cache
def update_messages(count: int) -> str:
    """The statement that updates so many messages."""
    new = [f"{name} = column{place}" for place, name in enumerate(_UPDATE, 1) if name != "id"]
    return (
        f"UPDATE messages SET {', '.join(new)} FROM (VALUES {places(len(_UPDATE), count)})"  # noqa: S608 - constants
        " WHERE id = column1"
    )


PUT_CONVERSATION = (
    f"INSERT OR REPLACE INTO conversations ({CONVERSATION_COLUMNS})"  # noqa: S608 - our own names
    f" VALUES ({', '.join('?' * len(_CONVERSATION))})"
)


def message_values(row: MessageRow) -> tuple[Any, ...]:
    """The values of one row of ``insert_messages``, in the order of the columns."""
    return (
        row.id,
        row.conversation,
        row.kind,
        row.sender,
        row.role,
        row.format,
        row.body,
        row.alg,
        row.metadata,
        row.reply_to,
        row.sent_at,
        row.own,
        row.key,
        row.on_reject,
        row.expires_at,
        row.stream,
        row.n,
        row.state,
        row.reason,
        row.can_retry,
        row.retry_count,
        row.last_retry_at,
        row.rounds,
        _encode(row.attempts).decode() if row.attempts else None,
        row.void,
        row.seq,
        row.arrival,
        row.delivered_at,
        row.read_at,
    )


def update_values(update: OutboxUpdate) -> tuple[Any, ...]:
    """The values of one row of ``update_messages``, in the order of the fields."""
    return (
        update.id,
        update.stream,
        update.n,
        update.state,
        update.reason,
        update.can_retry,
        update.retry_count,
        update.last_retry_at,
        update.rounds,
        _encode(update.attempts).decode() if update.attempts else None,
        update.void,
        update.seq,
        update.arrival,
        update.delivered_at,
    )


def message_row(values: tuple[Any, ...]) -> MessageRow:
    """Read one row of ``SELECT MESSAGE_COLUMNS``."""
    row = MessageRow(**dict(zip(_MESSAGE, values, strict=True)))
    row.own = bool(row.own)
    row.can_retry = bool(row.can_retry)
    if row.state is not None:
        row.state = _STATES.get(row.state)
    if row.reason is not None:
        row.reason = _REASONS.get(row.reason, FailureReason.UNKNOWN)
    row.attempts = _read(_attempts, row.attempts) if row.attempts else ()  # type: ignore[arg-type] # JSON still
    return row


def _read(decoder: msgspec.json.Decoder[tuple[T, ...]], text: str) -> tuple[T, ...]:
    """What the text says; nothing, if a newer version says it in a way of its own."""
    try:
        return decoder.decode(text)
    except msgspec.DecodeError:
        return ()


def conversation_values(row: ConversationRow) -> tuple[Any, ...]:
    """The values of ``PUT_CONVERSATION``."""
    return tuple(
        _encode(value).decode() if isinstance(value, tuple) else value
        for value in (getattr(row, name) for name in _CONVERSATION)
    )


def conversation_row(values: tuple[Any, ...]) -> ConversationRow:
    """Read one row of ``SELECT CONVERSATION_COLUMNS``."""
    fields = dict(zip(_CONVERSATION, values, strict=True))
    fields["members"] = _members.decode(fields["members"])
    fields["receipts"] = _read(_receipts, fields["receipts"])
    fields["left"] = bool(fields["left"])
    return ConversationRow(**fields)
