"""What each item of the server means for the outbox, the timeline and the app.

Only items of the active link come here. An item that changes something stored goes through the
staging; one that may be lost (typing) is told at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from whimbrel import model
from whimbrel import protocol as p
from whimbrel.core.calls import Calls
from whimbrel.core.contract import MessageRow
from whimbrel.core.link import LinkMachine
from whimbrel.core.log import row_of
from whimbrel.core.outbox import Outbox
from whimbrel.core.rows import conversation_of
from whimbrel.core.staging import Staging
from whimbrel.core.timeline import Timeline


class Items:
    """Takes in the items of the active link."""

    def __init__(self, meta: dict[str, str], link: LinkMachine, calls: Calls, staging: Staging) -> None:
        self._meta = meta
        self._link = link
        self._calls = calls
        self._staging = staging
        self.outbox: Outbox
        self.timeline: Timeline
        self.counts: Counter[str] = Counter()
        self.synced = False
        """On this link the server has told of all that changed."""
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            p.Event: self._event,
            p.Delivered: self._delivered,
            p.Page: self._page,
            p.Accepted: self._accepted,
            p.Voided: self._voided,
            p.Rejected: self._rejected,
            p.OutOfOrder: self._out_of_order,
            p.Heads: self._heads,
            p.Pong: self._pong,
            p.Receipts: self._receipts,
            p.TypingOf: self._typing,
            p.Answer: self._answer,
            p.Credits: self._credits,
            p.Error: self._error,
        }

    def receive(self, item: p.ServerItem | p.Unknown, now: float) -> None:
        """Take in one item; one of an unknown kind is counted and skipped."""
        handler = self._handlers.get(type(item))
        if handler is None:
            self.counts["unknown"] += 1
            return
        handler(item, now)

    def welcome(self, welcome: p.Welcome, now: float) -> None:
        """The link is good: what changed while we were away, and everything unsettled goes out again."""
        self._remember("user", welcome.user)
        self._remember("history", welcome.history)
        self.timeline.user = welcome.user
        for head in welcome.heads:
            self._head(head)
        if welcome.complete:
            known = {head.conversation for head in welcome.heads}
            for log in list(self.timeline.logs.values()):
                if log.row.id not in known and log.row.epoch and not log.row.left:
                    self.timeline.change(log, left=True, head=log.row.position)
        self.synced = bool(welcome.sync)
        if welcome.sync:  # else the last part of the heads brings it
            self._remember("sync", welcome.sync)
        self.outbox.link_up(now, welcome.credits)

    def row_for(self, event: p.Event) -> MessageRow:
        """The row for a log entry: that of the own message it is, whose answer was lost, or a new one."""
        entry = self.outbox.by_id.get(event.id)
        if entry is None:
            return row_of(event)
        self.outbox.committed(entry, event.seq, event.at)
        return entry.row

    def applied_member(self, row: MessageRow) -> None:
        """Keep the list of members as the log tells it, in the log's order."""
        content = p.decode_content(row.format, row.body)
        user = content.get("user") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(user, str):
            return
        log = self.timeline.log(row.conversation)
        members = set(log.row.members)
        if content.get("action") == "joined":
            members.add(user)
        else:
            members.discard(user)
        if tuple(sorted(members)) != log.row.members:
            self.timeline.change(log, members=tuple(sorted(members)))

    # --- one item each -----------------------------------------------------------------------

    def _event(self, item: p.Event, now: float) -> None:
        self.timeline.event(item)

    def _delivered(self, item: p.Delivered, now: float) -> None:
        entry = self.outbox.find(item.conversation, item.stream, item.n)
        if entry is None or entry.row.id != item.id:
            self.timeline.own(item, None)
            return
        self.outbox.committed(entry, item.seq, item.at)
        self.timeline.own(item, entry.row)

    def _page(self, item: p.Page, now: float) -> None:
        self.timeline.page(item, now)

    def _accepted(self, item: p.Accepted, now: float) -> None:
        entry = self.outbox.find(item.conversation, item.stream, item.n)
        if entry is not None:
            self.outbox.accepted(entry)

    def _voided(self, item: p.Voided, now: float) -> None:
        entry = self.outbox.find(item.conversation, item.stream, item.n)
        if entry is not None:
            self.outbox.voided(entry, item.reason)

    def _rejected(self, item: p.Rejected, now: float) -> None:
        entry = self.outbox.find(item.conversation, item.stream, item.n)
        if entry is None:
            return
        if item.final:
            self.outbox.voided(entry, "rejected", item.code, item.text)
        else:
            self.outbox.rejected(entry, item.code, item.text, item.retry_after_s, now)

    def _out_of_order(self, item: p.OutOfOrder, now: float) -> None:
        queue = self.outbox.queues.get(item.conversation)
        if queue is not None and queue.stream == item.stream:
            self.outbox.out_of_order(queue, item.expected, now)

    def _heads(self, item: p.Heads, now: float) -> None:
        for head in item.heads:
            self._head(head)
        if item.sync is not None:
            self.synced = True
            self._remember("sync", item.sync)

    def _pong(self, item: p.Pong, now: float) -> None:
        self._link.pong(item.id, now)
        if item.sync is not None:
            self._remember("sync", item.sync)

    def _receipts(self, item: p.Receipts, now: float) -> None:
        log = self.timeline.logs.get(item.conversation)
        if log is None:
            return
        for user, received, read in item.receipts:
            if self.timeline.receipt(log, user, received, read):
                receipt = model.Receipt(user=user, received=received, read=read)
                self._staging.event(model.ReceiptChanged(conversation=item.conversation, receipt=receipt))

    def _typing(self, item: p.TypingOf, now: float) -> None:
        self._staging.tell(model.TypingChanged(conversation=item.conversation, user=item.user, on=item.on))

    def _answer(self, item: p.Answer, now: float) -> None:
        self._calls.answered(item)

    def _credits(self, item: p.Credits, now: float) -> None:
        self.outbox.pacing.grant(item, now)

    def _error(self, item: p.Error, now: float) -> None:
        self.timeline.fetch_error(item.conversation, item.code, now)

    # --- inside ------------------------------------------------------------------------------

    def _remember(self, key: str, value: str) -> None:
        if self._meta.get(key) != value:
            self._meta[key] = self._staging.changes.meta[key] = value

    def _head(self, head: p.Head) -> None:
        if self.timeline.head(head):
            row = self.timeline.logs[head.conversation].row
            self._staging.event(model.ConversationChanged(conversation=conversation_of(row)))
