"""What goes wrong in a simulated world: one method for each kind of fault, named after it.

A fault that lasts ends by itself, and none lasts beyond the storm; what was armed and did not strike by then
is taken back. A fault is counted when it took effect, here or where it strikes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from whimbrel.core.contract import Connect
from whimbrel.testing.proxy_shaper import SteadyCapacity, TraceCapacity
from whimbrel.testing.simnet import Connection, Path
from whimbrel.testing.simplan import Deed, PlannedFault
from whimbrel.testing.traces import Trace

if TYPE_CHECKING:
    from whimbrel.testing.simworld import World

__all__ = ["Faults"]

TRACES: Final = ("att-lte-driving-2016", "tmobile-umts-driving")
TEN_YEARS_S: Final = 10 * 365.25 * 24 * 3600.0
SMALL_STEP_S: Final = 30.0
EXPIRES_S: Final = 3600.0
GIVEN_UP: Final = 4
GIVEN_UP_AFTER_S: Final = 0.2


class Faults:
    """Carries the planned faults out on the parts of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = world.clock
        self.rng = world.rng
        self.server = world.server
        self.ledger_disk = world.ledger_disk
        self.clients = world.clients
        self.count = world.count
        self._base_latency = [(device.latency_s, device.jitter_s) for device in world.story.devices]

    def plan(self, fault: PlannedFault) -> None:
        """Have it strike at its time."""
        if fault.kind == "server_restored":
            self.clock.at(max(fault.at_s - fault.size, 0.0), self._back_up, fault)
        else:
            self.clock.at(fault.at_s, getattr(self, f"_{fault.kind}"), fault)

    def calm(self) -> None:
        """The storm is over: take back what was armed."""
        self.world.note("world", "calm")
        self.server.crash_next = ""
        self.ledger_disk.fail_next = False
        for client in self.clients:
            client.disk.fail_next = client.disk.unsure_next = False
            client.disk.crash_next = ""
            client.path.answer_fatal = False

    def _later(self, fault: PlannedFault, end: Callable[[], None]) -> None:
        self.clock.after(fault.duration_s, end)

    def _while(self, fault: PlannedFault, thing: object, name: str) -> None:
        """Add one to a counter of reasons while the fault lasts."""
        setattr(thing, name, getattr(thing, name) + 1)
        self._later(fault, lambda: setattr(thing, name, getattr(thing, name) - 1))

    def _path(self, fault: PlannedFault) -> Path:
        return self.clients[fault.device].path

    def _newest(self, fault: PlannedFault) -> Connection | None:
        """The device's newest connection, if there is one that can fail; it is counted."""
        connection = self._path(fault).newest()
        if connection is None or not connection.server_open or connection.black_hole:
            return None
        self.count(fault.kind)
        return connection

    def _stall(self, fault: PlannedFault) -> None:
        path = self._path(fault)
        if path.newest() is not None and not path.up.stalled:
            self.count(fault.kind)
            path.stall()
            self._later(fault, path.release)

    def _cut(self, fault: PlannedFault) -> None:
        connection = self._newest(fault)
        if connection is not None:
            connection.cut(fault.duration_s * self.rng.random(), fault.duration_s)

    def _reset(self, fault: PlannedFault) -> None:
        connection = self._newest(fault)
        if connection is not None:
            connection.cut(0.0, 0.0)

    def _half_open(self, fault: PlannedFault) -> None:
        connection = self._newest(fault)
        if connection is not None:
            connection.half_open()

    def _held_up(self, fault: PlannedFault) -> None:
        connection = self._newest(fault)
        if connection is not None:
            connection.up.hold(self.clock.now_s + fault.duration_s)

    def _held_down(self, fault: PlannedFault) -> None:
        connection = self._newest(fault)
        if connection is not None:
            connection.down.hold(self.clock.now_s + fault.duration_s)

    def _refusing(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        self._while(fault, self._path(fault), "refusing")
        self._reset_if_open(fault)

    def _unavailable(self, fault: PlannedFault) -> None:
        path = self._path(fault)
        self.count(fault.kind)
        path.retry_after_s = fault.size if self.rng.random() < 0.7 else None
        self._while(fault, path, "unavailable")
        self._reset_if_open(fault)

    def _unanswered(self, fault: PlannedFault) -> None:
        self._while(fault, self._path(fault), "unanswered")
        self._reset_if_open(fault)

    def _unreachable(self, fault: PlannedFault) -> None:
        path = self._path(fault)
        self._while(fault, path, "unreachable")
        for connection in list(path.connections.values()):
            if self.rng.random() < 0.5:
                connection.half_open()
            else:
                connection.cut(0.0, self.rng.uniform(1.0, 30.0))

    def _reset_if_open(self, fault: PlannedFault) -> None:
        connection = self._path(fault).newest()
        if connection is not None and connection.server_open:
            connection.cut(0.0, 0.0)

    def _flapping(self, fault: PlannedFault) -> None:
        end_s = self.clock.now_s + fault.duration_s

        def flap() -> None:
            if self.clock.now_s < end_s:
                self._reset(fault)
                self.clock.after(fault.size, flap)

        flap()

    def _answer_lost(self, fault: PlannedFault) -> None:
        self._path(fault).answer_fatal = True

    def _swallowed(self, fault: PlannedFault) -> None:
        path = self._path(fault)
        path.swallowing = fault.size
        self._later(fault, lambda: setattr(path, "swallowing", 0.0))

    def _latency(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        path = self._path(fault)
        latency, jitter = self._base_latency[fault.device]
        path.set_latency(latency + fault.size, jitter + fault.size / 2)
        self._later(fault, lambda: path.set_latency(latency, jitter))

    def _low_capacity(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        path = self._path(fault)
        path.set_capacity(SteadyCapacity(fault.size), SteadyCapacity(fault.size))
        self._later(fault, lambda: path.set_capacity(None, None))

    def _narrow(self, fault: PlannedFault) -> None:
        self._low_capacity(fault)

    def _duplicated(self, fault: PlannedFault) -> None:
        path = self._path(fault)
        path.duplicating = fault.size
        self._later(fault, lambda: setattr(path, "duplicating", 0.0))

    def _trace(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        path = self._path(fault)
        name, now = self.rng.choice(TRACES), self.clock.now_s
        path.set_capacity(
            TraceCapacity(_trace(name, True), began_at_s=now, offset_s=fault.size),
            TraceCapacity(_trace(name, False), began_at_s=now, offset_s=fault.size),
        )
        self._later(fault, lambda: path.set_capacity(None, None))

    def _crash_any_time(self, fault: PlannedFault) -> None:
        client = self.clients[fault.device]
        if client.engine is not None:
            self.count(fault.kind)
            client.crash(fault.duration_s, silent=fault.size < 0.5)

    def _crash_before_commit(self, fault: PlannedFault) -> None:
        self.clients[fault.device].disk.crash_next = "before"

    def _crash_after_commit(self, fault: PlannedFault) -> None:
        self.clients[fault.device].disk.crash_next = "after"

    def _crash_giving_up(self, fault: PlannedFault) -> None:
        """Write, give up, or let expire, and die with that known to the server and not on the disk."""
        client = self.clients[fault.device]
        if client.engine is None or client.clock.standing_until_s is not None or client.disk.slow_s:
            return
        skew_s = client.skew_s
        expires = fault.size >= 0.5
        send = Deed(
            at_s=self.clock.now_s,
            device=fault.device,
            kind="send",
            conversation="all",
            size=10,
            expires_in_s=EXPIRES_S if expires else None,
        )
        for _ in range(GIVEN_UP):
            client.do(send)

        def give_up() -> None:
            if client.engine is None or client.clock.standing_until_s is not None:
                return
            client.disk.slow_s = 20 * fault.duration_s  # it dies before that is written
            if expires:
                self.world.history.stepped.add(client.name)
                client.skew_s += 2 * EXPIRES_S  # all that can expire does, until the clock is right again
                client.command(Connect())
            else:
                client.app.give_up_all()

        def die() -> None:
            client.disk.slow_s = 0.0
            if expires:
                client.skew_s = skew_s
            if client.engine is not None:
                self.count(fault.kind)
                client.crash(self.rng.uniform(0.1, 2.0), silent=self.rng.random() < 0.5)

        self.clock.after(GIVEN_UP_AFTER_S, give_up)
        self.clock.after(GIVEN_UP_AFTER_S + fault.duration_s, die)

    def _suspended(self, fault: PlannedFault) -> None:
        client = self.clients[fault.device]
        if client.clock.standing_until_s is not None:
            return
        self.count(fault.kind)
        for connection in list(client.path.connections.values()):
            if fault.size < 0.3:
                connection.half_open()
            elif fault.size < 0.6:
                connection.cut(fault.duration_s * self.rng.random(), fault.duration_s * self.rng.random())
            else:
                connection.down.hold(self.clock.now_s + fault.duration_s)
        client.sleep(fault.duration_s)

    def _clock_stepped(self, fault: PlannedFault) -> None:
        client = self.clients[fault.device]
        self.count(fault.kind)
        large = abs(fault.size) > 0.5
        self.world.history.stepped.add(client.name)
        client.skew_s += fault.size * (TEN_YEARS_S if large else SMALL_STEP_S)

    def _commit_unsure(self, fault: PlannedFault) -> None:
        self.clients[fault.device].disk.unsure_next = True

    def _io_errors(self, fault: PlannedFault) -> None:
        disk = self.clients[fault.device].disk
        disk.error_share = fault.size
        self._later(fault, lambda: setattr(disk, "error_share", 0.0))

    def _commit_failed(self, fault: PlannedFault) -> None:
        self.clients[fault.device].disk.fail_next = True

    def _disk_full(self, fault: PlannedFault) -> None:
        self._while(fault, self.clients[fault.device].disk, "full")

    def _disk_gone(self, fault: PlannedFault) -> None:
        self._while(fault, self.clients[fault.device].disk, "gone")

    def _disk_slow(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        disk = self.clients[fault.device].disk
        disk.slow_s = fault.size
        self._later(fault, lambda: setattr(disk, "slow_s", 0.0))

    def _token_failed(self, fault: PlannedFault) -> None:
        self._while(fault, self.clients[fault.device].signin, "failing")

    def _token_expired(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        self.server.revoke_tokens(self.clients[fault.device].name)
        self._reset_if_open(fault)

    def _token_dead(self, fault: PlannedFault) -> None:
        client = self.clients[fault.device]
        self._while(fault, client.signin, "barred")
        # Found out at the next refresh while the link stands, or by the next greeting.
        if self.rng.random() < 0.5:
            self.server.revoke_tokens(client.name)
            self._reset_if_open(fault)

    def _server_crash_any_time(self, fault: PlannedFault) -> None:
        if self.server.up:
            self.count(fault.kind)
            self.server.crash(fault.duration_s, reset=fault.size >= 0.5)

    def _server_crash_before_commit(self, fault: PlannedFault) -> None:
        self.server.crash_next = "before"

    def _server_crash_after_commit(self, fault: PlannedFault) -> None:
        self.server.crash_next = "after"

    def _server_restart(self, fault: PlannedFault) -> None:
        if self.server.up:
            self.count(fault.kind)
            self.server.restart(fault.duration_s)

    def _server_stopped(self, fault: PlannedFault) -> None:
        if self.server.up and self.server.stopped_until_s is None:
            self.count(fault.kind)
            self.server.stop(fault.duration_s)

    def _back_up(self, fault: PlannedFault) -> None:
        backup = self.ledger_disk.back_up()
        self.clock.at(fault.at_s, self._server_restored, fault, backup)

    def _server_restored(self, fault: PlannedFault, backup: int) -> None:
        if self.server.up:
            self.count(fault.kind)
            self.server.restore(backup, fault.duration_s, tell=True)

    def _poison(self, fault: PlannedFault) -> None:
        device = self.clients[fault.device].device
        stream = (device.name, self.rng.choice(device.conversations))
        self.ledger_disk.poison[stream] = fault.size
        self._later(fault, lambda: self._cure(stream))

    def _cure(self, stream: tuple[str, str]) -> None:
        self.ledger_disk.poison.pop(stream, None)

    def _server_slow(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        self.server.slow_s = fault.size
        self._later(fault, lambda: setattr(self.server, "slow_s", 0.0))

    def _ledger_hiccup(self, fault: PlannedFault) -> None:
        self.ledger_disk.fail_next = True

    def _ledger_unreadable(self, fault: PlannedFault) -> None:
        self.ledger_disk.unreadable_share = fault.size
        self._later(fault, lambda: setattr(self.ledger_disk, "unreadable_share", 0.0))

    def _ledger_unavailable(self, fault: PlannedFault) -> None:
        self._while(fault, self.ledger_disk, "unavailable")


@functools.cache
def _trace(name: str, up: bool) -> Trace:
    return Trace.builtin(name, "up" if up else "down")
