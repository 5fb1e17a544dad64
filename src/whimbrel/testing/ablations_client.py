"""Ablations of the client: engines, drivers and disks that leave one rule out. See `ablations`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.core.contract import Changes, MessageRow
from whimbrel.core.engine import Engine
from whimbrel.core.life import Entry, Queue
from whimbrel.core.link import LinkMachine
from whimbrel.core.log import Log
from whimbrel.core.outbox import Outbox
from whimbrel.core.timeline import Timeline
from whimbrel.core.tokens import Tokens
from whimbrel.errors import StoreError
from whimbrel.testing.simclient import Client
from whimbrel.testing.simclock import EPOCH_S, Clock, OwnClock, Timer
from whimbrel.testing.simdisk import Disk
from whimbrel.testing.simnet import Items

__all__ = [
    "CarelessClient",
    "Deaf",
    "Disobedient",
    "EagerClient",
    "EagerDisk",
    "Floorless",
    "Forgetful",
    "Greedy",
    "HastyReceipts",
    "Impatient",
    "IncuriousClient",
    "Onward",
    "Repetitive",
    "Timeless",
    "TornDisk",
    "Trusting",
    "Unasked",
    "Unpaused",
    "WallClockClient",
    "client_of",
]

Part = type[Outbox] | type[Timeline] | type[LinkMachine] | type[Tokens]


def client_of(part: Part) -> type[Client]:
    """A client whose engine has this in the place of its own part."""

    class AblatedEngine(Engine):
        def _load(self, snapshot: c.Snapshot, now: float) -> None:
            super()._load(snapshot, now)
            for mine in (self.outbox, self.timeline, self.link, self.tokens):
                if issubclass(part, type(mine)):
                    mine.__class__ = part

    class AblatedClient(Client):
        engine_type = AblatedEngine

    return AblatedClient


# --- drivers and disks


class EagerClient(Client):
    """Takes changes for committed as soon as their commit begins: messages leave before they are on disk."""

    def begin_commit(self, changes: Changes) -> None:
        """Begin, and say at once that it is done."""
        super().begin_commit(changes)
        assert self.engine is not None
        self.engine.committed(self.clock.mono_s)
        self.app.commit_done()

    def committed(self, displaced: Sequence[MessageRow] = ()) -> None:
        """It was said already; but the app can read it only now."""
        self.app.consume()


class EagerDisk(Disk):
    """Never refuses: what was called committed cannot be taken back by a failed commit, only by a crash."""

    def refuse_if_failing(self) -> None:
        """Let everything pass."""


class CarelessClient(Client):
    """Takes a failed commit for a good one."""

    def _commit_failed(self, engine: Engine, error: StoreError) -> None:
        self._committing = None
        self.committed()
        self._turn()


class TornDisk(Disk):
    """Writes how far a conversation was received first, and what was received in a second transaction."""

    def begin(self, changes: Changes) -> None:
        """Write the positions at once."""
        super().begin(_rest(changes))
        # A failing disk fails again at the end, where it is looked at.
        with contextlib.suppress(StoreError):
            self.store.apply(Changes(conversations=changes.conversations, meta=changes.meta))

    def finish(self, changes: Changes) -> list[MessageRow]:
        """Write the rest."""
        return super().finish(_rest(changes))


def _rest(changes: Changes) -> Changes:
    return msgspec.structs.replace(changes, conversations={}, meta={})


class IncuriousClient(Client):
    """Never fetches: what was not pushed to it is never asked for."""

    def outgoing(self, items: Items) -> Items:
        """Let everything leave but requests for pages."""
        return tuple(item for item in items if not isinstance(item, p.Fetch))


class WallClock(OwnClock):
    """Shows as monotonic what the wall clock shows, steps and all."""

    __slots__ = ("client",)

    def __init__(self, clock: Clock, client: Client) -> None:
        super().__init__(clock)
        self.client = client

    @property
    def mono_s(self) -> float:
        """What the wall clock shows."""
        return self.client.wall() - EPOCH_S

    def at(self, mono_s: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call it when the wall clock will show this, by what it shows now."""
        return self.after(mono_s - self.mono_s, call, *args)


class WallClockClient(Client):
    """Keeps its deadlines on the wall clock."""

    def own_clock(self, clock: Clock) -> OwnClock:
        """The clock on the wall, for everything."""
        return WallClock(clock, self)


# --- the outbox


class Unasked(Outbox):
    """Withdraws and gives up by itself, whatever the server may have done with it."""

    def _give_up(self, entry: Entry, reason: str) -> None:
        if entry.left and entry.row.void is None:
            self.voided(entry, reason)
        else:
            super()._give_up(entry, reason)


class Onward(Outbox):
    """Goes on with the number after the last one that left, on whatever link."""

    def link_down(self) -> None:
        """Leave the cursors where they are."""
        cursors = {name: queue.cursor for name, queue in self.queues.items()}
        super().link_down()
        for name, cursor in cursors.items():
            self.queues[name].cursor = cursor

    def link_up(self, now: float, granted: p.Credits) -> None:
        """Leave them here too."""
        cursors = {name: queue.cursor for name, queue in self.queues.items()}
        super().link_up(now, granted)
        for name, cursor in cursors.items():
            self.queues[name].cursor = cursor


class Trusting(Outbox):
    """Waits for every answer, however long."""

    def take_asks(self) -> list[p.Status]:
        """Ask nothing."""
        self.asks.clear()
        return []


class Impatient(Outbox):
    """Looks at no Retry-After."""

    def rejected(self, entry: Entry, code: str, text: str, retry_after_s: float | None, now: float) -> None:
        """Refused, and that is all."""
        super().rejected(entry, code, text, None, now)


class Unpaused(Outbox):
    """Tries again at once what was too fast."""

    def _pause(self, entry: Entry, until: float, reason: str) -> None:
        super()._pause(entry, 0.0, reason)


class Forgetful(Outbox):
    """Takes what a lost history had for settled."""

    def offer_again(self, queue: Queue) -> None:
        """Offer nothing."""
        for id in queue.displaced:
            del self.by_id[id]
        queue.displaced.clear()
        super().offer_again(queue)


# --- the timeline


class HastyReceipts(Timeline):
    """Reports what it has in memory."""

    def receipts(self, link: int, now: float) -> list[p.Received | p.Read]:
        """Of all that came, durable or not."""
        for log in self.logs.values():
            log.durable = log.row
        return super().receipts(link, now)


class Repetitive(Timeline):
    """Tells the app of everything that comes."""

    def _take(self, log: Log, row: MessageRow) -> None:
        if (row.seq or 0) <= log.row.position:
            self._on_applied(row, False)
        super()._take(log, row)


class Floorless(Timeline):
    """Knows of no legitimate hole."""

    def _floor(self, log: Log, floor: int) -> None:
        pass


class Timeless(Timeline):
    """Takes any history for the one it knows."""

    def _epoch(self, log: Log, epoch: str) -> None:
        if epoch and epoch != log.row.epoch:
            self.change(log, epoch=epoch)


# --- link and tokens


class Deaf(LinkMachine):
    """Pings, and does not mind that no answer comes."""

    def _watch(self, now: float) -> None:
        self.heartbeat.expect_since = None
        if now >= self.heartbeat.ping_due():
            self.heartbeat.ping(now)
            self.heartbeat.expect_since = None


class Disobedient(LinkMachine):
    """Takes every fault for the network's."""

    def _note_fault(self, fault: c.Fault, now: float) -> None:
        super()._note_fault(c.Fault(kind="network", text=fault.text), now)


class Greedy(Tokens):
    """Asks for a token as long as it has none."""

    __slots__ = ()

    def due(self, now: float) -> bool:
        """Whether it asks or not."""
        self.refreshing = False
        return super().due(now)
