"""One simulated device: a process with a real engine, on a disk that fails, at the end of a bad path.

It does what the client's driver does, in virtual time: feeds inputs, has changes committed while inputs go
on, then tells the engine, carries out its actions and hands its events to the app. Its loop takes `loop_s`
from an input to its turn; what came meanwhile shares that turn. When the engine must be loaded again after a
failed commit, inputs wait; while the device sleeps, they wait too, and its clocks stand still.

    process:  running ──▶ crashed ──▶ running   (a new engine from what the disk holds)
    store:    good ──▶ failed ──▶ good          (commit_failed, then reload, as long as that takes)
    device:   awake ──▶ asleep ──▶ awake
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from whimbrel.core import contract as c
from whimbrel.core.engine import Engine
from whimbrel.errors import StoreError
from whimbrel.testing.history import History, Usage
from whimbrel.testing.simapp import App
from whimbrel.testing.simclock import Clock, OwnClock, Timer
from whimbrel.testing.simdisk import Disk, SimStore
from whimbrel.testing.simnet import BUFFER_BYTES, Items, Path
from whimbrel.testing.simplan import Deed, Device
from whimbrel.testing.simsignin import SignIn
from whimbrel.testing.simtransitions import transitions_of
from whimbrel.testing.simwatch import Watch

__all__ = ["Client", "Surroundings"]

RELOAD_S_MAX: Final = 2.0
START_AGAIN_S: Final = 0.5


class Surroundings(Protocol):
    """What a device needs of the world it is in."""

    clock: Clock
    history: History

    def note(self, who: str, what: str, number: int = 0, detail: str | Items = "") -> None:
        """Add a line to the trace; `detail` is formatted only if somebody will read it."""

    def count(self, fault: str) -> None:
        """Count a fault that took effect."""

    def new_token(self, device: str) -> tuple[str, float] | None:
        """An access token and how long it lasts; None: the server cannot be asked now."""


class Client:
    """A device; implements `ClientEnd` for the network and `Body` for its app."""

    engine_type: type[Engine] = Engine

    def __init__(
        self,
        world: Surroundings,
        device: Device,
        *,
        path: Path,
        disk: Disk,
        settings: c.Settings,
        bounds: c.Settings,
        rng: random.Random,
    ) -> None:
        self.world = world
        self.clock = self.own_clock(world.clock)
        self.device = device
        self.name = device.name
        self.path = path
        self.disk = disk
        self.settings = settings
        self.rng = rng
        self.watch = Watch(device.name, device.user, self.clock, world.history, bounds)
        self.app = App(self, device, self.clock, world.history, rng)
        self.signin = SignIn(self)
        self.skew_s = device.skew_s
        self.engine: Engine | None = None
        self.incarnation = 0
        self.transitions: Counter[str] = Counter()
        self.commits = 0
        self._committing: c.Changes | None = None
        self._commit_timer: Timer | None = None
        self._timer: Timer | None = None
        self._timer_at: float | None = None
        """What the engine asked for, on the device's own clock."""
        self._turn_timer: Timer | None = None
        self._inbox: list[Callable[[Engine], None]] | None = None
        """Inputs that wait for a reload; None: none is under way."""
        self._missed: list[Callable[[Engine], None]] = []
        """Inputs that wait until the device is awake."""
        self._reloads = 0
        self._usage = Usage()
        self._usage_until_s = 0.0
        self._usage_phase = ""

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

    @property
    def usage(self) -> Usage:
        """What it used of the network and of its processor within this minute."""
        now, history = self.clock.now_s, self.world.history
        if now >= self._usage_until_s or self._usage_phase != history.phase:
            self._usage = history.usage_of(self.name, now)
            self._usage_until_s = (now // 60 + 1) * 60
            self._usage_phase = history.phase
        return self._usage

    def note(self, what: str, number: int = 0, detail: str | Items = "") -> None:
        """Add a line to the trace."""
        self.world.note(self.name, what, number, detail)

    def command(self, command: c.Command) -> None:
        """Give a command to the engine, then do what it wants."""
        assert self.engine is not None
        if isinstance(command, c.Connect):
            self.watch.forget()
        self.engine.submit(command, self.clock.mono_s)
        self._want_turn()

    def do(self, deed: Deed) -> None:
        """Have the app carry out a deed; while the device sleeps, its user waits."""
        until_s = self.clock.standing_until_s
        if until_s is None:
            self.app.do(deed)
        else:
            self.clock.after(until_s - self.clock.now_s, self.do, deed)

    # --- life and death

    def start(self) -> None:
        """Run a process on what the disk holds; tried again while the disk fails."""
        if self.clock.standing_until_s is not None:
            self.clock.after(START_AGAIN_S, self.start)
            return
        try:
            snapshot = self.disk.load()
        except StoreError:
            self.clock.after(START_AGAIN_S, self.start)
            return
        self.note("start", self.incarnation)
        self.watch.look(snapshot)
        engine = self.engine = self.new_engine(snapshot)
        self._inbox = None
        self.signin.started(engine)
        engine.submit(c.Connect(), self.clock.mono_s)
        self.app.started()
        self._turn()

    def new_engine(self, snapshot: c.Snapshot) -> Engine:
        """An engine on what the disk holds."""
        sources = c.Sources(random=self.rng.random, wall=self.wall)
        return self.engine_type(snapshot, self.settings, sources, device=self.name)

    def own_clock(self, clock: Clock) -> OwnClock:
        """The clocks of this device."""
        return OwnClock(clock)

    def crash(self, down_s: float, *, silent: bool) -> None:
        """Kill the process and its memory; `silent`: the device lost its power, nobody is told."""
        if self.engine is None:
            return
        self.note("crash")
        self.transitions += transitions_of(self.engine)
        self.engine = None
        self.incarnation += 1
        self._committing = None
        self.watch.forget()
        for timer in (self._timer, self._commit_timer, self._turn_timer):
            if timer is not None:
                timer.cancel()
        self._inbox = self._turn_timer = None
        self._missed.clear()
        for connection in list(self.path.connections.values()):
            connection.client_gone(silent)
        self.disk.reopen()
        self.app.crashed()
        self.clock.after(down_s, self.start)

    def sleep(self, sleep_s: float) -> None:
        """Suspend the device: nothing runs, and all its clocks but that on the wall stand still."""
        self.note("sleeps")
        self.clock.suspend(sleep_s)
        self.clock.after(sleep_s, self._awake)

    def _awake(self) -> None:
        self.note("awake")
        missed, self._missed = self._missed, []
        for feed in missed:
            self.feed(feed)

    def wall(self) -> float:
        """What this device takes for the time."""
        return self.clock.wall_s + self.skew_s

    # --- ClientEnd

    def opened(self, link: int) -> None:
        """A connection stands."""

        def feed(engine: Engine) -> None:
            engine.opened(link, self.clock.mono_s)
            self._tell_room(engine, link)

        self.note("opened", link)
        self.feed(feed)

    def closed(self, link: int, fault: c.Fault) -> None:
        """A connection failed or is gone."""
        self.note("closed", link, fault.kind)
        if self.engine is not None:
            self.watch.closed(fault)
        self.feed(lambda engine: engine.closed(link, fault, self.clock.mono_s))

    def received(self, link: int, items: Items) -> None:
        """A frame came."""

        def feed(engine: Engine) -> None:
            now = self.clock.mono_s
            engine.alive(link, now)
            for item in items:
                engine.receive(link, item, now)

        self.note("received", link, items)
        self.watch.received(link, items)
        self.feed(feed)

    def drained(self, link: int) -> None:
        """Bytes left the buffer of a connection."""
        engine = self.engine
        if engine is None or self.clock.standing_until_s is not None:
            return
        self._tell_room(engine, link)
        connection = self.path.connections.get(link)
        if connection is not None and connection.was_full:
            connection.was_full = False
            self._want_turn()

    def _tell_room(self, engine: Engine, link: int) -> None:
        connection = self.path.connections.get(link)
        if connection is not None and connection.client_open:
            engine.writable(link, connection.room_bytes)

    # --- the driver's loop

    def feed(self, feed: Callable[[Engine], None]) -> None:
        """Give the engine an input, as soon as it can take one."""
        if self.engine is None:
            return
        if self.clock.standing_until_s is not None:
            self._missed.append(feed)
        elif self._inbox is not None:
            self._inbox.append(feed)
        else:
            feed(self.engine)
            self._want_turn()

    def _want_turn(self) -> None:
        if self._turn_timer is None:
            self._turn_timer = self.clock.after(self.device.loop_s, self._turn)

    def _turn(self) -> None:
        engine = self.engine
        if self._turn_timer is not None:
            self._turn_timer.cancel()
            self._turn_timer = None
        if engine is None or self._inbox is not None:
            return
        self.usage.turns += 1
        if self._committing is None:
            changes = engine.take_changes()
            if changes is not None:
                self.begin_commit(changes)
        self._carry_out(engine)
        for event in engine.events():
            self.app.saw(event)
        for answer in engine.answers():
            self.app.answered(answer)
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
            displaced = self.disk.finish(changes)
        except StoreError as error:
            self._commit_failed(engine, error)
            return
        if crash == "after":
            self.world.count("crash_after_commit")
            self.crash(self.rng.uniform(0.1, 5.0), silent=self.rng.random() < 0.5)
            return
        self._committing = None
        self._reloads = 0
        self.watch.committed([*changes.conversations.values()])
        if self.watch.wants_look(changes):
            self.watch.look(self.store.load())
        self.committed(displaced)
        self._turn()

    def committed(self, displaced: Sequence[c.MessageRow] = ()) -> None:
        """Tell engine and app that what they changed is durable."""
        assert self.engine is not None
        self.engine.committed(self.clock.mono_s, displaced)
        self.app.commit_done()

    def _commit_failed(self, engine: Engine, error: StoreError) -> None:
        self.note("commit failed", 0, error.code)
        self._committing = None
        engine.commit_failed(self.clock.mono_s)
        self._inbox = []
        self.app.commit_failed()
        if self.disk.was_unsure:
            self.app.cut()
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
        self.watch.look(snapshot)
        engine.reload(snapshot, self.clock.mono_s)
        inbox, self._inbox = self._inbox or [], None
        for feed in inbox:
            feed(engine)
        self.app.store_back()
        self._turn()

    def _carry_out(self, engine: Engine) -> None:
        for action in engine.actions(self.clock.mono_s):
            match action:
                case c.OpenLink():
                    self.usage.opened += 1
                    self.note("open", action.link)
                    self.watch.opens()
                    self.path.connect(action.link)
                case c.CloseLink():
                    self.note("close", action.link, action.reason)
                    connection = self.path.connections.get(action.link)
                    if connection is not None:
                        connection.close_up()
                case c.SendItems():
                    self._send(engine, action)
                case c.RefreshToken():
                    self.usage.refreshed += 1
                    self.note("refresh token")
                    self.signin.refresh()

    def _send(self, engine: Engine, action: c.SendItems) -> None:
        usage = self.usage
        items = self.outgoing(action.items)
        usage.items += len(items)
        self.watch.sends(action.link, items)
        self.note("send", action.link, items)
        connection = self.path.connections.get(action.link)
        if connection is not None and items:
            if type(items[0]).__name__ == "Hello":
                usage.backlog += engine.pending
            connection.send_up(items)
            connection.was_full = connection.room_bytes < BUFFER_BYTES // 2

    def outgoing(self, items: Items) -> Items:
        """What really leaves of what the engine wants to send: all of it."""
        return items

    def _set_timer(self, engine: Engine) -> None:
        deadline = engine.next_deadline(self.clock.mono_s)
        timer = self._timer
        if timer is not None:
            if timer.call is not None and self._timer_at == deadline:
                return
            timer.cancel()
        self._timer, self._timer_at = None, deadline
        if deadline is not None:
            # What is due at once is done at the next instant: a driver cannot be faster than its loop.
            self._timer = self.clock.at(max(deadline, self.clock.mono_s + 1e-6), self._fire)

    def _fire(self) -> None:
        engine = self.engine
        if engine is not None and self._inbox is None:
            engine.handle_timer(self.clock.mono_s)
            self._turn()

    # --- what the end of a run asks

    @property
    def at_rest(self) -> bool:
        """It has a link, and nothing of its own waits any more."""
        engine = self.engine
        return (
            engine is not None
            and engine.link.active is not None
            and self._inbox is None
            and self._committing is None
            and not self._missed
            and self.app.idle
            and engine.pending == 0
        )

    @property
    def waiting(self) -> int:
        """Own messages not settled, those the app still holds among them."""
        app = self.app
        held = len(app.todo) + len(app.handed_over) + len(app.returning)
        return held + (len(self.store.pending()) if self.engine is None else self.engine.pending)

    def gather(self) -> Counter[str]:
        """The transitions its engines took, over all lives."""
        return self.transitions + transitions_of(self.engine)
