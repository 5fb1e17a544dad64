"""What waits for the ledger, one batch at a time, and who gets which answer.

One queue for all links and HTTP calls, in the order of arrival. A question (``Status``, ``list``) waits
in it too, so that its answer covers what the same link asked before. A batch is bounded in operations
and bytes. Of the followers of one missing number only the first is answered ``OutOfOrder``: the client
goes back for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from whimbrel import protocol as p
from whimbrel.server import outcomes as o
from whimbrel.server.fanout import Fanout
from whimbrel.server.ledger import (
    Ahead,
    Append,
    Ledger,
    LedgerUnavailable,
    Operation,
    Outcome,
    Refused,
    SetReceipt,
)
from whimbrel.server.roster import Roster
from whimbrel.server.session import Session
from whimbrel.server.settings import ServerSettings

Callback: TypeAlias = Callable[[Outcome], None]
"""Called once, when an operation is settled or refused; must not raise."""
Asked: TypeAlias = p.Send | p.Void | p.Status | p.Compare | p.Call

_NUMBERED = (p.Send, p.Void)
_LIST_WEIGHT = 250
_RECEIPTS_MIN = 100
"""So many receipts find room in every batch: a flood of messages does not hold them up for ever."""


class _Entry:
    __slots__ = ("callback", "item", "operation", "session", "size_bytes", "weight")

    def __init__(
        self,
        operation: Operation | None,
        *,
        session: Session | None = None,
        item: Asked | None = None,
        callback: Callback | None = None,
    ) -> None:
        self.operation = operation
        self.session = session
        self.item = item
        self.callback = callback
        if type(operation) is Append:
            self.size_bytes = len(operation.send.body)
        else:
            self.size_bytes = 0 if item is None else _size_of(item)
        self.weight = 1 + self.size_bytes // 1024
        """What it counts for of all that its link may have waiting."""
        if operation is None:
            if isinstance(item, p.Status):
                self.weight += len(item.numbers)  # every number is looked up
            else:
                self.weight += _LIST_WEIGHT  # a small question with a large answer: a list, all heads


def _size_of(item: Asked) -> int:
    """About how much memory an item holds, where it may be much."""
    if isinstance(item, p.Call):
        return len(item.id) + len(item.title) + 64 * len(item.members)
    return len(item.body) if isinstance(item, p.Send) else 0


class Batches:
    """The queue before the ledger, and the batch in flight."""

    def __init__(self, ledger: Ledger, roster: Roster, fanout: Fanout, settings: ServerSettings) -> None:
        self._ledger = ledger
        self._roster = roster
        self._fanout = fanout
        self._settings = settings
        self._queue: deque[_Entry] = deque()
        self._size_bytes = 0
        self._in_flight: list[_Entry] | None = None

    @property
    def waiting(self) -> int:
        """How much waits for a batch."""
        return len(self._queue) + self._fanout.receipts.wanted

    @property
    def full(self) -> bool:
        """No more may wait."""
        limits = self._settings
        return self.waiting >= limits.waiting_max or self._size_bytes >= limits.waiting_bytes_max

    @property
    def in_flight(self) -> bool:
        """The ledger has a batch."""
        return self._in_flight is not None

    def ask(self, session: Session, item: Asked, operation: Operation | None) -> None:
        """Queue what a link asked; without an operation it is a question."""
        entry = _Entry(operation, session=session, item=item)
        session.waiting += entry.weight
        # Links are not read from when the queue is full; this is for what was in the same frame.
        if self.waiting >= 2 * self._settings.waiting_max:
            self._answer(entry, Refused(code="unavailable", text="too much waits"), set())
        else:
            self._put(entry)

    def submit(self, operation: Operation, callback: Callback) -> None:
        """Queue an operation that no link sent."""
        self._put(_Entry(operation, callback=callback))

    def take(self) -> list[Operation]:
        """Give the next batch; empty if nothing waits, or one is in flight."""
        if self._in_flight is not None:
            return []
        limits = self._settings
        entries: list[_Entry] = []
        operations: list[Operation] = []
        size_bytes = 0
        while (
            self._queue
            and len(operations) < limits.batch_operations_max
            and size_bytes < limits.batch_bytes_max
        ):
            entry = self._queue.popleft()
            self._size_bytes -= entry.size_bytes
            if entry.operation is None and not operations:
                self._answer_question(entry)
                continue
            entries.append(entry)
            if entry.operation is not None:
                operations.append(entry.operation)
                size_bytes += 100 + entry.size_bytes
        room = max(_RECEIPTS_MIN, limits.batch_operations_max - len(operations))
        for receipt in self._fanout.receipts.take(room):
            entries.append(_Entry(receipt))
            operations.append(receipt)
        if operations:
            self._in_flight = entries
            try:
                self._fanout.remember({o.conversation_of(operation) for operation in operations})
            except BaseException:
                # The caller gets no batch whose outcomes it could give back.
                self.failed()
                raise
        return operations

    def settled(self, outcomes: Sequence[Outcome], now: float) -> None:
        """Answer and publish, in order, what the batch in flight came to.

        Raises what publishing raised (``LedgerUnavailable``): the links are in doubt then, and learn the rest
        from the heads on coming back. Callbacks are called all the same: what they wait for is committed.
        """
        entries = self._land()
        assert len(outcomes) == sum(entry.operation is not None for entry in entries), "one outcome each"
        ordered = iter(outcomes)
        told: set[tuple[int, str, int]] = set()
        left = deque((entry, None if entry.operation is None else next(ordered)) for entry in entries)
        try:
            while left:
                self._settle(*left[0], told, now)
                left.popleft()
        except BaseException:
            for entry, outcome in left:
                if entry.callback is not None and outcome is not None:
                    entry.callback(outcome)
            raise
        self._fanout.routed = self._ledger.commit
        self._fanout.landed()

    def _settle(
        self, entry: _Entry, outcome: Outcome | None, told: set[tuple[int, str, int]], now: float
    ) -> None:
        if entry.operation is None or outcome is None:
            self._answer_question(entry)
        elif isinstance(entry.item, _NUMBERED):
            asker = self._answer(entry, outcome, told)
            self._fanout.publish(entry.operation, outcome, asker, now)
        else:
            # A conversation is known by its heads and events before the call that made it is answered.
            self._fanout.publish(entry.operation, outcome, None, now)
            self._answer(entry, outcome, told)

    def failed(self) -> None:
        """Refuse what was in flight, for now; receipts wait for the next batch.

        Raises ``LedgerUnavailable``, in the end, if a question among it could not be answered either.
        """
        refused = Refused(code="unavailable", text="the ledger cannot commit now")
        unread: LedgerUnavailable | None = None
        for entry in self._land():
            if isinstance(entry.operation, SetReceipt) and entry.callback is None:
                receipt = entry.operation
                self._fanout.receipts.want(receipt.user, receipt.conversation, receipt.received, receipt.read)
            elif entry.operation is None:
                try:
                    self._answer_question(entry)
                except LedgerUnavailable as error:
                    unread = error
            else:
                self._answer(entry, refused, set())
        self._fanout.landed()
        if unread is not None:
            raise unread  # when all others have their answer: who asked this has none

    def _put(self, entry: _Entry) -> None:
        self._queue.append(entry)
        self._size_bytes += entry.size_bytes

    def _land(self) -> list[_Entry]:
        entries = self._in_flight
        assert entries is not None, "no batch is in flight"
        self._in_flight = None
        return entries

    def _answer(self, entry: _Entry, outcome: Outcome, told: set[tuple[int, str, int]]) -> int | None:
        """Answer who asked; gives its link if the answer stands for the event."""
        if entry.callback is not None:
            entry.callback(outcome)
            return None
        session, item = entry.session, entry.item
        if session is None or item is None:
            return None
        session.waiting -= entry.weight
        if not session.live:
            return None
        if isinstance(item, p.Call):
            self._tell(session, o.answer_of(item.id, outcome))
            return None
        if not isinstance(item, _NUMBERED):
            return None
        if isinstance(outcome, Ahead):
            stream = (session.link, item.conversation, item.stream)
            if stream in told:
                return None
            told.add(stream)
        answer = self._numbered(item, item.n, outcome)
        if isinstance(answer, p.Delivered):
            if self._settings.send_accepted and isinstance(item, p.Send):
                self._tell(session, o.accepted(answer))
            self._fanout.touch(session)
        self._tell(session, answer)
        return session.link if isinstance(answer, p.Delivered) else None

    def _answer_question(self, entry: _Entry) -> None:
        session, item = entry.session, entry.item
        assert session is not None, "only links ask questions"
        session.waiting -= entry.weight
        identity = session.identity
        if not session.live or identity is None:
            return
        if isinstance(item, p.Call):
            size_bytes_max = self._settings.item_bytes_max
            self._tell(session, o.listing(item.id, self._ledger.conversations(identity.user), size_bytes_max))
            return
        if isinstance(item, p.Compare):
            if item.version != self._ledger.version(identity.user):
                self._fanout.tell_all(session)
            return
        assert isinstance(item, p.Status), "the only other question"
        expected: p.ServerItem | None = None
        for n in sorted(set(item.numbers)):
            outcome = self._ledger.settled(identity.device, item.conversation, item.stream, n)
            if isinstance(outcome, Ahead):
                expected = self._numbered(item, n, outcome)
            elif outcome is not None:
                self._tell(session, self._numbered(item, n, outcome))
        if expected is not None:
            self._tell(session, expected)

    def _numbered(self, item: p.Send | p.Void | p.Status, n: int, outcome: Outcome) -> p.ServerItem:
        retry_s = self._settings.unavailable_retry_s
        return o.numbered(item.conversation, item.stream, n, outcome, unavailable_retry_s=retry_s)

    def _tell(self, session: Session, item: p.ServerItem) -> None:
        session.answer(item)
        self._roster.wake(session)
