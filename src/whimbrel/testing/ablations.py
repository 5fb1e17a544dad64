"""Safeguards switched off, one at a time, to show that the checkers would notice.

Each ablation replaces a part of the simulated world by one that breaks a rule whimbrel depends on; production
code has no switch for it. A simulator that finds nothing with a safeguard gone proves nothing with it there:
for each ablation, a seed within the first 200 must fail.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from whimbrel import protocol as p
from whimbrel.core.contract import Changes
from whimbrel.errors import StoreError
from whimbrel.server.hub import Hub
from whimbrel.server.ledger import Append, AppendVoid, Operation, Outcome
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.testing.simclient import Client
from whimbrel.testing.simdisk import Disk
from whimbrel.testing.simnet import Items
from whimbrel.testing.simserver import LedgerDisk, Server

__all__ = ["ABLATIONS", "Parts"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a world is built of."""

    client: type[Client] = Client
    disk: type[Disk] = Disk
    ledger_disk: type[LedgerDisk] = LedgerDisk
    server: type[Server] = Server
    says: str = ""
    """What is wrong with it."""


SLOW_COMMIT_S: Final = 0.5


class EagerClient(Client):
    """Takes changes for committed as soon as their commit begins: messages leave before they are on disk."""

    def begin_commit(self, changes: Changes) -> None:
        """Begin, and say at once that it is done."""
        super().begin_commit(changes)
        assert self.engine is not None
        self.engine.committed(self.clock.now_s)
        self.app.commit_done()

    def committed(self) -> None:
        """It was said already; but the app can read it only now."""
        self.app.consume()


class EagerDisk(Disk):
    """Never refuses: what was called committed cannot be taken back by a failed commit, only by a crash."""

    def refuse_if_failing(self) -> None:
        """Let everything pass."""


class EagerServer(Server):
    """Answers as soon as a batch is begun, before it is durable."""

    def begin_batch(self, hub: Hub, batch: list[Operation]) -> None:
        """Begin, and answer."""
        super().begin_batch(hub, batch)
        assert isinstance(self.disk, EagerLedgerDisk)
        hub.settled(self.disk.begin(batch, self.clock.wall_s), self.clock.now_s)

    def commit_s(self) -> float:
        """Take longer than usual, as who answers early can."""
        return super().commit_s() + SLOW_COMMIT_S * self.rng.random()

    def answer(self, hub: Hub, outcomes: list[Outcome]) -> None:
        """It was answered already."""


class EagerLedgerDisk(LedgerDisk):
    """Shows what is not durable yet, and loses it in a crash."""

    def __init__(self) -> None:
        super().__init__()
        self._durable = self._memory.state

    @property
    def _memory(self) -> MemoryLedger:
        assert isinstance(self.ledger, MemoryLedger)
        return self.ledger

    def prepared(self) -> None:
        """What is there now is durable."""
        self._durable = self._memory.state.copy()

    def begin(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Carry it out in memory."""
        return self.ledger.apply(operations, now)

    def finish(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Make it durable."""
        self._durable = self._memory.state.copy()
        return []

    def crashed(self) -> None:
        """Go back to what is durable."""
        self.ledger = MemoryLedger(self._durable.copy(), new_id=self._memory.new_id)


class UncheckedLedgerDisk(LedgerDisk):
    """Looks at no number: every offer is the first of a stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._streams = itertools.count(1_000_000)

    def finish(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Make the batch durable under other numbers."""
        return super().finish([self._renumbered(operation) for operation in operations], now)

    def _renumbered(self, operation: Operation) -> Operation:
        replace = msgspec.structs.replace
        if isinstance(operation, Append):
            return replace(operation, send=replace(operation.send, stream=next(self._streams), n=1))
        if isinstance(operation, AppendVoid):
            return replace(operation, void=replace(operation.void, stream=next(self._streams), n=1))
        return operation


class TornDisk(Disk):
    """Writes how far a conversation was received first, and what was received in a second transaction."""

    def begin(self, changes: Changes) -> None:
        """Write the positions at once."""
        super().begin(_rest(changes))
        # A failing disk fails again at the end, where it is looked at.
        with contextlib.suppress(StoreError):
            self.store.apply(Changes(conversations=changes.conversations, meta=changes.meta))

    def finish(self, changes: Changes) -> None:
        """Write the rest."""
        super().finish(_rest(changes))


def _rest(changes: Changes) -> Changes:
    return msgspec.structs.replace(changes, conversations={}, meta={})


class IncuriousClient(Client):
    """Never fetches: what was not pushed to it is never asked for."""

    def outgoing(self, items: Items) -> Items:
        """Let everything leave but requests for pages."""
        return tuple(item for item in items if not isinstance(item, p.Fetch))


ABLATIONS: Final[dict[str, Parts]] = {
    "send_before_commit": Parts(
        client=EagerClient, disk=EagerDisk, says="messages leave before key and number are on disk"
    ),
    "ack_before_commit": Parts(
        server=EagerServer, ledger_disk=EagerLedgerDisk, says="the server answers before its commit"
    ),
    "numbers_unchecked": Parts(
        ledger_disk=UncheckedLedgerDisk, says="the ledger does not look at the numbers of messages"
    ),
    "position_apart": Parts(
        disk=TornDisk, says="positions are stored in another transaction than the entries they cover"
    ),
    "gaps_ignored": Parts(client=IncuriousClient, says="gaps are never fetched"),
}
"""By the name that `--ablation` takes."""
