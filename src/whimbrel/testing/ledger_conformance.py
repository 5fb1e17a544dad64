"""What every implementation of ``server.ledger.Ledger`` must do, as tests to inherit from. Needs pytest.

Subclass ``LedgerConformance`` in a test file as ``Test…`` and define ``make``; pytest then runs all
of it against that ledger. Here is who may see what: members, floors, pages, heads, receipts. How
numbers are settled is inherited from ``ledger_conformance_settle``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from whimbrel import protocol as p
from whimbrel.model import message_id
from whimbrel.server import ledger as led
from whimbrel.testing.ledger_conformance_settle import (
    DEVICE,
    NOW,
    OTHER_DEVICE,
    SettleConformance,
    add,
    append,
    create,
    log,
    one,
    receipt,
    remove,
)


class LedgerConformance(SettleConformance):
    """Everything a ledger must do."""

    # --- conversations and members -------------------------------------------------------------

    def test_creation_is_the_first_entry(self, ledger: led.Ledger) -> None:
        made = one(ledger, create("c2", "ben", title="Täglich"))
        assert (made.info.id, made.info.title, made.info.seq, made.info.floor) == ("c2", "Täglich", 1, 0)
        assert made.info.members == ("ann", "ben")
        (event,) = made.events
        assert log(ledger, "ben", "c2") == [event]
        assert (event.kind, event.sender, event.format, event.seq) == ("info", "ann", "json", 1)
        assert event.id == message_id("conversation:c2", "1")
        assert event.epoch == made.info.epoch
        assert p.decode_content("json", event.body) == {"title": "Täglich", "members": ["ann", "ben"]}
        (first,) = ledger.conversations("ann")[:1]
        assert first.epoch != made.info.epoch

    def test_creation_repeated(self, ledger: led.Ledger) -> None:
        one(ledger, append(1))
        commit = ledger.commit
        again = one(ledger, create("c1", "ben", "ann", "ben"))
        assert again.events == ()
        assert again.info == ledger.conversations("ann")[0]
        for other in (create(title="Other"), create("c1", "ann"), create(user="ben")):
            assert one(ledger, other).code == "conflict"
        assert ledger.commit == commit

    @pytest.mark.parametrize(
        ("operation", "code"),
        [
            (create("", "ann"), "invalid"),
            (create("c" * 65), "invalid"),
            (create("c2", title="t" * 201), "invalid"),
            (create("c2", "ann", ""), "invalid"),
            (create("c2", *(f"u{n}" for n in range(p.MEMBERS_MAX))), "too_large"),
            (add(""), "invalid"),
            (add("u" * 65), "invalid"),
        ],
    )
    def test_invalid_operations(self, ledger: led.Ledger, operation: Any, code: str) -> None:
        commit = ledger.commit
        outcome = one(ledger, operation)
        assert isinstance(outcome, led.Refused)
        assert outcome.code == code
        assert ledger.commit == commit

    def test_members_are_bounded(self, ledger: led.Ledger) -> None:
        one(ledger, create("c2", *(f"u{n}" for n in range(p.MEMBERS_MAX - 1))))
        assert one(ledger, add("late", conversation="c2")).code == "too_large"
        one(ledger, remove("u0", conversation="c2"))
        assert isinstance(one(ledger, add("late", conversation="c2")), led.ConversationSet)

    def test_new_member_sees_from_its_joining_on(self, ledger: led.Ledger) -> None:
        ledger.apply([append(1), append(2)], NOW)
        joined = one(ledger, add("eve", by="ben"))
        (event,) = joined.events
        assert (event.seq, event.kind, event.sender, event.format) == (4, "member", "ben", "json")
        expected = {"user": "eve", "action": "joined", "by": "ben"}
        assert p.decode_content("json", event.body) == expected
        assert joined.info.members == ("ann", "ben", "eve")
        assert ledger.members("c1") == ("ann", "ben", "eve")
        one(ledger, append(3))
        assert [entry.seq for entry in log(ledger, "eve")] == [4, 5]
        (info,) = ledger.conversations("eve")
        assert (info.floor, info.seq) == (3, 5)
        again = one(ledger, add("eve"))
        assert again.events == ()
        assert ledger.find("eve", "c1", message_id(DEVICE, "c1-1-2")) is None
        assert ledger.find("eve", "c1", message_id(DEVICE, "c1-1-3")) == 5
        assert ledger.find("ann", "c1", message_id(DEVICE, "c1-1-2")) == 3
        assert ledger.find("ann", "nowhere", message_id(DEVICE, "c1-1-2")) is None
        assert ledger.find("ann", "c1", "nothing") is None

    def test_version_is_how_far_all_logs_of_a_member_go(self, ledger: led.Ledger) -> None:
        before = ledger.version("ben")
        ledger.apply([append(1), create("c2", "ben")], NOW)
        assert ledger.version("ben") == before + 2
        assert ledger.version("eve") == 0
        one(ledger, remove("ben", conversation="c1", by="ben"))
        assert ledger.version("ben") == 1

    @pytest.mark.parametrize("by", ["ann", "ben"])
    def test_past_member_sees_up_to_its_leaving(self, ledger: led.Ledger, by: str) -> None:
        one(ledger, append(1))
        gone = one(ledger, remove("ben", by=by))
        (event,) = gone.events
        action = "left" if by == "ben" else "removed"
        assert p.decode_content("json", event.body) == {"user": "ben", "action": action, "by": by}
        one(ledger, append(2))
        assert [entry.seq for entry in log(ledger, "ben")] == [1, 2, 3]
        page = ledger.page("ben", "c1")
        assert page is not None
        assert page.head == 3
        assert ledger.find("ben", "c1", message_id(DEVICE, "c1-1-2")) is None
        assert ledger.conversations("ben") == []
        assert ledger.members("c1") == ("ann",)
        refused = one(ledger, append(1, "z", user="ben", device=OTHER_DEVICE))
        assert (refused.reason, refused.code) == ("rejected", "not_found")
        assert one(ledger, add("eve", by="ben")).code == "not_found"
        assert one(ledger, receipt("ben", 3)).code == "not_found"

    def test_leaving_repeated(self, ledger: led.Ledger) -> None:
        one(ledger, remove("ben", by="ben"))
        one(ledger, append(1))
        commit = ledger.commit
        again = one(ledger, remove("ben", by="ben"))
        # A past member is told where its log ends, and not who is there now.
        assert (again.events, again.info.seq, again.info.members) == ((), 2, ())
        assert one(ledger, remove("ben")).events == ()
        assert one(ledger, remove("nobody")).events == ()
        assert ledger.commit == commit

    def test_coming_back_moves_the_floor(self, ledger: led.Ledger) -> None:
        ledger.apply([remove("ben"), append(1), add("ben"), append(2)], NOW)
        assert [entry.seq for entry in log(ledger, "ben")] == [4, 5]
        (head,) = ledger.heads("ben", 1)
        assert (head.floor, head.seq, head.left, head.members) == (3, 5, False, ("ann", "ben"))
        assert isinstance(one(ledger, append(1, "z", user="ben", device=OTHER_DEVICE)), led.Committed)

    # --- pages ---------------------------------------------------------------------------------

    def test_pages_both_ways(self, ledger: led.Ledger) -> None:
        ledger.apply([append(n) for n in range(1, 30)], NOW)

        def seqs(**where: Any) -> tuple[int, list[int]]:
            page = ledger.page("ben", "c1", **where)
            assert page is not None
            assert (page.head, page.floor, page.conversation) == (30, 0, "c1")
            return page.since, [event.seq for event in page.events]

        assert seqs(limit=3) == (0, [1, 2, 3])
        assert seqs(since=3, limit=2) == (3, [4, 5])
        assert seqs(since=28) == (28, [29, 30])
        assert seqs(since=30) == (30, [])
        assert seqs(since=99) == (99, [])
        assert seqs(before=31, limit=3) == (27, [28, 29, 30])
        assert seqs(before=1 << 70, limit=1) == (29, [30])
        assert seqs(before=3) == (0, [1, 2])
        assert seqs(before=1) == (0, [])
        assert seqs(since=4, before=7) == (4, [5, 6])
        assert seqs(limit=0) == (0, [1])
        assert len(seqs(limit=10_000)[1]) == 30
        assert len(seqs(since=-5)[1]) == 30

    def test_page_is_limited_in_entries_and_bytes(self, ledger: led.Ledger) -> None:
        ledger.apply([append(n) for n in range(1, 121)], NOW)
        page = ledger.page("ann", "c1", limit=1_000)
        assert page is not None
        assert len(page.events) == p.PAGE_MAX
        big = "y" * (200 * 1024)
        ledger.apply([append(n, body=big) for n in range(121, 131)], NOW)
        for where in ({"since": 121}, {"before": 132}):
            part = ledger.page("ann", "c1", **where)
            assert part is not None
            assert 1 <= len(part.events) < 10
            assert len(p.encode([part])) <= p.FRAME_BYTES_MAX
        assert len(log(ledger)) == 131

    def test_largest_entry_fits_one_frame(self, ledger: led.Ledger) -> None:
        body = "\1" * (p.FRAME_BYTES_MAX // 8 - 1_000)
        assert isinstance(one(ledger, append(1, body=body)), led.Committed)
        page = ledger.page("ann", "c1", since=1)
        assert page is not None
        assert len(p.encode([page])) <= p.FRAME_BYTES_MAX

    # --- heads and receipts --------------------------------------------------------------------

    def test_heads_of_a_newcomer_say_everything(self, ledger: led.Ledger) -> None:
        ledger.apply([append(1), create("c0", "ben"), receipt("ben", 2, 1)], NOW)
        heads = ledger.heads("ann", 0)
        assert [head.conversation for head in heads] == ["c0", "c1"]
        assert heads[1] == p.Head(
            conversation="c1",
            epoch=heads[1].epoch,
            seq=2,
            title="A title",
            members=("ann", "ben"),
            receipts=(("ben", 2, 1),),
        )
        assert ledger.heads("nobody", 0) == []

    def test_heads_tell_what_changed(self, ledger: led.Ledger) -> None:
        one(ledger, create("c2", "ben"))
        start = ledger.commit
        assert ledger.heads("ann", start) == []
        one(ledger, append(1))
        (head,) = ledger.heads("ann", start)
        assert (head.conversation, head.seq) == ("c1", 2)
        assert (head.title, head.members, head.receipts) == (None, None, ())
        # A receipt is news for the others, and none for the one who gave it.
        start = ledger.commit
        one(ledger, receipt("ben", 2))
        (head,) = ledger.heads("ann", start)
        assert (head.seq, head.members, head.receipts) == (2, None, (("ben", 2, 0),))
        assert ledger.heads("ben", start) == []
        start = ledger.commit
        one(ledger, add("eve"))
        (head,) = ledger.heads("ann", start)
        assert (head.seq, head.members, head.receipts) == (3, ("ann", "ben", "eve"), ())
        # Who joined since is told everything, whenever it changed.
        (head,) = ledger.heads("eve", start)
        assert (head.floor, head.title, head.members) == (2, "A title", ("ann", "ben", "eve"))
        assert head.receipts == (("ben", 2, 0),)

    def test_heads_tell_a_leaving_once(self, ledger: led.Ledger) -> None:
        start = ledger.commit
        one(ledger, remove("ben"))
        one(ledger, append(1))
        (head,) = ledger.heads("ben", start)
        assert head == p.Head(conversation="c1", epoch=head.epoch, seq=2, left=True)
        assert ledger.heads("ben", ledger.commit) == []
        assert ledger.heads("ben", 0) == []
        one(ledger, append(2))
        assert ledger.heads("ben", ledger.commit - 1) == []

    def test_heads_after_many_changes(self, ledger: led.Ledger) -> None:
        start = ledger.commit
        ledger.apply([create(f"x{n:04}", "ben", user="eve") for n in range(400)], NOW)
        one(ledger, append(1))
        assert [head.conversation for head in ledger.heads("ann", start)] == ["c1"]
        assert [head.conversation for head in ledger.heads("ben", start)] == [
            "c1",
            *(f"x{n:04}" for n in range(400)),
        ]

    def test_receipts_merge_by_max_and_end_at_the_head(self, ledger: led.Ledger) -> None:
        ledger.apply([append(n) for n in range(1, 10)], NOW)

        def moved(received: int, read: int) -> tuple[int, int, bool]:
            outcome = one(ledger, receipt("ben", received, read))
            assert (outcome.conversation, outcome.user) == ("c1", "ben")
            return outcome.received, outcome.read, outcome.changed

        assert moved(4, 0) == (4, 0, True)
        assert moved(3, 0) == (4, 0, False)
        # What was read was received.
        assert moved(0, 6) == (6, 6, True)
        assert moved(5, 5) == (6, 6, False)
        assert moved(1 << 70, 0) == (10, 6, True)
        assert moved(-1, -1) == (10, 6, False)
        (head,) = ledger.heads("ann", 0)
        assert head.receipts == (("ben", 10, 6),)

    def test_sending_moves_no_receipt(self, ledger: led.Ledger) -> None:
        one(ledger, append(1))
        (head,) = ledger.heads("ben", 0)
        assert head.receipts == ()

    def test_receipts_of_past_members_are_not_told(self, ledger: led.Ledger) -> None:
        ledger.apply([append(1), receipt("ben", 2, 2), remove("ben")], NOW)
        (head,) = ledger.heads("ann", 0)
        assert (head.members, head.receipts) == (("ann",), ())
        start = ledger.commit
        one(ledger, add("ben"))
        (head,) = ledger.heads("ann", start)
        assert head.receipts == (("ben", 2, 2),)

    def test_old_heads_and_what_changed_since_give_the_new_heads(self, ledger: led.Ledger) -> None:
        known = {head.conversation: head for head in ledger.heads("ann", 0)}
        at = ledger.commit
        steps: list[list[Any]] = [
            [append(1), receipt("ben", 2)],
            [create("c2", "ben"), append(1, conversation="c2"), add("eve")],
            [receipt("eve", 3, 3), receipt("ben", 3, 1), append(2)],
            [remove("ben"), remove("ann", by="ann", conversation="c2")],
            [append(3), add("ben"), receipt("ben", 9)],
        ]
        for step in steps:
            ledger.apply(step, NOW)
            for news in ledger.heads("ann", at):
                if news.left:
                    del known[news.conversation]
                    continue
                old = known.get(news.conversation, news)
                members = old.members if news.members is None else news.members
                receipts = {user: (received, read) for user, received, read in old.receipts}
                receipts |= {user: (received, read) for user, received, read in news.receipts}
                known[news.conversation] = msgspec.structs.replace(
                    news,
                    title=old.title if news.title is None else news.title,
                    members=members,
                    receipts=tuple((u, *r) for u, r in sorted(receipts.items()) if u in (members or ())),
                )
            at = ledger.commit
            fresh = {head.conversation: head for head in ledger.heads("ann", 0)}
            assert known == fresh

    def test_values_never_print_content(self, ledger: led.Ledger) -> None:
        operation = append(1, "secret", body="hidden")
        told = repr((ledger, operation, one(ledger, operation), ledger.page("ann", "c1")))
        assert "hidden" not in told
        assert "secret" not in told

    def test_head_is_the_one_of_heads(self, ledger: led.Ledger) -> None:
        start = ledger.commit
        one(ledger, create("c2", "ben", "cat"))
        made = ledger.commit
        one(ledger, append(1))
        one(ledger, receipt("ben", 1, conversation="c2"))
        one(ledger, remove("cat", conversation="c2"))
        for user in ("ann", "ben", "cat", "eve"):
            for since in (0, start, made, ledger.commit - 1, ledger.commit):
                heads = {head.conversation: head for head in ledger.heads(user, since)}
                for conversation in ("c1", "c2", "c3"):
                    assert ledger.head(user, conversation, since) == heads.get(conversation)
