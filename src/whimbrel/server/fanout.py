"""Telling members what happened: events, heads of new conversations, receipts, typing, sync tokens.

It is told each outcome in the order of the batch and follows the members of a conversation as they
change, starting from what they were before the batch (``remember``). ``routed`` is the last commit all
of whose events were queued; a sync token promises no more than that, and less while receipts wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from whimbrel import protocol as p
from whimbrel.server.ledger import (
    EVER,
    AddMember,
    Committed,
    ConversationSet,
    CreateConversation,
    Ledger,
    Operation,
    Outcome,
    ReceiptSet,
    RemoveMember,
)
from whimbrel.server.outcomes import changes_log, chunked
from whimbrel.server.receipts import ReceiptBoard
from whimbrel.server.roster import Deadlines, Roster
from whimbrel.server.session import Session
from whimbrel.server.settings import ServerSettings


class SyncTokens(Protocol):
    """Signs and reads sync tokens, which name a commit of a history."""

    def encode(self, history: str, commit: int, user: str) -> str:
        """Give a user's token of a place in a history."""

    def decode(self, token: str, user: str) -> tuple[str, int] | None:
        """Give what the token says; None if it is none of ours, or another user's."""


class Fanout:
    """Puts news into the queues of those it concerns."""

    def __init__(
        self,
        ledger: Ledger,
        roster: Roster,
        deadlines: Deadlines,
        synctokens: SyncTokens,
        settings: ServerSettings,
    ) -> None:
        self._ledger = ledger
        self._roster = roster
        self._deadlines = deadlines
        self._synctokens = synctokens
        self._settings = settings
        self._members: dict[str, frozenset[str]] = {}
        self._forgetting = False
        self.receipts = ReceiptBoard()
        self.routed = ledger.commit
        self.now = 0.0
        """The time of the hub's last input."""
        self.rewound = False
        """A token was seen that promises more than the ledger has: it was restored from a backup."""

    # --- members

    def remember(self, conversations: Iterable[str]) -> None:
        """Look members up before a batch changes them, while none is in flight."""
        excess = len(self._members) - self._settings.members_cached_max
        for conversation in list(self._members)[: max(0, excess)]:
            del self._members[conversation]
        for conversation in conversations:
            self.members(conversation)

    def landed(self) -> None:
        """All that the batch in flight came to was told."""
        if self._forgetting:
            self._forgetting = False
            self._members.clear()

    def members(self, conversation: str) -> frozenset[str]:
        """The members as far as outcomes were told."""
        members = self._members.get(conversation)
        if members is None:
            members = frozenset(self._ledger.members(conversation))
            if members:
                self._members[conversation] = members
        return members

    # --- outcomes

    def publish(self, operation: Operation, outcome: Outcome, asker: int | None, now: float) -> None:
        """Tell everyone concerned; the link that asked gets its answer from the hub instead of an event."""
        if isinstance(outcome, Committed):
            for event in changes_log(outcome):
                self._push_event(event, self.members(event.conversation), asker)
        elif isinstance(outcome, ConversationSet):
            self._publish_change(operation, outcome)
        elif isinstance(outcome, ReceiptSet) and not outcome.changed:
            self._tell_again(outcome)
        elif isinstance(outcome, ReceiptSet):
            due = self.receipts.written(outcome, self._ledger.commit, now)
            if due is not None:
                self._deadlines.add(due, "receipt", outcome.conversation)

    def _publish_change(self, operation: Operation, outcome: ConversationSet) -> None:
        conversation = outcome.info.id
        if not outcome.events:
            return  # repeated: the members are what they were, and this may not be all of them
        before = frozenset() if isinstance(operation, CreateConversation) else self.members(conversation)
        after = before
        if isinstance(operation, CreateConversation):
            after = frozenset(outcome.info.members)
        elif isinstance(operation, AddMember):
            after = before | {operation.member}
        elif isinstance(operation, RemoveMember):
            after = before - {operation.member}
        self._members[conversation] = after
        joined = after if isinstance(operation, CreateConversation) else after - before
        for user in joined:
            self._push_head(user, conversation)
        for event in outcome.events:
            self._push_event(event, before | after, None)
        # Those who were there learn the new members, who left that it did.
        for user in (before | after) - joined:
            self._push_head(user, conversation)

    def _push_event(self, event: p.Event, users: Iterable[str], asker: int | None) -> None:
        for user in users:
            for session in self._roster.of(user):
                if session.link != asker:
                    self._push(session, event, event.conversation)

    def _push_head(self, user: str, conversation: str) -> None:
        sessions = self._roster.of(user)
        if not sessions:
            return
        head = self._ledger.head(user, conversation, self.routed or EVER)
        if head is not None:
            for session in sessions:
                self._push(session, p.Heads(heads=(head,)), conversation)

    def _push(self, session: Session, item: p.ServerItem, conversation: str) -> None:
        if session.only is not None and session.only != conversation:
            return
        session.push(item)
        self.touch(session)
        self._roster.wake(session)

    # --- receipts and typing

    def tell_receipts(self, conversation: str, now: float) -> None:
        """Give held back receipts of a conversation to its members; to their owners as an answer."""
        members = self.members(conversation)
        settings = self._settings
        # Every member's goes to every member: in large groups a few at a time, so that nothing waits for it.
        at_once = int(settings.receipts_per_s_max * settings.receipt_interval_s / max(1, len(members)))
        told, due = self.receipts.tell(
            conversation, now, limit=max(1, at_once), interval_s=settings.receipt_interval_s
        )
        if due is not None:
            self._deadlines.add(due, "receipt", conversation)
        if not told:
            return
        item = p.Receipts(conversation=conversation, receipts=tuple(told))
        for user in sorted(members):
            for session in self._roster.of(user):
                self._push(session, item, conversation)

    def _tell_again(self, outcome: ReceiptSet) -> None:
        """Who reports what is known already did not hear the answer."""
        receipt = (outcome.user, outcome.received, outcome.read)
        item = p.Receipts(conversation=outcome.conversation, receipts=(receipt,))
        for session in self._roster.of(outcome.user):
            self._push(session, item, outcome.conversation)

    def tell_typing(self, user: str, conversation: str, on: bool) -> None:
        """Tell the other members that are here; nothing is kept of it."""
        members = self.members(conversation)
        if user not in members:
            return
        item = p.TypingOf(conversation=conversation, user=user, on=on)
        for member in sorted(members - {user}):
            for session in self._roster.of(member):
                if session.only in (None, conversation):
                    session.push(item)
                    self._roster.wake(session)

    # --- sync tokens

    def ahead(self, sync: str | None, user: str) -> bool:
        """Whether a sync token proves that the ledger has lost commits."""
        place = self._synctokens.decode(sync, user) if sync else None
        if place is not None and place[0] == self._ledger.history and place[1] > self._ledger.commit:
            self.rewound = True
        return self.rewound

    def forget(self, *, in_flight: bool) -> None:
        """Begin as on the first day, with what the ledger has now.

        ``in_flight``: the members as they were before the batch in flight are kept until it has landed.
        """
        self._forgetting = in_flight
        if not in_flight:
            self._members.clear()
        self.receipts = ReceiptBoard()
        self.routed = self._ledger.commit
        self.rewound = False

    def start(self, session: Session, sync: str | None) -> tuple[list[tuple[p.Head, ...]], bool, str]:
        """Give the heads since a sync token in parts, whether they are all, and the new token.

        The session is subscribed already: what commits from here on is pushed to it.
        """
        identity = session.identity
        assert identity is not None, "only a greeted session is told anything"
        since = 0
        place = self._synctokens.decode(sync, identity.user) if sync else None
        # A token of commit 0 is as good as any: who holds it knows of all there was, which was nothing.
        known = place is not None and place[0] == self._ledger.history
        if place is not None and known:
            since = place[1] or EVER
        token = self._token(session, self.routed)
        heads = self._heads(session, since)
        return chunked(heads, self._settings.item_bytes_max), not known, token

    def touch(self, session: Session) -> None:
        """Something was queued that no token covers: one is due within the interval."""
        session.touched = True
        if not session.sync_due and not session.listening:
            session.sync_due = True
            # The interval runs from the first event without a token: a busy link gets one token in each.
            self._deadlines.add(self.now + self._settings.sync_interval_s, "sync", session.link)

    def tell_sync(self, session: Session) -> None:
        """Queue a token behind what was pushed, unless there is nothing new to promise."""
        session.sync_due = False
        if not session.live or session.behind or not session.touched:
            return
        commit = self.receipts.safe_commit(self.routed)
        if commit > session.covered:
            session.push(p.Heads(sync=self._token(session, commit)), commit)
            self._roster.wake(session)
        elif self.routed > session.covered:
            self.touch(session)  # a receipt holds the promise back: later
        else:
            session.touched = False

    def sync_now(self, session: Session) -> str | None:
        """Give a token for all that was drained, if the queue is empty; it goes out at once."""
        if not session.live or not session.empty or not session.touched:
            return None
        commit = self.receipts.safe_commit(self.routed)
        if commit <= session.covered:
            return None
        session.cover(commit)
        return self._token(session, commit)

    def catch_up(self, session: Session) -> list[p.ServerItem]:
        """Give the heads that stand for the pushes a slow session missed; it is pushed to again."""
        heads = self._heads(session, session.covered or EVER)
        session.behind = False
        session.cover(self.routed)
        *parts, last = chunked(heads, self._settings.item_bytes_max)
        items: list[p.ServerItem] = [p.Heads(heads=part) for part in parts]
        return [*items, p.Heads(heads=last, sync=self._token(session, self.routed))]

    def tell_all(self, session: Session) -> None:
        """Queue all heads: the client does not know all it was told, maybe not that it left."""
        *parts, last = chunked(self._heads(session, EVER), self._settings.item_bytes_max)
        for part in parts:
            session.answer(p.Heads(heads=part))
        session.answer(p.Heads(heads=last, sync=self._token(session, self.routed)), self.routed)
        self._roster.wake(session)

    def _heads(self, session: Session, since: int) -> list[p.Head]:
        assert session.identity is not None, "only a greeted session is told anything"
        heads = self._ledger.heads(session.identity.user, since)
        if session.only is not None:
            return [head for head in heads if head.conversation == session.only]
        return heads

    def _token(self, session: Session, commit: int) -> str:
        assert session.identity is not None, "only a greeted session is told anything"
        return self._synctokens.encode(self._ledger.history, commit, session.identity.user)
