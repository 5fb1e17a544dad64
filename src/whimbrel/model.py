"""What an app sees: messages, conversations, their states, and the events about them.

Everything here is a value: frozen, comparable, without behaviour that needs a connection. The wire
has its own shapes (``protocol``), the store its own rows (``core.contract``). A value never prints
the content of a message.

Identity: a message is named by ``message_id(device, key)`` from the moment it is queued, on every
machine alike, so the local echo and the confirmed message are one.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Any, ClassVar, TypeAlias

import msgspec

__all__ = [
    "Attempt",
    "AuthChanged",
    "ConnectionChanged",
    "ConnectionState",
    "Content",
    "Conversation",
    "ConversationChanged",
    "Event",
    "Explanation",
    "FailureReason",
    "LostMessage",
    "Message",
    "MessageChanged",
    "MessageReceived",
    "MessageState",
    "PermanentFailure",
    "Quality",
    "Receipt",
    "ReceiptChanged",
    "Role",
    "SendState",
    "SendStatus",
    "StoreRebuilt",
    "TypingChanged",
    "message_id",
]

Content: TypeAlias = "str | bytes | dict[str, Any] | list[Any] | int | float | bool | None"
"""Text, bytes, or anything JSON can hold."""


BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
"""The characters of ids, in the order of RFC 4648."""
_PAIRS = [first + second for first in BASE32 for second in BASE32]
_ALL_TENS = range(120, -1, -10)
_KEY_CHARS, _TIME_CHARS = 27, 10


def message_id(device: str, key: str) -> str:
    """Name the message that ``device`` sends under ``key``: 26 characters, the same on every machine.

    The base32 of the first 16 bytes of a SHA-256. Of a key as clients make them
    (``client.outgoing.new_key``), its time comes first and then 16 characters of that: the names of
    messages sent one after the other are next to each other in every index, so that one more costs a store
    with a million of them what it costs a new one.
    """
    digest = hashlib.sha256(f"{len(device)}:{device}{key}".encode()).digest()
    if len(key) == _KEY_CHARS and key[0] == "t" and not (time := key[1 : 1 + _TIME_CHARS]).strip(BASE32):
        # Eight characters at a time: a larger integer takes longer to be taken apart.
        one, two, pairs = int.from_bytes(digest[:5], "big"), int.from_bytes(digest[5:10], "big"), _PAIRS
        return (
            f"{time}{pairs[one >> 30]}{pairs[one >> 20 & 1023]}{pairs[one >> 10 & 1023]}{pairs[one & 1023]}"
            f"{pairs[two >> 30]}{pairs[two >> 20 & 1023]}{pairs[two >> 10 & 1023]}{pairs[two & 1023]}"
        )
    return base32(digest[:16])


def base32(name: bytes) -> str:
    """Write 16 bytes as 26 characters: base32 (RFC 4648) in lower case, without padding.

    By tens of bits, for it is done for every message on both sides.
    """
    bits = int.from_bytes(name, "big") << 2
    return "".join([_PAIRS[bits >> shift & 1023] for shift in _ALL_TENS])


class Role(enum.StrEnum):
    """Who speaks."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


class MessageState(enum.StrEnum):
    """The state of the content itself."""

    COMPLETED = "completed"
    PROCESSING = "processing"
    STREAMING = "streaming"


class SendState(enum.StrEnum):
    """Where an own message stands; the table of its transitions is ``core.life.TRANSITIONS``."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    DELIVERED = "delivered"
    READ = "read"
    RETRYING = "retrying"
    OFFLINE = "offline"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FailureReason(enum.StrEnum):
    """Why an attempt, or a message, failed."""

    NETWORK_ERROR = "network_error"
    SERVER_ERROR = "server_error"
    AUTHENTICATION_ERROR = "authentication_error"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    REJECTED = "rejected"
    EXPIRED = "expired"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> FailureReason | None:
        """A reason of a newer version is one we do not know."""
        return cls.UNKNOWN if isinstance(value, str) else None

    @property
    def friendly(self) -> str:
        """What to tell the person who sent it."""
        return _FRIENDLY[self]


_FRIENDLY = {
    FailureReason.NETWORK_ERROR: "The network failed. It will be sent again.",
    FailureReason.SERVER_ERROR: "The server has trouble. It will be sent again.",
    FailureReason.AUTHENTICATION_ERROR: "Please sign in again.",
    FailureReason.RATE_LIMITED: "Too many messages at once. It will be sent in a moment.",
    FailureReason.TIMEOUT: "The server did not answer in time. It will be sent again.",
    FailureReason.REJECTED: "The server did not accept this message.",
    FailureReason.EXPIRED: "This message was not sent in time.",
    FailureReason.UNKNOWN: "Something went wrong.",
}

_MARKS = {
    SendState.PENDING: "⏰",
    SendState.OFFLINE: "⏰",
    SendState.SENDING: "…",
    SendState.SENT: "✓",
    SendState.DELIVERED: "✓✓",
    SendState.READ: "✓✓",
    SendState.FAILED: "⚠",
    SendState.CANCELLED: "✕",
}


class SendStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where an own message stands, with what belongs to that state."""

    state: SendState
    retry: int = 0
    """With ``retrying``: which retry is next, from 1."""
    retry_max: int = 0
    reason: FailureReason | None = None
    can_retry: bool = False
    """With ``failed``: whether it is taken up again, by itself or by ``retry()``."""

    @property
    def mark(self) -> str:
        """The mark people know: ⏰ ✓ ✓✓ ⟳ 1/3 ⚠ ✕."""
        if self.state is SendState.RETRYING:
            return f"⟳ {self.retry}/{self.retry_max}"
        return _MARKS[self.state]

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in _SETTLED or (self.state is SendState.FAILED and not self.can_retry)


_SETTLED = frozenset({SendState.DELIVERED, SendState.READ, SendState.CANCELLED})


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a conversation: a message, or (``kind`` other than ``message``) a change of it."""

    id: str
    conversation: str
    sender: str
    kind: str = "message"
    """``message``, ``member`` (content: ``{"user", "action"}``), ``info``; unknown kinds are kept."""
    role: Role | str = Role.USER
    content: Content
    metadata: dict[str, Any] | None = None
    reasoning: str | None = None
    attachments: list[dict[str, Any]] | None = None
    reply_to: str | None = None
    key: str | None = None
    """The sender's own key; known on the sending device only."""
    seq: int | None = None
    """Place in the conversation's log, once delivered."""
    position: int | None = None
    """Place in this store's order of arrival; what a durable consumer counts by."""
    sent_at: float
    """Wall clock of the sender, seconds since 1970; orders nothing."""
    delivered_at: float | None = None
    read_at: float | None = None
    retry_count: int = 0
    last_retry_at: float | None = None
    status: SendStatus | None = None
    """Of an own message; ``None`` for those of others."""
    state: MessageState = MessageState.COMPLETED

    def __repr__(self) -> str:
        return f"<Message {self.id} in {self.conversation} seq={self.seq}>"


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """How far one member has received and read; both only ever grow."""

    user: str
    received: int = 0
    read: int = 0


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation as this store knows it."""

    id: str
    title: str = ""
    members: tuple[str, ...] = ()
    epoch: str = ""
    position: int = 0
    """The last ``seq`` received without a gap."""
    head: int = 0
    """The last ``seq`` the server told of."""
    read: int = 0
    """The last ``seq`` this user has read."""
    pending: int = 0
    """Own messages not delivered yet."""
    status: str = "active"
    """``active`` or ``left``."""
    last_synced_at: float | None = None

    def __repr__(self) -> str:
        return f"<Conversation {self.id} position={self.position} head={self.head}>"


class ConnectionState(enum.StrEnum):
    """Where the link stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    OFFLINE = "offline"
    STOPPED = "stopped"


class Quality(enum.StrEnum):
    """The link's quality from its measured round trip: < 100 ms, < 300 ms, more, none."""

    EXCELLENT = "excellent"
    GOOD = "good"
    POOR = "poor"
    OFFLINE = "offline"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One failed attempt to deliver a message."""

    at: float
    """Wall clock, seconds since 1970."""
    reason: FailureReason
    text: str = ""
    """The technical text; never content."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a message is where it is, and what would move it."""

    message_id: str
    status: SendStatus
    blocked_by: str = ""
    """What it waits for now, in words; empty when it waits for nothing."""
    unblocked_by: str = ""
    """What would move it on, in words."""
    ahead: int = 0
    """How many own messages of this conversation go before it."""
    last_error: str = ""
    attempts: tuple[Attempt, ...] = ()
    next_attempt_in_s: float | None = None


class MessageReceived(msgspec.Struct, frozen=True, kw_only=True):
    """A log entry is in the store, in order: a message of another, a confirmed own one, a member change."""

    name: ClassVar[str] = "message.new"
    message: Message


class MessageChanged(msgspec.Struct, frozen=True, kw_only=True):
    """An own message changed its status."""

    name: ClassVar[str] = "message.status"
    id: str
    conversation: str
    status: SendStatus


class PermanentFailure(msgspec.Struct, frozen=True, kw_only=True):
    """An own message will not be delivered; it stays in the store with its reason."""

    name: ClassVar[str] = "message.permanent_failure"
    id: str
    conversation: str
    reason: FailureReason
    text: str = ""


class ConversationChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation appeared or changed (title, members, head, epoch)."""

    name: ClassVar[str] = "conversation.changed"
    conversation: Conversation


class ReceiptChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A member has received or read further."""

    name: ClassVar[str] = "message.read"
    conversation: str
    receipt: Receipt


class TypingChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A member types, or stopped; may be lost."""

    name: ClassVar[str] = "typing"
    conversation: str
    user: str
    on: bool


class ConnectionChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The link changed its state or quality."""

    name: ClassVar[str] = "connection"
    state: ConnectionState
    attempt: int = 0
    next_in_s: float | None = None
    latency_ms: float | None = None
    quality: Quality = Quality.OFFLINE
    cause: str = ""


class AuthChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The access token was refreshed (``ok``), or can no longer be: sign in again."""

    name: ClassVar[str] = "auth"
    ok: bool


class LostMessage(msgspec.Struct, frozen=True, kw_only=True):
    """An own message that was not delivered, as far as is known, and could not be read any more."""

    id: str | None
    """None: not even its id could be read."""
    conversation: str
    n: int = 0
    """Its number in the queue it was in: the order in which they were sent."""


class StoreRebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """This store was found damaged, set aside, and made anew; what the server has is fetched again."""

    name: ClassVar[str] = "store.rebuilt"
    reason: str = ""
    kept_at: str | None = None
    """Where the damaged file is now."""
    salvaged: int = 0
    """Own messages that wait to go out, as before."""
    lost: tuple[LostMessage, ...] = ()
    lost_unknown: bool = False
    """There may be more that were lost, of which nothing is known."""
    at: float = 0.0
    """Wall clock."""


Event: TypeAlias = (
    MessageReceived
    | MessageChanged
    | PermanentFailure
    | ConversationChanged
    | ReceiptChanged
    | TypingChanged
    | ConnectionChanged
    | AuthChanged
    | StoreRebuilt
)
