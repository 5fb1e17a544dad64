"""One simulated world: devices, their paths and disks, the server, the story, and what came of it.

The world carries out the story: deeds of the apps and faults, each at its time. A fault that lasts ends by
itself, and none lasts beyond the storm; what was armed and did not strike by then is taken back. A fault is
counted when it took effect, not when it was planned.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from whimbrel.core.contract import Changes
from whimbrel.testing.ablations import Parts
from whimbrel.testing.history import History
from whimbrel.testing.proxy_shaper import SteadyCapacity, TraceCapacity
from whimbrel.testing.simclient import Client
from whimbrel.testing.simclock import Clock
from whimbrel.testing.simnet import Connection, Network, Path
from whimbrel.testing.simplan import PlannedFault, SimPlan, Story
from whimbrel.testing.traces import Trace

__all__ = ["World"]

LOOK_EVERY_S: Final = 0.25
QUIET_S: Final = 25.0
"""The run goes on for so long after all arrived: what comes late is seen, and links that died in silence."""
RECOVERY_S: Final = 8.0
"""Crashed processes are back at the latest so long after the storm."""
TRACES: Final = ("att-lte-driving-2016", "tmobile-umts-driving")


class World:
    """Everything of one run; implements what its parts need of it."""

    def __init__(
        self, story: Story, plan: SimPlan, parts: Parts, rng: random.Random, *, keep_trace: bool
    ) -> None:
        self.story = story
        self.plan = plan
        self.rng = rng
        self.clock = Clock()
        self.history = History()
        self.faults: Counter[str] = Counter()
        self.trace: list[str] = []
        self._keep_trace = keep_trace
        self._hash = hashlib.blake2b(digest_size=8)
        self.network = Network(self.clock, wire=story.wire, count=self.count)
        self.ledger_disk = parts.ledger_disk()
        self.server = parts.server(self, self.ledger_disk, rng, settings=story.server_settings)
        self.network.server = self.server
        self.clients: list[Client] = []
        for device in story.devices:
            path = Path(self.network, device.name, rng)
            path.set_latency(device.latency_s, device.jitter_s)
            disk = parts.disk(device.name, device.disk_s, rng, verify=story.wire, count=self.count)
            client = parts.client(self, device, path=path, disk=disk, settings=story.settings, rng=rng)
            path.client = client
            # Who signed in is known before anything is sent, as after a real login.
            disk.store.apply(Changes(meta={"user": device.user}))
            self.clients.append(client)
        self._base_latency = [(device.latency_s, device.jitter_s) for device in story.devices]

    # --- what the parts need

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        line = f"{self.clock.now_s:.6f} {who} {what}"
        self._hash.update(line.encode())
        if self._keep_trace:
            self.trace.append(line)

    def count(self, fault: str) -> None:
        """Count a fault that took effect."""
        self.faults[fault] += 1
        self.note("fault", fault)

    def new_token(self, device: str) -> tuple[str, float] | None:
        """An access token and how long it lasts."""
        return self.server.new_token(device, self.rng.choice((20.0, 60.0, 900.0)))

    @property
    def trace_hash(self) -> str:
        """Of all that was noted."""
        return self._hash.hexdigest()

    # --- the run

    def run(self) -> None:
        """Live through the whole story."""
        story, history, clock, plan = self.story, self.history, self.clock, self.plan
        history.members = story.conversations
        history.users = {device.name: device.user for device in story.devices}
        self.server.prepare(history.users, story.conversations)
        self.server.start()
        for client in self.clients:
            clock.after(self.rng.random() * 0.1, client.start)
        for deed in story.deeds:
            clock.at(deed.at_s, self.clients[deed.device].app.do, deed)
        for fault in story.faults:
            clock.at(fault.at_s, self._strike, fault)
        clock.at(plan.storm_s, self._calm)
        clock.run_until(plan.storm_s)
        end_s = plan.storm_s + RECOVERY_S + plan.drain_s
        while clock.now_s < end_s:
            clock.run_until(clock.now_s + LOOK_EVERY_S)
            if self._everything_arrived():
                history.drained_s = clock.now_s
                clock.run_until(clock.now_s + QUIET_S)
                break
        self._conclude()

    def _conclude(self) -> None:
        history = self.history
        history.faults_ended_s = self.plan.storm_s
        history.logs = self.server.read_logs()
        for client in self.clients:
            history.waiting[client.name] = client.waiting
            client.app.look()
            history.faults += [f"{client.name}: {text}" for text in client.disk.complaints]
            for conversation in client.store.conversations():
                for user, received in client.received_of(conversation.id):
                    history.told_received[client.name, conversation.id, user] = received
            for fault, times in (
                ("sent_again", client.app.sent_again),
                ("redelivered", client.app.redelivered),
                ("queue_full", client.app.queue_full),
                ("rejected", client.app.rejected),
            ):
                self.faults[fault] += times

    def _everything_arrived(self) -> bool:
        ledger = self.ledger_disk.ledger
        for client in self.clients:
            if not client.at_rest:
                return False
            here = {row.id: row.position for row in client.store.conversations()}
            for conversation in ledger.conversations(client.device.user):
                if here.get(conversation.id, 0) != conversation.seq:
                    return False
        return self.server.up

    # --- faults

    def _strike(self, fault: PlannedFault) -> None:
        strike = getattr(self, f"_{fault.kind}")
        strike(fault)

    def _calm(self) -> None:
        """The storm is over: take back what was armed."""
        self.note("world", "calm")
        self.server.crash_next = ""
        self.ledger_disk.fail_next = False
        for client in self.clients:
            client.disk.fail_next = False
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
        self._while(fault, self.clients[fault.device], "token_failing")

    def _token_expired(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        self.server.revoke_tokens(self.clients[fault.device].name)
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

    def _server_slow(self, fault: PlannedFault) -> None:
        self.count(fault.kind)
        self.server.slow_s = fault.size
        self._later(fault, lambda: setattr(self.server, "slow_s", 0.0))

    def _ledger_hiccup(self, fault: PlannedFault) -> None:
        self.ledger_disk.fail_next = True

    def _ledger_unavailable(self, fault: PlannedFault) -> None:
        self._while(fault, self.ledger_disk, "unavailable")


@functools.cache
def _trace(name: str, up: bool) -> Trace:
    return Trace.builtin(name, "up" if up else "down")
