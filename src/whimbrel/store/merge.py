"""What a change does to a row, in Python: the meaning that the SQL of ``store.sqlite`` has too.

Rows handed over a store's boundary are copied, since ``MessageRow`` is mutable; a row inside a store
is never changed, only replaced. ``waiting`` is the same rule as the column of that name in
``migrations/0001_first.sql``; the conformance suite holds both to it.
"""

from __future__ import annotations

import copy

from whimbrel.core.contract import ConversationRow, MessageRow, OutboxUpdate
from whimbrel.core.rows import message_of, status_of
from whimbrel.model import FailureReason, Message, SendState

_SETTLED = frozenset({SendState.DELIVERED, SendState.READ, SendState.CANCELLED})

LIMIT_MAX = 10_000
"""The largest page a store gives; a larger ``limit`` means this."""


def waiting(row: MessageRow) -> bool:
    """Whether an own message is not settled: it is in the outbox, or its void is not confirmed."""
    if not row.own:
        return False
    if row.void is not None:
        return True
    if row.state is None:  # of an older version; in the log it is settled
        return row.seq is None
    if row.state is SendState.FAILED:
        # A refused one that blocks holds its place until the app decides.
        return row.can_retry or (row.on_reject == "block" and row.reason is FailureReason.REJECTED)
    return row.state not in _SETTLED


def merged(row: MessageRow, new: MessageRow) -> MessageRow:
    """The stored row after ``new`` of the same id came: its place and state, the old content."""
    out = copy.copy(row)
    out.seq = new.seq
    if out.arrival is None:  # else the app has it: the entry came again, in a new history
        out.arrival = new.arrival
    out.delivered_at = new.delivered_at
    # In the log it is delivered, whoever brings the news.
    out.state = SendState.DELIVERED if new.state is None and row.own else new.state
    out.void = new.void
    return out


def displaced(row: MessageRow, n: int) -> MessageRow:
    """The stored entry after its history was replaced, the ``n``-th to be sent: see ``Changes.resets``."""
    out = copy.copy(row)
    out.seq = None
    if out.own:
        out.stream, out.n, out.state = 0, n, SendState.PENDING
        out.reason, out.can_retry, out.retry_count, out.rounds = None, False, 0, 0
        out.void = out.expires_at = out.delivered_at = out.read_at = None
    return out


def updated(row: MessageRow, update: OutboxUpdate) -> MessageRow:
    """The stored row with its mutable part replaced."""
    out = copy.copy(row)
    out.stream = update.stream
    out.n = update.n
    out.state = update.state
    out.reason = update.reason
    out.can_retry = update.can_retry
    out.retry_count = update.retry_count
    out.last_retry_at = update.last_retry_at
    out.rounds = update.rounds
    out.attempts = update.attempts
    out.void = update.void
    out.seq = update.seq
    out.arrival = update.arrival
    out.delivered_at = update.delivered_at
    return out


def read_by_all(conversation: ConversationRow | None, user: str) -> int:
    """The last ``seq`` that every member but ``user`` has read; 0 where there is no other."""
    if conversation is None:
        return 0
    read = {name: seq for name, _, seq in conversation.receipts}
    return min((read.get(name, 0) for name in conversation.members if name != user), default=0)


def shown(row: MessageRow, read_to: int, user: str) -> Message:
    """The message an app sees in the store of ``user``, where all others have read up to ``read_to``."""
    read = row.seq is not None and row.seq <= read_to
    return message_of(row, status=status_of(row, read=read), user=user)
