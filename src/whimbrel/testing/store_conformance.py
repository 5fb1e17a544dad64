"""What every implementation of ``store.port.Store`` must do, as tests to inherit from. Needs pytest.

Subclass ``StoreConformance`` in a test file as ``Test…`` and define ``make``, ``reopen`` and
``failing``; pytest then runs all of it against that store. What a replaced history means is inherited
from ``store_conformance_resets``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from whimbrel.core.contract import Changes
from whimbrel.errors import StoreError
from whimbrel.model import Attempt, FailureReason, SendState
from whimbrel.testing.store_conformance_resets import FullStore, ResetConformance
from whimbrel.testing.store_rows import changes, conversation, entry, queued, update


class StoreConformance(ResetConformance):
    """The suite; a subclass says how its store is made, restarted and made to fail."""

    def make(self, path: Path) -> FullStore:
        """A new store, with its files (if it has any) at ``path``."""
        raise NotImplementedError

    def reopen(self, store: FullStore) -> FullStore:
        """What a program finds that starts again after ``store``'s was killed; closes ``store``."""
        raise NotImplementedError

    def failing(self, store: FullStore) -> AbstractContextManager[None]:
        """While it lasts, an ``apply`` of more than 100 kB fails, by a real fault where there is one."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[FullStore]:
        """A new store, closed afterwards."""
        store = self.make(tmp_path / "store.db")
        yield store
        store.close()

    # --- what a store begins with --------------------------------------------------------------

    def test_new_store_is_empty_and_names_its_device(self, store: FullStore) -> None:
        snapshot = store.load()
        assert snapshot.meta == {"device": store.device}
        assert (snapshot.conversations, snapshot.outbox, snapshot.buffered, snapshot.arrival) == (
            [],
            [],
            [],
            0,
        )
        assert len(store.device) == 26
        assert store.device == store.device.lower()
        assert (store.conversations(), store.pending(), store.arrivals(0)) == ([], [], [])
        assert store.messages("c1") == []
        assert store.message("x") is None
        assert store.row("x") is None

    def test_device_outlives_restarts_and_is_never_changed(self, store: FullStore) -> None:
        device = store.device
        with pytest.raises(StoreError, match="another device"):
            store.apply(changes(queued(1), meta={"device": "another"}))
        assert store.row(queued(1).id) is None
        store.apply(Changes(meta={"device": device, "user": "anna"}))
        again = self.reopen(store)
        assert again.device == device
        assert again.load().meta == {"device": device, "user": "anna"}
        again.close()

    # --- writing -------------------------------------------------------------------------------

    def test_everything_applied_is_there_after_a_restart(self, store: FullStore) -> None:
        own = queued(
            1,
            metadata='{"a":[1]}',
            reply_to="r",
            expires_at=5.5,
            on_reject="block",
            state=SendState.RETRYING,
            reason=FailureReason.TIMEOUT,
            can_retry=True,
            retry_count=2,
            last_retry_at=4.25,
            rounds=1,
            attempts=(Attempt(at=3.5, reason=FailureReason.TIMEOUT, text="no answer"),),
            void="cancelled",
        )
        other = entry(1, arrival=1, role="assistant", format="json", body='{"x":1}', kind="of tomorrow")
        talk = conversation(
            title="Tea ☕",
            position=1,
            head=4,
            floor=0,
            last_n=1,
            read=1,
            receipts=(("ben", 1, 1),),
            left=True,
        )
        store.apply(changes(own, other, conversations={"c1": talk}, meta={"sync": "s1"}))
        before = store.load()
        assert store.row(own.id) == own
        assert store.row(other.id) == other
        again = self.reopen(store)
        assert again.load() == before
        assert again.row(own.id) == own
        assert again.row(other.id) == other
        assert again.load().conversations == [talk]
        assert again.load().meta["sync"] == "s1"
        shown = again.messages("c1")
        assert [message.content for message in shown] == [{"x": 1}, "text 1"]
        assert shown[0].kind == "of tomorrow"
        again.close()

    @pytest.mark.parametrize("where", ["messages", "conversations", "meta"])
    def test_a_failing_apply_leaves_nothing(self, store: FullStore, where: str) -> None:
        old = [entry(1, arrival=1), queued(1, seq=2, arrival=2, state=SendState.DELIVERED), queued(2)]
        store.apply(changes(*old, conversations={"c1": conversation(position=2)}, meta={"sync": "old"}))
        before = store.load()
        shown = store.messages("c1")
        large = "x" * 400_000
        bad = changes(
            queued(3, body=large if where == "messages" else "x"),
            entry(9, arrival=3),
            resets=["c1"],
            updates={old[2].id: update(old[2], state=SendState.SENDING)},
            conversations={
                "c1": conversation(position=9, title=large if where == "conversations" else ""),
                "c2": conversation("c2"),
            },
            reads={"c1": (2, 9.0)},
            meta={"sync": large if where == "meta" else "new"},
        )
        with self.failing(store), pytest.raises(StoreError):
            store.apply(bad)
        assert store.load() == before
        assert store.messages("c1") == shown
        store.apply(bad)
        assert store.load().conversations[0].position == 9
        again = self.reopen(store)
        assert again.load().conversations[0].position == 9
        again.close()

    def test_an_own_message_takes_its_place_and_keeps_its_content(self, store: FullStore) -> None:
        own = queued(1, attempts=(Attempt(at=1.0, reason=FailureReason.TIMEOUT),), retry_count=1, void="x")
        store.apply(changes(own))
        echo = entry(7, arrival=3, id=own.id, body="other", own=False, key=None, state=SendState.DELIVERED)
        store.apply(changes(echo))
        expected = msgspec.structs.replace(
            own, seq=7, arrival=3, delivered_at=echo.delivered_at, state=SendState.DELIVERED, void=None
        )
        assert store.row(own.id) == expected
        assert store.pending() == []
        assert [message.id for message in store.messages("c1")] == [own.id]

    def test_an_update_writes_the_mutable_part_whole(self, store: FullStore) -> None:
        own = queued(1)
        new = update(
            own,
            stream=2,
            n=5,
            state=SendState.FAILED,
            reason=FailureReason.SERVER_ERROR,
            can_retry=True,
            retry_count=3,
            last_retry_at=8.0,
            rounds=2,
            attempts=(Attempt(at=8.0, reason=FailureReason.SERVER_ERROR, text="503"),),
            void="expired",
        )
        # In one change: rows come before updates.
        store.apply(changes(own, updates={own.id: new}))
        row = store.row(own.id)
        assert row is not None
        assert update(row) == new
        assert row.body == own.body
        back = update(own, seq=4, arrival=1, delivered_at=9.0, state=SendState.DELIVERED)
        store.apply(Changes(updates={own.id: back}))
        row = store.row(own.id)
        assert row is not None
        assert update(row) == back
        assert store.load().arrival == 1

    def test_an_update_of_an_unknown_message_changes_nothing(self, store: FullStore) -> None:
        store.apply(Changes(updates={"x": update(queued(1), id="x")}))
        assert store.load().outbox == []
        assert store.message("x") is None

    def test_rows_are_not_shared(self, store: FullStore) -> None:
        own = queued(1)
        store.apply(changes(own, conversations={"c1": conversation()}))
        own.body = "changed"
        for row in (store.row(own.id), store.load().outbox[0]):
            assert row is not None
            assert row.body == "text 1"
            row.body = "changed"
        row = store.row(own.id)
        assert row is not None
        assert row.body == "text 1"

    # --- the outbox ----------------------------------------------------------------------------

    @pytest.mark.parametrize("state", [*SendState, None])
    @pytest.mark.parametrize("void", [None, "cancelled"])
    @pytest.mark.parametrize("can_retry", [False, True])
    @pytest.mark.parametrize("seq", [None, 1])
    def test_the_outbox_is_what_is_not_settled(
        self, store: FullStore, state: SendState | None, void: str | None, can_retry: bool, seq: int | None
    ) -> None:
        own = queued(1, state=state, void=void, can_retry=can_retry, seq=seq, arrival=seq)
        store.apply(changes(own, conversations={"c1": conversation(position=1)}))
        final = state in (SendState.DELIVERED, SendState.READ, SendState.CANCELLED)
        if state is SendState.FAILED:
            final = not can_retry
        elif state is None:
            final = seq is not None
        waits = void is not None or not final
        assert [row.id for row in store.load().outbox] == [own.id] * waits
        assert [message.id for message in store.pending()] == [own.id] * waits
        assert store.conversations()[0].pending == waits
        assert [message.id for message in store.messages("c1")] == [own.id]

    def test_the_outbox_is_in_queue_order(self, store: FullStore) -> None:
        rows = [
            queued(1, conversation="c2"),
            queued(2, stream=2),
            queued(11),
            queued(1, stream=2),
            queued(2),
            queued(10),
        ]
        store.apply(changes(*rows, conversations={"c1": conversation(), "c2": conversation("c2")}))
        expected = [("c1", 1, 2), ("c1", 1, 10), ("c1", 1, 11), ("c1", 2, 1), ("c1", 2, 2), ("c2", 1, 1)]
        snapshot = store.load()
        assert [(row.conversation, row.stream, row.n) for row in snapshot.outbox] == expected
        assert [message.id for message in store.pending()] == [row.id for row in snapshot.outbox]
        assert [talk.pending for talk in store.conversations()] == [5, 1]

    # --- the log -------------------------------------------------------------------------------

    def test_what_lies_beyond_a_gap_is_buffered_and_not_shown(self, store: FullStore) -> None:
        own = queued(1, seq=8, state=SendState.DELIVERED)
        rows = [entry(1, arrival=1), entry(9, arrival=None), entry(5, arrival=None), own]
        store.apply(changes(*rows, conversations={"c1": conversation(position=1, head=9)}))
        assert [row.seq for row in store.load().buffered] == [5, 8, 9]
        # An own message does not vanish meanwhile: it stays below the log, where it was.
        assert [message.id for message in store.messages("c1")] == [rows[0].id, own.id]
        assert [message.seq for message in store.arrivals(0)] == [1]
        filled = [entry(seq, arrival=seq) for seq in range(2, 10) if seq != 8]
        filled.append(msgspec.structs.replace(own, arrival=8))
        store.apply(changes(*filled, conversations={"c1": conversation(position=9, head=9)}))
        assert store.load().buffered == []
        assert [message.seq for message in store.messages("c1")] == list(range(1, 10))

    def test_pages(self, store: FullStore) -> None:
        rows = [entry(seq, arrival=seq) for seq in (3, 1, 10, 2, 9)]
        tail = [queued(n) for n in (12, 2)] + [queued(1, stream=2)]
        elsewhere = [entry(1, arrival=11, conversation="c2"), queued(1, conversation="c2")]
        store.apply(changes(*rows, *tail, *elsewhere))

        def page(**bounds: Any) -> list[int | str]:
            return [
                message.seq if message.seq is not None else str(message.key)
                for message in store.messages("c1", **bounds)
            ]

        below = ["c1-1-2", "c1-1-12", "c1-2-1"]
        assert page() == [1, 2, 3, 9, 10, *below]
        assert page(limit=2) == below[1:]
        assert page(limit=5) == [9, 10, *below]
        assert page(limit=0) == []
        assert page(before=10) == [1, 2, 3, 9]
        assert page(before=10, limit=2) == [3, 9]
        assert page(before=1) == []
        assert page(after=3) == [9, 10, *below]
        assert page(after=1, limit=2) == [2, 3]
        assert page(after=3, limit=3) == [9, 10, below[0]]
        assert page(after=10) == below
        assert page(after=1, before=10) == [2, 3, 9]

    def test_arrivals_are_in_the_order_they_came(self, store: FullStore) -> None:
        store.apply(changes(entry(5, arrival=2), entry(1, arrival=1, conversation="c2"), queued(1)))
        store.apply(changes(queued(2, seq=6, arrival=3, state=SendState.DELIVERED), entry(8, arrival=None)))
        assert [message.position for message in store.arrivals(0)] == [1, 2, 3]
        assert [message.seq for message in store.arrivals(0)] == [1, 5, 6]
        assert [message.position for message in store.arrivals(1, limit=1)] == [2]
        assert store.arrivals(3) == []
        assert store.load().arrival == 3

    # --- receipts ------------------------------------------------------------------------------

    def test_reads_mark_own_messages_once(self, store: FullStore) -> None:
        rows = [
            queued(1, seq=1, arrival=1, state=SendState.DELIVERED),
            entry(2, arrival=2),
            queued(2, seq=3, arrival=3, state=SendState.DELIVERED),
            queued(3, seq=4, arrival=4, state=SendState.DELIVERED),
            queued(4),
        ]

        def read_at() -> list[float | None]:
            return [row.read_at for row in map(store.row, (row.id for row in rows)) if row is not None]

        store.apply(changes(*rows, conversations={"c1": conversation(position=4)}, reads={"c1": (1, 50.0)}))
        assert read_at() == [50.0, None, None, None, None]
        store.apply(Changes(reads={"c1": (3, 60.0)}))
        assert read_at() == [50.0, None, 60.0, None, None]
        store.apply(Changes(reads={"c1": (2, 70.0)}))
        assert read_at() == [50.0, None, 60.0, None, None]
        # A receipt may come before the entry it is about.
        store.apply(Changes(reads={"c1": (9, 80.0)}))
        late = queued(5, seq=5, arrival=5, state=SendState.DELIVERED)
        store.apply(changes(late, conversations={"c1": conversation(position=5)}))
        store.apply(Changes(reads={"c1": (9, 90.0)}))
        row = store.row(late.id)
        assert row is not None
        assert row.read_at == 90.0
        # And a reset begins anew.
        again = queued(6, seq=1, arrival=6, state=SendState.DELIVERED)
        store.apply(changes(again, resets=["c1"], conversations={"c1": conversation(position=1)}))
        store.apply(Changes(reads={"c1": (1, 99.0)}))
        row = store.row(again.id)
        assert row is not None
        assert row.read_at == 99.0

    def test_status_is_read_where_all_others_have_read(self, store: FullStore) -> None:
        rows = [queued(n, seq=n, arrival=n, state=SendState.DELIVERED) for n in (1, 2, 3)]
        talk = conversation(
            members=("anna", "ben", "cleo"), position=3, receipts=(("ben", 3, 3), ("cleo", 3, 1))
        )
        store.apply(changes(*rows, queued(4), conversations={"c1": talk}, meta={"user": "anna"}))

        def states(id: str = "c1") -> list[str]:
            return [message.status.state for message in store.messages(id) if message.status is not None]

        assert states() == ["read", "delivered", "delivered", "pending"]
        message = store.message(rows[0].id)
        assert message is not None
        assert message.status is not None
        assert message.status.state is SendState.READ
        assert [m.status.state for m in store.arrivals(1) if m.status is not None] == ["delivered"] * 2
        left = conversation(members=("anna", "ben"), position=3, receipts=(("ben", 3, 3), ("cleo", 3, 1)))
        store.apply(Changes(conversations={"c1": left}))
        assert states() == ["read"] * 3 + ["pending"]
        alone = conversation(members=("anna",), position=3)
        store.apply(Changes(conversations={"c1": alone}, reads={"c1": (1, 5.0)}))
        assert states() == ["read", "delivered", "delivered", "pending"]

    # --- consumers, secrets, closing -----------------------------------------------------------

    def test_a_consumer_never_goes_back(self, store: FullStore) -> None:
        assert store.consumer_position("bot") == 0
        store.set_consumer_position("bot", 5)
        store.set_consumer_position("bot", 3)
        store.set_consumer_position("other", 1)
        assert (store.consumer_position("bot"), store.consumer_position("other")) == (5, 1)
        again = self.reopen(store)
        assert again.consumer_position("bot") == 5
        again.close()

    def test_secrets_last_and_are_not_the_engines(self, store: FullStore) -> None:
        store.set_secret("refresh", "token 1")
        store.set_secret("refresh", "token 2")
        store.set_secret("gone", "x")
        store.set_secret("gone", None)
        store.set_secret("never", None)
        assert store.load().meta == {"device": store.device}
        assert "token" not in repr(store)
        again = self.reopen(store)
        assert (again.get_secret("refresh"), again.get_secret("gone")) == ("token 2", None)
        again.close()

    def test_readers_on_other_threads_see_whole_changes(self, store: FullStore) -> None:
        torn: list[tuple[int, int, int]] = []
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                snapshot = store.load()
                for talk in snapshot.conversations:
                    seen = (talk.last_n, len(snapshot.outbox), int(snapshot.meta["sync"]))
                    if len(set(seen)) > 1:
                        torn.append(seen)

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for n in range(1, 101):
                store.apply(
                    changes(queued(n), conversations={"c1": conversation(last_n=n)}, meta={"sync": str(n)})
                )
                # What was applied is seen by whoever asks after it.
                assert len(store.pending()) == n
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert torn == []

    def test_a_closed_store_refuses(self, store: FullStore) -> None:
        store.close()
        store.close()
        for call in (store.load, store.conversations, store.pending, lambda: store.apply(changes(queued(1)))):
            with pytest.raises(StoreError):
                call()
