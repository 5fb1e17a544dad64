"""The simulated server: a real hub on a real ledger, in a process that dies and a host whose disk fails.

It does what the server's driver does, in virtual time: feeds links, items and time to the hub, has the ledger
carry out one batch at a time, and writes what waits for each link, as far as the connection takes it. The
ledger's state outlives the process; links, queues and what was not committed do not.

    process:  up ──▶ down ──▶ up     (killed, or closed in good order)
"""

import itertools
import random
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from whimbrel import errors
from whimbrel.server.hub import Hub, Identity, ServerSettings
from whimbrel.server.ledger import CreateConversation, Ledger, LedgerUnavailable, Operation, Outcome
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.testing.history import History, Sighting
from whimbrel.testing.simapp import text_of
from whimbrel.testing.simclock import EPOCH_S, Clock, Timer
from whimbrel.testing.simnet import BUFFER_BYTES, Connection, Items, Network

__all__ = ["LedgerDisk", "Server"]

COMMIT_S: Final = 0.001
PAGE: Final = 100


class World(Protocol):
    """What the server needs of the world it is in."""

    clock: Clock
    history: History
    network: Network

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""

    def count(self, fault: str) -> None:
        """Count a fault that took effect."""


class LedgerDisk:
    """The ledger on the server's disk: what `finish` returned from is durable, crash or not."""

    def __init__(self) -> None:
        numbers = itertools.count(1)
        self.ledger: Ledger = MemoryLedger(new_id=lambda: f"id{next(numbers)}")
        self.unavailable = 0
        """How many reasons there are now."""
        self.fail_next = False

    def prepared(self) -> None:
        """What the run begins with is there."""

    def finish(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Make the batch durable, or raise `LedgerUnavailable`."""
        if self.unavailable or self.fail_next:
            self.fail_next = False
            raise LedgerUnavailable("simulated")
        return self.ledger.apply(operations, now)

    def crashed(self) -> None:
        """The process died: what was not durable is gone."""


class _SyncTokens:
    def encode(self, history: str, commit: int) -> str:
        return f"{history}.{commit}"

    def decode(self, token: str) -> tuple[str, int] | None:
        history, _, commit = token.rpartition(".")
        return (history, int(commit)) if commit.isdecimal() else None


class Server:
    """The one server of a world; implements `ServerEnd` for the network."""

    def __init__(
        self, world: World, disk: LedgerDisk, rng: random.Random, *, settings: ServerSettings
    ) -> None:
        self.world = world
        self.clock = world.clock
        self.disk = disk
        self.rng = rng
        self.settings = settings
        self.up = False
        self.slow_s = 0.0
        self.crash_next = ""
        """`before` or `after` the next commit."""
        self.commits = 0
        self.hub: Hub | None = None
        self._users: dict[str, str] = {}
        self._tokens: dict[str, Identity] = {}
        self._token_numbers = itertools.count(1)
        self._links: dict[int, Connection] = {}
        self._paused: set[int] = set()
        """Links that are not read from, because too much of them waits."""
        self._full: set[int] = set()
        """Links with output for which their connection has no room."""
        self._batch: list[Operation] | None = None
        self._commit_timer: Timer | None = None
        self._timer: Timer | None = None

    # --- before and after the run

    def prepare(self, users: dict[str, str], conversations: dict[str, tuple[str, ...]]) -> None:
        """Make the accounts (device → user) and the conversations."""
        self._users = users
        operations = [
            CreateConversation(user=members[0], conversation=id, title=id, members=members)
            for id, members in conversations.items()
        ]
        self.disk.ledger.apply(operations, EPOCH_S)
        self.disk.prepared()

    def read_logs(self) -> dict[tuple[str, str], list[Sighting]]:
        """Every conversation's whole log, as each member may read it."""
        logs: dict[tuple[str, str], list[Sighting]] = {}
        ledger = self.disk.ledger
        for user in sorted(set(self._users.values())):
            for conversation in ledger.conversations(user):
                log = logs[user, conversation.id] = []
                while True:
                    since = log[-1].seq if log else 0
                    page = ledger.page(user, conversation.id, since=since, limit=PAGE)
                    if page is None or not page.events:
                        break
                    log += [
                        Sighting(
                            conversation=event.conversation,
                            seq=event.seq,
                            id=event.id,
                            sender=event.sender,
                            kind=event.kind,
                            body=text_of(event.format, event.body),
                            at_s=event.at,
                        )
                        for event in page.events
                    ]
        return logs

    def new_token(self, device: str, lasts_s: float) -> tuple[str, float] | None:
        """An access token for a device and how long it lasts; None while the server is down."""
        if not self.up:
            return None
        token = f"token{next(self._token_numbers)}"
        self._tokens[token] = Identity(
            user=self._users[device], device=device, expires_at=self.clock.wall_s + lasts_s
        )
        return token, lasts_s

    def revoke_tokens(self, device: str) -> None:
        """Accept none of the tokens a device was given so far."""
        self._tokens = {token: who for token, who in self._tokens.items() if who.device != device}

    # --- life and death

    def start(self) -> None:
        """Begin a process on what the ledger holds."""
        self.world.note("server", "start")
        self.up = True
        self.hub = Hub(
            self.disk.ledger,
            authenticate=self._authenticate,
            synctokens=_SyncTokens(),
            known_users=self._known_users,
            settings=self.settings,
            wall=lambda: self.clock.wall_s,
        )

    def crash(self, down_s: float, *, reset: bool) -> None:
        """Kill the process; `reset`: its host tells the clients, else nobody does."""
        if not self.up:
            return
        self.world.note("server", "crash")
        self.up = False
        self.hub = None
        self._batch = None
        for timer in (self._timer, self._commit_timer):
            if timer is not None:
                timer.cancel()
        self._links.clear()
        self._full.clear()
        self._paused.clear()
        self.disk.crashed()
        for connection in list(self.world.network.connections.values()):
            connection.server_gone(reset)
        self.clock.after(down_s, self.start)

    def restart(self, down_s: float) -> None:
        """Say goodbye to everyone, then close and come back."""
        if self.hub is not None:
            self.world.note("server", "shutdown")
            self.hub.shutdown(self.clock.now_s, spread_s=down_s)
            self._turn()
            self.clock.after(0.5, lambda: self.crash(down_s, reset=True))

    def _authenticate(self, token: str) -> Identity:
        identity = self._tokens.get(token)
        if identity is None or identity.expires_at <= self.clock.wall_s:
            raise errors.Unauthorized("simulated")
        return identity

    def _known_users(self, names: Collection[str]) -> Collection[str]:
        known = set(self._users.values())
        return [name for name in names if name in known]

    # --- ServerEnd

    def accepted(self, connection: Connection) -> None:
        """A client connected."""
        self._links[connection.number] = connection
        self._feed(lambda hub: hub.open(connection.number, self.clock.now_s))

    def received(self, connection: Connection, items: Items) -> None:
        """A frame came."""
        newest = connection.path.newest()
        if newest is not None and newest.number > connection.number and newest.server_open:
            self.world.count("late_after_new_link")

        def feed(hub: Hub) -> None:
            for item in items:
                hub.receive(connection.number, item, self.clock.now_s)

        self._feed(feed)
        if self.hub is not None and self.hub.congested(connection.number):
            self.world.count("congested")
            connection.up.paused = True
            self._paused.add(connection.number)

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self._links.pop(connection.number, None)
        self._full.discard(connection.number)
        self._paused.discard(connection.number)
        self._feed(lambda hub: hub.close(connection.number, self.clock.now_s))

    def drained(self, connection: Connection) -> None:
        """A connection can take more."""
        if connection.number in self._full and self.hub is not None:
            self._full.discard(connection.number)
            self._write(self.hub, connection.number)
            self._read_on(self.hub)

    # --- the driver's loop

    def _feed(self, feed: Callable[[Hub], None]) -> None:
        if self.hub is not None:
            feed(self.hub)
            self._turn()

    def _turn(self) -> None:
        hub, now = self.hub, self.clock.now_s
        if hub is None:
            return
        if self._batch is None:
            batch = hub.take_batch(now)
            if batch:
                self.begin_batch(hub, batch)
        for link in sorted(hub.take_ready()):  # they wake in the order of a set
            self._write(hub, link)
        if self._paused:
            self._read_on(hub)
        deadline = hub.next_deadline()
        timer = self._timer
        if timer is not None and timer.call is not None and timer.at_s == deadline:
            return
        if timer is not None:
            timer.cancel()
        self._timer = None
        if deadline is not None:
            self._timer = self.clock.at(max(deadline, now + 1e-6), self._fire)

    def _read_on(self, hub: Hub) -> None:
        for link in sorted(self._paused):
            if not hub.congested(link):
                self._paused.discard(link)
                connection = self._links.get(link)
                if connection is not None:
                    connection.up.paused = False
                    self.clock.after(0.0, connection.up.fire)

    def _fire(self) -> None:
        self._feed(lambda hub: hub.handle_timer(self.clock.now_s))

    def _write(self, hub: Hub, link: int) -> None:
        connection = self._links.get(link)
        if connection is None:
            return
        if connection.down.sizes_bytes >= BUFFER_BYTES:
            self._full.add(link)
            return
        items = hub.outgoing(link, self.clock.now_s)
        if items:
            connection.send_down(tuple(items))
        if link in hub.closing:
            connection.close_down()
            self._links.pop(link, None)
            hub.close(link, self.clock.now_s)

    def begin_batch(self, hub: Hub, batch: list[Operation]) -> None:
        """Have the ledger carry it out; nobody is answered before that is done."""
        self._batch = batch
        self.commits += 1
        self._commit_timer = self.clock.after(self.commit_s(), self._end_batch)

    def commit_s(self) -> float:
        """How long the next commit takes."""
        return COMMIT_S * self.rng.uniform(0.3, 3.0) + self.slow_s * self.rng.random()

    def _end_batch(self) -> None:
        hub, batch = self.hub, self._batch
        assert hub is not None
        assert batch is not None
        crash, self.crash_next = self.crash_next, ""
        if crash == "before":
            self.world.count("server_crash_before_commit")
            self.crash(self.rng.uniform(0.3, 5.0), reset=self.rng.random() < 0.7)
            return
        try:
            outcomes = self.disk.finish(batch, self.clock.wall_s)
        except LedgerUnavailable:
            self.world.count("ledger_unavailable" if self.disk.unavailable else "ledger_hiccup")
            self._batch = None
            hub.batch_failed(self.clock.now_s)
            self._turn()
            return
        if crash == "after":
            self.world.count("server_crash_after_commit")
            self.crash(self.rng.uniform(0.3, 5.0), reset=self.rng.random() < 0.7)
            return
        self._batch = None
        self.answer(hub, outcomes)
        self._turn()

    def answer(self, hub: Hub, outcomes: list[Outcome]) -> None:
        """Tell the hub that its batch is committed."""
        hub.settled(outcomes, self.clock.now_s)
