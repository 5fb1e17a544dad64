"""What HTTP calls take and give; the OpenAPI document shows these very types."""

from __future__ import annotations

from typing import Any

import msgspec

from whimbrel import protocol as p


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    """Never shows what it holds."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Health(_Value, frozen=True, kw_only=True):
    """The server answers."""

    status: str = "ok"
    version: int = p.VERSION


class Login(_Value, frozen=True, kw_only=True):
    """Who signs in, on which device (26 characters of a-z 2-7, chosen by the client once)."""

    username: str
    password: str
    device: str


class RefreshToken(_Value, frozen=True, kw_only=True):
    """A refresh token."""

    refresh_token: str


class Session(_Value, frozen=True, kw_only=True):
    """What a login or a refresh gives; ``expires_in`` in seconds."""

    user: str
    device: str
    access_token: str
    expires_in: float
    refresh_token: str


class NewConversation(_Value, frozen=True, kw_only=True):
    """A conversation to create; with an ``id`` of the client's, asking again is harmless."""

    id: str = ""
    title: str = ""
    members: tuple[str, ...] = ()


class Conversations(_Value, frozen=True, kw_only=True):
    """The conversations of a user."""

    conversations: tuple[p.ConversationInfo, ...]


class Members(_Value, frozen=True, kw_only=True):
    """The members of a conversation, by name."""

    members: tuple[str, ...]


class NewMember(_Value, frozen=True, kw_only=True):
    """Whom to add."""

    user: str


class NewMessage(_Value, frozen=True, kw_only=True):
    """A ``send`` item without tag and conversation: number ``n`` of ``stream`` of this device here."""

    key: str
    body: str
    stream: int
    n: int
    format: str = "text"
    alg: str = "none"
    role: str = "user"
    metadata: dict[str, Any] | None = None
    reply_to: str | None = None
    sent_at: float = 0.0
    on_reject: str = "skip"


class Buffered(_Value, frozen=True, kw_only=True):
    """The message is in the log: ``server_id`` is its id on every machine, ``seq`` its place."""

    id: str
    server_id: str
    conversation: str
    stream: int
    n: int
    epoch: str
    seq: int
    at: float
    status: str = "delivered"


class Messages(_Value, frozen=True, kw_only=True):
    """Entries in order; ``cursor`` is what to go on from (``since``, or ``before`` if that was asked)."""

    conversation: str
    epoch: str
    messages: tuple[p.Event, ...]
    cursor: int
    head: int
    floor: int


class Receipts(_Value, frozen=True, kw_only=True):
    """How far this user has received and read; merged by max."""

    received: int = 0
    read: int = 0


class Polled(_Value, frozen=True, kw_only=True):
    """What a poll brings; ask again with ``sync``."""

    items: tuple[p.ServerItem, ...]
    sync: str


class Document(_Value, frozen=True, kw_only=True):
    """An OpenAPI 3.1 document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
