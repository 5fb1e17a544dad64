"""What the ledger said, as the items a client understands; and a client's calls as operations.

Pure functions. The hub and the HTTP endpoints both use them, so an answer means the same on every way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TypeAlias

from whimbrel import protocol as p
from whimbrel.model import message_id
from whimbrel.server.ledger import (
    AddMember,
    Ahead,
    Append,
    AppendVoid,
    Committed,
    ConversationSet,
    CreateConversation,
    Ledger,
    Operation,
    Outcome,
    ReceiptSet,
    Refused,
    RemoveMember,
    WasVoided,
)
from whimbrel.server.session import Identity
from whimbrel.server.settle import NUMBER_MAX

KnownUsers: TypeAlias = Callable[[Collection[str]], Collection[str]]
"""Of these names, those that exist."""


def numbered(
    conversation: str, stream: int, n: int, outcome: Outcome, *, unavailable_retry_s: float
) -> p.ServerItem:
    """Say what became of number ``n``."""
    if isinstance(outcome, Committed):
        event = outcome.event
        return p.Delivered(
            conversation=conversation,
            stream=stream,
            n=n,
            id=event.id,
            epoch=event.epoch,
            seq=event.seq,
            at=event.at,
        )
    if isinstance(outcome, WasVoided):
        if outcome.code:
            return p.Rejected(
                conversation=conversation,
                stream=stream,
                n=n,
                code=outcome.code,
                text=outcome.text,
                final=True,
            )
        return p.Voided(conversation=conversation, stream=stream, n=n, reason=outcome.reason)
    if isinstance(outcome, Ahead):
        return p.OutOfOrder(conversation=conversation, stream=stream, expected=outcome.expected)
    if isinstance(outcome, Refused):
        return p.Rejected(
            conversation=conversation,
            stream=stream,
            n=n,
            code=outcome.code,
            text=outcome.text,
            retry_after_s=unavailable_retry_s if outcome.code == "unavailable" else None,
        )
    raise AssertionError(f"a numbered operation settled as {type(outcome).__name__}")


def accepted(delivered: p.Delivered) -> p.Accepted:
    """Say that the buffer had it: of a ledger that is its own buffer, at the same place."""
    return p.Accepted(
        conversation=delivered.conversation,
        stream=delivered.stream,
        n=delivered.n,
        id=delivered.id,
        epoch=delivered.epoch,
        position=str(delivered.seq),
    )


def listing(call_id: str, conversations: list[p.ConversationInfo], size_bytes_max: int) -> p.Answer:
    """Answer ``list``, unless it would not fit a frame."""
    answer = p.Answer(id=call_id, conversations=tuple(conversations))
    if len(p.encode(answer)) > size_bytes_max:
        return p.Answer(id=call_id, code="too_large", text="too many for one answer; the heads have them all")
    return answer


def page(ledger: Ledger, identity: Identity, item: p.Fetch) -> p.ServerItem:
    """Answer a fetch; a stranger is told what it would be of a conversation that does not exist."""
    found = None
    if 0 <= item.since <= NUMBER_MAX:
        limit = min(max(item.limit, 1), p.PAGE_MAX)
        found = ledger.page(identity.user, item.conversation, since=item.since, limit=limit)
    if found is None:
        return p.Error(code="not_found", text="no such conversation", conversation=item.conversation)
    return found


def conversation_of(operation: Operation) -> str:
    """Name the conversation an operation is about."""
    if isinstance(operation, Append):
        return operation.send.conversation
    if isinstance(operation, AppendVoid):
        return operation.void.conversation
    return operation.conversation


def answer_of(call_id: str, outcome: Outcome) -> p.Answer:
    """Answer a call whose operation settled."""
    if isinstance(outcome, ConversationSet):
        return p.Answer(id=call_id, conversations=(outcome.info,))
    if isinstance(outcome, Refused):
        return p.Answer(id=call_id, code=outcome.code, text=outcome.text)
    raise AssertionError(f"a call settled as {type(outcome).__name__}")


def operation_of(
    call: p.Call, identity: Identity, known_users: KnownUsers
) -> CreateConversation | AddMember | RemoveMember | Refused:
    """Check a call and give the operation that carries it out, or why it is refused.

    A conversation without an id of the client's gets one that depends on device and call alone, so that
    the repeated call names the same conversation.
    """
    if call.op == "create":
        conversation = call.conversation or message_id(identity.device, f"conversation {call.id}")
        members = tuple(sorted({identity.user, *call.members}))
        if len(members) > p.MEMBERS_MAX:
            return Refused(code="too_large", text=f"more than {p.MEMBERS_MAX} members")
        if len(call.title) > p.TITLE_CHARS_MAX:
            return Refused(code="too_large", text=f"the title has more than {p.TITLE_CHARS_MAX} characters")
        if len(conversation) > p.ID_CHARS_MAX:
            return Refused(code="too_large", text=f"the id has more than {p.ID_CHARS_MAX} characters")
        if not set(members) <= {identity.user, *known_users(members)}:
            return Refused(code="not_found", text="some of the members do not exist")
        return CreateConversation(
            user=identity.user, conversation=conversation, title=call.title, members=members
        )
    if call.op == "add":
        if not call.user or call.user not in known_users((call.user,)):
            return Refused(code="not_found", text="no such user")
        return AddMember(user=identity.user, conversation=call.conversation, member=call.user)
    if call.op == "remove":
        return RemoveMember(
            user=identity.user, conversation=call.conversation, member=call.user or identity.user
        )
    return Refused(code="invalid", text="no such call")


def changes_log(outcome: Outcome) -> tuple[p.Event, ...]:
    """Give the log entries which this operation wrote, and no earlier one did."""
    if isinstance(outcome, Committed):
        return () if outcome.repeated else (outcome.event,)
    if isinstance(outcome, ConversationSet):
        return outcome.events
    assert isinstance(outcome, WasVoided | Ahead | Refused | ReceiptSet)
    return ()


def chunked(heads: Iterable[p.Head], size_bytes_max: int) -> list[tuple[p.Head, ...]]:
    """Split heads so that each part fits an item; at least one part, which may be empty."""
    parts: list[tuple[p.Head, ...]] = []
    part: list[p.Head] = []
    size_bytes = 0
    for head in heads:
        head_bytes = len(p.encode(head)) + 1
        if part and size_bytes + head_bytes > size_bytes_max:
            parts.append(tuple(part))
            part, size_bytes = [], 0
        part.append(head)
        size_bytes += head_bytes
    parts.append(tuple(part))
    return parts
