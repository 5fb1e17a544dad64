"""The simulated server: a real hub on a real ledger, in a process that dies and a host whose disk fails.

It does what the server's driver does, in virtual time: feeds links, items and time to the hub, has the ledger
carry out one batch at a time, and writes what waits for each link, as far as the connection takes it. What
came since its loop's last turn shares the next. The ledger's state outlives the process; links, queues and
what was not committed do not. A read of the ledger that fails costs the link that needed it, or leaves the
hub in doubt: then every link is sent away.

    process:  up ──▶ down ──▶ up     (killed, or closed in good order; stopped, it stays up and is silent)
"""

import itertools
import random
from collections.abc import Callable, Collection
from typing import Final, Protocol

from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.model import message_id
from whimbrel.server.hub import Hub, Identity, ServerSettings
from whimbrel.server.ledger import CreateConversation, LedgerUnavailable, Operation, Outcome
from whimbrel.testing.history import History
from whimbrel.testing.simclock import EPOCH_S, Clock, OwnClock, Timer
from whimbrel.testing.simledger import LedgerDisk
from whimbrel.testing.simnet import BUFFER_BYTES, Connection, Items, Network

__all__ = ["Server"]

COMMIT_S: Final = 0.001


class World(Protocol):
    """What the server needs of the world it is in."""

    clock: Clock
    history: History
    network: Network

    def note(self, who: str, what: str, number: int = 0, detail: str | Items = "") -> None:
        """Add a line to the trace."""

    def count(self, fault: str) -> None:
        """Count a fault that took effect."""


class _SyncTokens:
    def encode(self, history: str, commit: int, user: str) -> str:
        return f"{history}.{commit}"

    def decode(self, token: str, user: str) -> tuple[str, int] | None:
        history, _, commit = token.rpartition(".")
        return (history, int(commit)) if commit.isdecimal() else None


class Server:
    """The one server of a world; implements `ServerEnd` for the network."""

    hub_type: type[Hub] = Hub

    def __init__(
        self,
        world: World,
        disk: LedgerDisk,
        rng: random.Random,
        *,
        settings: ServerSettings,
        loop_s: float,
        accepts_early: bool,
    ) -> None:
        self.world = world
        self.clock = OwnClock(world.clock)
        self.loop_s = loop_s
        self.accepts_early = accepts_early
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
        self._timer_at: float | None = None
        self._turn_timer: Timer | None = None

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

    def new_token(self, device: str, lasts_s: float) -> tuple[str, float] | None:
        """An access token for a device and how long it lasts; None while the server is down."""
        if not self.up or self.stopped_until_s is not None:
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
        self.hub = self.hub_type(
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
        for timer in (self._timer, self._commit_timer, self._turn_timer):
            if timer is not None:
                timer.cancel()
        self._turn_timer = None
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
            self.clock.after(0.5, self._closed, self.hub, down_s)

    def _closed(self, hub: Hub, down_s: float) -> None:
        if self.hub is hub:
            self.crash(down_s, reset=True)

    def stop(self, stop_s: float) -> None:
        """Stop the process (SIGSTOP), and let it go on later; its host's kernel goes on meanwhile."""
        self.world.note("server", "stopped")
        self.clock.stop(stop_s)
        self.clock.after(stop_s, self._goes_on)

    def _goes_on(self) -> None:
        if self.hub is not None:
            full, self._full = self._full, set()
            for link in sorted(full):
                self._write(self.hub, link)
            self._read_on(self.hub)

    @property
    def stopped_until_s(self) -> float | None:
        """When the process goes on; None: it is not stopped."""
        return self.clock.standing_until_s

    def restore(self, backup: int, down_s: float, *, tell: bool) -> None:
        """Put an old backup of the ledger in place, the process being killed for it.

        `tell`: whoever restores it says so, and a new history begins at once; else the server has to
        find out from what its clients know.
        """
        self.crash(down_s, reset=True)
        self.world.note("server", "restored", backup)
        self.disk.restore(backup, tell=tell)
        self.world.history.restored.append(self.clock.now_s)

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
        until_s = self.stopped_until_s
        if until_s is not None:
            self.clock.after(until_s - self.clock.now_s, self._received_late, connection, items)
            return
        newest = connection.path.newest()
        if newest is not None and newest.number > connection.number and newest.server_open:
            self.world.count("late_after_new_link")
        hub = self.hub
        if hub is None:
            return
        if self.accepts_early:
            self._accept_early(connection, items)
        try:
            for item in items:
                hub.receive(connection.number, item, self.clock.now_s)
        except LedgerUnavailable:
            self._drop(hub, connection)
        self._want_turn()
        if hub.congested(connection.number):
            self.world.count("congested")
            connection.up.paused = True
            self._paused.add(connection.number)

    def _received_late(self, connection: Connection, items: Items) -> None:
        if connection.number in self._links:
            self.received(connection, items)

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        until_s = self.stopped_until_s
        if until_s is not None:
            self.clock.after(until_s - self.clock.now_s, self.closed, connection)
            return
        self._links.pop(connection.number, None)
        self._full.discard(connection.number)
        self._paused.discard(connection.number)
        self._feed(lambda hub: hub.close(connection.number, self.clock.now_s))

    def drained(self, connection: Connection) -> None:
        """A connection can take more."""
        if connection.number in self._full and self.hub is not None and self.stopped_until_s is None:
            self._full.discard(connection.number)
            self._write(self.hub, connection.number)
            self._read_on(self.hub)

    def _accept_early(self, connection: Connection, items: Items) -> None:
        """Say, as a buffer before the ledger does, that the messages were taken in."""
        taken = []
        for item in items:
            if isinstance(item, p.Send):
                id = message_id(connection.path.name, item.key)
                place = p.Accepted(
                    conversation=item.conversation, stream=item.stream, n=item.n, id=id, epoch="", position=""
                )
                taken.append(place)
        if taken:
            connection.send_down(tuple(taken))

    # --- the driver's loop

    def _feed(self, feed: Callable[[Hub], None]) -> None:
        """Give the hub an input; a stopped process takes it when it goes on."""
        until_s = self.stopped_until_s
        if until_s is not None:
            self.clock.after(until_s - self.clock.now_s, self._feed, feed)
        elif self.hub is not None:
            feed(self.hub)
            self._want_turn()

    def _want_turn(self) -> None:
        if self._turn_timer is None:
            self._turn_timer = self.clock.after(self.loop_s, self._turn)

    def _turn(self) -> None:
        hub, now = self.hub, self.clock.now_s
        if self._turn_timer is not None:
            self._turn_timer.cancel()
            self._turn_timer = None
        if hub is None:
            return
        if self._batch is None:
            self._take_batch(hub, now)
        for link in hub.take_ready():
            self._write(hub, link)
        if self._paused:
            self._read_on(hub)
        deadline = hub.next_deadline()
        timer = self._timer
        if timer is not None:
            if timer.call is not None and self._timer_at == deadline:
                return
            timer.cancel()
        self._timer, self._timer_at = None, deadline
        if deadline is not None:
            self._timer = self.clock.at(max(deadline, now + 1e-6), self._fire)

    def _take_batch(self, hub: Hub, now: float) -> None:
        try:
            if hub.rewound:
                self.world.count("rewound")
                self.disk.memory.begin_new_history()
                hub.start_anew(now)
                self._want_turn()
            elif batch := hub.take_batch(now):
                self.begin_batch(hub, batch)
        except LedgerUnavailable:
            self._in_doubt(hub)

    def _in_doubt(self, hub: Hub) -> None:
        """It cannot be told what clients know: they come back and learn it from the heads."""
        hub.start_anew(self.clock.now_s)
        self._want_turn()

    def _drop(self, hub: Hub, connection: Connection) -> None:
        connection.close_down()
        self._links.pop(connection.number, None)
        self._full.discard(connection.number)
        self._paused.discard(connection.number)
        hub.close(connection.number, self.clock.now_s)

    def _read_on(self, hub: Hub) -> None:
        for link in sorted(self._paused):
            if not hub.congested(link):
                self._paused.discard(link)
                connection = self._links.get(link)
                if connection is not None:
                    connection.up.paused = False
                    self.clock.after(0.0, connection.up.fire)

    def _fire(self) -> None:
        hub = self.hub
        if hub is not None:
            try:
                hub.handle_timer(self.clock.now_s)
            except LedgerUnavailable:
                self._in_doubt(hub)
            self._turn()

    def _write(self, hub: Hub, link: int) -> None:
        connection = self._links.get(link)
        if connection is None:
            return
        if connection.down.sizes_bytes >= BUFFER_BYTES:
            self._full.add(link)
            return
        try:
            items = hub.outgoing(link, self.clock.now_s)
        except LedgerUnavailable:
            self._drop(hub, connection)
            return
        if items:
            connection.send_down(tuple(items))
        if link in hub.closing:
            self._drop(hub, connection)

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
        outcomes: list[Outcome] | None = None
        try:
            outcomes = self.disk.finish(batch, self.clock.wall_s)
        except LedgerUnavailable:
            self.world.count("ledger_unavailable" if self.disk.unavailable else "ledger_hiccup")
        if crash == "after":
            self.world.count("server_crash_after_commit")
            self.crash(self.rng.uniform(0.3, 5.0), reset=self.rng.random() < 0.7)
            return
        self._batch = None
        try:
            if outcomes is None:
                hub.batch_failed(self.clock.now_s)
            else:
                self.answer(hub, outcomes)
        except LedgerUnavailable:
            self._in_doubt(hub)
        self._turn()

    def answer(self, hub: Hub, outcomes: list[Outcome]) -> None:
        """Tell the hub that its batch is committed."""
        hub.settled(outcomes, self.clock.now_s)
