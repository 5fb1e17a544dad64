"""The engine: everything a client decides, in one object without I/O. See ``core.contract``.

It composes the link, the outbox, the timeline and the token, and keeps the one rule that makes the
promise hold: what the app or the server is told rests on committed state. Inputs change the state
in memory and gather ``Changes``; the driver commits them; only then do messages leave, receipts go
out and events reach the app. A failed commit throws the uncommitted state away: the driver reloads,
the links are opened anew, and the server's answers are asked for again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from whimbrel import model
from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.core.calls import Calls
from whimbrel.core.departures import Departures
from whimbrel.core.explain import connection_of, explain
from whimbrel.core.items import Items
from whimbrel.core.life import Entry, update_of
from whimbrel.core.link import LinkMachine
from whimbrel.core.linkstate import LinkState
from whimbrel.core.outbox import Outbox
from whimbrel.core.rows import message_of, queued_row, status_of
from whimbrel.core.staging import Staging
from whimbrel.core.timeline import HistoryChangedTooSoon, Timeline
from whimbrel.core.tokens import Tokens
from whimbrel.errors import InvalidArgument, NotFound, QueueFull, StoreUnavailable
from whimbrel.model import SendState

_OF_THE_LINK = frozenset({p.Welcome, p.Error, p.Goaway})
"""Items that open or close a link, or may."""


class Engine:
    """One device's engine; see the module and ``core.contract``."""

    def __init__(
        self, snapshot: c.Snapshot, settings: c.Settings, sources: c.Sources, *, device: str, now: float = 0.0
    ) -> None:
        self._settings = settings
        self._sources = sources
        self.device = device
        self.link = LinkMachine(settings, sources)
        self.tokens = Tokens(settings, sources)
        self.counts: Counter[str] = Counter()
        """``stale``, ``commit_failed``: what happened beside the machines' own transitions."""
        self._staging = Staging()
        self._calls = Calls(settings.calls_max)
        self._departures = Departures(
            self.link, self.tokens, self._calls, compare_every_s=settings.compare_every_s
        )
        self._reloading = False
        self._resetting = False
        """A reset is being written: no link is greeted before it is known what it displaced."""
        self._restart = False
        self._shown: tuple[model.ConnectionState, int, model.Quality] | None = None
        self._shown_for: tuple[object, ...] = ()
        self._load(snapshot, now)

    def _load(self, snapshot: c.Snapshot, now: float) -> None:
        self._meta = dict(snapshot.meta)
        self._resetting = False
        self.items = Items(self._meta, self.link, self._calls, self._staging)
        self.outbox = self.items.outbox = Outbox(self._settings, self._sources, self._on_update)
        counters = {row.id: (row.stream, row.last_n) for row in snapshot.conversations}
        self.outbox.load(snapshot.outbox, counters, now)
        self.timeline = self.items.timeline = Timeline(
            self._settings,
            changes=lambda: self._staging.changes,
            row_for=self.items.row_for,
            on_applied=self._on_applied,
            wall=self._sources.wall,
        )
        self.timeline.load(snapshot, user=self._meta.get("user", ""))
        departures = self._departures
        departures.outbox, departures.timeline, departures.meta = self.outbox, self.timeline, self._meta

    # --- commands ----------------------------------------------------------------------------

    def submit(self, command: c.Command, now: float) -> str | None:
        """Take a command in; for ``SendMessage`` gives the message's id.

        Raises ``QueueFull``, ``InvalidArgument``, ``NotFound`` (the conversation was left),
        ``StoreUnavailable`` (it is being reopened); then nothing has changed. A key that is queued
        already gives the same id again.
        """
        match command:
            case c.SendMessage():
                return self._send(command)
            case c.TakeHandoff():
                self._take_handoff(command, now)
            case c.RetryMessage(id=id):
                self._retry(id, now)
            case c.CancelMessage(id=id):
                entry = self.outbox.by_id.get(id)
                if entry is not None:
                    self.outbox.cancel(entry)
            case c.MarkRead(conversation=conversation, seq=seq):
                log = self.timeline.logs.get(conversation)
                if log is not None and min(seq, log.row.position) > log.row.read:
                    self.timeline.change(log, read=min(seq, log.row.position))
            case c.SetTyping(conversation=conversation, on=on):
                if self.link.active is not None and len(self._departures.typing) < self._settings.calls_max:
                    self._departures.typing[conversation] = on
            case c.CallServer():
                self._calls.add(command, now)
            case _:
                self._control(command, now)
        return None

    def _control(
        self, command: c.SetToken | c.TokenFailed | c.Connect | c.WokeUp | c.Disconnect, now: float
    ) -> None:
        match command:
            case c.SetToken(token=token, expires_in_s=expires_in_s):
                self.tokens.renewed(token, expires_in_s, now)
                if token is None:
                    self._sign_out(now)
                else:
                    self.link.signed_in(now)
                    self._departures.auth_due = self.link.active is not None
                    self._staging.tell(model.AuthChanged(ok=True))
            case c.TokenFailed(permanent=permanent):
                self.tokens.failed(permanent, now)
                if permanent:
                    self._sign_out(now)
                    self._staging.tell(model.AuthChanged(ok=False))
            case c.WokeUp() if self.link.state is LinkState.STOPPED:
                pass
            case c.Connect() | c.WokeUp():
                self.tokens.hurry()
                self.link.start(now, signed_in=self.tokens.token is not None)
            case c.Disconnect():
                self.link.stop()
                self._link_lost()

    def _send(self, command: c.SendMessage) -> str:
        if self._reloading:
            raise StoreUnavailable("the store is being reopened after a failure")
        id = model.message_id(self.device, command.key)
        if id in self.outbox.by_id:
            return id
        settings = self._settings
        if len(self.outbox.by_id) >= settings.outbox_messages_max:
            raise QueueFull(f"{settings.outbox_messages_max} messages wait already")
        if self.outbox.bytes + len(command.body) > settings.outbox_bytes_max:
            raise QueueFull(f"{settings.outbox_bytes_max} bytes wait already")
        if not command.conversation or len(command.conversation) > p.ID_CHARS_MAX:
            raise InvalidArgument(f"a conversation id has 1 to {p.ID_CHARS_MAX} characters")
        if not command.key or len(command.key) > p.KEY_CHARS_MAX or "\0" in command.key:
            raise InvalidArgument(f"a key has 1 to {p.KEY_CHARS_MAX} characters, and no NUL")
        known = self.timeline.logs.get(command.conversation)
        if known is not None and known.row.left:
            raise NotFound("you are no longer a member of this conversation")
        return self._queue(id, command, self._sources.wall())

    def _queue(self, id: str, command: c.SendMessage, at: float) -> str:
        row = queued_row(command, id, sender=self._meta.get("user", ""), at=at)
        log = self.timeline.log(command.conversation)
        self.outbox.queue(command.conversation, log.row.stream, log.row.last_n)
        self._staging.entry(self.outbox.add(row))
        self._staging.changes.messages[id] = msgspec.structs.replace(row)
        self.timeline.numbered(log, row.n)
        return id

    def _take_handoff(self, handoff: c.TakeHandoff, now: float) -> None:
        self._staging.changes.handoffs.append(handoff.number)
        if isinstance(handoff.command, c.SendMessage):
            id = model.message_id(self.device, handoff.command.key)
            if id not in self.outbox.by_id:
                self._queue(id, handoff.command, handoff.at)
        elif handoff.command is not None:
            self.submit(handoff.command, now)

    def _retry(self, id: str | None, now: float) -> None:
        if id is None:
            self.outbox.resume_failed(now)
            return
        entry = self.outbox.by_id.get(id)
        if entry is not None:
            self.outbox.resume(entry, now)

    # --- the links ---------------------------------------------------------------------------

    def opened(self, link: int, now: float) -> None:
        """A connection that ``OpenLink`` asked for stands."""
        self._departures.opened(link)
        active = self.link.active
        if self.link.opened(link, now):
            self._departures.greet.append(link)
        if active is not None and self.link.active is None:
            self._link_lost()

    def closed(self, link: int, fault: c.Fault, now: float) -> None:
        """A connection closed, or could not be opened."""
        self._departures.closed(link)
        active = link == self.link.active
        if fault.status == 401 and self.link.knows(link):
            self._token_refused(now)
        self.link.closed(link, fault, now)
        if active:
            self._link_lost()

    def alive(self, link: int, now: float) -> None:
        """Bytes came, of whatever kind."""
        self.link.alive(link, now)

    def writable(self, link: int, size_bytes: int) -> None:
        """How many more bytes this link may be given now."""
        self._departures.writable(link, size_bytes)

    def receive(self, link: int, item: p.ServerItem | p.Unknown, now: float) -> None:
        """Take in one item of the server. Of a link that is not active, only what opens or closes it."""
        self.link.alive(link, now)
        if link == self.link.active and type(item) not in _OF_THE_LINK:
            self._take_in(self.items.receive, item, now)
            return
        match item:
            case p.Welcome(device=device) if device != self.device:
                if self.link.knows(link):  # the token is of another device: only signing in again helps
                    self._control(c.TokenFailed(permanent=True), now)
            case p.Welcome():
                if not self._reloading and self.link.welcomed(link, now, item.reconnect_spread_s):
                    self._departures.compare_at = now + self._settings.compare_every_s
                    # A token that came after the hello is not the one the server looked at.
                    self._departures.auth_due = self.tokens.token != self._departures.greeted_with
                    self._take_in(self.items.welcome, item, now)
            case p.Error(code="unauthorized"):
                if self.link.knows(link):
                    self._token_refused(now)
            case p.Goaway():
                if link == self.link.active:
                    self.link.goaway(link, item.reconnect_in_s, now, item.reason)
                    self._link_lost()
            case _ if link == self.link.active:
                self._take_in(self.items.receive, item, now)
            case _:
                self.counts["stale"] += 1

    def _take_in(
        self, handle: Callable[[Any, float], None], item: p.ServerItem | p.Unknown, now: float
    ) -> None:
        try:
            handle(item, now)
        except HistoryChangedTooSoon:
            self._history_replaced(now)
        if self.timeline.replaced:
            self.timeline.replaced = False
            self._resetting = True
            self._history_replaced(now)
        if self.outbox.displaced and self.items.synced:
            self._offer_again()
        if self.outbox.renumbered:
            self._stage_counters()
        if self.outbox.token_refused:
            self.outbox.token_refused = False
            self._token_refused(now)

    def _history_replaced(self, now: float) -> None:
        self.link.lose(now, "the history was replaced")
        self._link_lost()

    def _offer_again(self) -> None:
        for queue in list(self.outbox.displaced.values()):
            row = self.timeline.log(queue.conversation).row
            if row.position >= row.head:
                self.outbox.offer_again(queue)

    def _link_lost(self) -> None:
        self.items.synced = False
        self.outbox.link_down()
        self.timeline.link_down()
        self._departures.typing.clear()

    def _sign_out(self, now: float) -> None:
        self.link.signed_out(now)
        self._link_lost()

    def _token_refused(self, now: float) -> None:
        self.tokens.expired()
        self._sign_out(now)

    # --- what changed ------------------------------------------------------------------------

    def _on_update(self, entry: Entry, before: SendState) -> None:
        """The outbox changed a message: have it written, and tell the app when it is."""
        row = entry.row
        self._staging.changes.updates[row.id] = update_of(row)
        if not entry.durable:
            self._staging.entry(entry)
        status = status_of(row, settings=self._settings)
        if status is None or (row.state is before and row.state is not SendState.RETRYING):
            return
        self._staging.event(model.MessageChanged(id=row.id, conversation=row.conversation, status=status))
        if row.state is SendState.FAILED and not row.can_retry and row.reason is not None:
            text = row.attempts[-1].text if row.attempts else row.reason.value
            self._staging.event(
                model.PermanentFailure(id=row.id, conversation=row.conversation, reason=row.reason, text=text)
            )

    def _on_applied(self, row: c.MessageRow, told: bool) -> None:
        """The timeline put an entry in its place; ``told``: the app knows it from a history before this."""
        if row.kind == "member":
            self.items.applied_member(row)
        if not told:
            self._staging.event(model.MessageReceived(message=message_of(row, user=self.user)))

    def _stage_counters(self) -> None:
        if not self.outbox.renumbered:
            return
        for conversation in self.outbox.renumbered:
            queue = self.outbox.queues[conversation]
            log = self.timeline.log(conversation)
            self.timeline.change(log, stream=queue.stream, last_n=queue.last_n)
        self.outbox.renumbered.clear()

    def take_changes(self) -> c.Changes | None:
        """What to write now in one transaction; None: nothing, or one is under way."""
        if self._reloading:
            return None
        if not self._staging.in_flight:
            self.timeline.gather()
        return self._staging.take()

    def committed(self, now: float, displaced: Sequence[c.MessageRow] = ()) -> None:
        """The Changes taken last are on disk; ``displaced`` is what ``Store.apply`` gave."""
        entries, changes = self._staging.committed()
        if changes.resets:
            self._resetting = False
            for row in displaced:
                if self.outbox.displace(row):
                    status = model.SendStatus(state=SendState.PENDING)
                    told = model.MessageChanged(id=row.id, conversation=row.conversation, status=status)
                    self._staging.tell(told)
                update = self._staging.changes.updates.get(row.id)
                if update is not None:
                    update.stream, update.n = row.stream, row.n
        for entry in entries:
            self.outbox.made_durable(entry)
        self.timeline.made_durable(changes.conversations.values())

    def commit_failed(self, now: float) -> None:
        """The Changes could not be written: forget all that is not on disk; ``reload`` follows."""
        self._reloading = True
        self._restart = self.link.state is not LinkState.STOPPED
        self.counts["commit_failed"] += 1
        self.link.stop()
        self._link_lost()
        self._staging.forget()

    def reload(self, snapshot: c.Snapshot, now: float) -> None:
        """Start again from what is on disk."""
        self._staging.forget()
        self._load(snapshot, now)
        self._reloading = False
        if self._restart:
            self.link.start(now, signed_in=self.tokens.token is not None, again=True)

    # --- time --------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        """Do what is due at ``now``."""
        active = self.link.active
        self.link.handle_timer(now)
        if active is not None and self.link.active is None:
            self._link_lost()
        if not self._reloading:
            self.outbox.handle_timer(now)
            self._stage_counters()
            self.timeline.handle_timer(now)
        self._calls.handle_timer(now)

    def next_deadline(self, now: float) -> float | None:
        """When ``handle_timer``, then ``actions``, must be called at the latest."""
        due = self.link.next_deadline()
        for other in (
            self._calls.next_deadline(),
            None if self._reloading else self.outbox.next_deadline(now),
            None if self._reloading else self.timeline.next_deadline(now, self.link.active),
            None if self.link.state is LinkState.STOPPED else self.tokens.next_deadline(now),
        ):
            if other is not None and (due is None or other < due):
                due = other
        return due

    # --- what to do --------------------------------------------------------------------------

    def actions(self, now: float) -> list[c.Action]:
        """What the driver must do now, derived from committed state; each is given once."""
        out = self._departures.take(now, resetting=self._resetting, reloading=self._reloading)
        self._show(now)
        return out

    def _show(self, now: float) -> None:
        link = self.link
        shown_for = (link.state, link.active, link.attempt, link.rtt.srtt)
        if shown_for == self._shown_for:
            return
        self._shown_for = shown_for
        shows = (link.public_state, link.attempt, link.quality)
        if shows != self._shown:
            self._shown = shows
            self._staging.tell(self.connection(now))

    def events(self) -> list[model.Event]:
        """What the app must be told now; drained."""
        return self._staging.events()

    def answers(self) -> list[c.CallAnswered]:
        """What came of the calls; drained."""
        return self._calls.answers()

    # --- what an app may ask -----------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Own messages that are not settled."""
        return len(self.outbox.by_id)

    @property
    def user(self) -> str:
        """The user's name, once the server told it."""
        return self._meta.get("user", "")

    def status(self, id: str) -> model.SendStatus | None:
        """The status of an unsettled own message; None: ask the store."""
        entry = self.outbox.by_id.get(id)
        if entry is None:
            return None
        if entry.row.state is SendState.PENDING and self.link.active is None:
            return model.SendStatus(state=SendState.OFFLINE)
        return status_of(entry.row, settings=self._settings)

    def explain(self, id: str, now: float) -> model.Explanation | None:
        """Why an unsettled own message is where it is; None: ask the store."""
        entry = self.outbox.by_id.get(id)
        status = self.status(id)
        if entry is None or status is None:
            return None
        return explain(self, entry, status, now)

    def connection(self, now: float) -> model.ConnectionChanged:
        """Where the link stands."""
        return connection_of(self.link, now)
