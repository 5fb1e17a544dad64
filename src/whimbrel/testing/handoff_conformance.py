"""What every store must do with what is handed over in it, as tests to inherit from. Needs pytest.

Subclass ``HandoffConformance`` in a test file as ``Test…`` and define ``make`` and ``reopen``; the calls
here are those of a guest and of the one that syncs, on one store.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from whimbrel.core.contract import (
    CancelMessage,
    Changes,
    HandedOver,
    MarkRead,
    MessageRow,
    RetryMessage,
    SendMessage,
    TakeHandoff,
)
from whimbrel.core.rows import queued_row
from whimbrel.errors import KeyReused, NotFound, QueueFull, StoreError, WhimbrelError
from whimbrel.model import SendState, message_id
from whimbrel.store.handoff import Handoff, KeyRaced, Limits
from whimbrel.store.port import Store
from whimbrel.testing.store_rows import conversation, entry

LIMITS = Limits()


class SharedStore(Store, Handoff, Protocol):
    """A store with what is handed over."""

    def pending_count(self) -> int:
        """How many own messages are not settled."""


def send(key: str, body: str = "text", **fields: Any) -> SendMessage:
    """A message under this key."""
    return SendMessage(**{"conversation": "c1", "key": key, "format": "text", "body": body, **fields})


def hand(
    store: SharedStore, *commands: HandedOver, limits: Limits = LIMITS
) -> list[type[WhimbrelError] | None]:
    """Hand commands over, at times that count up; gives what kind of error came of each."""
    outcomes = store.hand_over([(command, 100.0 + n) for n, command in enumerate(commands)], limits)
    return [None if outcome is None else type(outcome) for outcome in outcomes]


def taken(store: SharedStore, command: SendMessage, n: int, **fields: Any) -> MessageRow:
    """The row an engine would write for a message."""
    row = queued_row(command, message_id(store.device, command.key), sender="anna", at=100.0)
    values = {"stream": 1, "n": n, "state": SendState.PENDING} | fields
    return msgspec.structs.replace(row, **values)


class HandoffConformance:
    """The suite; a subclass says how its store is made and restarted."""

    def make(self, path: Path) -> SharedStore:
        """A new store, with its files (if it has any) at ``path``."""
        raise NotImplementedError

    def reopen(self, store: SharedStore) -> SharedStore:
        """What a program finds that starts again after ``store``'s was killed; closes ``store``."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SharedStore]:
        """A new store, closed afterwards."""
        store = self.make(tmp_path / "store.db")
        yield store
        store.close()

    def test_commands_come_as_they_went_in_order_over_restarts(self, store: SharedStore) -> None:
        commands: list[HandedOver] = [
            send("a", "☕ \0", metadata={"x": [1, None]}, reply_to="r", on_reject="block", expires_in_s=1.5),
            CancelMessage(id="m"),
            RetryMessage(id=None),
            MarkRead(conversation="c1", seq=7),
            send("b", conversation="c2", role="assistant", format="json"),
        ]
        assert hand(store, *commands[:2]) == [None, None]
        assert hand(store, *commands[2:]) == [None, None, None]
        again = self.reopen(store)
        found = again.handed_over(0)
        assert [row.command for row in found] == commands
        assert [row.at for row in found] == [100.0, 101.0, 100.0, 101.0, 102.0]
        numbers = [row.number for row in found]
        assert numbers == sorted(set(numbers))
        assert again.handed_over(numbers[1]) == found[2:]
        assert again.handed_over(0, 2) == found[:2]
        assert again.load().outbox == []
        again.close()

    def test_what_is_carried_out_is_gone_with_it_and_numbers_are_not_given_again(
        self, store: SharedStore
    ) -> None:
        hand(store, send("a"), send("b"))
        first, second = store.handed_over(0)
        assert isinstance(first.command, SendMessage)
        row = taken(store, first.command, 1)
        store.apply(Changes(messages={row.id: row}, handoffs=[first.number]))
        assert store.handed_over(0) == [second]
        store.apply(Changes(handoffs=[second.number]))
        again = self.reopen(store)
        assert again.handed_over(0) == []
        assert again.row(row.id) == row
        hand(again, send("c"))
        assert again.handed_over(0)[0].number > second.number
        again.close()

    def test_a_message_reads_as_pending_from_the_beginning(self, store: SharedStore) -> None:
        queued = taken(store, send("first"), 1)
        log = entry(1, arrival=1)
        store.apply(
            Changes(
                messages={log.id: log, queued.id: queued},
                conversations={"c1": conversation(position=1)},
                meta={"user": "anna"},
            )
        )
        hand(
            store,
            send("a", "A", metadata={"x": 1}, expires_in_s=5.0),
            send("b", "B"),
            send("x", conversation="c2"),
        )
        id = message_id(store.device, "a")
        message = store.message(id)
        assert message is not None
        assert (message.content, message.key, message.sender, message.metadata) == (
            "A",
            "a",
            "anna",
            {"x": 1},
        )
        assert message.status is not None
        assert message.status.state is SendState.PENDING
        row = store.row(id)
        assert row is not None
        assert (row.own, row.sent_at, row.expires_at) == (True, 100.0, 105.0)
        assert [m.key for m in store.pending()] == ["first", "a", "b", "x"]
        assert store.pending_count() == 4
        assert [c.pending for c in store.conversations()] == [3]

        def page(**options: Any) -> list[object]:
            return [m.content for m in store.messages("c1", **options)]

        assert page() == ["entry 1", "text", "A", "B"]
        assert page(limit=3) == ["text", "A", "B"]
        assert page(limit=1) == ["B"]
        assert page(after=0, limit=3) == ["entry 1", "text", "A"]
        assert page(before=9) == ["entry 1"]
        assert page(limit=0) == []

    def test_a_key_is_one_message(self, store: SharedStore) -> None:
        queued = taken(store, send("q"), 1)
        store.apply(Changes(messages={queued.id: queued}))
        assert hand(store, send("q"), send("q", "other"), send("a"), send("a"), send("a", "other")) == [
            None,
            KeyReused,
            None,
            None,
            KeyReused,
        ]
        assert hand(store, send("a"), send("a", metadata={"x": 1})) == [None, KeyReused]
        assert [row.command for row in store.handed_over(0)] == [send("a")]

    def test_the_same_message_queued_meanwhile_is_found_done(self, store: SharedStore) -> None:
        hand(store, send("a"))
        row = taken(store, send("a"), 1)
        store.apply(Changes(messages={row.id: row}))
        (found,) = store.handed_over(0)
        assert found == TakeHandoff(number=found.number, command=None, at=100.0)
        assert store.pending_count() == 1
        assert len(store.pending()) == 1
        store.apply(Changes(handoffs=[found.number]))
        assert store.handed_over(0) == []

    def test_other_content_under_a_handed_over_key_is_not_written(self, store: SharedStore) -> None:
        hand(store, send("a"))
        other, fine = taken(store, send("a", "other"), 1), taken(store, send("b"), 2)
        with pytest.raises(KeyRaced) as caught:
            store.apply(Changes(messages={fine.id: fine, other.id: other}))
        assert isinstance(caught.value, StoreError)
        assert caught.value.message == other.id
        assert store.row(fine.id) is None
        assert [row.command for row in store.handed_over(0)] == [send("a")]

    def test_limits_count_what_is_queued_and_what_is_handed_over(self, store: SharedStore) -> None:
        queued = taken(store, send("q"), 1)
        settled = taken(store, send("s"), 2, state=SendState.DELIVERED, seq=1, arrival=1)
        store.apply(Changes(messages={queued.id: queued, settled.id: settled}))
        few = Limits(messages_max=3)
        assert hand(store, send("a"), send("b"), send("c"), CancelMessage(id="x"), limits=few) == [
            None,
            None,
            QueueFull,
            None,
        ]
        small = Limits(bytes_max=4 * 3 + 2)
        assert hand(store, send("d", "four"), send("e", "12"), limits=small) == [QueueFull, None]
        assert hand(store, send("a"), limits=few) == [None]  # it is there already

    def test_a_conversation_that_was_left_takes_nothing(self, store: SharedStore) -> None:
        store.apply(Changes(conversations={"c1": conversation(left=True)}))
        assert hand(store, send("a"), MarkRead(conversation="c1", seq=1)) == [NotFound, None]

    def test_nothing_handed_over_is_nothing(self, store: SharedStore) -> None:
        assert hand(store) == []
        assert store.handed_over(0) == []

    def test_a_closed_store_takes_nothing(self, store: SharedStore) -> None:
        store.close()
        with pytest.raises(StoreError):
            hand(store, send("a"))
        with pytest.raises(StoreError):
            store.handed_over(0)
