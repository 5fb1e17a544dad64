"""Rows to test stores with: short to write, and complete."""

from __future__ import annotations

from typing import Any

from whimbrel.core.contract import Changes, ConversationRow, MessageRow, OutboxUpdate
from whimbrel.model import SendState, message_id


def queued(n: int, *, conversation: str = "c1", stream: int = 1, **fields: Any) -> MessageRow:
    """An own message as it is queued under the key ``k<n>``."""
    key = f"{conversation}-{stream}-{n}"
    return MessageRow(
        **{
            "id": message_id("device", key),
            "conversation": conversation,
            "sender": "anna",
            "body": f"text {n}",
            "sent_at": 1000.0 + n,
            "own": True,
            "key": key,
            "stream": stream,
            "n": n,
            "state": SendState.PENDING,
            **fields,
        }
    )


def entry(seq: int, *, arrival: int | None, conversation: str = "c1", **fields: Any) -> MessageRow:
    """A log entry that another member sent."""
    return MessageRow(
        **{
            "id": message_id("other", f"{conversation}-{seq}"),
            "conversation": conversation,
            "sender": "ben",
            "body": f"entry {seq}",
            "sent_at": 2000.0 + seq,
            "seq": seq,
            "arrival": arrival,
            "delivered_at": 2001.0 + seq,
            **fields,
        }
    )


def update(row: MessageRow, **fields: Any) -> OutboxUpdate:
    """The update that leaves an own message as it is, but for ``fields``."""
    names = OutboxUpdate.__struct_fields__
    return OutboxUpdate(**{**{name: getattr(row, name) for name in names}, **fields})


def changes(*rows: MessageRow, **fields: Any) -> Changes:
    """Changes that insert these rows."""
    return Changes(messages={row.id: row for row in rows}, **fields)


def conversation(id: str = "c1", **fields: Any) -> ConversationRow:
    """A conversation of anna and ben."""
    return ConversationRow(**{"id": id, "members": ("anna", "ben"), "epoch": "e1", **fields})
