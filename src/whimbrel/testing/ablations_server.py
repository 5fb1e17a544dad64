"""Ablations of the server: hubs and drivers that leave one rule out. See `ablations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from whimbrel import protocol as p
from whimbrel.server.hub import Hub
from whimbrel.server.ledger import Operation, Outcome
from whimbrel.server.receipts import ReceiptBoard
from whimbrel.server.roster import Roster
from whimbrel.server.session import Identity, Session
from whimbrel.testing.simledger import LedgerDisk
from whimbrel.testing.simserver import Server

__all__ = [
    "DroppingHub",
    "EagerLedgerDisk",
    "EagerServer",
    "LateHub",
    "OverpromisingHub",
    "SharingHub",
    "server_of",
]

SLOW_COMMIT_S: Final = 0.5


def server_of(hub: type[Hub]) -> type[Server]:
    """A server that runs this hub."""

    class AblatedServer(Server):
        hub_type = hub

    return AblatedServer


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

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._durable = self.memory.state

    def prepared(self) -> None:
        """What is there now is durable."""
        self._durable = self.memory.state.copy()

    def begin(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Carry it out in memory."""
        return self.ledger.apply(operations, now)

    def finish(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """Make it durable."""
        self._durable = self.memory.state.copy()
        return []

    def crashed(self) -> None:
        """Go back to what is durable."""
        self.ledger = self.open(self._durable.copy())


class _LateRoster(Roster):
    """Can take a session back that it has just subscribed."""

    def unsubscribe(self, session: Session) -> None:
        """Push nothing to it for now."""
        self._leave(session)


class LateHub(Hub):
    """Reads the heads for a link first, and subscribes it only when it next says something."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._unsubscribed: dict[int, tuple[Session, Identity]] = {}
        self._roster.__class__ = _LateRoster

    def _welcome(self, session: Session, identity: Identity, sync: str | None, now: float) -> None:
        super()._welcome(session, identity, sync, now)
        assert isinstance(self._roster, _LateRoster)
        if session.live:
            self._roster.unsubscribe(session)
            self._unsubscribed[session.link] = (session, identity)

    def receive(self, link: int, item: p.ClientItem | p.Unknown, now: float) -> None:
        """Subscribe it, at last."""
        waiting = self._unsubscribed.pop(link, None)
        if waiting is not None and waiting[0].live:
            self._roster.join(*waiting)
        super().receive(link, item, now)


class _SharingRoster(Roster):
    """Knows of no owner."""

    def own(self, session: Session) -> Session | None:
        """Let every link of a device be."""
        return None


class SharingHub(Hub):
    """Lets a device have many links."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._roster.__class__ = _SharingRoster


class _DroppingSession(Session):
    """Drops news beyond its bound, and does not remember that it did."""

    def _fall_behind(self) -> None:
        super()._fall_behind()
        self.behind = False


class DroppingHub(Hub):
    """Has such sessions."""

    def _new_session(self, link: int, now: float) -> Session:
        session = super()._new_session(link, now)
        session.__class__ = _DroppingSession
        return session


class _OverpromisingBoard(ReceiptBoard):
    """Holds receipts back and says that they were told."""

    def safe_commit(self, routed: int) -> int:
        """Everything."""
        return routed


class OverpromisingHub(Hub):
    """Has such a board."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._fanout.receipts.__class__ = _OverpromisingBoard
