"""How a stored row reads as what an app sees.

The store and the engine both answer "where does this message stand"; this is the one place that
says how. A row of an own message without a status, from an older version, reads as sent.
"""

from __future__ import annotations

import msgspec

from whimbrel.core.contract import ConversationRow, MessageRow, SendMessage, Settings
from whimbrel.model import (
    Conversation,
    FailureReason,
    Message,
    Role,
    SendState,
    SendStatus,
)
from whimbrel.protocol import decode_content

_ROLES = {role.value: role for role in Role}
_PLAIN = {state: SendStatus(state=state) for state in SendState}
_DEFAULTS = Settings()


def retries_allowed(reason: FailureReason, settings: Settings = _DEFAULTS) -> int:
    """How many retries failures of this reason alone may use up."""
    if reason is FailureReason.TIMEOUT:
        return settings.retries_timeout
    if reason is FailureReason.SERVER_ERROR:
        return settings.retries_server_error
    if reason is FailureReason.NETWORK_ERROR:
        return settings.retries_network_error
    return settings.retries_max


def status_of(row: MessageRow, *, read: bool = False, settings: Settings = _DEFAULTS) -> SendStatus | None:
    """The status of an own message; None for those of others. ``read``: all other members have read it."""
    if not row.own:
        return None
    state = row.state or SendState.SENT
    if state is SendState.RETRYING:
        reason = row.reason or FailureReason.UNKNOWN
        return SendStatus(
            state=state,
            retry=row.retry_count,
            retry_max=max(min(retries_allowed(reason, settings), settings.retries_max), row.retry_count),
            reason=reason,
        )
    if state is SendState.FAILED:
        return SendStatus(state=state, reason=row.reason, can_retry=row.can_retry)
    if state is SendState.DELIVERED and (read or row.read_at is not None):
        state = SendState.READ
    return _PLAIN[state] if row.reason is None else SendStatus(state=state, reason=row.reason)


def message_of(row: MessageRow, *, status: SendStatus | None = None, user: str = "") -> Message:
    """The message an app sees; ``status`` overrides what the row alone says (the engine knows more).

    ``user``: whose store it is; own messages queued before the first sign-in have no sender yet.
    """
    content = decode_content(row.format, row.body)
    metadata = None
    if row.metadata is not None:
        try:
            metadata = msgspec.json.decode(row.metadata, type=dict)
        except msgspec.DecodeError:
            metadata = None
    return Message(
        id=row.id,
        conversation=row.conversation,
        sender=row.sender or (user if row.own else ""),
        kind=row.kind,
        role=_ROLES.get(row.role, row.role),
        content=content,
        metadata=metadata,
        reply_to=row.reply_to,
        key=row.key if row.own else None,
        seq=row.seq,
        position=row.arrival,
        sent_at=row.sent_at,
        delivered_at=row.delivered_at,
        read_at=row.read_at,
        retry_count=row.retry_count,
        last_retry_at=row.last_retry_at,
        status=status or status_of(row),
    )


def queued_row(command: SendMessage, id: str, *, sender: str, at: float) -> MessageRow:
    """The row of a message queued at ``at`` (wall clock), before it has a number and a state."""
    return MessageRow(
        id=id,
        conversation=command.conversation,
        sender=sender,
        role=command.role,
        format=command.format,
        body=command.body,
        metadata=None if command.metadata is None else msgspec.json.encode(command.metadata).decode(),
        reply_to=command.reply_to,
        sent_at=at,
        own=True,
        key=command.key,
        on_reject=command.on_reject,
        expires_at=None if command.expires_in_s is None else at + command.expires_in_s,
    )


def is_repeat(row: MessageRow, command: SendMessage) -> bool:
    """Whether ``command`` asks for the very message of ``row`` again."""
    if (row.conversation, row.format, row.body, row.role, row.reply_to) != (
        command.conversation,
        command.format,
        command.body,
        command.role,
        command.reply_to,
    ):
        return False
    try:
        metadata = None if row.metadata is None else msgspec.json.decode(row.metadata)
    except msgspec.DecodeError:
        return False
    return bool(metadata == command.metadata)


def conversation_of(row: ConversationRow, *, pending: int = 0) -> Conversation:
    """The conversation an app sees."""
    return Conversation(
        id=row.id,
        title=row.title,
        members=row.members,
        epoch=row.epoch,
        position=row.position,
        head=row.head,
        read=row.read,
        pending=pending,
        status="left" if row.left else "active",
        last_synced_at=row.synced_at,
    )
