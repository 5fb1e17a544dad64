"""Writes down, at the end of a run, what the ledger holds: evidence for the judges."""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from whimbrel import protocol as p
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.testing.history import History, Move, Sighting
from whimbrel.testing.simapp import text_of
from whimbrel.testing.simclock import EPOCH_S

__all__ = ["read_logs"]

PAGE: Final = 100


def read_logs(ledger: MemoryLedger, history: History) -> None:
    """Write down every conversation's log: the whole of it, as each member may read it, and who moved."""
    state = ledger.state
    for id, entries in state.entries.items():
        history.whole[id] = [_sighting(entry.event) for entry in entries]
        history.moves[id] = list(_moves(entry.event for entry in entries))
        history.members[id] = ledger.members(id)
    for user in sorted(set(history.users.values())):
        for id in sorted(state.of_user.get(user, ())):
            log = history.logs[user, id] = []
            while True:
                since = log[-1].seq if log else 0
                page = ledger.page(user, id, since=since, limit=PAGE)
                if page is None or not page.events:
                    break
                log += [_sighting(event) for event in page.events]


def _sighting(event: p.Event) -> Sighting:
    return Sighting(
        conversation=event.conversation,
        seq=event.seq,
        id=event.id,
        sender=event.sender,
        kind=event.kind,
        body=text_of(event.format, event.body),
        at_s=event.at,
    )


def _moves(events: Iterable[p.Event]) -> Iterator[Move]:
    """Who came and went, as the entries say."""
    for event in events:
        if event.kind == "info":
            for user in msgspec.json.decode(event.body)["members"]:
                yield Move(user=user, seq=event.seq, at_s=event.at - EPOCH_S, joined=True)
        elif event.kind == "member":
            body = msgspec.json.decode(event.body)
            joined = body["action"] == "joined"
            yield Move(user=body["user"], seq=event.seq, at_s=event.at - EPOCH_S, joined=joined)
