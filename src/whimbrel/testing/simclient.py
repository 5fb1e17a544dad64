"""One simulated device: a process with a real engine, on a disk that fails, at the end of a bad path.

It does what the client's driver does, in virtual time: feeds inputs, has changes committed while inputs go
on, then tells the engine, carries out its actions and hands its events to the app. When the engine must be
loaded again after a failed commit, inputs wait.

    process:  running ──▶ crashed ──▶ running   (a new engine from what the disk holds)
    store:    good ──▶ failed ──▶ good          (commit_failed, then reload, as long as that takes)
"""

import random
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from whimbrel.core import contract as c
from whimbrel.core.engine import Engine
from whimbrel.errors import StoreError
from whimbrel.testing.history import History
from whimbrel.testing.simapp import App
from whimbrel.testing.simclock import Clock, Timer
from whimbrel.testing.simdisk import Disk, SimStore
from whimbrel.testing.simnet import BUFFER_BYTES, Items, Path
from whimbrel.testing.simplan import Device

__all__ = ["Client", "Surroundings"]

RELOAD_S_MAX: Final = 2.0


class Surroundings(Protocol):
    """What a device needs of the world it is in."""

    clock: Clock
    history: History

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""

    def count(self, fault: str) -> None:
        """Count a fault that took effect."""

    def new_token(self, device: str) -> tuple[str, float] | None:
        """An access token and how long it lasts; None: the server cannot be asked now."""


class Client:
    """A device; implements `ClientEnd` for the network and `Body` for its app."""

    def __init__(
        self,
        world: Surroundings,
        device: Device,
        *,
        path: Path,
        disk: Disk,
        settings: c.Settings,
        rng: random.Random,
    ) -> None:
        self.world = world
        self.clock = world.clock
        self.device = device
        self.name = device.name
        self.path = path
        self.disk = disk
        self.settings = settings
        self.rng = rng
        self.app = App(self, device, world.clock, world.history, rng)
        self.engine: Engine | None = None
        self.incarnation = 0
        self.token_failing = 0
        self.transitions: dict[str, int] = {}
        self.commits = 0
        self._committing: c.Changes | None = None
        self._commit_timer: Timer | None = None
        self._timer: Timer | None = None
        self._inbox: list[Callable[[Engine], None]] | None = None
        """Inputs that wait for a reload; None: none is under way."""
        self._reloads = 0
        self._turn_due = False
        self._token: tuple[str, float] | None = None

    def __repr__(self) -> str:
        return f"<Client {self.name} life {self.incarnation}>"

    # --- Body

    @property
    def store(self) -> SimStore:
        """The open store."""
        return self.disk.store

    @property
    def running(self) -> bool:
        """Whether the process lives and its store works."""
        return self.engine is not None and self._inbox is None

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self.world.note(self.name, what)

    def command(self, command: c.Command) -> None:
        """Give a command to the engine, then do what it wants."""
        assert self.engine is not None
        self.engine.submit(command, self.clock.now_s)
        # The app may have more to say at this instant: what it wants is done after that, in one go.
        if not self._turn_due:
            self._turn_due = True
            self.clock.after(0.0, self._turn)

    # --- life and death

    def start(self) -> None:
        """Run a process on what the disk holds; tried again while the disk is gone."""
        try:
            snapshot = self.disk.load()
        except StoreError:
            self.clock.after(0.5, self.start)
            return
        self.note(f"start {self.incarnation}")
        sources = c.Sources(random=self.rng.random, wall=self.wall)
        engine = Engine(snapshot, self.settings, sources, device=self.name)
        self.engine = engine
        self._inbox = None
        now = self.clock.now_s
        if self._token is not None:
            token, until = self._token
            engine.submit(c.SetToken(token=token, expires_in_s=until - now), now)
        engine.submit(c.Connect(), now)
        self.app.started()
        self._turn()

    def crash(self, down_s: float, *, silent: bool) -> None:
        """Kill the process and its memory; `silent`: the device lost its power, nobody is told."""
        if self.engine is None:
            return
        self.note("crash")
        self._gather()
        self.engine = None
        self.incarnation += 1
        self._committing = None
        for timer in (self._timer, self._commit_timer):
            if timer is not None:
                timer.cancel()
        self._inbox = None
        for connection in list(self.path.connections.values()):
            connection.client_gone(silent)
        self.disk.reopen()
        self.app.crashed()
        self.clock.after(down_s, self.start)

    def wall(self) -> float:
        """What this device takes for the time."""
        return self.clock.wall_s + self.device.skew_s

    # --- ClientEnd

    def opened(self, link: int) -> None:
        """A connection stands."""

        def feed(engine: Engine) -> None:
            engine.opened(link, self.clock.now_s)
            self._tell_room(engine, link)

        self.note(f"opened {link}")
        self._input(feed)

    def closed(self, link: int, fault: c.Fault) -> None:
        """A connection failed or is gone."""
        self.note(f"closed {link} {fault.kind}")
        self._input(lambda engine: engine.closed(link, fault, self.clock.now_s))

    def received(self, link: int, items: Items) -> None:
        """A frame came."""

        def feed(engine: Engine) -> None:
            now = self.clock.now_s
            engine.alive(link, now)
            for item in items:
                engine.receive(link, item, now)

        self.note(f"received {link} {_names(items)}")
        self._input(feed)

    def drained(self, link: int) -> None:
        """Bytes left the buffer of a connection."""
        engine = self.engine
        if engine is None:
            return
        self._tell_room(engine, link)
        connection = self.path.connections.get(link)
        if connection is not None and connection.was_full:
            connection.was_full = False
            self._turn()

    def _tell_room(self, engine: Engine, link: int) -> None:
        connection = self.path.connections.get(link)
        if connection is not None and connection.client_open:
            engine.writable(link, connection.room_bytes)

    # --- the driver's loop

    def _input(self, feed: Callable[[Engine], None]) -> None:
        if self.engine is None:
            return
        if self._inbox is not None:
            self._inbox.append(feed)
            return
        feed(self.engine)
        self._turn()

    def _turn(self) -> None:
        engine = self.engine
        self._turn_due = False
        if engine is None or self._inbox is not None:
            return
        if self._committing is None:
            changes = engine.take_changes()
            if changes is not None:
                self.begin_commit(changes)
        self._carry_out(engine)
        for event in engine.events():
            self.app.saw(event)
        engine.answers()
        self._set_timer(engine)

    def begin_commit(self, changes: c.Changes) -> None:
        """Have the disk write it; inputs go on meanwhile."""
        self._committing = changes
        self.commits += 1
        self.app.commit_began()
        self.disk.begin(changes)
        self._commit_timer = self.clock.after(self.disk.latency_s(), self._end_commit)

    def _end_commit(self) -> None:
        engine, changes = self.engine, self._committing
        assert engine is not None
        assert changes is not None
        crash, self.disk.crash_next = self.disk.crash_next, ""
        if crash == "before":
            self.world.count("crash_before_commit")
            self.crash(self.rng.uniform(0.1, 5.0), silent=self.rng.random() < 0.5)
            return
        try:
            self.disk.finish(changes)
        except StoreError as error:
            self._commit_failed(engine, error)
            return
        if crash == "after":
            self.world.count("crash_after_commit")
            self.crash(self.rng.uniform(0.1, 5.0), silent=self.rng.random() < 0.5)
            return
        self._committing = None
        self._reloads = 0
        self.committed()
        self._turn()

    def committed(self) -> None:
        """Tell engine and app that what they changed is durable."""
        assert self.engine is not None
        self.engine.committed(self.clock.now_s)
        self.app.commit_done()

    def _commit_failed(self, engine: Engine, error: StoreError) -> None:
        self.note(f"commit failed: {error.code}")
        self._committing = None
        engine.commit_failed(self.clock.now_s)
        self._inbox = []
        self.app.commit_failed()
        self._carry_out(engine)
        delay = min(0.02 * 2**self._reloads, RELOAD_S_MAX)
        self._reloads += 1
        self.clock.after(delay, self._reload, self.incarnation)

    def _reload(self, incarnation: int) -> None:
        engine = self.engine
        if engine is None or incarnation != self.incarnation:
            return
        try:
            snapshot = self.disk.load()
        except StoreError:
            self.clock.after(min(0.02 * 2**self._reloads, RELOAD_S_MAX), self._reload, incarnation)
            self._reloads += 1
            return
        self.note("reload")
        engine.reload(snapshot, self.clock.now_s)
        inbox, self._inbox = self._inbox or [], None
        for feed in inbox:
            feed(engine)
        self.app.store_back()
        self._turn()

    def _carry_out(self, engine: Engine) -> None:
        history, now = self.world.history, self.clock.now_s
        for action in engine.actions(now):
            match action:
                case c.OpenLink():
                    history.usage_of(self.name, now).opened += 1
                    self.note(f"open {action.link}")
                    self.path.connect(action.link)
                case c.CloseLink():
                    self.note(f"close {action.link} {action.reason}")
                    connection = self.path.connections.get(action.link)
                    if connection is not None:
                        connection.close_up()
                case c.SendItems():
                    self._send(action)
                case c.RefreshToken():
                    self.note("refresh token")
                    delay = self.path.latency_s() * 4
                    self.clock.after(delay, self._refreshed, self.incarnation)

    def _send(self, action: c.SendItems) -> None:
        usage = self.world.history.usage_of(self.name, self.clock.now_s)
        items = self.outgoing(action.items)
        usage.items += len(items)
        self.note(f"send {action.link} {_names(items)}")
        connection = self.path.connections.get(action.link)
        if connection is not None and items:
            if type(items[0]).__name__ == "Hello" and self.engine is not None:
                usage.backlog += self.engine.pending
            connection.send_up(items)
            connection.was_full = connection.room_bytes < BUFFER_BYTES // 2

    def outgoing(self, items: Items) -> Items:
        """What really leaves of what the engine wants to send: all of it."""
        return items

    def _refreshed(self, incarnation: int) -> None:
        if self.engine is None or incarnation != self.incarnation:
            return
        reachable = not (self.path.unreachable or self.path.refusing or self.token_failing)
        token = self.world.new_token(self.name) if reachable else None
        now = self.clock.now_s
        if token is None:
            if self.token_failing:
                self.world.count("token_failed")
            failed = c.TokenFailed(permanent=False, text="simulated")
            self._input(lambda engine: _ignore(engine.submit(failed, self.clock.now_s)))
        else:
            self._token = (token[0], now + token[1])
            good = c.SetToken(token=token[0], expires_in_s=token[1])
            self._input(lambda engine: _ignore(engine.submit(good, self.clock.now_s)))

    def _set_timer(self, engine: Engine) -> None:
        deadline = engine.next_deadline(self.clock.now_s)
        timer = self._timer
        if timer is not None:
            if timer.call is not None and timer.at_s == deadline:
                return
            timer.cancel()
        self._timer = None
        if deadline is not None:
            # What is due at once is done at the next instant: a driver cannot be faster than its loop.
            self._timer = self.clock.at(max(deadline, self.clock.now_s + 1e-6), self._fire)

    def _fire(self) -> None:
        engine = self.engine
        if engine is not None and self._inbox is None:
            engine.handle_timer(self.clock.now_s)
            self._turn()

    # --- what the end of a run asks

    @property
    def at_rest(self) -> bool:
        """Nothing of its own waits any more."""
        engine = self.engine
        return (
            engine is not None
            and self._inbox is None
            and self._committing is None
            and self.app.idle
            and engine.pending == 0
        )

    @property
    def waiting(self) -> int:
        """Own messages not settled, those the app still holds among them."""
        app = self.app
        held = len(app.todo) + len(app.handed_over) + len(app.returning)
        return held + (len(self.store.pending()) if self.engine is None else self.engine.pending)

    def received_of(self, conversation: str) -> list[tuple[str, int]]:
        """How far this device knows the others to have received, by user."""
        for row in self.store.load().conversations:
            if row.id == conversation:
                return [(user, received) for user, received, _ in row.receipts]
        return []

    def gather(self) -> dict[str, int]:
        """The transitions its engines took, over all lives."""
        self._gather()
        return self.transitions

    def _gather(self) -> None:
        for machine, event, times in transitions_of(self.engine):
            name = f"{machine}.{event}"
            self.transitions[name] = self.transitions.get(name, 0) + times


def transitions_of(engine: Any) -> list[tuple[str, str, int]]:
    """(machine, `state:event`, times) of every transition counted inside an engine."""
    found: list[tuple[str, str, int]] = []
    for machine in ("link", "outbox"):
        part = getattr(engine, machine, None) or getattr(engine, f"_{machine}", None)
        counter = getattr(part, "transitions", {})
        found += [(machine, f"{state}:{event}", times) for (state, event), times in counter.items()]
    return found


def _names(items: Items) -> str:
    """Items by tag and number, never their content."""
    return " ".join(_name(item) for item in items)


def _name(item: msgspec.Struct) -> str:
    number = getattr(item, "n", None) or getattr(item, "seq", None) or getattr(item, "since", None)
    name = type(item).__name__
    return name if number is None else f"{name}:{getattr(item, 'conversation', '')}:{number}"


def _ignore(_: object) -> None:
    """Drop an answer."""
