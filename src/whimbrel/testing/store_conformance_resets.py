"""What a store must do when the history of a conversation is replaced. See ``store_conformance``."""

from __future__ import annotations

from typing import Protocol

from whimbrel.core.contract import Changes
from whimbrel.model import FailureReason, SendState
from whimbrel.store.port import Store
from whimbrel.store.secrets import Secrets
from whimbrel.testing.store_rows import changes, conversation, entry, queued, update


class FullStore(Store, Secrets, Protocol):
    """A store with all its ports."""


class ResetConformance:
    """``Changes.resets``: places are taken from entries, and nothing is told twice or lost."""

    def reopen(self, store: FullStore) -> FullStore:
        """What a program finds that starts again after ``store``'s was killed; closes ``store``."""
        raise NotImplementedError

    def test_a_reset_takes_the_places_of_the_log_and_keeps_what_is_unsent(self, store: FullStore) -> None:
        store.apply(
            changes(
                entry(1, arrival=1),
                queued(1, seq=2, arrival=2, state=SendState.DELIVERED),
                entry(9, arrival=None),
                queued(2),
                queued(3, state=SendState.FAILED, reason=FailureReason.REJECTED),
                entry(1, arrival=3, conversation="c2"),
                conversations={"c1": conversation(position=2), "c2": conversation("c2", position=1)},
            )
        )
        new = entry(1, arrival=4, id="new")
        displaced = store.apply(
            changes(new, resets=["c1"], conversations={"c1": conversation(epoch="e2", position=1)})
        )
        own = queued(1).id
        assert [message.id for message in store.messages("c1")] == ["new", own, queued(2).id, queued(3).id]
        assert [message.position for message in store.arrivals(0)] == [1, 2, 3, 4]
        assert [(row.id, row.stream, row.state) for row in displaced] == [
            (own, 0, SendState.PENDING),
            (queued(2).id, 0, SendState.PENDING),
        ]
        assert displaced[0].n < displaced[1].n
        snapshot = store.load()
        assert [row.id for row in snapshot.outbox] == [own, queued(2).id]
        assert snapshot.outbox[0].seq is None
        assert snapshot.buffered == []
        assert store.row(entry(9, arrival=None).id) is None

    def test_what_comes_again_after_a_reset_was_told_already(self, store: FullStore) -> None:
        own = queued(1, seq=2, arrival=2, state=SendState.DELIVERED)
        store.apply(changes(entry(1, arrival=1), own, conversations={"c1": conversation(position=2)}))
        store.apply(Changes(resets=["c1"], conversations={"c1": conversation(epoch="e2")}))
        again = entry(5, arrival=3, id=entry(1, arrival=1).id)
        mine = entry(6, arrival=4, id=own.id)
        assert store.apply(changes(again, mine, entry(7, arrival=5))) == []
        assert [(message.seq, message.position) for message in store.messages("c1")] == [
            (5, 1),
            (6, 2),
            (7, 5),
        ]
        assert [message.seq for message in store.arrivals(2)] == [7]
        assert store.load().outbox == []

    def test_arrival_numbers_are_not_given_again_after_a_reset(self, store: FullStore) -> None:
        own = queued(1, seq=2, arrival=2, state=SendState.DELIVERED)
        store.apply(changes(entry(1, arrival=1), own))
        store.apply(Changes(resets=["c1"]))
        store.apply(
            Changes(updates={own.id: update(own, stream=2, seq=None, arrival=None)})
        )  # it is offered again
        assert [message.position for message in store.arrivals(0)] == [1]
        assert store.load().arrival == 2
        again = self.reopen(store)
        assert again.load().arrival == 2
        again.apply(changes(entry(8, arrival=3)))
        assert again.load().arrival == 3
        again.close()
