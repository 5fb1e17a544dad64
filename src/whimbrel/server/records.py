"""What a ledger keeps, and the batch in which the settle rules change it.

``settle`` reads records through ``Records`` and stages what it writes in a ``Batch``; a ledger then
writes the staged records in one transaction. So the rules are the same for every ledger, nothing
half done can be seen, and throwing a batch away costs nothing. A ``Batch`` is itself ``Records``:
a batch upon a batch tries one operation out.

Every record is a frozen value; the integers named ``changed`` or ``joined`` are commits, the clock
that sync tokens are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

import msgspec

from whimbrel import protocol as p

StreamName: TypeAlias = tuple[str, str, int]
"""(device, conversation, stream)"""
NewId: TypeAlias = Callable[[], str]
"""Where the names of histories and epochs come from."""

PAGE_BYTES = 512 * 1024
"""A page is one item of a frame; more than this and the frame would be too large for its receiver."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Conversation(_Record, frozen=True, kw_only=True):
    """One conversation and the end of its log."""

    id: str
    title: str
    epoch: str
    seq: int
    changed: int
    log_changed: int
    members_changed: int
    made_of: bytes
    """Digest of the creation, which a repeated one must match."""


class Member(_Record, frozen=True, kw_only=True):
    """A present or past member, what it may see, and how far it has come."""

    conversation: str
    user: str
    floor: int
    left_at: int | None = None
    """The last entry a past member sees."""
    joined: int
    left_commit: int = 0
    received: int = 0
    read: int = 0
    receipt_changed: int = 0

    def top(self, conversation: Conversation) -> int:
        """Give the last entry it may see."""
        return conversation.seq if self.left_at is None else self.left_at


class Entry(_Record, frozen=True, kw_only=True):
    """One entry of a log; ``digest`` is what a send under the same id must match."""

    event: p.Event
    digest: bytes


class Number(_Record, frozen=True, kw_only=True):
    """What became of one number of a stream: entry ``seq``, or (0) void."""

    seq: int
    id: str
    digest: bytes | None = None
    """Of the content that was refused; None when no content was offered."""
    reason: str = ""
    code: str = ""
    text: str = ""


class Records(Protocol):
    """What the settle rules read."""

    @property
    def renewed(self) -> bool:
        """This history took over from a lost one: streams it does not know may have been settled there."""

    def conversation(self, id: str) -> Conversation | None:
        """The conversation of this id."""

    def member(self, conversation: str, user: str) -> Member | None:
        """A present or past member."""

    def present(self, conversation: str) -> set[str]:
        """The names of the present members."""

    def last_n(self, stream: StreamName) -> int | None:
        """The last number settled; None: nothing is known of this stream."""

    def number(self, stream: StreamName, n: int) -> Number | None:
        """What became of a number."""

    def entry(self, conversation: str, seq: int) -> Entry | None:
        """One entry."""

    def located(self, id: str) -> tuple[str, int] | None:
        """(conversation, seq) of the entry with this message id."""


class Batch:
    """Changes staged on top of ``below``, all of them part of commit ``commit``."""

    def __init__(self, below: Records, commit: int) -> None:
        self.commit = commit
        self._below = below
        self._conversations: dict[str, Conversation | None] = {}
        self._members: dict[tuple[str, str], Member | None] = {}
        self._streams: dict[StreamName, int | None] = {}
        # Staged, in the order in which they are to be written.
        self.conversations: dict[str, Conversation] = {}
        self.members: dict[tuple[str, str], Member] = {}
        self.streams: dict[StreamName, int] = {}
        self.numbers: dict[tuple[StreamName, int], Number] = {}
        self.entries: dict[tuple[str, int], Entry] = {}
        self._located: dict[str, tuple[str, int]] = {}

    def __repr__(self) -> str:
        return f"<Batch {self.commit}: {len(self.entries)} entries, {len(self.numbers)} numbers>"

    def __bool__(self) -> bool:
        """Whether anything is staged (every entry and number comes with its conversation or stream)."""
        return bool(self.conversations or self.members or self.streams)

    @property
    def renewed(self) -> bool:
        """See ``Records``."""
        return self._below.renewed

    def conversation(self, id: str) -> Conversation | None:
        """See ``Records``."""
        try:
            return self._conversations[id]
        except KeyError:
            found = self._conversations[id] = self._below.conversation(id)
            return found

    def member(self, conversation: str, user: str) -> Member | None:
        """See ``Records``."""
        try:
            return self._members[conversation, user]
        except KeyError:
            found = self._members[conversation, user] = self._below.member(conversation, user)
            return found

    def present(self, conversation: str) -> set[str]:
        """See ``Records``."""
        names = set(self._below.present(conversation))
        for member in self.members.values():
            if member.conversation == conversation:
                if member.left_at is None:
                    names.add(member.user)
                else:
                    names.discard(member.user)
        return names

    def last_n(self, stream: StreamName) -> int | None:
        """See ``Records``."""
        try:
            return self._streams[stream]
        except KeyError:
            found = self._streams[stream] = self._below.last_n(stream)
            return found

    def number(self, stream: StreamName, n: int) -> Number | None:
        """See ``Records``."""
        return self.numbers.get((stream, n)) or self._below.number(stream, n)

    def entry(self, conversation: str, seq: int) -> Entry | None:
        """See ``Records``."""
        return self.entries.get((conversation, seq)) or self._below.entry(conversation, seq)

    def located(self, id: str) -> tuple[str, int] | None:
        """See ``Records``."""
        return self._located.get(id) or self._below.located(id)

    # --- staging -------------------------------------------------------------------------------

    def put_conversation(self, conversation: Conversation) -> None:
        """Stage a new or changed conversation."""
        self._conversations[conversation.id] = self.conversations[conversation.id] = conversation

    def put_member(self, member: Member) -> None:
        """Stage a new or changed member."""
        key = (member.conversation, member.user)
        self._members[key] = self.members[key] = member

    def put_number(self, stream: StreamName, n: int, number: Number) -> None:
        """Stage the outcome of the next number of a stream."""
        self._streams[stream] = self.streams[stream] = n
        self.numbers[stream, n] = number

    def put_stream(self, stream: StreamName) -> None:
        """Stage that this stream is known, although nothing of it is settled."""
        self._streams[stream] = self.streams[stream] = 0

    def append(self, conversation: Conversation, entry: Entry) -> Conversation:
        """Stage the next entry of a log; gives the conversation as it is then."""
        event = entry.event
        assert event.seq == conversation.seq + 1, "a log has no holes"
        self.entries[conversation.id, event.seq] = entry
        self._located[event.id] = (conversation.id, event.seq)
        grown = Conversation(
            id=conversation.id,
            title=conversation.title,
            epoch=conversation.epoch,
            seq=event.seq,
            changed=self.commit,
            log_changed=self.commit,
            members_changed=conversation.members_changed,
            made_of=conversation.made_of,
        )
        self.put_conversation(grown)
        return grown

    def merge(self, above: Batch) -> None:
        """Take over what a batch upon this one staged."""
        self.conversations.update(above.conversations)
        self._conversations.update(above.conversations)
        self.members.update(above.members)
        self._members.update(above.members)
        self.streams.update(above.streams)
        self._streams.update(above.streams)
        self.numbers.update(above.numbers)
        self.entries.update(above.entries)
        self._located.update(above._located)


# --- what readers are given -----------------------------------------------------------------------


def head_of(
    conversation: Conversation,
    member: Member,
    *,
    since_commit: int,
    present: Iterable[str],
    others: Iterable[Member],
) -> p.Head | None:
    """Give what ``member`` has to know of a conversation since a commit; None: nothing of it.

    ``present`` and ``others`` (the other present members, for their receipts) are only looked at
    when they are needed, so they may be read lazily.
    """
    if member.left_at is not None:
        # A past member who knew nothing of it before has nothing to forget now.
        if member.left_commit <= since_commit or since_commit == 0:
            return None
        return p.Head(
            conversation=conversation.id,
            epoch=conversation.epoch,
            seq=member.left_at,
            floor=member.floor,
            left=True,
        )
    new = since_commit == 0 or member.joined > since_commit
    know_members = new or conversation.members_changed > since_commit
    receipts = tuple(
        sorted(
            (other.user, other.received, other.read)
            for other in others
            if other.receipt_changed and (new or other.receipt_changed > since_commit)
        )
    )
    if not (know_members or receipts or conversation.log_changed > since_commit):
        return None
    return p.Head(
        conversation=conversation.id,
        epoch=conversation.epoch,
        seq=conversation.seq,
        floor=member.floor,
        title=conversation.title if know_members else None,
        members=tuple(sorted(present)) if know_members else None,
        receipts=receipts,
    )


def info_of(conversation: Conversation, member: Member, present: Iterable[str]) -> p.ConversationInfo:
    """Give the conversation as ``member`` may know it; a past member is not told who is there now."""
    return p.ConversationInfo(
        id=conversation.id,
        title=conversation.title,
        epoch=conversation.epoch,
        seq=member.top(conversation),
        floor=member.floor,
        members=tuple(sorted(present)) if member.left_at is None else (),
    )


def page_of(
    conversation: Conversation, member: Member, events: Iterable[p.Event], *, since: int, before: int | None
) -> p.Page:
    """Make a page of entries given in reading order (downwards with ``before``), cut at ``PAGE_BYTES``."""
    taken: list[p.Event] = []
    room = PAGE_BYTES
    for event in events:
        room -= len(p.encode(event))
        if room < 0 and taken:
            break
        taken.append(event)
    if before is not None:
        taken.reverse()
        since = taken[0].seq - 1 if taken else max(before - 1, 0)
    return p.Page(
        conversation=conversation.id,
        epoch=conversation.epoch,
        since=since,
        events=tuple(taken),
        head=member.top(conversation),
        floor=member.floor,
    )


def page_range(
    conversation: Conversation, member: Member, *, since: int, before: int | None, limit: int
) -> tuple[int, int, int]:
    """Give (first, last, limit): the visible seqs that a page may hold, and how many."""
    first = max(since, member.floor) + 1
    last = member.top(conversation)
    if before is not None:
        last = min(last, before - 1)
    return first, last, min(max(limit, 1), p.PAGE_MAX)


def is_text(value: str, chars_max: int) -> bool:
    """Tell whether this can be an id, a key, a name or the like."""
    return 0 < len(value) <= chars_max and is_unicode(value)


def is_unicode(value: str) -> bool:
    """Tell whether a database takes this text: no half of a surrogate pair, no NUL."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return "\0" not in value
