"""One simulated world: devices, their paths and disks, the server, the story, and what came of it.

The world carries out the story: deeds of the apps and faults (`simfaults`), each at its time. A fault is
counted when it took effect, not when it was planned. When the storm is over and all has arrived, it goes on
for a while, so that what comes late is seen, and clients that cannot be quiet.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import Counter
from typing import Any, Final

from whimbrel.core.contract import Changes
from whimbrel.testing.history import History
from whimbrel.testing.simclient import Client
from whimbrel.testing.simclock import Clock
from whimbrel.testing.simfaults import Faults
from whimbrel.testing.simnet import Items, Network, Path
from whimbrel.testing.simparts import Parts
from whimbrel.testing.simplan import BURST_MESSAGES, SimPlan, Story
from whimbrel.testing.simrecord import read_logs

__all__ = ["World"]

LOOK_EVERY_S: Final = 0.25
QUIET_S: Final = 25.0
"""The run goes on for so long after all arrived: what comes late is seen, and links that died in silence."""
RECOVERY_S: Final = 8.0
"""Crashed processes are back at the latest so long after the storm."""


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
        self._times = array("d")
        self._words: list[str] = []
        self.network = Network(self.clock, wire=story.wire, count=self.count)
        self.ledger_disk = parts.ledger_disk(rng, self.count)
        self.server = parts.server(
            self,
            self.ledger_disk,
            rng,
            settings=parts.server_settings(story.server_settings),
            loop_s=story.server_loop_s,
            accepts_early=story.accepts_early,
        )
        self.network.server = self.server
        self.clients: list[Client] = []
        for device in story.devices:
            path = Path(self.network, device.name, rng)
            path.set_latency(device.latency_s, device.jitter_s)
            disk = parts.disk(device.name, device.disk_s, rng, verify=story.wire, count=self.count)
            client = parts.client(
                self,
                device,
                path=path,
                disk=disk,
                settings=parts.settings(story.settings),
                bounds=story.settings,
                rng=rng,
            )
            path.client = client
            # Who signed in is known before anything is sent, as after a real login.
            disk.store.apply(Changes(meta={"user": device.user}))
            self.clients.append(client)
        self.fault = Faults(self)

    # --- what the parts need

    def note(self, who: str, what: str, number: int = 0, detail: str | Items = "") -> None:
        """Add a line to the trace; `detail` is formatted only if somebody will read it."""
        now_s = self.clock.now_s
        self._times.append(now_s)
        self._times.append(number)
        self._words.append(who)
        self._words.append(what)
        if self._keep_trace:
            shown = detail if isinstance(detail, str) else _names(detail)
            self.trace.append(" ".join(f"{now_s:.6f} {who} {what} {number or ''} {shown}".split()))

    def count(self, fault: str) -> None:
        """Count a fault that took effect."""
        self.faults[fault] += 1
        self.note("fault", fault)

    def new_token(self, device: str) -> tuple[str, float] | None:
        """An access token and how long it lasts."""
        return self.server.new_token(device, self.rng.choice((20.0, 60.0, 900.0)))

    @property
    def trace_hash(self) -> str:
        """Of all that was noted: when, who, what."""
        digest = hashlib.blake2b(self._times.tobytes(), digest_size=8)
        digest.update("\n".join(self._words).encode())
        return digest.hexdigest()

    # --- the run

    def run(self) -> None:
        """Live through the whole story."""
        story, history, clock, plan = self.story, self.history, self.clock, self.plan
        history.retry_budget = (story.settings.retry_budget, story.settings.retry_budget_per_s)
        history.users = {device.name: device.user for device in story.devices}
        self.server.prepare(history.users, story.conversations)
        self.server.start()
        for client in self.clients:
            clock.after(self.rng.random() * 0.1, client.start)
        for deed in story.deeds:
            clock.at(deed.at_s, self.clients[deed.device].do, deed)
        for fault in story.faults:
            self.fault.plan(fault)
        clock.at(plan.storm_s, self.fault.calm)
        clock.run_until(plan.storm_s)
        history.phase = "recovery"
        end_s = plan.storm_s + RECOVERY_S + plan.drain_s
        while clock.now_s < end_s:
            clock.run_until(clock.now_s + LOOK_EVERY_S)
            if self._everything_arrived():
                history.drained_s = clock.now_s
                history.phase = "idle"
                clock.run_until(clock.now_s + QUIET_S)
                break
        self._conclude()

    def _conclude(self) -> None:
        history = self.history
        history.faults_ended_s = self.plan.storm_s
        history.poisoned = self.ledger_disk.poisoned
        read_logs(self.ledger_disk.memory, history)
        open_ends = Counter(one.path.name for one in self.network.connections.values() if one.server_open)
        for client in self.clients:
            if history.drained_s is not None and open_ends[client.name] > 1:
                count = open_ends[client.name]
                history.faults.append(f"the server keeps {count} links of {client.name} in the end")
            history.waiting[client.name] = client.waiting
            client.app.look()
            history.faults += [f"{client.name}: {text}" for text in client.disk.complaints]
            for row in client.store.load().conversations:
                for user, received, _ in row.receipts:
                    history.told_received[client.name, row.id, user] = received
        self.faults.update(self._consequences())

    def _consequences(self) -> Counter[str]:
        """What came of the faults, where it shows."""
        counts: Counter[str] = Counter()
        for client in self.clients:
            app = client.app
            counts["sent_again"] += app.sent_again
            counts["redelivered"] += app.redelivered
            counts["queue_full"] += app.queue_full
            counts["rejected"] += app.rejected
            counts["turned_away"] += app.turned_away
        counts["burst"] = int(len(self.history.submissions) >= BURST_MESSAGES)
        for moves in self.history.moves.values():
            began = {move.user for move in moves if move.seq == 1}
            for move in moves:
                if move.joined and move.seq > 1:
                    counts["came_back" if move.user in began else "joined_late"] += 1
                    began.add(move.user)
                elif not move.joined:
                    counts["left"] += 1
        return counts

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


def _names(items: Items) -> str:
    """Items by tag and number, never their content."""
    return " ".join(_name(item) for item in items)


def _name(item: Any) -> str:
    number = getattr(item, "n", None) or getattr(item, "seq", None) or getattr(item, "since", None)
    name = type(item).__name__
    return name if number is None else f"{name}:{getattr(item, 'conversation', '')}:{number}"
