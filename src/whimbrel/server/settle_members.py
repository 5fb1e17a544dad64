"""The rules of conversations: who is in one, what is told of it, how far its members have come.

Only a present member may change anything, and whoever is none hears the same words for "does not
exist" and "not yours". A joining, a leaving and the creation are entries of the log, written by the
server under ids that no device can make. Repeating an operation changes nothing and gives the
conversation as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from whimbrel import protocol as p
from whimbrel.model import Role, message_id
from whimbrel.server import ledger as led
from whimbrel.server.records import Batch, Conversation, Entry, Member, NewId, info_of, is_text, is_unicode

_encode = msgspec.json.Encoder(order="sorted").encode


def create(batch: Batch, operation: led.CreateConversation, now: float, new_id: NewId) -> led.Outcome:
    """Stage a new conversation, its members and its first entry."""
    members = sorted({operation.user, *operation.members})
    if not is_text(operation.conversation, p.ID_CHARS_MAX):
        return led.Refused(code="invalid", text="no conversation id, or too long a one")
    if len(operation.title) > p.TITLE_CHARS_MAX or not is_unicode(operation.title):
        return led.Refused(code="invalid", text=f"the title is over {p.TITLE_CHARS_MAX} characters")
    if len(members) > p.MEMBERS_MAX:
        return led.Refused(code="too_large", text=f"more than {p.MEMBERS_MAX} members")
    if not all(is_text(name, p.ID_CHARS_MAX) for name in members):
        return led.Refused(code="invalid", text="not the name of a user")
    made_of = hashlib.blake2b(_encode((operation.user, operation.title, members)), digest_size=16).digest()
    if conversation := batch.conversation(operation.conversation):
        if conversation.made_of != made_of:
            return led.Refused(code="conflict", text="this id is taken")
        return _set(batch, conversation, operation.user)
    conversation = Conversation(
        id=operation.conversation,
        title=operation.title,
        epoch=new_id(),
        seq=0,
        changed=batch.commit,
        log_changed=batch.commit,
        members_changed=batch.commit,
        made_of=made_of,
    )
    for name in members:
        batch.put_member(Member(conversation=conversation.id, user=name, floor=0, joined=batch.commit))
    body = {"title": operation.title, "members": members}
    conversation, event = _tell(batch, conversation, "info", operation.user, body, now=now)
    return _set(batch, conversation, operation.user, event)


def add(batch: Batch, operation: led.AddMember, now: float) -> led.Outcome:
    """Stage a joining."""
    conversation = batch.conversation(operation.conversation)
    fault = member_fault(batch, conversation, operation.user)
    if fault is not None or conversation is None:
        return fault or unknown()
    if not is_text(operation.member, p.ID_CHARS_MAX):
        return led.Refused(code="invalid", text="not the name of a user")
    before = batch.member(conversation.id, operation.member)
    if before is not None and before.left_at is None:
        return _set(batch, conversation, operation.user)
    if len(batch.present(conversation.id)) >= p.MEMBERS_MAX:
        return led.Refused(code="too_large", text=f"more than {p.MEMBERS_MAX} members")
    member = Member(
        conversation=conversation.id,
        user=operation.member,
        floor=conversation.seq,
        joined=batch.commit,
        received=before.received if before else 0,
        read=before.read if before else 0,
        # Told again to everyone: who came meanwhile was never told of it.
        receipt_changed=batch.commit if before and before.receipt_changed else 0,
    )
    batch.put_member(member)
    return _tell_member(batch, conversation, operation.user, user=operation.member, action="joined", now=now)


def remove(batch: Batch, operation: led.RemoveMember, now: float) -> led.Outcome:
    """Stage a leaving or a removal."""
    conversation = batch.conversation(operation.conversation)
    leaves = operation.user == operation.member
    if conversation is not None and leaves:
        past = batch.member(conversation.id, operation.user)
        if past is not None and past.left_at is not None:
            return _set(batch, conversation, operation.user)
    fault = member_fault(batch, conversation, operation.user)
    if fault is not None or conversation is None:
        return fault or unknown()
    member = (
        batch.member(conversation.id, operation.member) if is_text(operation.member, p.ID_CHARS_MAX) else None
    )
    if member is None or member.left_at is not None:
        return _set(batch, conversation, operation.user)
    batch.put_member(msgspec.structs.replace(member, left_at=conversation.seq + 1, left_commit=batch.commit))
    action = "left" if leaves else "removed"
    return _tell_member(batch, conversation, operation.user, user=operation.member, action=action, now=now)


def _tell_member(
    batch: Batch, conversation: Conversation, actor: str, *, user: str, action: str, now: float
) -> led.Outcome:
    body = {"user": user, "action": action, "by": actor}
    conversation, event = _tell(batch, conversation, "member", actor, body, now=now)
    conversation = msgspec.structs.replace(conversation, members_changed=batch.commit)
    batch.put_conversation(conversation)
    return _set(batch, conversation, actor, event)


def _tell(
    batch: Batch,
    conversation: Conversation,
    kind: str,
    actor: str,
    body: Mapping[str, object],
    *,
    now: float,
) -> tuple[Conversation, p.Event]:
    """Append an entry of the server's own, under an id that no device can make."""
    seq = conversation.seq + 1
    text = _encode(body)
    event = p.Event(
        conversation=conversation.id,
        epoch=conversation.epoch,
        seq=seq,
        id=message_id(f"conversation:{conversation.id}", str(seq)),
        sender=actor,
        kind=kind,
        body=text.decode(),
        format="json",
        role=Role.SYSTEM.value,
        at=now,
    )
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return batch.append(conversation, Entry(event=event, digest=digest)), event


def _set(batch: Batch, conversation: Conversation, user: str, *events: p.Event) -> led.Outcome:
    member = batch.member(conversation.id, user)
    assert member is not None, "only who is or was a member gets here"
    return led.ConversationSet(
        info=info_of(conversation, member, batch.present(conversation.id)), events=events
    )


def receipt(batch: Batch, operation: led.SetReceipt) -> led.Outcome:
    """Stage how far a member has come."""
    conversation = batch.conversation(operation.conversation)
    fault = member_fault(batch, conversation, operation.user)
    member = batch.member(operation.conversation, operation.user)
    if fault is not None or conversation is None or member is None:
        return fault or unknown()
    read = max(member.read, min(operation.read, conversation.seq))
    received = max(member.received, min(operation.received, conversation.seq), read)
    changed = (received, read) != (member.received, member.read)
    if changed:
        batch.put_member(
            msgspec.structs.replace(member, received=received, read=read, receipt_changed=batch.commit)
        )
        batch.put_conversation(msgspec.structs.replace(conversation, changed=batch.commit))
    return led.ReceiptSet(
        conversation=conversation.id, user=member.user, received=received, read=read, changed=changed
    )


def member_fault(batch: Batch, conversation: Conversation | None, user: str) -> led.Refused | None:
    """Refuse whoever is not a present member."""
    if conversation is None:
        return unknown()
    member = batch.member(conversation.id, user)
    return None if member is not None and member.left_at is None else unknown()


def unknown() -> led.Refused:
    """Refuse without telling whether there is such a conversation."""
    # The same words for "does not exist" and "not yours": nobody can probe for conversations.
    return led.Refused(code="not_found", text="no such conversation, or you are not a member")
