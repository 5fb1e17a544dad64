"""The log of one conversation as this device knows it: how far it is here, and what lies beyond a gap.

The timeline (``core.timeline``) changes it; what of it is on disk is ``durable``.
"""

from __future__ import annotations

import msgspec

from whimbrel import protocol as p
from whimbrel.core.contract import ConversationRow, MessageRow


class Log:
    """One conversation as this device knows it."""

    __slots__ = (
        "buffer",
        "durable",
        "fetch_at",
        "fetch_failures",
        "fetching",
        "others",
        "others_durable",
        "others_gathered",
        "receipts",
        "revision",
        "row",
        "told_link",
        "told_read",
        "told_received",
    )

    def __init__(self, row: ConversationRow) -> None:
        self.row = msgspec.structs.replace(row)
        """Changed in place; whoever gave ``row`` keeps theirs as it is."""
        self.revision = 0
        """How often the row changed."""
        self.durable = row
        """The row as it is on disk: what receipts rest on."""
        self.others = row.position
        """The last entry here that others made, as far as known: of own ones nobody needs a receipt."""
        self.others_gathered = self.others_durable = self.others
        """The same in the row last given to be written, and in ``durable``."""
        self.receipts = {name: (received, read) for name, received, read in row.receipts}
        """Of the others; in the row once gathered."""
        self.buffer: dict[int, MessageRow] = {}
        """Entries beyond a gap, by seq."""
        self.fetching: int | None = None
        """The link on which a page was asked for."""
        self.fetch_at = 0.0
        """While fetching: when to give the answer up; else: not before."""
        self.fetch_failures = 0
        self.told_link: int | None = None
        self.told_received = 0
        self.told_read = 0
        """The receipts last told, and on which link."""


def row_of(event: p.Event) -> MessageRow:
    """The row of a log entry that came from the server."""
    return MessageRow(
        id=event.id,
        conversation=event.conversation,
        kind=event.kind,
        sender=event.sender,
        role=event.role,
        format=event.format,
        body=event.body,
        alg=event.alg,
        metadata=None if event.metadata is None else msgspec.json.encode(event.metadata).decode(),
        reply_to=event.reply_to,
        sent_at=event.sent_at,
        seq=event.seq,
        delivered_at=event.at or None,
    )
