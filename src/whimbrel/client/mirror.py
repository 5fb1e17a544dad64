"""What a guest's app has been told, so that it is told everything once, whoever tells it.

News come over the socket while there is one, and from comparing the store with what was told whenever
there was none (``missed``). Both go through here, which drops what was told already. What arrived is
told by its position in the store's order of arrival, strictly in that order.

Bounds: as many conversations and unsettled messages as the store has; of settled messages the last
``SETTLED_KEPT``.
"""

from __future__ import annotations

from collections import OrderedDict

from whimbrel.core.contract import ConversationRow, Snapshot
from whimbrel.core.rows import conversation_of, status_of
from whimbrel.model import (
    ConversationChanged,
    Event,
    FailureReason,
    Message,
    MessageChanged,
    MessageReceived,
    PermanentFailure,
    Receipt,
    ReceiptChanged,
    SendState,
    SendStatus,
)
from whimbrel.store.port import Store

SETTLED_KEPT = 10_000
PAGE = 100


class Mirror:
    """What was told until now, beginning with what is in the store."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.arrival = snapshot.arrival
        """All entries up to this position were told."""
        self._statuses: dict[str, SendStatus] = {}
        """Of own messages that are not settled, as far as anybody wants to know."""
        self._settled: OrderedDict[str, SendStatus] = OrderedDict()
        self._failed: OrderedDict[str, None] = OrderedDict()
        self._shown: dict[str, tuple[object, ...]] = {}
        self._heads: dict[str, int] = {}
        self._receipts: dict[tuple[str, str], tuple[int, int]] = {}
        for row in snapshot.conversations:
            self._shown[row.id] = _of_row(row)
            for user, received, read in row.receipts:
                self._receipts[row.id, user] = (received, read)
        for message in snapshot.outbox:
            status = status_of(message)
            if status is not None and not status.settled:
                self._statuses[message.id] = status

    def status(self, id: str) -> SendStatus | None:
        """The status of an own message, as far as it was told."""
        return self._statuses.get(id) or self._settled.get(id)

    def follow(self, id: str, status: SendStatus) -> None:
        """From now on, what becomes of this message is missed if it is not told."""
        if not status.settled and id not in self._settled:
            self._statuses.setdefault(id, status)

    def news(self, event: Event) -> bool:
        """Note what is about to be told; False if it was told already."""
        match event:
            case MessageReceived(message=message):
                assert message.position is not None
                new = message.position > self.arrival
                self.arrival = max(self.arrival, message.position)
                return new
            case MessageChanged(id=id, status=status):
                return self._changed(id, status)
            case PermanentFailure(id=id):
                new = id not in self._failed
                self._failed[id] = None
                _keep(self._failed)
                return new
            case ConversationChanged(conversation=conversation):
                shown = (
                    conversation.title,
                    conversation.members,
                    conversation.epoch,
                    conversation.status,
                )
                before = self._shown.get(conversation.id), self._heads.get(conversation.id)
                self._shown[conversation.id] = shown
                self._heads[conversation.id] = conversation.head
                return before != (shown, conversation.head)
            case ReceiptChanged(conversation=id, receipt=receipt):
                return self._receipt(id, receipt)
            case _:
                return True

    def _changed(self, id: str, status: SendStatus) -> bool:
        if status.settled:
            self._statuses.pop(id, None)
            new = self._settled.get(id) != status
            self._settled[id] = status
            self._settled.move_to_end(id)
            _keep(self._settled)
            return new
        self._settled.pop(id, None)
        new = self._statuses.get(id) != status
        self._statuses[id] = status
        return new

    def _receipt(self, conversation: str, receipt: Receipt) -> bool:
        received, read = self._receipts.get((conversation, receipt.user), (0, 0))
        now = (max(received, receipt.received), max(read, receipt.read))
        self._receipts[conversation, receipt.user] = now
        return now != (received, read)

    # --- what nobody told ----------------------------------------------------------------------

    def missed(self, store: Store, snapshot: Snapshot) -> list[Event]:
        """What changed in the store since it was told, but for arrivals; goes through ``news``. Blocks."""
        out: list[Event] = []
        waiting: dict[str, int] = {}
        here = set()
        # A copy: who sends meanwhile adds to it, on another thread.
        statuses = self._statuses.copy()
        for row in snapshot.outbox:
            waiting[row.conversation] = waiting.get(row.conversation, 0) + 1
            status = status_of(row)
            if status is not None:
                here.add(row.id)
                if status != statuses.get(row.id) and status.state is not SendState.PENDING:
                    out += _changes(row.id, row.conversation, status)
        for id in statuses.keys() - here:
            message = store.message(id)
            if message is not None and message.status != statuses[id]:
                out += _changes(id, message.conversation, message.status)
        for conversation in snapshot.conversations:
            if self._shown.get(conversation.id) != _of_row(conversation):
                shown = conversation_of(conversation, pending=waiting.get(conversation.id, 0))
                out.append(ConversationChanged(conversation=shown))
            for user, received, read in conversation.receipts:
                if self._receipts.get((conversation.id, user)) != (received, read):
                    receipt = Receipt(user=user, received=received, read=read)
                    out.append(ReceiptChanged(conversation=conversation.id, receipt=receipt))
        return out

    def arrivals(self, store: Store) -> list[Event]:
        """The next entries that were not told, at most ``PAGE``; go through ``news``. Blocks."""
        out: list[Event] = []
        for message in store.arrivals(self.arrival, PAGE):
            if _own_news(message) and message.id not in self._settled:
                out += _changes(message.id, message.conversation, message.status)
            out.append(MessageReceived(message=message))
        return out


def _own_news(message: Message) -> bool:
    return message.status is not None and message.status.settled


def _changes(id: str, conversation: str, status: SendStatus | None) -> list[Event]:
    if status is None:
        return []
    out: list[Event] = [MessageChanged(id=id, conversation=conversation, status=status)]
    if status.state is SendState.FAILED and not status.can_retry:
        reason = status.reason or FailureReason.UNKNOWN
        out.append(PermanentFailure(id=id, conversation=conversation, reason=reason, text=reason.value))
    return out


def _of_row(row: ConversationRow) -> tuple[object, ...]:
    """What of a conversation is worth telling."""
    shown = conversation_of(row)
    return shown.title, shown.members, shown.epoch, shown.status


def _keep(ids: OrderedDict[str, SendStatus] | OrderedDict[str, None]) -> None:
    while len(ids) > SETTLED_KEPT:
        ids.popitem(last=False)
