"""What every ``server.ledger.Ledger`` must settle and how: numbers, voids, conflicts, batches.

Half of the suite of ``ledger_conformance``, which is what to use; here too is what both halves say
operations with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from whimbrel import protocol as p
from whimbrel.model import message_id
from whimbrel.server import ledger as led
from whimbrel.server.settle import METADATA_DEPTH_MAX

DEVICE = "a" * 26
OTHER_DEVICE = "b" * 26
NOW = 1_000.0


def send(n: int, key: str = "", *, conversation: str = "c1", stream: int = 1, **fields: Any) -> p.Send:
    """Give number ``n`` of a stream, under a key of its own unless one is given."""
    key = key or f"{conversation}-{stream}-{n}"
    fields = {"body": f"text of {key}", "sent_at": 900.0 + n, **fields}
    return p.Send(conversation=conversation, stream=stream, n=n, key=key, **fields)


def append(n: int, key: str = "", *, user: str = "ann", device: str = DEVICE, **fields: Any) -> led.Append:
    """Give the operation that settles number ``n`` of ann's device, or of another."""
    return led.Append(user=user, device=device, send=send(n, key, **fields))


def void(n: int, key: str = "", *, conversation: str = "c1", stream: int = 1) -> led.AppendVoid:
    """Give the operation that voids number ``n`` of ann's device."""
    key = key or f"{conversation}-{stream}-{n}"
    item = p.Void(conversation=conversation, stream=stream, n=n, key=key)
    return led.AppendVoid(user="ann", device=DEVICE, void=item)


def create(
    conversation: str = "c1", *members: str, user: str = "ann", title: str = "A title"
) -> led.CreateConversation:
    """Give the operation that creates a conversation, of ann and ben unless members are given."""
    return led.CreateConversation(
        user=user, conversation=conversation, title=title, members=members or ("ann", "ben")
    )


def add(member: str, *, by: str = "ann", conversation: str = "c1") -> led.AddMember:
    """Give the operation that adds a member."""
    return led.AddMember(user=by, conversation=conversation, member=member)


def remove(member: str, *, by: str = "ann", conversation: str = "c1") -> led.RemoveMember:
    """Give the operation that removes a member."""
    return led.RemoveMember(user=by, conversation=conversation, member=member)


def receipt(user: str, received: int = 0, read: int = 0, *, conversation: str = "c1") -> led.SetReceipt:
    """Give the operation that sets a receipt."""
    return led.SetReceipt(user=user, conversation=conversation, received=received, read=read)


def one(ledger: led.Ledger, operation: Any) -> Any:
    """Apply a single operation and give its outcome."""
    (outcome,) = apply(ledger, operation)
    return outcome


def apply(ledger: led.Ledger, *operations: Any) -> list[Any]:
    """Apply operations as one batch and give their outcomes."""
    return list(ledger.apply(operations, NOW))


def log(ledger: led.Ledger, user: str = "ann", conversation: str = "c1") -> list[p.Event]:
    """Read all that a user sees, page by page, and check that nothing is missing between."""
    events: list[p.Event] = []
    since = 0
    while True:
        page = ledger.page(user, conversation, since=since, limit=7)
        assert page is not None
        assert page.since == since
        if not page.events:
            break
        assert page.events[0].seq == max(since, page.floor) + 1
        events += page.events
        since = events[-1].seq
    assert since in (0, page.head)
    assert [event.seq for event in events] == list(range(page.floor + 1, page.head + 1))[: len(events)]
    return events


class SettleConformance:
    """Numbers, voids, conflicts, batches."""

    def make(self, path: Path) -> led.Ledger:
        """Open the ledger kept at ``path``: a new one, or what was closed there."""
        raise NotImplementedError

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Iterator[led.Ledger]:
        ledger = self.make(tmp_path / "ledger.db")
        try:
            assert isinstance(one(ledger, create()), led.ConversationSet)
            yield ledger
        finally:
            ledger.close()

    def test_send_becomes_the_next_entry(self, ledger: led.Ledger) -> None:
        sent = send(
            1,
            "order-42",
            body="{}",
            format="json",
            alg="x25519",
            role="assistant",
            metadata={"b": [1, None], "a": "ä"},
            reply_to="r" * 26,
            sent_at=12.5,
        )
        outcome = one(ledger, led.Append(user="ann", device=DEVICE, send=sent))
        (head,) = ledger.heads("ann", 0)
        expected = p.Event(
            conversation="c1",
            epoch=head.epoch,
            seq=2,
            id=message_id(DEVICE, "order-42"),
            sender="ann",
            body="{}",
            format="json",
            alg="x25519",
            role="assistant",
            metadata={"b": [1, None], "a": "ä"},
            reply_to="r" * 26,
            sent_at=12.5,
            at=NOW,
        )
        assert outcome == led.Committed(event=expected)
        assert log(ledger, "ben")[1] == expected
        assert head.seq == 2
        assert head.epoch

    def test_repeat_gives_the_same_and_writes_nothing(self, ledger: led.Ledger) -> None:
        first = one(ledger, append(1))
        commit = ledger.commit
        (again,) = ledger.apply([append(1)], NOW + 50)
        assert again == led.Committed(event=first.event, repeated=True)
        assert ledger.commit == commit
        assert len(log(ledger)) == 2

    def test_repeat_within_one_batch(self, ledger: led.Ledger) -> None:
        first, again, second = apply(ledger, append(1), append(1), append(2))
        assert again == led.Committed(event=first.event, repeated=True)
        assert second.event.seq == 3
        assert len(log(ledger)) == 3

    def test_beyond_the_next_is_ahead(self, ledger: led.Ledger) -> None:
        assert one(ledger, append(2)) == led.Ahead(expected=1)
        outcomes = ledger.apply([append(1), append(3), append(2), append(5)], NOW)
        assert [type(outcome) for outcome in outcomes] == [led.Committed, led.Ahead, led.Committed, led.Ahead]
        assert outcomes[1] == led.Ahead(expected=2)
        assert outcomes[3] == led.Ahead(expected=3)

    def test_numbers_are_per_device_conversation_and_stream(self, ledger: led.Ledger) -> None:
        one(ledger, create("c2"))
        outcomes = ledger.apply(
            [
                append(1),
                append(1, conversation="c2"),
                append(1, stream=2),
                append(1, "z", user="ben", device=OTHER_DEVICE),
            ],
            NOW,
        )
        assert [type(outcome) for outcome in outcomes] == [led.Committed] * 4
        assert [event.sender for event in log(ledger)] == ["ann", "ann", "ann", "ben"]

    def test_settled_number_under_another_key_or_content_is_a_conflict(self, ledger: led.Ledger) -> None:
        one(ledger, append(1))
        commit = ledger.commit
        for other in (append(1, "other"), append(1, body="other"), void(1, "other")):
            assert one(ledger, other).code == "conflict"
        assert ledger.commit == commit
        assert len(log(ledger)) == 2

    @pytest.mark.parametrize(
        "field", [{"format": "json"}, {"alg": "x"}, {"role": "system"}, {"metadata": {}}, {"reply_to": "r"}]
    )
    def test_every_part_of_the_content_counts(self, ledger: led.Ledger, field: dict[str, Any]) -> None:
        one(ledger, append(1))
        assert one(ledger, append(1, **field)).code == "conflict"
        assert isinstance(one(ledger, append(1, sent_at=7.0, on_reject="block")), led.Committed)

    def test_known_message_in_a_new_stream_points_to_its_entry(self, ledger: led.Ledger) -> None:
        first = one(ledger, append(1, "k"))
        again = one(ledger, append(1, "k", stream=2))
        assert again == led.Committed(event=first.event, repeated=True)
        assert len(log(ledger)) == 2
        # Its number is used up in the new stream as well, for good.
        assert one(ledger, append(1, "k", stream=2)) == again
        assert ledger.settled(DEVICE, "c1", 2, 1) == again
        assert isinstance(one(ledger, append(2, "l", stream=2)), led.Committed)

    def test_known_key_with_other_content_is_void_or_blocks(self, ledger: led.Ledger) -> None:
        one(ledger, append(1, "k"))
        blocked = one(ledger, append(2, "k", body="other", on_reject="block"))
        assert isinstance(blocked, led.Refused)
        assert blocked.code == "conflict"
        skipped = one(ledger, append(2, "k", body="other"))
        assert isinstance(skipped, led.WasVoided)
        assert (skipped.reason, skipped.code) == ("rejected", "conflict")
        # In another conversation too: a key is the device's, not the conversation's.
        one(ledger, create("c2"))
        assert one(ledger, append(1, "k", conversation="c2", body="text of k")).code == "conflict"

    def test_void_is_settled_once(self, ledger: led.Ledger) -> None:
        assert one(ledger, void(1)) == led.WasVoided(reason="cancelled")
        commit = ledger.commit
        assert one(ledger, void(1)) == led.WasVoided(reason="cancelled", repeated=True)
        # The send it withdrew, overtaken on an older link: still void.
        assert one(ledger, append(1)) == led.WasVoided(reason="cancelled", repeated=True)
        assert one(ledger, append(1, "other")).code == "conflict"
        assert ledger.commit == commit
        assert isinstance(one(ledger, append(2)), led.Committed)
        assert len(log(ledger)) == 2

    def test_void_comes_too_late(self, ledger: led.Ledger) -> None:
        first = one(ledger, append(1, "k"))
        assert one(ledger, void(1, "k")) == led.Committed(event=first.event, repeated=True)
        # Nor does it lie when the message was committed under another number.
        assert one(ledger, void(1, "k", stream=2)) == led.Committed(event=first.event, repeated=True)
        assert one(ledger, void(3)) == led.Ahead(expected=2)

    def test_voided_key_can_be_sent_under_a_later_number(self, ledger: led.Ledger) -> None:
        one(ledger, void(1, "k"))
        assert isinstance(one(ledger, append(2, "k")), led.Committed)

    def test_refused_with_skip_is_void_for_ever(self, ledger: led.Ledger) -> None:
        refused = append(1, user="eve", device=OTHER_DEVICE)
        outcome = one(ledger, refused)
        assert isinstance(outcome, led.WasVoided)
        assert (outcome.reason, outcome.code, outcome.repeated) == ("rejected", "not_found", False)
        # Being let in later changes nothing for a number that is settled.
        one(ledger, add("eve"))
        assert one(ledger, refused) == msgspec.structs.replace(outcome, repeated=True)
        changed = append(1, user="eve", device=OTHER_DEVICE, body="other")
        assert one(ledger, changed).code == "conflict"
        assert isinstance(one(ledger, append(2, user="eve", device=OTHER_DEVICE)), led.Committed)

    def test_refused_with_block_stays_expected(self, ledger: led.Ledger) -> None:
        def attempt(n: int) -> led.Append:
            return append(n, user="eve", device=OTHER_DEVICE, on_reject="block")

        commit = ledger.commit
        first, second = ledger.apply([attempt(1), attempt(2)], NOW)
        assert isinstance(first, led.Refused)
        assert first.code == "not_found"
        assert second == led.Ahead(expected=1)
        assert ledger.commit == commit
        one(ledger, add("eve"))
        assert all(isinstance(o, led.Committed) for o in ledger.apply([attempt(1), attempt(2)], NOW))

    def test_unknown_and_foreign_conversations_read_the_same(self, ledger: led.Ledger) -> None:
        foreign = one(ledger, append(1, user="eve", device=OTHER_DEVICE))
        unknown = one(ledger, append(1, user="eve", device=OTHER_DEVICE, conversation="nowhere"))
        assert foreign == unknown
        for attempt in (add, remove):
            known = one(ledger, attempt("ann", by="eve"))
            nowhere = one(ledger, attempt("ann", by="eve", conversation="nowhere"))
            assert known == nowhere
            assert known.code == "not_found"
        assert one(ledger, receipt("eve", 1)) == one(ledger, receipt("eve", 1, conversation="nowhere"))
        assert ledger.page("eve", "c1") is None
        assert ledger.page("eve", "nowhere") is None
        assert ledger.find("eve", "c1", log(ledger)[0].id) is None
        assert ledger.heads("eve", 0) == []
        assert ledger.conversations("eve") == []

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"body": "x" * (p.BODY_BYTES_MAX + 1)}, "too_large"),
            ({"body": "ä" * (p.BODY_BYTES_MAX // 2 + 1)}, "too_large"),
            ({"body": "\1" * p.BODY_BYTES_MAX}, "too_large"),
            ({"metadata": {"a": "x" * p.METADATA_BYTES_MAX}}, "too_large"),
            ({"body": "\ud800"}, "invalid"),
            ({"format": "html"}, "invalid"),
            ({"role": "root"}, "invalid"),
            ({"alg": ""}, "invalid"),
            ({"alg": "no such name"}, "invalid"),
            ({"reply_to": ""}, "invalid"),
            ({"reply_to": "r" * 65}, "invalid"),
            ({"sent_at": float("nan")}, "invalid"),
        ],
    )
    def test_invalid_content_is_void(self, ledger: led.Ledger, fields: dict[str, Any], code: str) -> None:
        outcomes = ledger.apply([append(1, **fields), append(2)], NOW)
        assert isinstance(outcomes[0], led.WasVoided)
        assert (outcomes[0].reason, outcomes[0].code) == ("rejected", code)
        assert isinstance(outcomes[1], led.Committed)

    @pytest.mark.parametrize(
        "body", ["", "x" * p.BODY_BYTES_MAX, "ä" * (p.BODY_BYTES_MAX // 2), "a\0b", "\U0001f600"]
    )
    def test_extreme_content_is_kept_as_it_is(self, ledger: led.Ledger, body: str) -> None:
        assert isinstance(one(ledger, append(1, body=body)), led.Committed)
        assert log(ledger, "ben")[1].body == body

    @pytest.mark.parametrize(
        "operation",
        [
            append(0),
            append(-1),
            append(1 << 40),
            append(1, stream=0),
            append(1, stream=1 << 60),
            append(1, conversation=""),
            append(1, conversation="c" * 65),
            append(1, "k" * 129),
            append(1, "\ud800"),
            append(1, device=""),
            void(0),
            void(1, "k" * 129),
        ],
    )
    def test_what_cannot_be_numbered_is_invalid(self, ledger: led.Ledger, operation: Any) -> None:
        commit = ledger.commit
        outcome = one(ledger, operation)
        assert isinstance(outcome, led.Refused)
        assert outcome.code == "invalid"
        assert ledger.commit == commit

    def test_bad_operation_costs_only_itself(self, ledger: led.Ledger) -> None:
        broken: Any = msgspec.structs.replace(send(2), body=7)
        outcomes = ledger.apply(
            [
                append(1),
                led.Append(user="ann", device=DEVICE, send=broken),
                add("eve"),
                append(2),
                append(1, "e", user="eve", device=OTHER_DEVICE),
            ],
            NOW,
        )
        assert isinstance(outcomes[1], led.Refused)
        assert outcomes[1].code == "unavailable"
        others = [outcomes[0], *outcomes[2:]]
        assert [type(o) for o in others] == [
            led.Committed,
            led.ConversationSet,
            led.Committed,
            led.Committed,
        ]
        assert [event.seq for event in log(ledger)] == [1, 2, 3, 4, 5]

    def test_settled_tells_of_every_number(self, ledger: led.Ledger) -> None:
        first, _, third = apply(ledger, append(1), void(2), append(3))

        def settled(n: int, stream: int = 1) -> led.Outcome | None:
            return ledger.settled(DEVICE, "c1", stream, n)

        assert settled(1) == led.Committed(event=first.event, repeated=True)
        assert settled(2) == led.WasVoided(reason="cancelled", repeated=True)
        assert settled(3) == led.Committed(event=third.event, repeated=True)
        assert settled(4) == settled(9) == led.Ahead(expected=4)
        assert settled(1, stream=2) == settled(2, stream=2) == led.Ahead(expected=1)
        assert settled(0) is None
        assert ledger.settled(OTHER_DEVICE, "c1", 1, 1) == led.Ahead(expected=1)

    def test_commit_moves_with_changes_only(self, ledger: led.Ledger) -> None:
        def moved(operation: Any) -> int:
            before = ledger.commit
            one(ledger, operation)
            return ledger.commit - before

        assert moved(append(1)) == moved(void(2)) == moved(receipt("ben", 1)) == moved(add("eve")) == 1
        assert moved(append(1)) == moved(append(9)) == moved(receipt("ben", 1)) == moved(add("eve")) == 0
        assert ledger.apply([], NOW) == []
        ledger.apply([append(3), append(4), receipt("ben", 3)], NOW)
        assert moved(append(5)) == 1

    def test_closed_ledger_is_unavailable(self, ledger: led.Ledger) -> None:
        ledger.close()
        ledger.close()
        calls: list[Callable[[], object]] = [
            lambda: ledger.apply([append(1)], NOW),
            lambda: ledger.heads("ann", 0),
            lambda: ledger.page("ann", "c1"),
        ]
        for call in calls:
            with pytest.raises(led.LedgerUnavailable):
                call()

    def test_everything_is_there_after_reopening(self, ledger: led.Ledger, tmp_path: Path) -> None:
        first, second, *_ = apply(ledger, append(1), void(2), add("eve"), receipt("ben", 2, 1))
        history, commit = ledger.history, ledger.commit
        heads, events, rooms = ledger.heads("ann", 0), log(ledger), ledger.conversations("eve")
        ledger.close()
        again = self.make(tmp_path / "ledger.db")
        try:
            assert (again.history, again.commit) == (history, commit)
            assert (again.heads("ann", 0), log(again), again.conversations("eve")) == (heads, events, rooms)
            assert one(again, append(1)) == msgspec.structs.replace(first, repeated=True)
            assert one(again, void(2)) == msgspec.structs.replace(second, repeated=True)
            assert one(again, append(4)) == led.Ahead(expected=3)
        finally:
            again.close()

    def test_metadata_nested_too_deep(self, ledger: led.Ledger) -> None:
        def nested(depth: int) -> dict[str, Any]:
            value: Any = 1
            for level in range(depth - 1):
                value = [value] if level % 2 else {"k": value}
            return {"k": value}

        for n, depth in enumerate((METADATA_DEPTH_MAX + 1, 980, 5_000), 1):
            refused = one(ledger, append(n, metadata=nested(depth)))
            assert (refused.code, refused.reason) == ("invalid", "rejected")
        deep = nested(METADATA_DEPTH_MAX)
        one(ledger, append(4, metadata=deep))
        assert log(ledger)[-1].metadata == deep
