"""The ledger of the simulator: everything in memory, as fast as a dictionary.

All that is durable is in ``state``. A simulated crash throws the ledger away and makes another of
the same state; ``before_commit`` and ``after_commit`` are where a subclass may crash or fail:
raised before, nothing of the batch is there, raised after, all of it is, and the caller was not told.
The rules are those of ``settle``.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterable, Sequence

import msgspec

from whimbrel import protocol as p
from whimbrel.server.ledger import LedgerUnavailable, Operation, Outcome
from whimbrel.server.records import (
    Batch,
    Conversation,
    Entry,
    Member,
    NewId,
    Number,
    StreamName,
    head_of,
    info_of,
    page_of,
    page_range,
)
from whimbrel.server.settle import settle_all, settled


def random_id() -> str:
    """Name a history or an epoch."""
    return secrets.token_hex(10)


class MemoryState:
    """What survives a simulated crash. Is ``Records``."""

    def __init__(self, history: str) -> None:
        self.history = history
        self.commit = 0
        self.renewed = False
        self.conversations: dict[str, Conversation] = {}
        self.members: dict[str, dict[str, Member]] = {}
        self.of_user: dict[str, set[str]] = {}
        self.streams: dict[StreamName, list[Number]] = {}
        self.entries: dict[str, list[Entry]] = {}
        self.ids: dict[str, tuple[str, int]] = {}

    def __repr__(self) -> str:
        return f"<MemoryState at commit {self.commit}>"

    def conversation(self, id: str) -> Conversation | None:
        """See ``Records``."""
        return self.conversations.get(id)

    def member(self, conversation: str, user: str) -> Member | None:
        """See ``Records``."""
        return self.members.get(conversation, {}).get(user)

    def present(self, conversation: str) -> set[str]:
        """See ``Records``."""
        members = self.members.get(conversation, {})
        return {member.user for member in members.values() if member.left_at is None}

    def last_n(self, stream: StreamName) -> int | None:
        """See ``Records``."""
        numbers = self.streams.get(stream)
        return None if numbers is None else len(numbers)

    def number(self, stream: StreamName, n: int) -> Number | None:
        """See ``Records``."""
        numbers = self.streams.get(stream, [])
        return numbers[n - 1] if 1 <= n <= len(numbers) else None

    def entry(self, conversation: str, seq: int) -> Entry | None:
        """See ``Records``."""
        entries = self.entries.get(conversation, [])
        return entries[seq - 1] if 1 <= seq <= len(entries) else None

    def located(self, id: str) -> tuple[str, int] | None:
        """See ``Records``."""
        return self.ids.get(id)

    def publish(self, batch: Batch) -> None:
        """Take over a whole batch; this is the simulated commit."""
        self.conversations.update(batch.conversations)
        for (conversation, user), member in batch.members.items():
            self.members.setdefault(conversation, {})[user] = member
            self.of_user.setdefault(user, set()).add(conversation)
        for (conversation, seq), entry in batch.entries.items():
            entries = self.entries.setdefault(conversation, [])
            assert len(entries) == seq - 1, "a log has no holes"
            entries.append(entry)
            self.ids[entry.event.id] = (conversation, seq)
        for stream in batch.streams:
            self.streams.setdefault(stream, [])
        for (stream, n), number in batch.numbers.items():
            numbers = self.streams[stream]
            assert len(numbers) == n - 1, "numbers are settled in order"
            numbers.append(number)
        self.commit = batch.commit

    def copy(self) -> MemoryState:
        """Give an independent copy; the records themselves never change and are shared."""
        other = MemoryState(self.history)
        other.commit = self.commit
        other.renewed = self.renewed
        other.conversations = dict(self.conversations)
        other.members = {key: dict(members) for key, members in self.members.items()}
        other.of_user = {key: set(names) for key, names in self.of_user.items()}
        other.streams = {key: list(numbers) for key, numbers in self.streams.items()}
        other.entries = {key: list(entries) for key, entries in self.entries.items()}
        other.ids = dict(self.ids)
        return other


class MemoryLedger:
    """A ``Ledger`` in memory. ``state``: go on from there; ``new_id`` names histories and epochs."""

    def __init__(self, state: MemoryState | None = None, *, new_id: NewId = random_id) -> None:
        self.new_id = new_id
        self.state = state or MemoryState(new_id())
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at commit {self.state.commit}>"

    def before_commit(self, batch: Batch) -> None:
        """Fail or crash here, and nothing of the batch is there."""

    def after_commit(self, batch: Batch) -> None:
        """Crash here, and all of the batch is there although nobody was told."""

    def copy(self) -> MemoryLedger:
        """Make an old backup: a ledger of its own, under the same history, as it is now."""
        with self._lock:
            return MemoryLedger(self.state.copy(), new_id=self.new_id)

    def begin_new_history(self) -> None:
        """Say that this is a restored backup: see ``SqliteLedger.begin_new_history``."""
        with self._open():
            state = self.state
            state.commit += 1
            state.history = self.new_id()
            state.renewed = True
            state.streams.clear()
            for id, conversation in state.conversations.items():
                state.conversations[id] = msgspec.structs.replace(
                    conversation, epoch=self.new_id(), changed=state.commit, log_changed=state.commit
                )
            for id, entries in state.entries.items():
                epoch = state.conversations[id].epoch
                entries[:] = [
                    Entry(event=msgspec.structs.replace(entry.event, epoch=epoch), digest=entry.digest)
                    for entry in entries
                ]

    # --- Ledger --------------------------------------------------------------------------------

    @property
    def history(self) -> str:
        """See ``Ledger``."""
        return self.state.history

    @property
    def commit(self) -> int:
        """See ``Ledger``."""
        return self.state.commit

    def apply(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """See ``Ledger``."""
        with self._open():
            batch, outcomes = settle_all(self.state, self.state.commit + 1, operations, now, self.new_id)
            if batch:
                self.before_commit(batch)
                self.state.publish(batch)
                self.after_commit(batch)
            return outcomes

    def heads(self, user: str, since_commit: int) -> list[p.Head]:
        """See ``Ledger``."""
        with self._open():
            state = self.state
            heads = (_head(state, user, id, since_commit) for id in sorted(state.of_user.get(user, ())))
            return [head for head in heads if head is not None]

    def head(self, user: str, conversation: str, since_commit: int) -> p.Head | None:
        """See ``Ledger``."""
        with self._open():
            if self.state.member(conversation, user) is None:
                return None
            return _head(self.state, user, conversation, since_commit)

    def page(
        self, user: str, conversation: str, *, since: int = 0, before: int | None = None, limit: int = 50
    ) -> p.Page | None:
        """See ``Ledger``."""
        with self._open():
            found = self.state.conversation(conversation)
            member = self.state.member(conversation, user)
            if found is None or member is None:
                return None
            first, last, count = page_range(found, member, since=since, before=before, limit=limit)
            entries = self.state.entries[conversation]
            order: Iterable[int] = range(first, last + 1) if before is None else range(last, first - 1, -1)
            events = (entries[seq - 1].event for seq in itertools.islice(order, count))
            return page_of(found, member, events, since=since, before=before)

    def conversations(self, user: str) -> list[p.ConversationInfo]:
        """See ``Ledger``."""
        with self._open():
            state = self.state
            return [
                info_of(state.conversations[id], state.members[id][user], state.present(id))
                for id in sorted(state.of_user.get(user, ()))
                if state.members[id][user].left_at is None
            ]

    def version(self, user: str) -> int:
        """See ``Ledger``."""
        with self._open():
            state = self.state
            ids = state.of_user.get(user, ())
            return sum(state.conversations[id].seq for id in ids if state.members[id][user].left_at is None)

    def members(self, conversation: str) -> tuple[str, ...]:
        """See ``Ledger``."""
        with self._open():
            return tuple(sorted(self.state.present(conversation)))

    def settled(self, device: str, conversation: str, stream: int, n: int) -> Outcome | None:
        """See ``Ledger``."""
        with self._open():
            return settled(self.state, (device, conversation, stream), n)

    def find(self, user: str, conversation: str, id: str) -> int | None:
        """See ``Ledger``."""
        with self._open():
            found = self.state.conversation(conversation)
            member = self.state.member(conversation, user)
            located = self.state.located(id)
            if found is None or member is None or located is None or located[0] != conversation:
                return None
            return located[1] if member.floor < located[1] <= member.top(found) else None

    def close(self) -> None:
        """See ``Ledger``."""
        self._closed = True

    def _open(self) -> threading.Lock:
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")
        return self._lock


def _head(state: MemoryState, user: str, id: str, since_commit: int) -> p.Head | None:
    conversation = state.conversations[id]
    if conversation.changed <= since_commit:
        return None
    members = state.members[id]
    others = [other for other in members.values() if other.left_at is None and other.user != user]
    return head_of(
        conversation,
        members[user],
        since_commit=since_commit,
        present=(*(other.user for other in others), user),
        others=others,
    )
