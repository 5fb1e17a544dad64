"""The outbox: own messages from the moment they are queued until they are settled.

One queue per conversation, in the order of the numbers ``n`` of its stream; all in parallel. A message
(``core.life``) is on disk, with key, number and place, before the first attempt, and leaves the queue
when the server has *settled* its number: committed, or void. So a queue is always a run of numbers
not known to be settled, and after any loss of the link sending begins again at its first number.

What leaves is derived (``take``) from durable entries. Nothing is resent on a timer: a number without
an answer for long is asked after (``Status``), and only "not here" is a failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from whimbrel import protocol as p
from whimbrel.core.classify import Consequence, classify
from whimbrel.core.contract import MessageRow, Settings, Sources
from whimbrel.core.expiry import Expiry
from whimbrel.core.life import TRANSITIONS, WIRED, Entry, Queue, item_of
from whimbrel.core.pacing import Pacing
from whimbrel.core.retries import RetryPolicy
from whimbrel.core.turns import Turns
from whimbrel.model import FailureReason, SendState

S = SendState


class Outbox:
    """All queues; see the module. ``on_update`` is told of every row that must be written."""

    def __init__(
        self, settings: Settings, sources: Sources, on_update: Callable[[Entry, SendState], None]
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._on_update = on_update
        self.transitions: Counter[tuple[str, str]] = Counter()
        self.queues: dict[str, Queue] = {}
        self.by_id: dict[str, Entry] = {}
        self.bytes = 0
        self.linked = False
        self.delivered = 0  # since the start: whether "others got through"
        self.pacing = Pacing(settings)
        self._retries = RetryPolicy(settings, sources)
        self._busy: dict[str, Queue] = {}
        self._expiring = Expiry(sources.wall)
        self.turns = Turns()
        self.asks: list[p.Status] = []
        self.token_refused = False  # a message was: a new one is needed
        self.displaced: dict[str, Queue] = {}
        """Queues with messages that wait for the new history of their conversation."""
        self.renumbered: set[str] = set()
        """Conversations whose counters changed: their row must be written too."""

    # --- filling -----------------------------------------------------------------------------

    def load(self, rows: Iterable[MessageRow], counters: dict[str, tuple[int, int]], now: float) -> None:
        """Take over what was on disk; ``counters``: conversation → (stream, last_n)."""
        for row in rows:
            queue = self.queue(row.conversation, *counters.get(row.conversation, (1, 0)))
            if row.stream == 0:
                self.displace(row)
                continue
            entry = Entry(row, durable=True, left=True)
            self._enter(queue, entry)
            queue.last_n = max(queue.last_n, row.n)
            if row.state is S.FAILED and row.can_retry:
                entry.resume_at = now + self._settings.resume_failed_every_s
            elif row.state is S.RETRYING:
                row.state = S.PENDING
        for queue in self.queues.values():
            queue.rewind()

    def queue(self, conversation: str, stream: int = 1, last_n: int = 0) -> Queue:
        """The queue of a conversation, made if needed."""
        known = self.queues.get(conversation)
        return known or self.queues.setdefault(conversation, Queue(conversation, stream, last_n))

    def add(self, row: MessageRow) -> Entry:
        """Give the message its number and its place at the end."""
        queue = self.queue(row.conversation)
        queue.last_n += 1
        row.stream, row.n, row.state = queue.stream, queue.last_n, S.PENDING
        entry = Entry(row, durable=False, left=False)
        self._enter(queue, entry)
        return entry

    def displace(self, row: MessageRow) -> bool:
        """An own message whose history was replaced waits until the new one is known; True: was settled."""
        queue = self.queue(row.conversation)
        entry = self.by_id.get(row.id)
        settled = entry is None
        if entry is None:
            entry = Entry(row, durable=True, left=True)
            self._take_up(queue, entry)
        elif queue.displaced.pop(row.id, None) is None:
            del queue.entries[entry.row.n]
        entry.row.stream, entry.row.n = row.stream, row.n
        queue.displaced[row.id] = entry
        self.displaced[queue.conversation] = queue
        return settled

    def offer_again(self, queue: Queue) -> None:
        """The new history is known: what it lacks goes out again, before all others, in the old order."""
        self.displaced.pop(queue.conversation, None)
        for entry in queue.displaced.values():
            entry.row.arrival = None  # what was told before will be a new entry
        self.renumber(queue)
        self.turns.add(queue)

    def made_durable(self, entry: Entry) -> None:
        """The message is on disk: it may leave."""
        entry.durable = True
        self.turns.add(self.queues[entry.row.conversation])

    # --- the link ----------------------------------------------------------------------------

    def link_up(self, now: float, granted: p.Credits) -> None:
        """A new link: everything unsettled goes out again from the first number, failed ones resume."""
        self.linked = True
        self.pacing.grant(granted, now)
        if self._settings.auto_resume:
            self.resume_failed(now)
        for queue in self._busy.values():
            queue.rewind()
            queue.doubted = 0
            self.turns.add(queue)

    def link_down(self) -> None:
        """The link is gone: what was on its wire waits again, and no attempt is used up."""
        self.linked = False
        self.asks.clear()
        for queue in self._busy.values():
            for entry in queue.entries.values():
                self.pacing.unwire(entry)
                if entry.row.state in WIRED:
                    self._step(entry, "lose_link")
            queue.rewind()

    def take(self, budget_bytes: int, now: float) -> list[p.Send | p.Void]:
        """What may leave now, at most about ``budget_bytes``, round robin over the conversations."""
        out: list[p.Send | p.Void] = []
        if self.linked and now >= self.pacing.pause_until:
            self.turns.go(
                budget_bytes,
                now,
                admit=self.pacing.admit,
                leave=lambda queue, entry, now: out.append(self._transmit(queue, entry, now)),
            )
        return out

    def take_asks(self) -> list[p.Status]:
        """The numbers to ask the server after."""
        asks, self.asks = self.asks, []
        return asks

    def _transmit(self, queue: Queue, entry: Entry, now: float) -> p.Send | p.Void:
        queue.cursor = entry.row.n + 1
        entry.left = True
        self.pacing.wire(entry, now)
        if entry.row.void is None and entry.row.state is not S.SENDING:
            self._step(entry, "transmit")
        return item_of(entry.row)

    # --- answers -----------------------------------------------------------------------------

    def find(self, conversation: str, stream: int, n: int) -> Entry | None:
        """The unsettled message with this number."""
        queue = self.queues.get(conversation)
        return None if queue is None or queue.stream != stream else queue.entries.get(n)

    def accepted(self, entry: Entry) -> None:
        """The buffer has it: a hint, not a promise; nothing is written."""
        if entry.row.state is S.SENDING:
            self._step(entry, "accept")
            self._on_update(entry, S.SENDING)

    def committed(self, entry: Entry, seq: int, at: float) -> None:
        """It is in the permanent log: settled, even where a cancel was under way."""
        row = entry.row
        row.seq, row.delivered_at, row.void = seq, at, None
        if row.state is S.CANCELLED:
            row.state = S.PENDING  # a server that lost the void: the truth wins
        self._settle(entry, "deliver")
        self.delivered += 1

    def voided(self, entry: Entry, reason: str, code: str = "", text: str = "") -> None:
        """Its number is void for ever: cancelled, expired, or refused for good."""
        row = entry.row
        row.void = None
        row.can_retry = False
        if row.state is S.CANCELLED or (reason == "cancelled" and not code):
            self._settle(entry, "void")
            return
        row.reason = FailureReason.EXPIRED if reason == "expired" else FailureReason.REJECTED
        if code:
            self._retries.note(entry, row.reason, f"{code}: {text}" if text else code)
        self._settle(entry, "expire" if reason == "expired" else "reject")

    def rejected(self, entry: Entry, code: str, text: str, retry_after_s: float | None, now: float) -> None:
        """Refused, and its number is still expected."""
        if not entry.wired:
            return  # of an older link: it goes out again anyway
        verdict = classify(code)
        queue = self.queues[entry.row.conversation]
        self._go_back(queue, entry.row.n)
        consequence = verdict.consequence
        if consequence is Consequence.RENUMBER and entry.renumbered:
            consequence = Consequence.REJECT  # a new stream did not help: it is this message
        if consequence is Consequence.RENUMBER:
            entry.renumbered = True
            self.renumber(queue)
            return
        if entry.row.void is not None:
            self._void_refused(queue, entry, consequence, now + (retry_after_s or 0.0))
            return
        match consequence:
            case Consequence.PAUSE:
                wait_s = retry_after_s or 2 * self._settings.backoff_base_s
                self._pause(entry, now + wait_s, "the server's rate limit")
            case Consequence.REFRESH:
                self._pause(entry, now + self._settings.backoff_base_s, "a new access token")
                self.token_refused = True
            case Consequence.REJECT:
                self._refuse(queue, entry, verdict.reason, f"{code}: {text}")
            case Consequence.RETRY:
                self.fail(entry, verdict.reason, text or code, retry_after_s, now)

    def out_of_order(self, queue: Queue, expected: int, now: float) -> None:
        """The server wants another number first: go back to it; no attempt is used up."""
        head = queue.head()
        if head is None:
            return
        if not head.row.n <= expected <= queue.last_n + 1:
            self.renumber(queue)
            return
        if expected not in queue.entries:
            return
        doubted, queue.doubted = queue.doubted, 0
        entry = queue.entries[expected]
        self._go_back(queue, expected)
        if entry.row.state in WIRED:
            if doubted:
                self.fail(entry, FailureReason.TIMEOUT, "no answer in time", None, now)
            else:
                self._step(entry, "hold")

    def renumber(self, queue: Queue) -> None:
        """Begin a new stream: the server's count and ours do not fit (one of us was restored)."""
        entries = [*queue.displaced.values(), *queue.entries.values()]
        queue.stream += 1
        queue.displaced.clear()
        queue.entries.clear()
        for n, entry in enumerate(entries, 1):
            self.pacing.unwire(entry)
            if entry.row.state in WIRED:
                self._step(entry, "lose_link")
            entry.durable = False  # the new number must be on disk before it leaves
            entry.row.stream, entry.row.n = queue.stream, n
            queue.entries[n] = entry
            self._on_update(entry, entry.row.state or S.PENDING)
        queue.last_n = len(entries)
        queue.rewind()
        self.renumbered.add(queue.conversation)

    # --- failing and recovering --------------------------------------------------------------

    def fail(
        self, entry: Entry, reason: FailureReason, text: str, retry_after_s: float | None, now: float
    ) -> None:
        """One attempt failed: wait, or, retries used up, stand as failed until something changes."""
        row = entry.row
        if not row.retry_count and not row.rounds:
            entry.delivered_before = self.delivered
        before = row.state or S.PENDING
        wait_s = self._retries.failed(entry, reason, text, retry_after_s, now)
        if wait_s is not None:
            self._step(entry, "fail")
            queue = self.queues[row.conversation]
            queue.hold_until, queue.hold_reason = now + wait_s, "its next attempt"
        else:
            row.rounds += 1
            row.can_retry = True
            self._step(entry, "exhaust")
            entry.resume_at = now + self._settings.resume_failed_every_s
            others = self.delivered > entry.delivered_before
            if others and row.rounds >= self._settings.retry_rounds_max and row.on_reject != "block":
                row.void = "rejected"  # others got through: it is this message
                self._expiring.remove(row.id)
        self._on_update(entry, before)

    def resume(self, entry: Entry, now: float) -> bool:
        """Take a failed or waiting message up again at once; False if it does not wait."""
        row = entry.row
        queue = self.queues[row.conversation]
        if row.state not in (S.FAILED, S.RETRYING) or row.void is not None:
            return False
        before = row.state
        row.retry_count = 0
        row.can_retry = False
        row.reason = None
        entry.counts.clear()
        entry.resume_at = None
        self._step(entry, "resume")
        queue.hold_until = now
        self._go_back(queue, row.n)
        self.turns.add(queue)
        self._on_update(entry, before)
        return True

    def resume_failed(self, now: float) -> int:
        """Take up everything that failed and may be retried; gives how many."""
        waiting = [e for e in self.by_id.values() if e.row.state is S.FAILED and e.row.can_retry]
        return sum(self.resume(entry, now) for entry in waiting)

    def cancel(self, entry: Entry) -> None:
        """Withdraw it: final at once if it never left, else when the server has answered the void."""
        self._give_up(entry, "cancelled")

    def handle_timer(self, now: float) -> None:
        """Ask after numbers that got no answer, resume what failed, give up what expired."""
        for entry in self._expiring.due(now):
            self._give_up(entry, "expired")
        for queue in self._busy.values():
            head = queue.head()
            if head is None:
                continue
            if head.resume_at is not None and now >= head.resume_at:
                head.resume_at = now + self._settings.resume_failed_every_s
                if self._settings.auto_resume and self.linked and head.row.can_retry:
                    self.resume(head, now)
            if head.wired and now >= queue.doubt_at(self._settings.request_timeout_s):
                self.asks.append(queue.ask(now))

    def next_deadline(self, now: float) -> float | None:
        """When ``handle_timer`` or ``take`` has something to do at the latest."""
        if not self._busy:
            return None
        due: list[float] = []
        if self.linked and self.turns and (paced := self.pacing.next_deadline(now)) is not None:
            due.append(paced)
        if (expiry := self._expiring.next_deadline(now)) is not None:
            due.append(expiry)
        for queue in self._busy.values():
            head = queue.head()
            if head is None:
                continue
            if self.linked and queue.hold_until > now:
                due.append(queue.hold_until)
            if head.resume_at is not None:
                due.append(head.resume_at)
            if head.wired:
                due.append(queue.doubt_at(self._settings.request_timeout_s))
        return min(due) if due else None

    # --- inside ------------------------------------------------------------------------------

    def _enter(self, queue: Queue, entry: Entry) -> None:
        queue.entries[entry.row.n] = entry
        self._take_up(queue, entry)

    def _take_up(self, queue: Queue, entry: Entry) -> None:
        self.by_id[entry.row.id] = entry
        self.bytes += entry.size
        self._busy[queue.conversation] = queue
        row = entry.row
        refused = row.state is S.FAILED and not row.can_retry
        if row.expires_at is not None and row.void is None and not refused:
            self._expiring.add(entry)

    def _pause(self, entry: Entry, until: float, reason: str) -> None:
        self.pacing.pause(until, reason)
        if entry.row.state in WIRED:
            self._step(entry, "hold")

    def _step(self, entry: Entry, event: str) -> None:
        before = entry.row.state or S.PENDING
        entry.row.state = TRANSITIONS[before][event]
        self.transitions[before, event] += 1

    def _void_refused(self, queue: Queue, entry: Entry, consequence: Consequence, until: float) -> None:
        if consequence is Consequence.REJECT:
            # The server will never take this number, not even as void: those behind get new ones.
            self.voided(entry, entry.row.void or "cancelled")
            self.renumber(queue)
        else:
            queue.hold_until = until + self._settings.backoff_base_s

    def _go_back(self, queue: Queue, n: int) -> None:
        """All from ``n`` on goes out again; what becomes of ``n`` itself the caller says."""
        if queue.displaced:
            return  # nothing has left
        for number in range(n, queue.cursor):
            entry = queue.entries.get(number)
            if entry is not None and entry.wired:
                self.pacing.unwire(entry)
                if entry.row.state in WIRED and number != n:
                    self._step(entry, "hold")
        queue.cursor = min(queue.cursor, n)
        self.turns.add(queue)

    def _refuse(self, queue: Queue, entry: Entry, reason: FailureReason, text: str) -> None:
        """The server refused it and goes on expecting it (``on_reject="block"``)."""
        before = entry.row.state or S.PENDING
        self._expiring.remove(entry.row.id)  # what becomes of it the app decides, not the clock
        entry.row.reason, entry.row.can_retry = reason, False
        self._retries.note(entry, reason, text)
        self._step(entry, "reject")
        queue.hold_reason = "a refused message"
        self._on_update(entry, before)

    def _give_up(self, entry: Entry, reason: str) -> None:
        row = entry.row
        queue = self.queues[row.conversation]
        if row.void is not None:
            return
        row.void = reason
        self._expiring.remove(row.id)
        before = row.state or S.PENDING
        self._go_back(queue, row.n)
        if row.state in WIRED:
            self._step(entry, "hold")
        if not entry.left:
            if reason == "expired":
                row.reason, row.can_retry = FailureReason.EXPIRED, False
            self._step(entry, "cancel" if reason == "cancelled" else "expire")
        if queue.head() is entry:
            queue.hold_until = 0.0
        self._on_update(entry, before)

    def _settle(self, entry: Entry, event: str) -> None:
        row = entry.row
        before = row.state or S.PENDING
        self._step(entry, event)
        self.pacing.unwire(entry)
        queue = self.queues[row.conversation]
        if queue.displaced.pop(row.id, None) is None:
            queue.entries.pop(row.n, None)
        self.by_id.pop(row.id, None)
        self._expiring.remove(row.id)
        self.bytes -= entry.size
        if not queue.entries and not queue.displaced:
            self._busy.pop(queue.conversation, None)
        elif queue.cursor <= row.n:
            self.turns.add(queue)  # those behind it waited for it
        queue.doubted = 0
        self._on_update(entry, before)
