"""The outbox through the engine: nothing leaves before it is on disk, everything is settled once."""

from __future__ import annotations

import pytest

from tests.core.rig import Rig, delivered, head, of_kind, sends
from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.errors import QueueFull
from whimbrel.model import MessageChanged, PermanentFailure, SendState, message_id


def test_nothing_leaves_before_it_is_on_disk() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.engine.submit(c.SendMessage(conversation="c1", key="k", format="text", body="x"), rig.now)
    rig.act()
    assert rig.take(link) == []
    changes = rig.engine.take_changes()
    assert changes is not None
    rig.act()
    assert rig.take(link) == []
    rig.store.apply(changes)
    rig.engine.committed(rig.now)
    rig.act()
    (send,) = sends(rig.take(link))
    assert (send.stream, send.n, send.key) == (1, 1, "k")


def test_numbers_are_contiguous_per_conversation_and_survive_a_restart() -> None:
    rig = Rig()
    for key in "abc":
        rig.send(key)
    rig.send("d", conversation="c2")
    rig.restart()
    rig.send("e")
    queue = rig.engine.outbox.queues["c1"]
    assert [(entry.row.key, entry.row.n) for entry in queue.entries.values()] == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("e", 4),
    ]
    assert rig.engine.outbox.queues["c2"].last_n == 1


def test_after_a_lost_link_everything_unsettled_goes_out_again_in_order() -> None:
    rig = Rig()
    link = rig.connect(head())
    ids = [rig.send(key) for key in "abcd"]
    first = sends(rig.take(link))
    assert [send.n for send in first] == [1, 2, 3, 4]
    rig.receive(link, delivered(first[0], 1, ids[0]))
    rig.lose(link)
    assert [rig.state(id) for id in ids] == ["delivered", "offline", "offline", "offline"]
    rig.engine.submit(c.Connect(), rig.now)
    rig.settle()
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    rig.receive(link, rig.welcome(head(1)))
    again = sends(rig.take(link))
    assert [send.n for send in again] == [2, 3, 4]
    assert [send.key for send in again] == ["b", "c", "d"]
    row = rig.store.row(ids[1])
    assert row is not None
    assert row.retry_count == 0


def test_the_same_key_queued_twice_is_one_message() -> None:
    rig = Rig()
    assert rig.send("k") == rig.send("k") == message_id(rig.store.device, "k")
    assert rig.engine.pending == 1


def test_a_full_queue_refuses_and_keeps_the_rest() -> None:
    rig = Rig(c.Settings(outbox_messages_max=2))
    rig.send("a")
    rig.send("b")
    with pytest.raises(QueueFull):
        rig.send("c")
    assert rig.engine.pending == 2


def test_a_final_rejection_fails_that_message_and_lets_the_rest_go_on() -> None:
    rig = Rig()
    link = rig.connect(head())
    ids = [rig.send(key) for key in "ab"]
    first, second = sends(rig.take(link))
    rig.receive(
        link,
        p.Rejected(conversation="c1", stream=1, n=first.n, code="invalid", text="no", final=True),
        delivered(second, 1, ids[1]),
    )
    assert [rig.state(id) for id in ids] == ["failed", "delivered"]
    assert rig.engine.pending == 0
    failures = [event for event in rig.events if isinstance(event, PermanentFailure)]
    assert [failure.id for failure in failures] == [ids[0]]


def test_a_server_error_waits_and_tries_again_and_then_stands_as_failed() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("k")
    waits = []
    for retry in range(1, 4):
        (send,) = sends(rig.take(link))
        rig.receive(link, p.Rejected(conversation="c1", stream=1, n=send.n, code="unavailable", text="busy"))
        assert rig.state(id) == "retrying"
        status = rig.engine.status(id)
        assert status is not None
        assert (status.retry, status.retry_max, status.mark) == (retry, 3, f"⟳ {retry}/3")
        assert sends(rig.take(link)) == []
        began = rig.now
        explanation = rig.engine.explain(id, rig.now)
        assert explanation is not None
        assert explanation.next_attempt_in_s is not None
        rig.run(began + explanation.next_attempt_in_s + 0.001)
        waits.append(explanation.next_attempt_in_s)
        keep_alive(rig, link)
    assert [round(wait) for wait in waits] == [1, 2, 4]
    (send,) = sends(rig.take(link))
    rig.receive(link, p.Rejected(conversation="c1", stream=1, n=send.n, code="unavailable", text="busy"))
    status = rig.engine.status(id)
    assert status is not None
    assert (status.state, status.can_retry) == (SendState.FAILED, True)
    rig.engine.submit(c.RetryMessage(id=id), rig.now)
    rig.settle()
    assert len(sends(rig.take(link))) == 1


def keep_alive(rig: Rig, link: int) -> None:
    """Answer the pings, as a server does."""
    for item in list(rig.sent.get(link, [])):
        if isinstance(item, p.Ping):
            rig.sent[link].remove(item)
            rig.receive(link, p.Pong(id=item.id))


def test_a_failed_message_holds_its_place() -> None:
    rig = Rig(c.Settings(retries_server_error=0))
    link = rig.connect(head())
    first, second = rig.send("a"), rig.send("b")
    rig.take(link)
    rig.receive(
        link,
        p.Rejected(conversation="c1", stream=1, n=1, code="unavailable"),
        p.OutOfOrder(conversation="c1", stream=1, expected=1),
    )
    assert rig.state(first) == "failed"
    assert sends(rig.take(link)) == []
    explanation = rig.engine.explain(second, rig.now)
    assert explanation is not None
    assert first in explanation.blocked_by
    rig.engine.submit(c.RetryMessage(), rig.now)
    rig.settle()
    assert [send.n for send in sends(rig.take(link))] == [1, 2]


def test_what_waited_behind_a_failed_message_leaves_when_that_one_turns_out_to_be_delivered() -> None:
    rig = Rig(c.Settings(retries_server_error=0))
    link = rig.connect(head())
    first, second = rig.send("a"), rig.send("b")
    (send, _) = sends(rig.take(link))
    rig.receive(
        link,
        p.Rejected(conversation="c1", stream=1, n=1, code="unavailable"),
        p.OutOfOrder(conversation="c1", stream=1, expected=1),
    )
    assert rig.state(first) == "failed"
    assert sends(rig.take(link)) == []
    rig.receive(link, delivered(send, 1, first))
    assert rig.state(first) == "delivered"
    assert [send.n for send in sends(rig.take(link))] == [2]
    assert rig.state(second) == "sending"


def test_the_rate_limit_pauses_the_whole_pipe_and_uses_no_attempt() -> None:
    rig = Rig()
    link = rig.connect(head(), head(conversation="c2"))
    first, other = rig.send("a"), rig.send("b", conversation="c2")
    rig.take(link)
    rig.receive(link, p.Rejected(conversation="c1", stream=1, n=1, code="rate_limited", retry_after_s=3.0))
    third = rig.send("c", conversation="c2")
    assert sends(rig.take(link)) == []
    rig.run(2.0)
    keep_alive(rig, link)
    assert sends(rig.take(link)) == []
    rig.run(3.1)
    assert {send.key for send in sends(rig.take(link))} == {"a", "c"}
    del other, third
    row = rig.store.row(first)
    assert row is not None
    assert row.retry_count == 0


def test_credits_are_kept() -> None:
    rig = Rig()
    welcome = rig.welcome(head())
    welcome = p.Welcome(
        user="anna",
        device=rig.store.device,
        history="h1",
        sync="s1",
        heads=(head(),),
        credits=p.Credits(rate=10.0, burst=5, available=5.0),
    )
    link = rig.connect(welcome=welcome)
    for index in range(8):
        rig.send(f"k{index}")
    assert len(sends(rig.take(link))) == 5
    rig.run(0.11)
    assert len(sends(rig.take(link))) == 1


def test_out_of_order_goes_back_and_uses_no_attempt() -> None:
    rig = Rig()
    link = rig.connect(head())
    ids = [rig.send(key) for key in "abc"]
    rig.take(link)
    rig.receive(link, p.OutOfOrder(conversation="c1", stream=1, expected=2))
    assert [send.n for send in sends(rig.take(link))] == [2, 3]
    row = rig.store.row(ids[1])
    assert row is not None
    assert row.retry_count == 0


def test_a_server_that_cannot_know_gets_a_new_stream() -> None:
    rig = Rig()
    link = rig.connect(head())
    for key in "abc":
        rig.send(key)
    (first, *_) = sends(rig.take(link))
    rig.receive(link, delivered(first, 1, message_id(rig.store.device, "a")))
    rig.receive(link, p.OutOfOrder(conversation="c1", stream=1, expected=0))
    again = sends(rig.take(link))
    assert [(send.stream, send.n, send.key) for send in again] == [(2, 1, "b"), (2, 2, "c")]
    rig.restart()
    queue = rig.engine.outbox.queues["c1"]
    assert (queue.stream, queue.last_n) == (2, 2)


def test_cancel_before_it_left_is_final_at_once_and_its_number_becomes_void() -> None:
    rig = Rig()
    id = rig.send("a")
    rig.send("b")
    rig.engine.submit(c.CancelMessage(id=id), rig.now)
    rig.settle()
    assert rig.state(id) == "cancelled"
    rig.engine.submit(c.SetToken(token="t"), rig.now)
    rig.engine.submit(c.Connect(), rig.now)
    rig.settle()
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    rig.receive(link, rig.welcome(head()))
    items = [item for item in rig.take(link) if isinstance(item, p.Send | p.Void)]
    assert [type(item) for item in items] == [p.Void, p.Send]
    rig.receive(link, p.Voided(conversation="c1", stream=1, n=1))
    assert rig.engine.pending == 1


@pytest.mark.parametrize("committed", [False, True])
def test_cancel_in_flight_is_decided_by_the_server(committed: bool) -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("a")
    (send,) = sends(rig.take(link))
    rig.engine.submit(c.CancelMessage(id=id), rig.now)
    rig.settle()
    assert rig.state(id) != "cancelled"
    assert len(of_kind(rig.take(link), p.Void)) == 1
    if committed:
        rig.receive(link, delivered(send, 1, id))
    else:
        rig.receive(link, p.Voided(conversation="c1", stream=1, n=1))
    assert rig.state(id) == ("delivered" if committed else "cancelled")
    assert rig.engine.pending == 0


def test_a_message_expires_unsent() -> None:
    rig = Rig()
    id = rig.send("a", expires_in_s=5.0)
    rig.run(6.0)
    assert rig.state(id) == "failed"
    failure = next(event for event in rig.events if isinstance(event, PermanentFailure))
    assert failure.reason.value == "expired"


def test_no_answer_is_asked_after_and_only_not_here_is_a_failure() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("a")
    rig.take(link)
    for _ in range(30):
        rig.run(rig.now + 0.5)
        keep_alive(rig, link)
    asks = of_kind(rig.take(link), p.Status)
    assert len(asks) == 1
    rig.receive(link, p.OutOfOrder(conversation="c1", stream=1, expected=1))
    assert rig.state(id) == "retrying"
    row = rig.store.row(id)
    assert row is not None
    assert [attempt.reason.value for attempt in row.attempts] == ["timeout"]


def test_a_failed_commit_takes_nothing_and_the_server_is_asked_again() -> None:
    rig = Rig()
    link = rig.connect(head())
    kept = rig.send("a")
    (send,) = sends(rig.take(link))
    rig.engine.receive(link, delivered(send, 1, kept), rig.now)
    rig.engine.submit(c.SendMessage(conversation="c1", key="lost", format="text", body="x"), rig.now)
    assert rig.engine.take_changes() is not None
    rig.engine.commit_failed(rig.now)
    rig.act()
    assert link in rig.closed
    rig.engine.reload(rig.store.load(), rig.now)
    rig.settle()
    assert rig.state(kept) == "offline"
    assert rig.engine.status(message_id(rig.store.device, "lost")) is None
    assert not [event for event in rig.events if isinstance(event, MessageChanged)]
    new = rig.opened.pop()
    rig.engine.opened(new, rig.now)
    rig.settle()
    rig.receive(new, rig.welcome(head(1)))
    (again,) = sends(rig.take(new))
    assert again.key == "a"
    rig.receive(new, delivered(again, 1, kept))
    assert rig.state(kept) == "delivered"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_refused_message_that_blocks_waits_for_the_app_and_not_for_its_expiry(restarted: bool) -> None:
    rig = Rig()
    link = rig.connect(head())
    refused = rig.send("a", on_reject="block", expires_in_s=5.0)
    rig.send("b", on_reject="block")
    rig.take(link)
    rig.receive(link, p.Rejected(conversation="c1", stream=1, n=1, code="invalid"))
    if restarted:
        rig.restart()
    rig.run(10.0)
    assert rig.engine.pending == 2
    status = rig.engine.status(refused)
    assert status is not None
    assert (status.state, status.can_retry) == (SendState.FAILED, False)
    rig.engine.submit(c.CancelMessage(id=refused), rig.now)
    rig.settle()
    row = rig.store.row(refused)
    assert row is not None
    assert row.void == "cancelled"


def test_a_blocking_message_that_expired_is_settled() -> None:
    rig = Rig()
    rig.send("a", on_reject="block", expires_in_s=5.0)
    rig.run(6.0)
    rig.engine.submit(c.SetToken(token="t"), rig.now)
    rig.engine.submit(c.Connect(), rig.now)
    rig.settle()
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    rig.receive(link, rig.welcome(head()), p.Voided(conversation="c1", stream=1, n=1, reason="expired"))
    assert rig.store.load().outbox == []


def test_a_number_that_never_gets_an_answer_is_asked_after_less_and_less_often() -> None:
    rig = Rig(c.Settings(ping_every_s=1e9, dead_after_s=1e9))
    link = rig.connect(head())
    rig.send("a")
    rig.take(link)
    rig.run(2000.0)
    asks = of_kind(rig.take(link), p.Status)
    assert 6 <= len(asks) <= 12


def test_one_long_queue_does_not_starve_the_others() -> None:
    rig = Rig()
    welcome = p.Welcome(
        user="anna",
        device=rig.store.device,
        history="h1",
        sync="s1",
        heads=(head(), head(conversation="c2")),
        credits=p.Credits(rate=10.0, burst=1, available=0.0),
    )
    link = rig.connect(welcome=welcome)
    for number in range(50):
        rig.send(f"long {number}")
    rig.send("short", conversation="c2")
    rig.run(0.35)
    assert "short" in [send.key for send in sends(rig.take(link))]


def test_a_key_in_conflict_twice_is_refused_and_not_offered_for_ever() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("a", on_reject="block")
    offered = 0
    for _ in range(10):
        for send in sends(rig.take(link)):
            offered += 1
            rig.receive(
                link,
                p.Rejected(conversation="c1", stream=send.stream, n=send.n, code="conflict", text="other"),
            )
    assert offered == 2
    assert rig.state(id) == "failed"


def test_a_void_the_server_never_takes_is_settled_and_those_behind_go_on() -> None:
    rig = Rig()
    link = rig.connect(head())
    first, second = rig.send("a"), rig.send("b")
    rig.take(link)
    rig.engine.submit(c.CancelMessage(id=first), rig.now)
    rig.settle()
    rig.receive(link, p.Rejected(conversation="c1", stream=1, n=1, code="invalid"))
    assert rig.state(first) == "cancelled"
    (again,) = [send for send in sends(rig.take(link)) if send.stream == 2]
    rig.receive(link, delivered(again, 1, second))
    assert rig.engine.pending == 0


def test_a_message_given_up_after_its_rounds_does_not_wake_the_engine_when_it_expires() -> None:
    rig = Rig(c.Settings(retries_server_error=0, retry_rounds_max=1, ping_every_s=1e9, dead_after_s=1e9))
    link = rig.connect(head(), head(conversation="c2"))
    rig.send("other", conversation="c2")
    rig.send("a", expires_in_s=5.0)
    for send in sends(rig.take(link)):
        if send.key == "a":
            rig.receive(link, p.Rejected(conversation="c1", stream=1, n=1, code="unavailable"))
    other = next(iter(rig.engine.outbox.queues["c2"].entries.values()))
    assert other.row.n == 1
    rig.receive(
        link,
        p.Delivered(conversation="c2", stream=1, n=1, id=other.row.id, epoch="e1", seq=1, at=0.0),
    )
    rig.run(60.0)  # raises if the engine spins


def test_a_rate_limit_outlives_the_link() -> None:
    rig = Rig()
    link = rig.connect(head())
    rig.send("a")
    rig.take(link)
    rig.receive(link, p.Rejected(conversation="c1", stream=1, n=1, code="rate_limited", retry_after_s=60.0))
    rig.lose(link)
    rig.opened.clear()
    rig.run(1.0)
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    rig.receive(link, rig.welcome(head()))
    assert sends(rig.take(link)) == []


def test_without_auto_resume_only_the_app_takes_a_failed_message_up_again() -> None:
    rig = Rig(c.Settings(auto_resume=False, retries_server_error=0))
    link = rig.connect(head())
    id = rig.send("a")
    rig.take(link)
    rig.receive(link, p.Rejected(conversation="c1", stream=1, n=1, code="unavailable"))
    rig.engine.submit(c.Connect(), rig.now)
    rig.settle()
    assert rig.state(id) == "failed"
    rig.engine.submit(c.RetryMessage(id=id), rig.now)
    rig.settle()
    assert len(sends(rig.take(link))) == 1
