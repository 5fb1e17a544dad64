"""The timeline: what this device knows of each conversation's log, without a gap.

Per conversation there is a *position*: all entries up to it are in the store, or are legitimate
holes the server told of (``floor``). The position changes only in the same ``Changes`` as the
entries that justify it. An entry at ``position + 1`` is applied; one at or below it is a repeat;
one beyond it is kept (bounded) until the gap before it was fetched. Wherever ``head`` is beyond
``position`` there is something to fetch, and it is fetched until nothing is missing. A new ``epoch``
means that the history was replaced: what was known of it is forgotten, what is unsent stays, and
own messages that the new one lacks are offered to it again.

Own messages come as ``Delivered`` (with their seq) on the sending device and as events in pages;
both end here, merged by id, so that an own message takes its place in the order of arrival once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from whimbrel import protocol as p
from whimbrel.core.contract import Changes, ConversationRow, MessageRow, Settings, Snapshot
from whimbrel.core.log import Log

_PAGE_SLOW_S, _PAGE_FAST_S = 2.0, 0.5
_PAGE_MIN = 10


class HistoryChangedTooSoon(Exception):
    """A new epoch came while places of the old one were not written yet: come again on a new link."""


class Timeline:
    """All conversations; see the module. Writes into the ``Changes`` that ``changes()`` gives.

    ``on_applied`` is told of each entry that takes its place, and whether the app was told of it before.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        changes: Callable[[], Changes],
        row_for: Callable[[p.Event], MessageRow],
        on_applied: Callable[[MessageRow, bool], None],
        wall: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._changes = changes
        self._row_for = row_for
        self._on_applied = on_applied
        self._wall = wall
        self.arrival = 0
        self.user = ""
        self.logs: dict[str, Log] = {}
        self.counts: Counter[str] = Counter()
        """``applied``, ``repeated``, ``buffered``, ``overflowed``, ``gap``, ``reset``, ``floor``."""
        self.replaced = False
        """A history was replaced, and its reset is being written: a new link must begin with that."""
        self.wanting: dict[str, Log] = {}
        """Logs of which entries are missing."""
        self.untold: dict[str, Log] = {}
        """Logs of which the server may not know how far we are."""
        self._told_of: dict[str, Log] = {}
        self._changed: dict[str, Log] = {}
        """Logs whose row must be written."""
        self._fetches = 0
        self._page = settings.page
        self._receipts_at: dict[str, float] = {}

    # --- filling -----------------------------------------------------------------------------

    def load(self, snapshot: Snapshot, user: str) -> None:
        """Take over what was on disk."""
        self.arrival = snapshot.arrival
        self.user = user
        for row in snapshot.conversations:
            log = self.logs[row.id] = Log(row)
            self._note(log)
        for message in snapshot.buffered:
            log = self.log(message.conversation)
            if message.seq is not None and message.seq > log.row.position:
                log.buffer[message.seq] = message

    def log(self, conversation: str) -> Log:
        """The log of a conversation, made (and written) if it is new."""
        log = self.logs.get(conversation)
        if log is None:
            log = self.logs[conversation] = Log(ConversationRow(id=conversation))
            self._changed[conversation] = log
        return log

    def made_durable(self, rows: Iterable[ConversationRow]) -> None:
        """These rows are on disk now."""
        for row in rows:
            log = self.logs[row.id]
            log.durable, log.others_durable = row, log.others_gathered

    def change(self, log: Log, **fields: object) -> None:
        """Set fields of the conversation's row and have it written."""
        if "members" in fields:
            self._count_readers(log, fields)
            return
        for name, value in fields.items():
            setattr(log.row, name, value)
        self._touch(log)

    def numbered(self, log: Log, n: int) -> None:
        """An own message got this number: it is the last one, and must never be given again."""
        log.row.last_n = n
        self._touch(log)

    # --- what comes from the server ----------------------------------------------------------

    def head(self, head: p.Head) -> bool:
        """The server tells how far a log goes, and what else may be new; True if anything was."""
        log = self.log(head.conversation)
        before = log.revision
        self._epoch(log, head.epoch)
        fields: dict[str, object] = {}
        if head.title is not None and head.title != log.row.title:
            fields["title"] = head.title
        if head.members is not None and head.members != log.row.members:
            fields["members"] = head.members
        if head.left != log.row.left:
            fields["left"] = head.left
        if head.seq > log.row.head:
            fields["head"] = head.seq
        if fields:
            self.change(log, **fields)
        for user, received, read in head.receipts:
            self.receipt(log, user, received, read)
        self._floor(log, head.floor)
        return log.revision != before

    def event(self, event: p.Event) -> None:
        """One log entry, pushed or from a page."""
        log = self.log(event.conversation)
        self._epoch(log, event.epoch)
        self._take(log, self._row_for(event))

    def own(self, delivered: p.Delivered, row: MessageRow | None) -> None:
        """An own message is entry ``seq``. Without its row (settled long ago) it is fetched like others."""
        log = self.log(delivered.conversation)
        self._epoch(log, delivered.epoch)
        if row is not None:
            self._take(log, row)
        elif delivered.seq > log.row.position and delivered.seq > log.row.head:
            self.change(log, head=delivered.seq)

    def page(self, page: p.Page, now: float) -> None:
        """The answer to a fetch."""
        log = self.log(page.conversation)
        if log.fetching is not None:
            self._fit_page(now - (log.fetch_at - self._settings.fetch_timeout_s))
        self._end_fetch(log)
        self._epoch(log, page.epoch)
        before = log.row.position
        if page.head > log.row.head:
            self.change(log, head=page.head)
        if page.since <= log.row.position:
            self._floor(log, page.floor)
        for event in page.events:
            self._take(log, self._row_for(event))
        if log.row.position == before and log.row.head > before and page.since == before:
            self._fetch_failed(log, now)
        else:
            log.fetch_failures = 0

    def fetch_error(self, conversation: str, code: str, now: float) -> None:
        """A fetch was refused: gone for us, or to be tried later."""
        log = self.logs.get(conversation)
        if log is None or log.fetching is None:
            return
        self._end_fetch(log)
        if code in ("not_found", "forbidden"):
            self.change(log, left=True, head=log.row.position)
        else:
            self._fetch_failed(log, now)

    def receipt(self, log: Log, user: str, received: int, read: int) -> bool:
        """Merge a receipt by max; True if it moved. Our own says what the server has of us."""
        if user == self.user:
            row = log.row
            if received <= row.received_acked and read <= row.read_acked and read <= row.read:
                return False
            self.change(
                log,
                received_acked=max(received, row.received_acked),
                read_acked=max(read, row.read_acked),
                read=max(read, row.read),
            )
            return True
        old = log.receipts.get(user, (0, 0))
        new = (max(old[0], received, read), max(old[1], read))
        if new == old:
            return False
        before = self._read_by_all(log) if new[1] > old[1] else 0
        log.receipts[user] = new
        self._told_of[log.row.id] = log
        if new[1] > old[1] and (after := self._read_by_all(log)) > before:
            self._changes().reads[log.row.id] = (after, self._wall())
        return True

    def gather(self) -> None:
        """Give what changed to the ``Changes`` that are about to be written."""
        if self._told_of:
            for log in self._told_of.values():
                receipts = tuple((name, got, seen) for name, (got, seen) in sorted(log.receipts.items()))
                self.change(log, receipts=receipts)
            self._told_of.clear()
        if self._changed:
            conversations = self._changes().conversations
            for id, log in self._changed.items():
                conversations[id] = msgspec.structs.replace(log.row)
                log.others_gathered = log.others
            self._changed.clear()

    # --- what the engine sends ---------------------------------------------------------------

    def fetches(self, link: int, now: float) -> list[p.Fetch]:
        """Pages to ask for now: wherever something is missing and nothing is under way."""
        if not self.wanting:
            return []
        out: list[p.Fetch] = []
        for log in list(self.wanting.values()):
            if self._fetches >= self._settings.fetches_max:
                break
            if log.fetching is not None or now < log.fetch_at:
                continue
            log.fetching = link
            log.fetch_at = now + self._settings.fetch_timeout_s
            self._fetches += 1
            self.counts["gap"] += 1
            out.append(p.Fetch(conversation=log.row.id, since=log.row.position, limit=self._page))
        return out

    def receipts(self, link: int, now: float) -> list[p.Received | p.Read]:
        """How far we have received and read, where the server may not know; each at most once a second."""
        if not self.untold:
            return []
        out: list[p.Received | p.Read] = []
        for log in list(self.untold.values()):
            row = log.durable
            if log.told_link != link:
                log.told_link, log.told_received, log.told_read = link, row.received_acked, row.read_acked
            received = row.position > log.told_received and log.others_durable > log.told_received
            read = row.read > log.told_read
            if not (received or read) or now < self._receipts_at.get(row.id, 0.0):
                continue
            self._receipts_at[row.id] = now + self._settings.receipt_interval_s
            if read:
                log.told_read = row.read
                log.told_received = max(log.told_received, row.read)  # who has read has received
                out.append(p.Read(conversation=row.id, seq=row.read))
            if received and row.position > log.told_received:
                log.told_received = row.position
                out.append(p.Received(conversation=row.id, seq=row.position))
        return out

    @property
    def version(self) -> int:
        """How far the logs go, all together, as far as we were told; see ``protocol.Compare``."""
        return sum(log.row.head for log in self.logs.values() if not log.row.left)

    def link_down(self) -> None:
        """What was asked for on the lost link is asked for again on the next."""
        for log in self.wanting.values():
            if log.fetching is not None:
                self._end_fetch(log)
            log.fetch_at = 0.0
        self._receipts_at.clear()

    def handle_timer(self, now: float) -> None:
        """Give up on answers that do not come."""
        for log in self.wanting.values():
            if log.fetching is not None and now >= log.fetch_at:
                self._fit_page(self._settings.fetch_timeout_s)
                self._end_fetch(log)
                self._fetch_failed(log, now)

    def next_deadline(self, now: float, link: int | None) -> float | None:
        """When something is due at the latest."""
        if link is None or not (self.wanting or self.untold):
            return None
        due = [
            log.fetch_at for log in self.wanting.values() if log.fetching is not None or log.fetch_at > now
        ]
        for log in self.untold.values():
            row = log.durable
            told = (log.told_received, log.told_read)
            if log.told_link != link:
                told = (row.received_acked, row.read_acked)
            if (row.position > told[0] and log.others_durable > told[0]) or row.read > told[1]:
                due.append(self._receipts_at.get(row.id, now))
        return min(due) if due else None

    # --- inside ------------------------------------------------------------------------------

    def _touch(self, log: Log) -> None:
        """Its row changed: have it written, once for all changes until the next commit."""
        log.revision += 1
        self._changed[log.row.id] = log
        self._note(log)

    def _note(self, log: Log) -> None:
        row = log.row
        if row.head > row.position:
            self.wanting[row.id] = log
        elif self.wanting.pop(row.id, None) is not None and log.fetching is not None:
            self._end_fetch(log)
        if not row.left and (log.others > row.received_acked or row.read > row.read_acked):
            self.untold[row.id] = log
        else:
            self.untold.pop(row.id, None)

    def _end_fetch(self, log: Log) -> None:
        if log.fetching is not None:
            log.fetching = None
            log.fetch_at = 0.0
            self._fetches -= 1

    def _fit_page(self, took_s: float) -> None:
        """Ask for less on a slow link, so that it makes progress between cuts, and for more on a fast one."""
        if took_s > _PAGE_SLOW_S:
            self._page = max(self._page // 2, min(_PAGE_MIN, self._settings.page))
        elif took_s < _PAGE_FAST_S:
            self._page = min(self._page * 2, self._settings.page)

    def _fetch_failed(self, log: Log, now: float) -> None:
        log.fetch_failures += 1
        log.fetch_at = now + min(2.0 ** (log.fetch_failures - 1), 30.0)

    def _epoch(self, log: Log, epoch: str) -> None:
        if not epoch or epoch == log.row.epoch:
            return
        if log.row.epoch:
            changes = self._changes()
            if any(update.seq is not None for update in changes.updates.values()):
                raise HistoryChangedTooSoon
            self.counts["reset"] += 1
            self.replaced = True
            changes.resets.append(log.row.id)
            for id in [
                i for i, row in changes.messages.items() if row.conversation == log.row.id and row.seq
            ]:
                del changes.messages[id]
            changes.reads.pop(log.row.id, None)
        log.buffer.clear()
        log.receipts.clear()
        log.others = 0
        self._told_of.pop(log.row.id, None)
        self.change(
            log, epoch=epoch, position=0, head=0, floor=0, received_acked=0, read_acked=0, read=0, receipts=()
        )

    def _floor(self, log: Log, floor: int) -> None:
        if floor > log.row.position:
            self.counts["floor"] += 1
            for seq in [seq for seq in log.buffer if seq <= floor]:
                del log.buffer[seq]
            log.others = floor
            self.change(log, floor=floor, position=floor, head=max(log.row.head, floor))
            self._drain(log)

    def _take(self, log: Log, row: MessageRow) -> None:
        seq = row.seq or 0
        if seq <= log.row.position:
            self.counts["repeated"] += 1
        elif seq == log.row.position + 1:
            self._apply(log, row)
            if log.buffer:
                self._drain(log)
        elif seq in log.buffer:
            self.counts["repeated"] += 1
        else:
            if len(log.buffer) < self._settings.out_of_order_max:
                self.counts["buffered"] += 1
                log.buffer[seq] = row
                self._changes().messages[row.id] = msgspec.structs.replace(row)
            else:
                self.counts["overflowed"] += 1  # it will come again with the page
            if seq > log.row.head:
                self.change(log, head=seq)

    def _drain(self, log: Log) -> None:
        while (row := log.buffer.pop(log.row.position + 1, None)) is not None:
            self._apply(log, row)

    def _apply(self, log: Log, row: MessageRow) -> None:
        seq = log.row.position + 1
        told = row.arrival is not None
        if not told:
            self.arrival += 1
            row.arrival = self.arrival
        self.counts["applied"] += 1
        changes = self._changes()
        update = changes.updates.get(row.id)
        if update is not None:  # written after the row, it says all that is new of it
            update.seq, update.arrival = row.seq, row.arrival
        else:
            changes.messages[row.id] = msgspec.structs.replace(row) if row.own else row
        log.row.position = seq
        log.row.head = max(log.row.head, seq)
        if not row.own:
            log.others = seq
        self._touch(log)
        self._on_applied(row, told)

    def _count_readers(self, log: Log, fields: dict[str, object]) -> None:
        """Members changed: what all who are left have read stays read, whoever comes later."""
        before = self._read_by_all(log)
        for name, value in fields.items():
            setattr(log.row, name, value)
        after = self._read_by_all(log)
        if after > before:
            self._changes().reads[log.row.id] = (after, self._wall())
        self.change(log)

    def _read_by_all(self, log: Log) -> int:
        others = [name for name in log.row.members if name != self.user]
        if not others:
            return 0
        return min(log.receipts.get(name, (0, 0))[1] for name in others)
