"""The simulated app on a device: writes, cancels, reads, changes members, and writes down all it sees.

It does what a careful app does. Every message has a key of its own; an app that did not learn that `send()`
returned, because the process died or the store failed, hands the same message over again under the same key,
before anything newer. A durable consumer handles each entry and then, a little later, records its position;
a crash between the two brings the entry again.

`todo` is the app's own durable list of what it still wants to hand over, in the order it was written.
"""

import random
from collections import deque
from math import inf
from typing import Final, Protocol

import msgspec

from whimbrel import model
from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.errors import NotFound, QueueFull, WhimbrelError
from whimbrel.protocol import decode_content
from whimbrel.store.port import Store
from whimbrel.testing.history import Claim, History, ReadUpTo, Sighting, Submission
from whimbrel.testing.simclock import OwnClock
from whimbrel.testing.simplan import Deed, Device

__all__ = ["App", "Body"]

CONSUMER: Final = "app"
HANDLING_S_MAX: Final = 0.5
RETRY_SEND_S: Final = 0.3
RECONNECT_S: Final = 2.0
CALL_TIMEOUT_S: Final = 20.0


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A message the app wants to send, under its key."""

    submission: Submission
    command: c.SendMessage


class Body(Protocol):
    """The process the app runs in."""

    incarnation: int

    @property
    def store(self) -> Store:
        """The open store of this device."""

    @property
    def running(self) -> bool:
        """Whether the process lives and its store works."""

    def command(self, command: c.Command) -> None:
        """Give a command to the engine. Raises what the engine raises."""

    def note(self, what: str, number: int = 0, detail: str = "") -> None:
        """Add a line to the trace of the run."""


class App:
    """One device's app. It outlives crashes of its process; what it may not remember is in `crashed`."""

    def __init__(
        self, body: Body, device: Device, clock: OwnClock, history: History, rng: random.Random
    ) -> None:
        self.body = body
        self.device = device
        self.clock = clock
        self.history = history
        self.rng = rng
        self.todo: deque[Draft] = deque()
        self.handed_over: list[Draft] = []
        """Submitted, and `send()` has not returned: in order."""
        self.returning: list[Draft] = []
        """Those of them that are in the commit under way."""
        self.counts: dict[str, int] = {}
        self.sent_again = 0
        self.redelivered = 0
        self.queue_full = 0
        self.rejected = 0
        self.turned_away = 0
        self.loads = 0
        self.cuts = 0
        """How often the stream of live events was cut, in the middle of a life."""
        self._calls = 0
        self._upto: dict[str, int] = {}
        self._handled_max = 0
        self._handling = False
        self._retrying = False
        self._away = False

    # --- what the story wants

    def do(self, deed: Deed) -> None:
        """Carry out one deed of the story, as far as the process lives."""
        if deed.kind == "send":
            self._write(deed)
        elif self.body.running:
            self._do_other(deed)

    def _do_other(self, deed: Deed) -> None:
        conversation = deed.conversation
        if deed.kind == "cancel":
            self._cancel_last(conversation)
        elif deed.kind == "read":
            seq = self._upto.get(conversation, 0)
            if seq:
                read = ReadUpTo(
                    user=self.device.user, conversation=conversation, seq=seq, at_s=self.clock.now_s
                )
                self.history.reads.append(read)
                self._command(c.MarkRead(conversation=conversation, seq=seq))
        elif deed.kind == "retry":
            waiting = [m.id for m in self.body.store.pending() if m.conversation == conversation]
            id = waiting[0] if waiting and self.rng.random() < 0.7 else None
            self._command(c.RetryMessage(id=id))
        elif deed.kind == "typing":
            self._command(c.SetTyping(conversation=conversation, on=True))
        elif deed.kind == "nudge":
            self._command(c.Connect())
        elif deed.kind == "background":
            self._away = True
            self._command(c.Disconnect())
            self.clock.after(deed.duration_s, self._come_back)
        elif deed.kind in ("add", "remove", "leave"):
            self._call("add" if deed.kind == "add" else "remove", conversation, deed)

    def _call(self, op: str, conversation: str, deed: Deed) -> None:
        """Change who is in a conversation; the server says no to who may not, and that is fine."""
        self._calls += 1
        self.history.moving.add(conversation)
        user = self.device.user if deed.kind == "leave" else deed.user
        call = p.Call(id=f"{self.device.name}-{self._calls}", op=op, conversation=conversation, user=user)
        self._command(c.CallServer(call=call, timeout_s=CALL_TIMEOUT_S))

    def answered(self, answer: c.CallAnswered) -> None:
        """A call was answered, or it was given up."""
        code = "nobody answered" if answer.answer is None else answer.answer.code
        self.body.note("answer", 0, code)

    def _come_back(self) -> None:
        self._away = False
        if self.body.running:
            self._command(c.Connect())
        else:
            self.clock.after(RETRY_SEND_S, self._come_back)

    def _write(self, deed: Deed) -> None:
        index = self.counts[deed.conversation] = self.counts.get(deed.conversation, 0) + 1
        key = f"{deed.conversation}-{index}"
        text = f"{self.device.name} {key} "
        body = text + "." * max(deed.size - len(text), 0)
        submission = Submission(
            id=model.message_id(self.device.name, key),
            device=self.device.name,
            conversation=deed.conversation,
            index=index,
            body=body,
            at_s=self.clock.now_s,
            expires=deed.expires_in_s is not None,
            expires_at_s=self.clock.now_s + (inf if deed.expires_in_s is None else deed.expires_in_s),
            refusable=bool(deed.invalid),
            blocks=deed.invalid == "block",
            times=0,
        )
        self.history.submissions[submission.id] = submission
        command = c.SendMessage(
            conversation=deed.conversation,
            key=key,
            format="text",
            body=body,
            expires_in_s=deed.expires_in_s,
            role="nobody" if deed.invalid else "user",
            on_reject=deed.invalid or "skip",
        )
        self.todo.append(Draft(submission=submission, command=command))
        self.hand_over()

    def hand_over(self) -> None:
        """Give what is still to be sent to `send()`, in order, as far as it is taken."""
        while self.todo and self.body.running:
            draft = self.todo[0]
            submission = draft.submission
            submission.times += 1
            if submission.times > 1:
                self.sent_again += 1
            if self.body.store.row(submission.id) is not None:
                # An earlier send() got it to the disk and we never learned: this one returns at once.
                self.todo.popleft()
                self._returned(draft)
                continue
            self.todo.popleft()
            self.handed_over.append(draft)
            try:
                self.body.command(draft.command)
            except QueueFull:
                self.queue_full += 1
                self.handed_over.remove(draft)
                self.todo.appendleft(draft)
                if not self._retrying:
                    self._retrying = True
                    self.clock.after(RETRY_SEND_S, self._retry)
                return
            except NotFound:
                # Not a member any more: nothing was promised.
                self.turned_away += 1
                self.handed_over.remove(draft)
                self.history.turned_away.append(
                    (self.device.name, draft.command.conversation, self.clock.now_s)
                )
            except WhimbrelError as error:
                self.handed_over.remove(draft)
                self.history.faults.append(f"send() of {submission!r} raised {type(error).__name__}: {error}")

    def _retry(self) -> None:
        self._retrying = False
        self.hand_over()

    def _last_id(self, conversation: str) -> str:
        return model.message_id(self.device.name, f"{conversation}-{self.counts.get(conversation, 0)}")

    def give_up_all(self) -> int:
        """Withdraw everything that is not settled; gives how much that is."""
        waiting = [message for message in self.body.store.pending() if message.conversation in self.counts]
        for message in waiting:
            self._cancel(self.history.submissions[message.id])
        return len(waiting)

    def _cancel_last(self, conversation: str) -> None:
        """Withdraw what this app sent last to a conversation."""
        submission = self.history.submissions.get(self._last_id(conversation))
        if submission is None or any(draft.submission is submission for draft in self.todo):
            return
        self._cancel(submission)

    def _cancel(self, submission: Submission) -> None:
        if not self.body.running:
            self.clock.after(RETRY_SEND_S, self._cancel, submission)
        else:
            if submission.cancel_at_s is None:
                submission.cancel_at_s = self.clock.now_s
            self._command(c.CancelMessage(id=submission.id))

    def _command(self, command: c.Command) -> None:
        self.body.note(type(command).__name__)
        try:
            self.body.command(command)
        except WhimbrelError as error:
            self.body.note("refused", 0, type(error).__name__)

    # --- what the process tells it

    def commit_began(self) -> None:
        """What was handed over so far is in this commit."""
        self.returning, self.handed_over = self.handed_over, []

    def commit_done(self) -> None:
        """The sends in that commit return."""
        returning, self.returning = self.returning, []
        for draft in returning:
            self._returned(draft)

    def commit_failed(self) -> None:
        """Sends that did not return raise; the app tries them again, in order, before anything newer."""
        self._take_back()

    def cut(self) -> None:
        """A commit failed and was there after all: of what it held only the durable consumer learns."""
        self.cuts += 1

    def store_back(self) -> None:
        """The store works again after a failed commit: what was decided meanwhile may not have been kept."""
        self.loads += 1
        self.look()
        self.clock.after(RETRY_SEND_S, self.hand_over)
        self.consume()

    def crashed(self) -> None:
        """The process died."""
        self._take_back()
        self._upto.clear()
        self._handling = False

    def started(self) -> None:
        """A new process runs: look where things stand, hand over what is in doubt, and catch up."""
        self.look()
        self.hand_over()
        self.consume()

    def look(self) -> None:
        """Read the status of every message this app wrote, as a page that is opened again does."""
        for submission in self.history.submissions.values():
            if submission.device == self.device.name and submission.returned_at_s is not None:
                message = self.body.store.message(submission.id)
                if message is None or message.status is None:
                    self.history.faults.append(f"{submission!r}: not in the store any more")
                else:
                    self._told(submission.id, submission.conversation, message.status)

    def _take_back(self) -> None:
        self.todo.extendleft(reversed([*self.returning, *self.handed_over]))
        self.returning = []
        self.handed_over = []

    def _returned(self, draft: Draft) -> None:
        if draft.submission.returned_at_s is None:
            draft.submission.returned_at_s = self.clock.now_s

    # --- what it sees

    def saw(self, event: model.Event) -> None:
        """Write down an event of the client."""
        name, now = self.device.name, self.clock.now_s
        if isinstance(event, model.MessageReceived):
            sighting = self._sighting(event.message)
            sighting.stream = self.cuts
            self.history.live.append(sighting)
            self.consume()
        elif isinstance(event, model.MessageChanged):
            self._told(event.id, event.conversation, event.status, live=True)
            self.body.note(event.status.state.value, 0, event.id)
        elif isinstance(event, model.ConnectionChanged):
            if event.state is model.ConnectionState.STOPPED and not self._away:
                self.clock.after(RECONNECT_S, self._come_back)  # attempts were used up: ask for more
        elif isinstance(event, model.ReceiptChanged):
            receipt = event.receipt
            told = ReadUpTo(user=receipt.user, conversation=event.conversation, seq=receipt.read, at_s=now)
            told.received = receipt.received
            self.history.receipts.append((name, self.body.incarnation, told))

    def _told(self, id: str, conversation: str, status: model.SendStatus, *, live: bool = False) -> None:
        claim = Claim(
            device=self.device.name,
            incarnation=self.body.incarnation,
            at_s=self.clock.now_s,
            id=id,
            conversation=conversation,
            state=status.state,
            reason=status.reason,
            can_retry=status.can_retry,
            retry=status.retry,
            load=self.loads,
            live=live,
        )
        self.history.claims.append(claim)
        if claim.reason is model.FailureReason.REJECTED and not claim.can_retry:
            self.rejected += 1
            submission = self.history.submissions[id]
            if submission.blocks and claim.state is model.SendState.FAILED:
                # Everything behind it waits for this decision.
                self.clock.after(self.rng.uniform(0.1, 5.0), self._cancel, submission)

    def consume(self) -> None:
        """Handle what came to the store, in order of arrival, then record how far."""
        if self._handling or not self.body.running:
            return
        store = self.body.store
        messages = store.arrivals(store.consumer_position(CONSUMER), 100)
        if not messages:
            return
        for message in messages:
            position = message.position or 0
            if position <= self._handled_max:
                self.redelivered += 1
            self._handled_max = max(self._handled_max, position)
            sighting = self._sighting(message)
            self.history.consumed.append(sighting)
            if sighting.seq > self._upto.get(sighting.conversation, 0):
                self._upto[sighting.conversation] = sighting.seq
        self._handling = True
        delay = self.rng.random() * HANDLING_S_MAX
        last = messages[-1].position or 0
        self.clock.after(delay, self._handled, self.body.incarnation, last)

    def _handled(self, incarnation: int, position: int) -> None:
        if incarnation != self.body.incarnation or not self._handling:
            return  # that process died first
        self._handling = False
        self.body.store.set_consumer_position(CONSUMER, position)
        self.consume()

    @property
    def idle(self) -> bool:
        """Everything was handed over, and everything that came is handled."""
        return not (self.todo or self.handed_over or self.returning or self._handling)

    def _sighting(self, message: model.Message) -> Sighting:
        content = message.content
        return Sighting(
            conversation=message.conversation,
            seq=message.seq or 0,
            id=message.id,
            sender=message.sender,
            kind=message.kind,
            body=content if isinstance(content, str) else repr(content),
            at_s=self.clock.now_s,
            device=self.device.name,
            incarnation=self.body.incarnation,
        )


def text_of(format: str, body: str) -> str:
    """Content of the wire as a sighting holds it."""
    content = decode_content(format, body)
    return content if isinstance(content, str) else repr(content)
