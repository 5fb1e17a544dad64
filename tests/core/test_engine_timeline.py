"""The timeline through the engine: no gap, no double, order, floors, epochs, the local echo."""

from __future__ import annotations

from itertools import pairwise

from tests.core.rig import Rig, delivered, event, head, of_kind, sends
from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.model import MessageReceived


def seen(rig: Rig) -> list[int | None]:
    return [e.message.seq for e in rig.events if isinstance(e, MessageReceived)]


def fetches(rig: Rig, link: int) -> list[p.Fetch]:
    return [item for item in rig.take(link) if isinstance(item, p.Fetch)]


def page(
    *seqs: int, since: int, head: int, floor: int = 0, epoch: str = "e1", ids: tuple[str, ...] = ()
) -> p.Page:
    return p.Page(
        conversation="c1",
        epoch=epoch,
        since=since,
        events=tuple(
            event(seq, epoch=epoch, id=id) for seq, id in zip(seqs, ids or ("",) * len(seqs), strict=True)
        ),
        head=head,
        floor=floor,
    )


def test_stream_1_2_5_6() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, event(1), event(2), event(5), event(6))
    assert seen(rig) == [1, 2]
    (fetch,) = fetches(rig, link)
    assert fetch.since == 2
    rig.receive(link, page(3, 4, since=2, head=6))
    assert seen(rig) == [1, 2, 3, 4, 5, 6]
    assert [m.seq for m in rig.store.messages("c1")] == [1, 2, 3, 4, 5, 6]


def test_repeats_are_dropped() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, event(1), event(1), event(2), event(1), event(2))
    assert seen(rig) == [1, 2]


def test_what_came_beyond_a_gap_survives_a_restart() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, event(1), event(3))
    rig.restart()
    rig.opened.clear()
    link = rig.connect(head(3))
    rig.lose(link)
    rig.opened.clear()
    rig.run(rig.now + 1)
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    rig.receive(link, rig.welcome(head(3)))
    (fetch,) = fetches(rig, link)
    assert fetch.since == 1
    rig.receive(link, page(2, since=1, head=3))
    assert seen(rig) == [1, 2, 3]


def test_a_gap_is_fetched_again_when_the_answer_is_lost() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, event(2))
    assert len(fetches(rig, link)) == 1
    rig.lose(link)
    rig.opened.clear()
    rig.run(rig.now + 1)
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    rig.receive(link, rig.welcome())
    assert len(fetches(rig, link)) == 1


def test_the_floor_is_a_legitimate_hole() -> None:
    rig = Rig()
    link = rig.connect()
    rig.receive(link, p.Heads(heads=(head(12, floor=10),)))
    (fetch,) = fetches(rig, link)
    assert fetch.since == 10
    rig.receive(link, page(11, 12, since=10, head=12, floor=10))
    assert seen(rig) == [11, 12]


def relink(rig: Rig, *heads: p.Head) -> int:
    """Let the engine, which lost its link, find another; gives it, once welcomed."""
    rig.opened = [link for link in rig.opened if link not in rig.closed]
    return rig.connect(*heads)


def test_a_new_epoch_forgets_the_history_and_keeps_what_is_unsent() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, event(1), event(2))
    unsent = rig.send("mine")
    rig.take(link)
    rig.receive(link, p.Heads(heads=(head(1, epoch="e2"),)))
    assert link in rig.closed
    new = relink(rig, head(1, epoch="e2"))
    rig.receive(new, page(1, since=0, head=1, epoch="e2"))
    assert [m.seq for m in rig.store.messages("c1")] == [1, None]
    assert rig.state(unsent) == "sending"
    assert seen(rig) == [1, 2, 1]  # told live again; a durable consumer is not: it came before
    assert [m.seq for m in rig.store.arrivals(0)] == [1, None]


def delivered_and_replaced(rig: Rig) -> tuple[int, list[str]]:
    """Three own messages, entries 1 to 3, and one unsent; then the server's history is another."""
    link = rig.connect(head())
    ids = [rig.send(key) for key in ("one", "two", "three")]
    for seq, send in enumerate(sends(rig.take(link)), 1):
        rig.receive(link, delivered(send, seq, ids[seq - 1]))
    rig.engine.submit(c.Disconnect(), rig.now)
    ids.append(rig.send("four"))
    rig.engine.submit(c.Connect(), rig.now)
    return relink(rig, head(1, epoch="e2")), ids


def test_own_messages_that_the_new_history_lacks_are_offered_again_in_their_order() -> None:
    rig = Rig()
    link, ids = delivered_and_replaced(rig)
    # The hello waited for the disk, the first link was given up for it, and nothing leaves before the page.
    new = link if rig.engine.link.active == link else relink(rig, head(1, epoch="e2"))
    assert [rig.state(id) for id in ids] == ["pending"] * 4
    rig.settle()
    assert not sends(rig.take(new))
    explained = rig.engine.explain(ids[0], rig.now)
    assert explained is not None
    assert "history" in explained.blocked_by
    rig.receive(new, page(1, since=0, head=1, epoch="e2", ids=(ids[0],)))
    offered = sends(rig.take(new))
    assert [(send.key, send.stream, send.n) for send in offered] == [
        ("two", 2, 1),
        ("three", 2, 2),
        ("four", 2, 3),
    ]
    assert rig.state(ids[0]) == "delivered"
    for seq, send in enumerate(offered, 2):
        rig.receive(new, delivered(send, seq, ids[seq - 1], epoch="e2"))
    assert [m.id for m in rig.store.messages("c1")] == ids
    assert [m.seq for m in rig.store.messages("c1")] == [1, 2, 3, 4]
    assert rig.engine.pending == 0
    assert len({m.position for m in rig.store.arrivals(0)}) == 4


def test_a_restart_in_the_middle_of_it_changes_nothing() -> None:
    rig = Rig()
    _, ids = delivered_and_replaced(rig)
    rig.restart()
    new = rig.connect(head(1, epoch="e2"))
    assert not sends(rig.take(new))
    rig.receive(new, page(1, since=0, head=1, epoch="e2", ids=(ids[0],)))
    assert [send.key for send in sends(rig.take(new))] == ["two", "three", "four"]
    rig.restart()
    new = rig.connect(head(1, epoch="e2"))
    rig.settle()
    assert [(entry.row.stream, entry.row.n) for entry in rig.engine.outbox.by_id.values()] == [
        (2, 1),
        (2, 2),
        (2, 3),
    ]


def test_no_link_is_greeted_while_a_reset_is_being_written() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 1, id))
    rig.engine.receive(link, p.Heads(heads=(head(0, epoch="e2"),)), rig.now)
    changes = rig.engine.take_changes()
    assert changes is not None
    assert changes.resets == ["c1"]
    rig.act()
    new = next(number for number in rig.opened if number not in rig.closed)
    rig.engine.opened(new, rig.now)
    rig.act()
    assert not rig.take(new)
    rig.engine.committed(rig.now, rig.store.apply(changes))
    rig.act()
    assert [type(item) for item in rig.take(new)] == [p.Hello]


def test_the_local_echo_and_the_confirmed_message_are_one() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.receive(link, event(1), delivered(send, 2, id), event(3))
    assert seen(rig) == [1, 2, 3]
    messages = rig.store.messages("c1")
    assert [m.seq for m in messages] == [1, 2, 3]
    assert messages[1].key == "mine"
    assert [m.position for m in rig.store.arrivals(0)] == [1, 2, 3]


def test_an_own_message_whose_answer_was_lost_is_settled_by_the_page() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("mine")
    rig.take(link)
    rig.receive(link, p.Heads(heads=(head(1),)))
    rig.receive(
        link,
        p.Page(conversation="c1", epoch="e1", since=0, events=(event(1, id=id),), head=1),
    )
    assert rig.state(id) == "delivered"
    assert rig.engine.pending == 0
    assert [m.id for m in rig.store.messages("c1")] == [id]


def test_own_beyond_a_gap_takes_its_place_once_the_gap_is_closed() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 3, id))
    assert rig.state(id) == "delivered"
    assert seen(rig) == []
    rig.receive(link, page(1, 2, since=0, head=3))
    assert seen(rig) == [1, 2, 3]
    assert rig.store.messages("c1")[-1].id == id


def test_receipts_are_told_after_the_commit_and_not_more_than_once_a_second() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.engine.receive(link, event(1), rig.now)
    rig.act()
    assert of_kind(rig.take(link), p.Received) == []
    rig.settle()
    assert [item.seq for item in rig.take(link) if isinstance(item, p.Received)] == [1]
    rig.receive(link, event(2), event(3))
    assert of_kind(rig.take(link), p.Received) == []
    rig.run(1.1)
    assert [item.seq for item in rig.take(link) if isinstance(item, p.Received)] == [3]
    rig.receive(link, p.Receipts(conversation="c1", receipts=(("anna", 3, 0),)))
    rig.run(5.0)
    assert of_kind(rig.take(link), p.Received) == []


def test_of_own_messages_nobody_is_told_that_they_were_received() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 1, id))
    rig.run(5.0)
    assert of_kind(rig.take(link), p.Received) == []
    rig.receive(link, event(2))
    assert [item.seq for item in rig.take(link) if isinstance(item, p.Received)] == [2]
    rig.receive(link, p.Receipts(conversation="c1", receipts=(("anna", 2, 0),)))
    id = rig.send("mine too")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 3, id))
    rig.lose(link)
    again = rig.connect(head(3))
    rig.run(10.0)
    assert of_kind(rig.take(again), p.Received) == []


def test_who_has_read_does_not_say_besides_that_it_has_received() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, event(1))
    rig.take(link)
    rig.receive(link, event(2))
    rig.engine.submit(c.MarkRead(conversation="c1", seq=2), rig.now)
    rig.settle()
    rig.run(1.1)
    told = [item for item in rig.take(link) if isinstance(item, p.Received | p.Read)]
    assert told == [p.Read(conversation="c1", seq=2)]
    rig.receive(link, event(3))
    rig.run(2.2)
    told = [item for item in rig.take(link) if isinstance(item, p.Received | p.Read)]
    assert told == [p.Received(conversation="c1", seq=3)]


def test_an_own_message_is_read_when_all_others_have_read_it() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 1, id))
    rig.receive(link, p.Receipts(conversation="c1", receipts=(("ben", 1, 0),)))
    assert rig.state(id) == "delivered"
    rig.receive(link, p.Receipts(conversation="c1", receipts=(("ben", 1, 1),)))
    assert rig.state(id) == "read"
    rig.receive(link, p.Receipts(conversation="c1", receipts=(("ben", 0, 0),)))
    assert rig.state(id) == "read"


def test_what_all_others_have_read_stays_read_when_one_leaves_and_another_comes() -> None:
    def of(*members: str) -> p.Head:
        return p.Head(conversation="c1", epoch="e1", seq=0, members=("anna", *members))

    rig = Rig()
    link = rig.connect(of("ben", "cy"))
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 1, id))
    rig.receive(link, p.Receipts(conversation="c1", receipts=(("ben", 1, 1),)))
    assert rig.state(id) == "delivered"
    rig.receive(link, p.Heads(heads=(of("ben"),)))
    assert rig.state(id) == "read"
    rig.receive(link, p.Heads(heads=(of("ben", "dan"),)))
    assert rig.state(id) == "read"


def test_the_sync_token_is_stored_and_offered_again() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, p.Heads(sync="s9"))
    rig.lose(link)
    rig.opened.clear()
    rig.restart()
    rig.engine.submit(c.SetToken(token="t"), rig.now)
    rig.engine.submit(c.Connect(), rig.now)
    rig.settle()
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    (hello,) = rig.take(link)
    assert isinstance(hello, p.Hello)
    assert hello.sync == "s9"


def test_an_unknown_item_is_counted_and_skipped() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, p.Unknown(tag="from_the_future"), event(1))
    assert seen(rig) == [1]
    assert rig.engine.items.counts["unknown"] == 1


def test_a_conversation_that_is_gone_is_left() -> None:
    rig = Rig()
    link = rig.connect(head(3))
    rig.take(link)
    rig.engine.timeline.logs["c1"].fetching = link
    rig.receive(link, p.Error(code="not_found", conversation="c1"))
    (conversation,) = rig.store.conversations()
    assert conversation.status == "left"


def test_an_own_message_settled_long_ago_stays_delivered_when_it_comes_with_a_page() -> None:
    rig = Rig(c.Settings(out_of_order_max=0))
    link = rig.connect(head())
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 2, id))
    assert rig.state(id) == "delivered"
    rig.receive(
        link,
        p.Page(conversation="c1", epoch="e1", since=0, events=(event(1), event(2, id=id)), head=2),
    )
    assert rig.state(id) == "delivered"
    assert seen(rig) == [1, 2]


def test_a_welcome_for_another_device_is_not_taken() -> None:
    rig = Rig()
    rig.engine.submit(c.SetToken(token="t"), rig.now)
    rig.engine.submit(c.Connect(), rig.now)
    rig.settle()
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    rig.receive(link, p.Welcome(user="anna", device="another", history="h", sync="s"))
    assert link in rig.closed
    assert rig.engine.tokens.signed_out


def test_an_own_message_confirmed_twice_within_one_commit_keeps_its_place() -> None:
    rig = Rig(c.Settings(out_of_order_max=0))
    link = rig.connect(head(2))
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.engine.receive(link, delivered(send, 3, id), rig.now)
    rig.receive(
        link,
        p.Page(conversation="c1", epoch="e1", since=0, events=(event(1), event(2), event(3, id=id)), head=3),
    )
    assert [m.id for m in rig.store.arrivals(0)] == ["m1", "m2", id]


def test_what_was_queued_before_the_first_sign_in_has_its_sender_afterwards() -> None:
    rig = Rig()
    id = rig.send("early")
    rig.connect(head())
    message = rig.store.message(id)
    assert message is not None
    assert message.sender == "anna"


def test_pages_shrink_on_a_slow_link_and_grow_again() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, p.Heads(heads=(head(1000),)))
    limits = []
    for took_s in (3.0, 3.0, 3.0, 3.0, 3.0, 0.1, 0.1):
        (fetch,) = fetches(rig, link)
        limits.append(fetch.limit)
        rig.now += took_s
        rig.receive(link, page(fetch.since + 1, since=fetch.since, head=1000))
    assert limits == [100, 50, 25, 12, 10, 10, 20]


def test_receipts_of_many_members_are_written_once_a_commit() -> None:
    rig = Rig()
    link = rig.connect(head())
    for number in range(200):
        rig.engine.receive(link, p.Receipts(conversation="c1", receipts=((f"u{number}", 1, 0),)), rig.now)
    rig.settle()
    rig.restart()
    assert len(rig.engine.timeline.logs["c1"].row.receipts) == 200


def test_a_new_epoch_before_the_old_place_was_written_waits_for_the_next_link() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.engine.receive(link, event(1), rig.now)
    rig.engine.receive(link, delivered(send, 2, id), rig.now)
    rig.receive(link, p.Heads(heads=(head(3, epoch="e2"),)))
    assert link in rig.closed
    new = relink(rig, head(3, epoch="e2"))
    new = relink(rig, head(3, epoch="e2"))
    rig.receive(new, page(1, 2, 3, since=0, head=3, epoch="e2"))
    assert [m.id for m in rig.store.messages("c1")] == ["m1", "m2", "m3", id]
    rig.restart()
    assert rig.engine.timeline.logs["c1"].row.position == 3


def test_members_follow_the_order_of_the_log_and_not_of_arrival() -> None:
    def member(seq: int, user: str, action: str) -> p.Event:
        body = f'{{"user":"{user}","action":"{action}"}}'
        return p.Event(
            conversation="c1",
            epoch="e1",
            seq=seq,
            id=f"m{seq}",
            sender="anna",
            kind="member",
            format="json",
            body=body,
        )

    rig = Rig()
    link = rig.connect(head())
    rig.receive(link, member(3, "zoe", "removed"))
    rig.receive(
        link,
        p.Page(conversation="c1", epoch="e1", since=0, events=(event(1), member(2, "zoe", "joined")), head=3),
    )
    assert rig.store.conversations()[0].members == ("anna", "ben")


def test_what_is_known_of_the_logs_is_compared_with_a_ping_at_most_every_thirty_seconds() -> None:
    rig = Rig()
    link = rig.connect(head(2), head(3, conversation="c2"))
    rig.take(link)
    asked: list[tuple[float, p.Compare]] = []
    pings = 0
    for _ in range(1_000):
        rig.run(rig.now + 0.25)
        for item in rig.take(link):
            if isinstance(item, p.Ping):
                pings += 1
                rig.receive(link, p.Pong(id=item.id))
            elif isinstance(item, p.Compare):
                asked.append((rig.now, item))
    assert pings > len(asked) > 3
    assert {item.version for _, item in asked} == {5}
    assert all(then - before >= 30.0 for (before, _), (then, _) in pairwise(asked))
    rig.receive(link, p.Heads(heads=(head(4),)))
    assert rig.engine.timeline.version == 7
