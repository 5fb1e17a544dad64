"""The life of one own message, and the queue of a conversation's unsettled ones.

``TRANSITIONS`` is the machine. ``offline`` and ``read`` are not in it: a pending message reads as
offline while there is no link, a delivered one as read by the receipts.
"""

from __future__ import annotations

import msgspec

from whimbrel import protocol as p
from whimbrel.core.contract import MessageRow, OutboxUpdate
from whimbrel.model import FailureReason, SendState

S = SendState

TRANSITIONS: dict[SendState, dict[str, SendState]] = {
    S.PENDING: {
        "transmit": S.SENDING,
        "deliver": S.DELIVERED,
        "cancel": S.CANCELLED,
        "void": S.CANCELLED,
        "reject": S.FAILED,
        "expire": S.FAILED,
    },
    S.SENDING: {
        "accept": S.SENT,
        "deliver": S.DELIVERED,
        "lose_link": S.PENDING,
        "hold": S.PENDING,
        "fail": S.RETRYING,
        "exhaust": S.FAILED,
        "reject": S.FAILED,
        "void": S.CANCELLED,
        "expire": S.FAILED,
    },
    S.SENT: {
        "transmit": S.SENDING,
        "deliver": S.DELIVERED,
        "lose_link": S.PENDING,
        "hold": S.PENDING,
        "fail": S.RETRYING,
        "exhaust": S.FAILED,
        "reject": S.FAILED,
        "void": S.CANCELLED,
        "expire": S.FAILED,
    },
    S.RETRYING: {
        "transmit": S.SENDING,
        "deliver": S.DELIVERED,
        "resume": S.PENDING,
        "void": S.CANCELLED,
        "reject": S.FAILED,
        "expire": S.FAILED,
    },
    S.FAILED: {
        "resume": S.PENDING,
        "deliver": S.DELIVERED,
        "void": S.CANCELLED,
        "reject": S.FAILED,
        "expire": S.FAILED,
    },
    S.CANCELLED: {"void": S.CANCELLED},
    S.DELIVERED: {},
}
"""The life of a message. A pair that is not here does not happen: it would be our own mistake."""

_DEFAULTS = {
    field.default: field.default
    for field in msgspec.structs.fields(p.Send)
    if field.name in ("format", "alg", "role", "on_reject")
}
"""A default is left out of the frame if it is the very object that the item knows."""
_OVERHEAD_BYTES = 200
_ASK_MAX = 100
WIRED = frozenset({S.SENDING, S.SENT})
"""The states of a message that is on the wire."""


class Entry:
    """One own message that is not settled."""

    __slots__ = (
        "counts",
        "delivered_before",
        "durable",
        "left",
        "renumbered",
        "resume_at",
        "row",
        "sent_at",
        "wired",
    )

    def __init__(self, row: MessageRow, *, durable: bool, left: bool) -> None:
        self.row = row
        self.durable = durable
        self.left = left
        """It may have been on some wire: only the server can say what became of it."""
        self.renumbered = False
        """It was given a new stream because the server refused its number once."""
        self.wired = False
        """It is on the wire of the present link, unanswered."""
        self.sent_at = 0.0
        self.resume_at: float | None = None
        self.delivered_before = 0
        self.counts: dict[FailureReason, int] = {}
        """Failed attempts of this round, by reason."""
        if row.retry_count:
            for attempt in row.attempts[len(row.attempts) - row.retry_count :]:
                self.counts[attempt.reason] = self.counts.get(attempt.reason, 0) + 1

    @property
    def size(self) -> int:
        """About how many bytes it takes on the wire."""
        return len(self.row.body) + _OVERHEAD_BYTES


class Queue:
    """The unsettled messages of one conversation, by number."""

    __slots__ = (
        "asked_at",
        "conversation",
        "cursor",
        "displaced",
        "doubted",
        "entries",
        "hold_reason",
        "hold_until",
        "last_n",
        "queued",
        "stream",
    )

    def __init__(self, conversation: str, stream: int, last_n: int) -> None:
        self.conversation = conversation
        self.stream = stream
        self.last_n = last_n
        self.entries: dict[int, Entry] = {}
        self.displaced: dict[str, Entry] = {}
        """By id: were in a log that was replaced, and wait until it is known whether the new one has them."""
        self.cursor = last_n + 1
        """The next number to send on the present link."""
        self.hold_until = 0.0
        self.hold_reason = ""
        self.doubted = 0
        """How often in a row the first number was asked after without an answer."""
        self.asked_at = 0.0
        self.queued = False

    def head(self) -> Entry | None:
        """The first unsettled message."""
        for entry in self.entries.values():
            return entry
        return None

    def next(self) -> Entry | None:
        """The next message to leave on the present link; None: none may."""
        if self.displaced:
            return None  # they were before all others, and may have to go out first
        while self.cursor <= self.last_n:
            entry = self.entries.get(self.cursor)
            if entry is None:
                self.cursor += 1
                continue
            if not entry.durable:
                return None
            if entry.row.state is S.FAILED and entry.row.void is None:
                return None  # it holds its place, and those behind it wait
            return entry
        return None

    def doubt_at(self, timeout_s: float) -> float:
        """When to ask after the first number, which is on the wire: less and less often."""
        head = self.head()
        assert head is not None, "there is nothing to ask after"
        if not self.doubted:
            return head.sent_at + timeout_s
        return max(head.sent_at, self.asked_at) + timeout_s * float(2 ** min(self.doubted - 1, 5))

    def ask(self, now: float) -> p.Status:
        """Ask what became of the numbers on the wire."""
        self.doubted += 1
        self.asked_at = now
        numbers = tuple(n for n, entry in self.entries.items() if entry.wired)[:_ASK_MAX]
        return p.Status(conversation=self.conversation, stream=self.stream, numbers=numbers)

    def rewind(self) -> None:
        """Begin again at the first unsettled number."""
        head = self.head()
        self.cursor = head.row.n if head is not None else self.last_n + 1


def update_of(row: MessageRow) -> OutboxUpdate:
    """What the store must write of an own message now."""
    return OutboxUpdate(
        id=row.id,
        stream=row.stream,
        n=row.n,
        state=row.state or S.PENDING,
        reason=row.reason,
        can_retry=row.can_retry,
        retry_count=row.retry_count,
        last_retry_at=row.last_retry_at,
        rounds=row.rounds,
        attempts=row.attempts,
        void=row.void,
        seq=row.seq,
        arrival=row.arrival,
        delivered_at=row.delivered_at,
    )


def item_of(row: MessageRow) -> p.Send | p.Void:
    """What goes over the wire for an own message: itself, or the void of its number."""
    if row.void is not None:
        return p.Void(
            conversation=row.conversation, stream=row.stream, n=row.n, key=row.key or "", reason=row.void
        )
    return p.Send(
        conversation=row.conversation,
        stream=row.stream,
        n=row.n,
        key=row.key or "",
        body=row.body,
        format=_DEFAULTS.get(row.format, row.format),
        alg=_DEFAULTS.get(row.alg, row.alg),
        role=_DEFAULTS.get(row.role, row.role),
        metadata=msgspec.json.decode(row.metadata) if row.metadata else None,
        reply_to=row.reply_to,
        sent_at=row.sent_at,
        on_reject=_DEFAULTS.get(row.on_reject, row.on_reject),
    )
