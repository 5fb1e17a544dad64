"""The hub: every link, every operation and every event of one server process pass through it.

The pure twin of the client's engine: no socket, clock, thread or chance of its own. A driver feeds it
links, items and time; takes batches of operations, has the ledger carry them out, and gives the
outcomes back; then writes what waits for each link. The simulator drives the very same object::

    hub.open(link, now) · hub.receive(link, item, now) · hub.close(link, now) · hub.handle_timer(now)
    batch = hub.take_batch(now)            one in flight at most; [] if there is nothing to do
    hub.settled(outcomes, now)             or hub.batch_failed(now) if the ledger could not commit
    for link in hub.take_ready():          links with output, or to be closed
        write(hub.outgoing(link, now))     whatever is given is the link's: ask when it can take more
        if link in hub.closing: close the connection, then hub.close(link, now)

Invariants:

* Operations of a link reach the ledger in the order they came, in one sequence of batches.
* A session is subscribed before its heads are read, on one thread: what commits later is pushed to it,
  what committed before is in the heads. Told twice is harmless, lost in silence is not.
* Events and confirmations are queued in the order of their commits. ``Delivered`` goes to the link that
  sent; every other link of a member, another of the same device too, gets the ``Event``.
* The newest hello of a device owns it; what its older link still had in the pipe is settled all the same.
* Who is not a member at an entry is not told of it: members are looked up before the batch that changes
  them, and follow its outcomes one by one.

It reads the ledger (heads, pages, members) on the caller's thread, while another may apply a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server import outcomes as o
from whimbrel.server.admission import Admission, shortened
from whimbrel.server.batches import Batches, Callback
from whimbrel.server.fanout import Fanout, SyncTokens
from whimbrel.server.ledger import Append, AppendVoid, Ledger, Operation, Outcome, Refused
from whimbrel.server.roster import Deadlines, Roster
from whimbrel.server.session import Identity, Session
from whimbrel.server.settings import ServerSettings
from whimbrel.server.settle import NUMBER_MAX

__all__ = ["Authenticate", "Hub", "Identity", "ServerSettings", "SyncTokens"]

Authenticate: TypeAlias = Callable[[str], Identity]
"""Whom an access token speaks for. Raises ``errors.Unauthorized``."""


class Hub:
    """All sessions of one process, and the batches between them and the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        authenticate: Authenticate,
        synctokens: SyncTokens,
        known_users: o.KnownUsers,
        settings: ServerSettings,
        wall: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._authenticate = authenticate
        self._known_users = known_users
        self._settings = settings
        self._wall = wall
        self._roster = Roster()
        self._deadlines = Deadlines()
        self._fanout = Fanout(ledger, self._roster, self._deadlines, synctokens, settings)
        self._admission = Admission(settings)
        self._batches = Batches(ledger, self._roster, self._fanout, settings)
        self._resume_at = 0.0
        self._shutdown_spread_s: float | None = None
        self.closing: Mapping[int, str] = MappingProxyType(self._roster.closing)
        """Links to close when their output is out, with the reason; until ``close``."""

    def __repr__(self) -> str:
        return f"<Hub links={len(self._roster.sessions)} waiting={self.waiting}>"

    # --- links

    def open(self, link: int, now: float) -> None:
        """A client connected; ``link`` is a number never used before. It must say hello in time."""
        session = self._new_session(link, now)
        if self._shutdown_spread_s is not None or len(self._roster.sessions) > self._settings.links_max:
            session.answer(p.Goaway(reconnect_in_s=self._settings.unavailable_retry_s, reason="busy"))
            self._roster.end(session, "busy")

    def listen(
        self, link: int, identity: Identity, now: float, *, sync: str | None = None, only: str | None = None
    ) -> None:
        """Open a link that only listens (server-sent events, polling): it owns no device.

        Its first item is ``Welcome``. ``only``: the one conversation it cares for. Raises
        ``errors.RateLimited`` or ``errors.ServerFailed`` if there are too many links.
        """
        full = len(self._roster.sessions) >= self._settings.links_max
        if self._shutdown_spread_s is not None or full:
            raise errors.ServerFailed(retry_after_s=self._settings.unavailable_retry_s)
        if len(self._roster.of(identity.user)) >= self._settings.links_per_user_max:
            raise errors.RateLimited("too many links of this user", retry_after_s=1.0)
        session = self._new_session(link, now)
        session.listening = True
        session.only = only
        self._welcome(session, identity, sync, now)

    def close(self, link: int, now: float) -> None:
        """The connection is gone. What it had sent is settled all the same. Unknown links are ignored."""
        self._fanout.now = now
        self._roster.remove(link)

    @property
    def rewound(self) -> bool:
        """A client proved that the ledger was restored from a backup: it has seen commits beyond it.

        The driver has the ledger begin a new history, on the thread that applies batches, then calls
        ``start_anew``. Until then that client is told to come back.
        """
        return self._fanout.rewound

    def start_anew(self, now: float) -> None:
        """Send every link away, to come back at once: the history is a new one, or the hub in doubt."""
        self._fanout.now = now
        self._fanout.forget(in_flight=self._batches.in_flight)
        for session in [*self._roster.sessions.values()]:
            if session.closing is None:
                session.answer(p.Goaway(reason="unavailable"))
                self._roster.end(session, "unavailable")

    def shutdown(self, now: float, *, spread_s: float) -> None:
        """Take nothing more; when what waits is settled, every link gets ``Goaway`` and is to be closed.

        ``spread_s``: over how long the clients' return is spread. Done when ``busy`` is False and all
        links in ``closing`` are closed.
        """
        self._fanout.now = now
        self._shutdown_spread_s = spread_s
        self._finish_shutdown()

    # --- what a link sent

    def receive(self, link: int, item: p.ClientItem | p.Unknown, now: float) -> None:
        """Take one item; of a link that is closing, or not known, it is ignored."""
        self._fanout.now = now
        session = self._roster.sessions.get(link)
        if session is None or session.closing is not None or self._shutdown_spread_s is not None:
            return
        session.heard_at = now
        if isinstance(item, p.Send) and session.identity is not None:
            self._request(session, session.identity, item, now)  # most of what comes
        elif isinstance(item, p.Unknown):
            session.unknown_items += 1
        elif isinstance(item, p.Ping):
            session.pong(p.Pong(id=item.id, sync=self._fanout.sync_now(session) if session.live else None))
            self._roster.wake(session)
        elif isinstance(item, p.Bye):
            self._roster.end(session, "bye")
        elif isinstance(item, p.Hello):
            self._greet(session, item, now)
        elif session.identity is None:
            self._turn_away(session, "unauthorized", "say hello first")
        else:
            self._request(session, session.identity, item, now)

    def broken(self, link: int, now: float) -> None:
        """The link sent a frame that cannot be read: it gets ``Error`` and is to be closed."""
        self._fanout.now = now
        session = self._roster.sessions.get(link)
        if session is not None and session.closing is None:
            self._turn_away(session, "protocol", "a frame is a JSON array of items")

    def greeted(self, link: int) -> bool:
        """Whether it is known who speaks on this link."""
        session = self._roster.sessions.get(link)
        return session is not None and session.live

    def congested(self, link: int) -> bool:
        """Whether the driver should stop reading this link until it has less to write or to settle."""
        session = self._roster.sessions.get(link)
        return session is not None and (session.congested or self._batches.full)

    # --- calls that come over HTTP

    def charge(self, user: str, now: float) -> float:
        """Take one of the user's credits and give 0.0, or give the seconds until there is one."""
        return self._admission.charge(user, now)

    def submit(self, operation: Operation, answer: Callback, now: float) -> None:
        """Queue an operation that no link sent; ``answer`` is called once, when it is settled.

        When it cannot be, with ``Refused(code="unavailable")``: then nothing of it was done.
        """
        self._fanout.now = now
        if self._shutdown_spread_s is not None or self._batches.full:
            answer(Refused(code="unavailable", text="too much waits"))
            return
        self._batches.submit(operation, answer)

    def report_receipt(self, user: str, conversation: str, *, received: int = 0, read: int = 0) -> None:
        """Note how far a user has received and read; written with the next batch, best effort."""
        far = max(received, read)
        if 0 < far <= NUMBER_MAX and not self._batches.full:
            self._fanout.receipts.want(user, conversation, max(received, 0), max(read, 0))

    # --- batches

    @property
    def waiting(self) -> int:
        """How much waits for a batch."""
        return self._batches.waiting

    @property
    def busy(self) -> bool:
        """Something waits for a batch, or a batch for its outcomes."""
        return self._batches.in_flight or self._batches.waiting > 0

    def take_batch(self, now: float) -> list[Operation]:
        """Give the operations to carry out next, in this order.

        Empty if there are none, while a batch is in flight, and for a while after one failed: ask again
        after every input and ``handle_timer``.
        """
        self._fanout.now = now
        if now < self._resume_at:
            return []
        operations = self._batches.take()
        self._finish_shutdown()
        return operations

    def settled(self, outcomes: Sequence[Outcome], now: float) -> None:
        """The batch in flight is committed; one outcome per operation, in order."""
        self._fanout.now = now
        self._batches.settled(outcomes, now)
        self._finish_shutdown()

    def batch_failed(self, now: float) -> None:
        """The ledger could not commit: what was in flight is refused for now, and may be sent again."""
        self._fanout.now = now
        self._resume_at = now + self._settings.unavailable_retry_s
        self._deadlines.add(self._resume_at, "resume")
        self._batches.failed()
        self._finish_shutdown()

    # --- output and time

    def take_ready(self) -> list[int]:
        """The links that have output, or are to be closed, woken since the last call."""
        return self._roster.take_ready()

    def outgoing(self, link: int, now: float) -> list[p.ServerItem]:
        """Give everything that waits for a link, in order; ask only when it can take more."""
        self._fanout.now = now
        session = self._roster.sessions.get(link)
        if session is None:
            return []
        items = session.drain()
        if session.behind and session.live:
            items += self._fanout.catch_up(session)
        return items

    def sync(self, link: int) -> str | None:
        """Give a sync token for all that ``outgoing`` gave; None if there is nothing new to promise."""
        session = self._roster.sessions.get(link)
        return None if session is None else self._fanout.sync_now(session)

    def next_deadline(self) -> float | None:
        """When ``handle_timer`` is to be called."""
        return self._deadlines.next()

    def handle_timer(self, now: float) -> None:
        """Do what is due; harmless when nothing is."""
        self._fanout.now = now
        for at, kind, key in self._deadlines.due(now):
            if isinstance(key, str):
                self._fanout.tell_receipts(key, now)
            elif kind == "resume":
                continue  # the driver asks for a batch after every input
            elif (session := self._roster.sessions.get(key)) is None:
                continue
            elif kind == "sync":
                self._fanout.tell_sync(session)
            elif at == session.due:
                session.due = math.inf
                self._look_after(session, now)

    # --- sessions

    def _new_session(self, link: int, now: float) -> Session:
        self._fanout.now = now
        session = Session(link, self._settings, now)
        self._roster.add(session)
        self._arm(session)
        return session

    def _greet(self, session: Session, hello: p.Hello, now: float) -> None:
        if session.identity is not None or hello.version < 1:
            self._turn_away(session, "protocol", "one hello, of a version this server knows")
            return
        try:
            identity = self._authenticate(hello.token)
        except errors.Unauthorized:
            self._turn_away(session, "unauthorized", "the access token is not good")
            return
        if len(self._roster.of(identity.user)) >= self._settings.links_per_user_max:
            self._turn_away(session, "rate_limited", "too many links of this user")
            return
        self._welcome(session, identity, hello.sync, now)
        replaced = self._roster.own(session) if session.live else None
        if replaced is not None:
            replaced.answer(p.Goaway(reason="replaced"))
            self._roster.end(replaced, "replaced")

    def _welcome(self, session: Session, identity: Identity, sync: str | None, now: float) -> None:
        wall = self._wall()
        self._roster.join(session, identity)
        session.expires_at = now + identity.expires_at - wall
        self._arm(session)
        if self._fanout.ahead(sync, identity.user):
            session.answer(p.Goaway(reconnect_in_s=self._settings.unavailable_retry_s, reason="unavailable"))
            self._roster.end(session, "unavailable")
            return
        commit = self._fanout.routed
        (first, *parts), complete, token = self._fanout.start(session, sync)
        welcome = p.Welcome(
            user=identity.user,
            device=identity.device,
            history=self._ledger.history,
            # The token goes with the last part: before, the client was not told of everything.
            sync="" if parts else token,
            heads=first,
            complete=complete and not parts,
            credits=self._admission.credits(identity.user, now),
            limits=self._settings.limits,
            reconnect_spread_s=self._settings.reconnect_spread_s,
            time=wall,
            token_expires_in_s=identity.expires_at - wall,
        )
        session.answer(welcome, None if parts else commit)
        for index, part in enumerate(parts, 1):
            last = index == len(parts)
            session.answer(p.Heads(heads=part, sync=token if last else None), commit if last else None)
        self._roster.wake(session)

    def _turn_away(self, session: Session, code: str, text: str) -> None:
        session.answer(p.Error(code=code, text=text))
        self._roster.end(session, code)

    def _arm(self, session: Session) -> None:
        """Note when this session is to be looked after next, unless that is noted for an earlier time."""
        if (due := session.due_by_now()) < session.due:
            session.due = due
            self._deadlines.add(due, "link", session.link)

    def _look_after(self, session: Session, now: float) -> None:
        settings = self._settings
        if session.closing is not None:
            return
        if session.identity is None:
            self._turn_away(session, "unauthorized", "no hello came")
        elif session.expires_at is not None and session.expires_at + settings.expiry_grace_s <= now:
            self._turn_away(session, "unauthorized", "the access token expired")
        elif not session.listening and session.heard_at + settings.silent_after_s <= now:
            self._roster.end(session, "silent")
        else:
            self._arm(session)

    def _finish_shutdown(self) -> None:
        if self._shutdown_spread_s is None or self.busy:
            return
        sessions = [session for session in self._roster.sessions.values() if session.closing is None]
        for index, session in enumerate(sessions):
            wait_s = self._shutdown_spread_s * index / len(sessions)
            session.answer(p.Goaway(reconnect_in_s=wait_s, reason="shutdown"))
            self._roster.end(session, "shutdown")

    # --- requests

    def _request(self, session: Session, identity: Identity, item: p.ClientItem, now: float) -> None:
        item = shortened(item, self._settings.status_numbers_max)
        if isinstance(item, p.Send):
            if rejected := self._admission.check(session, identity.user, item, now):
                self._tell(session, rejected)
                return
            self._batches.ask(session, item, Append(user=identity.user, device=identity.device, send=item))
        elif isinstance(item, p.Void):
            if rejected := self._admission.check_void(identity.user, item, now):
                self._tell(session, rejected)
                return
            session.holes.pop((item.conversation, item.stream), None)
            void = AppendVoid(user=identity.user, device=identity.device, void=item)
            self._batches.ask(session, item, void)
        elif isinstance(item, p.Status | p.Compare):
            self._batches.ask(session, item, None)
        elif isinstance(item, p.Received):
            self.report_receipt(identity.user, item.conversation, received=item.seq)
        elif isinstance(item, p.Read):
            self.report_receipt(identity.user, item.conversation, read=item.seq)
        elif isinstance(item, p.Typing):
            if session.typing.take(now) == 0.0:
                self._fanout.tell_typing(identity.user, item.conversation, item.on)
        elif isinstance(item, p.Fetch):
            self._tell(session, o.page(self._ledger, identity, item))
        elif isinstance(item, p.Call):
            self._call(session, identity, item, now)
        elif isinstance(item, p.Auth):
            self._renew(session, identity, item, now)
        else:
            raise AssertionError(f"{type(item).__name__} is handled before")

    def _call(self, session: Session, identity: Identity, item: p.Call, now: float) -> None:
        if item.op == "list":
            self._batches.ask(session, item, None)
            return
        if wait_s := self._admission.charge(identity.user, now):
            text = f"too fast: wait {wait_s:.1f} s"
            self._tell(session, p.Answer(id=item.id, code="rate_limited", text=text))
            return
        operation = o.operation_of(item, identity, self._known_users)
        if isinstance(operation, Refused):
            self._tell(session, o.answer_of(item.id, operation))
        else:
            self._batches.ask(session, item, operation)

    def _renew(self, session: Session, identity: Identity, item: p.Auth, now: float) -> None:
        interval_s = self._settings.renew_interval_s
        if now - session.renewed_at < interval_s:
            self._tell(
                session, p.Error(code="rate_limited", text="too many tokens", retry_after_s=interval_s)
            )
            return
        session.renewed_at = now
        try:
            renewed = self._authenticate(item.token)
        except errors.Unauthorized:
            self._tell(session, p.Error(code="unauthorized", text="the access token is not good"))
            return
        if (renewed.user, renewed.device) != (identity.user, identity.device):
            self._turn_away(session, "unauthorized", "the access token is of another device")
            return
        session.identity = renewed
        session.expires_at = now + renewed.expires_at - self._wall()
        self._arm(session)

    def _tell(self, session: Session, item: p.ServerItem) -> None:
        session.answer(item)
        self._roster.wake(session)
