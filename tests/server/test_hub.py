"""The hub without I/O: who hears what, in which order, exactly once."""

from __future__ import annotations

import pytest

from tests.server.hub_rig import FailingLedger, Rig
from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server.hub import ServerSettings
from whimbrel.server.ledger import AddMember, Append, Committed, LedgerUnavailable, Outcome, Refused
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.server.session import size_of


def seqs(items: list[p.ServerItem]) -> list[int]:
    return [item.seq for item in items if isinstance(item, p.Event | p.Delivered)]


def test_a_message_is_delivered_to_the_sender_and_pushed_to_everyone_else() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, tablet, bob, dan = (
        rig.connect("ann"),
        rig.connect("ann", "ann-2"),
        rig.connect("bob"),
        rig.connect("dan"),
    )
    for client in (ann, tablet, bob, dan):
        assert [type(item) for item in client.read()] == [p.Welcome]
    ann.send("c", "hello", 1)
    rig.settle()
    (delivered,) = ann.read()
    assert isinstance(delivered, p.Delivered)
    assert delivered.seq == 2
    for client in (tablet, bob):
        (event,) = client.read()
        assert isinstance(event, p.Event)
        assert (event.id, event.seq, event.body) == (delivered.id, 2, "hello")
    assert dan.read() == []


def test_a_repeated_send_is_delivered_again_and_pushed_once() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    ann.send("c", "x", 1)
    ann.send("c", "x", 1)
    rig.settle()
    ann.send("c", "x", 1)
    assert [item.seq for item in ann.take(p.Delivered)] == [2, 2, 2]
    assert [item.seq for item in bob.take(p.Event)] == [2]


def test_streams_of_two_senders_reach_everyone_in_the_order_of_the_log() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    ann.read(), bob.read()
    for n in range(1, 51):
        ann.send("c", f"a{n}", n)
        bob.send("c", f"b{n}", n)
        if n % 7 == 0:
            rig.settle()
    rig.settle()
    assert seqs(ann.read()) == seqs(bob.read()) == list(range(2, 102))


def test_hundreds_of_followers_get_one_out_of_order() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    for n in range(2, 300):
        ann.send("c", "x", n)
    assert ann.take(p.OutOfOrder) == [p.OutOfOrder(conversation="c", stream=1, expected=1)]
    assert ann.take(p.Delivered) == []


def test_a_new_hello_takes_the_device_over_and_what_the_old_link_sent_is_settled() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    old, bob = rig.connect("ann"), rig.connect("bob")
    old.send("c", "x", 1)
    new = rig.connect("ann")
    assert p.Goaway(reason="replaced") in old.read()
    assert old.closing == "replaced"
    old.send("c", "never", 2)
    new.send("c", "x", 1)
    rig.settle()
    assert old.read() == []
    assert [item.seq for item in new.read() if isinstance(item, p.Delivered)] == [2]
    assert [event.body for event in bob.take(p.Event)] == ["x"]
    rig.hub.close(old.link, rig.now)
    new.send("c", "y", 2)
    assert [item.seq for item in new.take(p.Delivered)] == [3]


def test_the_new_link_hears_of_what_the_old_one_sent() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    old = rig.connect("ann")
    old.send("c", "x", 1)
    batch = rig.hub.take_batch(rig.now)
    new = rig.connect("ann")
    rig.hub.settled(rig.ledger.apply(batch, rig.now), rig.now)
    assert seqs(new.read()) == [2]


def test_nothing_is_heard_before_hello_and_a_wrong_token_is_turned_away() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    rig.hub.open(90, rig.now)
    rig.hub.receive(90, p.Send(conversation="c", stream=1, n=1, key="k", body="x"), rig.now)
    (error,) = rig.hub.outgoing(90, rig.now)
    assert isinstance(error, p.Error)
    assert (error.code, rig.hub.closing[90]) == ("unauthorized", "unauthorized")
    rig.hub.open(91, rig.now)
    rig.hub.receive(91, p.Hello(token="mallory/m/99999"), rig.now)
    (error,) = rig.hub.outgoing(91, rig.now)
    assert isinstance(error, p.Error)
    assert error.code == "unauthorized"
    assert "mallory" not in error.text
    assert rig.settle() == 0


def test_a_link_that_never_greets_and_a_silent_one_are_closed() -> None:
    rig = Rig()
    rig.hub.open(90, rig.now)
    ann = rig.connect("ann")
    rig.pass_time(11)
    assert set(rig.hub.closing) == {90}
    ann.say(p.Ping(id=1))
    rig.pass_time(119)
    assert ann.closing is None
    rig.pass_time(2)
    assert ann.closing == "silent"


def test_an_expired_token_closes_the_link_after_a_grace_unless_renewed() -> None:
    rig = Rig(ServerSettings(silent_after_s=1e9))
    ann, bob = rig.connect("ann"), rig.connect("bob")
    rig.pass_time(890)
    ann.say(p.Auth(token=rig.token("ann")))
    bob.say(p.Auth(token="bob/bob-1/1"))
    rig.pass_time(41)
    assert (ann.closing, bob.closing) == (None, "unauthorized")
    assert [error.code for error in bob.take(p.Error)] == ["unauthorized", "unauthorized"]
    rig.pass_time(900)
    assert ann.closing == "unauthorized"


def test_a_token_of_another_device_ends_the_link() -> None:
    rig = Rig()
    ann = rig.connect("ann")
    ann.say(p.Auth(token=rig.token("bob")))
    assert ann.closing == "unauthorized"


def test_resuming_tells_what_changed_and_only_that() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    rig.create("d", "ann", "bob")
    bob = rig.connect("bob")
    (welcome,) = bob.take(p.Welcome)
    assert welcome.complete
    assert [head.conversation for head in welcome.heads] == ["c", "d"]
    rig.hub.close(bob.link, rig.now)
    ann = rig.connect("ann")
    ann.send("d", "x", 1)
    rig.settle()
    (again,) = rig.connect("bob", sync=welcome.sync).take(p.Welcome)
    assert not again.complete
    assert [(head.conversation, head.seq) for head in again.heads] == [("d", 2)]
    (new,) = rig.connect("bob", sync="another-history@1").take(p.Welcome)
    assert new.complete


def test_a_commit_between_the_ledger_and_the_hub_is_never_lost_to_who_greets_then() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    ann.send("c", "x", 1)
    batch = rig.hub.take_batch(rig.now)
    before = rig.connect("bob")
    outcomes = rig.ledger.apply(batch, rig.now)
    between = rig.connect("bob", "bob-2")
    rig.hub.settled(outcomes, rig.now)
    assert seqs(before.read()) == [2]
    items = between.read()
    assert isinstance(items[0], p.Welcome)
    assert seqs(items) == [2]
    # Its token must not pass over what the hub had not told yet.
    assert int(items[0].sync.partition("@")[2]) < rig.ledger.commit


def test_a_new_conversation_is_known_before_its_events_and_before_the_call_is_answered() -> None:
    rig = Rig()
    ann, bob = rig.connect("ann"), rig.connect("bob")
    ann.read(), bob.read()
    create = p.Call(id="1", op="create", conversation="c", title="T", members=("bob",))
    ann.say(create)
    ann.send("c", "x", 1)
    rig.settle()
    items = ann.read()
    assert [type(item) for item in items] == [p.Heads, p.Event, p.Answer, p.Delivered]
    items = bob.read()
    assert [type(item) for item in items] == [p.Heads, p.Event, p.Event]
    assert isinstance(items[0], p.Heads)
    assert (items[0].heads[0].title, set(items[0].heads[0].members or ())) == ("T", {"ann", "bob"})
    ann.say(create)
    (answer,) = ann.take(p.Answer)
    assert answer.code == ""
    assert bob.take(p.Event) == []


def test_unknown_users_and_strangers_get_the_same_answers_as_everyone() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, dan = rig.connect("ann"), rig.connect("dan")
    ann.say(p.Call(id="1", op="create", conversation="d", members=("nobody",)))
    ann.say(p.Call(id="2", op="add", conversation="c", user="nobody"))
    dan.say(p.Call(id="3", op="add", conversation="c", user="dan"))
    dan.say(p.Call(id="4", op="add", conversation="none", user="dan"))
    dan.say(p.Fetch(conversation="c"), p.Fetch(conversation="none"), p.Typing(conversation="c"))
    assert [answer.code for answer in ann.take(p.Answer)] == ["not_found"] * 2
    rig.settle()
    items = dan.read()
    assert [item.code for item in items if isinstance(item, p.Answer | p.Error)] == ["not_found"] * 4
    assert len({item.text for item in items if isinstance(item, p.Answer)}) == 1


def test_who_is_added_or_removed_within_one_batch_sees_exactly_its_own_part() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob, cat = rig.connect("ann"), rig.connect("bob"), rig.connect("cat")
    ann.read(), bob.read(), cat.read()
    ann.send("c", "before", 1)
    ann.say(p.Call(id="1", op="add", conversation="c", user="cat"))
    ann.say(p.Call(id="2", op="remove", conversation="c", user="bob"))
    ann.send("c", "after", 2)
    assert rig.settle() == 1
    assert seqs(bob.read()) == [2, 3, 4]
    items = cat.read()
    assert isinstance(items[0], p.Heads)
    assert items[0].heads[0].floor == 2
    assert seqs(items) == [3, 4, 5]


def test_list_after_create_in_one_frame_knows_the_conversation() -> None:
    rig = Rig()
    ann = rig.connect("ann")
    ann.say(p.Call(id="1", op="create", conversation="c"), p.Call(id="2", op="list"))
    answers = ann.take(p.Answer)
    assert [[info.id for info in answer.conversations] for answer in answers] == [["c"], ["c"]]


def test_status_is_answered_after_what_was_sent_before_it() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    ann.read()
    ann.send("c", "x", 1)
    ann.say(p.Void(conversation="c", stream=1, n=2, key="c 2"))
    ann.say(p.Status(conversation="c", stream=1, numbers=(1, 2, 3, 4, -1)))
    rig.settle()
    kinds = [type(item) for item in ann.read()]
    assert kinds == [p.Delivered, p.Voided, p.Delivered, p.Voided, p.OutOfOrder]


def test_a_refused_send_is_void_or_stays_expected_as_it_asked() -> None:
    rig = Rig()
    ann = rig.connect("ann")
    ann.send("none", "x", 1)
    ann.send("none", "x", 2, on_reject="block")
    first, second = ann.take(p.Rejected)
    assert (first.code, first.final) == ("not_found", True)
    assert (second.code, second.final) == ("not_found", False)


def test_a_failed_batch_refuses_its_sends_for_now_and_loses_nothing_else() -> None:
    ledger = FailingLedger()
    rig = Rig(ledger=ledger)
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    ann.read()
    answers: list[Outcome] = []
    send = ann.send("c", "x", 1)
    ann.say(p.Status(conversation="c", stream=1, numbers=(1,)))
    bob.say(p.Received(conversation="c", seq=1))
    http = p.Send(conversation="c", stream=1, n=1, key="h", body="y")
    rig.hub.submit(Append(user="bob", device="web", send=http), answers.append, rig.now)
    ledger.failures = 1
    rig.settle()
    rejected, expected = ann.read()
    assert isinstance(rejected, p.Rejected)
    assert (rejected.code, rejected.final, rejected.retry_after_s) == ("unavailable", False, 1.0)
    assert isinstance(expected, p.OutOfOrder)
    assert [type(answer) for answer in answers] == [Refused]
    assert rig.hub.take_batch(rig.now) == []
    rig.pass_time(1.0)
    ann.say(send)
    rig.settle()
    rig.pass_time(1.0)
    items = ann.read()
    assert [item.seq for item in items if isinstance(item, p.Delivered)] == [2]
    assert p.Receipts(conversation="c", receipts=(("bob", 1, 0),)) in items


def test_an_http_call_goes_through_the_same_batch_and_is_pushed() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    answers: list[Outcome] = []
    send = p.Send(conversation="c", stream=1, n=1, key="h", body="y")
    rig.hub.submit(Append(user="bob", device="bob-1", send=send), answers.append, rig.now)
    rig.settle()
    assert [type(answer) for answer in answers] == [Committed]
    # The link of the same device did not send it: it hears of it as an event.
    assert [event.body for event in ann.take(p.Event)] == ["y"]
    assert [event.body for event in bob.take(p.Event)] == ["y"]


def test_a_large_batch_is_cut_and_keeps_the_order() -> None:
    rig = Rig(ServerSettings(rate_limit=None, batch_operations_max=10))
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    for n in range(1, 36):
        ann.send("c", "x", n)
    assert rig.settle() == 4
    assert seqs(ann.read()) == list(range(2, 37))


def test_one_batch_is_in_flight_at_most() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    ann.send("c", "x", 1)
    batch = rig.hub.take_batch(rig.now)
    ann.send("c", "y", 2)
    assert len(batch) == 1
    assert rig.hub.take_batch(rig.now) == []
    rig.hub.settled(rig.ledger.apply(batch, rig.now), rig.now)
    assert len(rig.hub.take_batch(rig.now)) == 1


def test_shutdown_settles_what_waits_then_sends_everyone_away_spread_out() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    ann.read(), bob.read()
    ann.send("c", "x", 1)
    rig.hub.shutdown(rig.now, spread_s=10.0)
    assert ann.closing is None
    ann.send("c", "too late", 2)
    rig.settle()
    assert [type(item) for item in ann.read()] == [p.Delivered, p.Goaway]
    (event, goaway) = bob.read()
    assert isinstance(event, p.Event)
    assert isinstance(goaway, p.Goaway)
    assert goaway.reconnect_in_s == 5.0
    assert set(rig.hub.closing.values()) == {"shutdown"}
    assert rig.connect("ann").closing == "busy"
    with pytest.raises(errors.ServerFailed):
        rig.listen("ann")


def test_unknown_items_are_counted_and_a_broken_frame_closes() -> None:
    rig = Rig()
    ann = rig.connect("ann")
    ann.say(p.Unknown(tag="tomorrow"))
    assert ann.closing is None
    rig.hub.broken(ann.link, rig.now)
    assert [error.code for error in ann.take(p.Error)] == ["protocol"]
    assert ann.closing == "protocol"


def test_accepted_goes_right_before_delivered_if_asked_for() -> None:
    rig = Rig(ServerSettings(rate_limit=None, send_accepted=True))
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    ann.read()
    ann.send("c", "x", 1)
    rig.settle()
    accepted, delivered = ann.read()
    assert isinstance(accepted, p.Accepted)
    assert isinstance(delivered, p.Delivered)
    assert (accepted.n, accepted.id) == (delivered.n, delivered.id)


def test_what_a_closed_link_had_sent_is_settled_and_told_to_the_others() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    ann.send("c", "x", 1)
    rig.hub.close(ann.link, rig.now)
    rig.hub.take_ready()
    assert [event.body for event in bob.take(p.Event)] == ["x"]
    assert rig.hub.take_ready() == [bob.link]
    assert ann.read() == []


def test_a_token_beyond_the_ledger_asks_for_a_new_history() -> None:
    ledger = MemoryLedger()
    rig = Rig(ledger=ledger)
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    (welcome,) = ann.take(p.Welcome)
    history, _, commit = welcome.sync.partition("@")
    late = rig.connect("bob", sync=f"{history}@{int(commit) + 1}")
    assert [goaway.reason for goaway in late.take(p.Goaway)] == ["unavailable"]
    states = [rig.hub.rewound]
    ledger.begin_new_history()
    rig.hub.start_anew(rig.now)
    assert [*states, rig.hub.rewound] == [True, False]
    assert [goaway.reason for goaway in ann.take(p.Goaway)] == ["unavailable"]
    assert ann.closing == "unavailable"
    (welcome,) = rig.connect("bob", sync=f"{history}@{int(commit) + 1}").take(p.Welcome)
    assert welcome.history != history
    assert welcome.complete


def test_a_past_creator_who_creates_again_takes_nobody_out() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob", "cat")
    ann, bob, cat = rig.connect("ann"), rig.connect("bob"), rig.connect("cat")
    ann.say(p.Call(id="1", op="remove", conversation="c", user="ann"))
    rig.settle()
    ann.say(p.Call(id="2", op="create", conversation="c", members=("ann", "bob", "cat")))
    rig.settle()
    cat.read()
    bob.send("c", "x", 1)
    assert [event.body for event in cat.take(p.Event)] == ["x"]


class Unreadable(MemoryLedger):
    """Reads fail while it is told to."""

    failing = False

    def members(self, conversation: str) -> tuple[str, ...]:
        if self.failing:
            raise LedgerUnavailable("told to fail")
        return super().members(conversation)

    def conversations(self, user: str) -> list[p.ConversationInfo]:
        if self.failing:
            raise LedgerUnavailable("told to fail")
        return super().conversations(user)

    def heads(self, user: str, since_commit: int) -> list[p.Head]:
        if self.failing:
            raise LedgerUnavailable("told to fail")
        return super().heads(user, since_commit)


def test_a_batch_that_cannot_begin_is_refused_and_the_next_one_goes_on() -> None:
    ledger = Unreadable()
    rig = Rig(ledger=ledger)
    rig.create("c", "ann", "bob")
    answers: list[Outcome] = []
    ledger.failing = True
    rig.hub.submit(AddMember(user="ann", conversation="c", member="cat"), answers.append, rig.now)
    with pytest.raises(LedgerUnavailable):
        rig.hub.take_batch(rig.now)
    assert [answer.code for answer in answers if isinstance(answer, Refused)] == ["unavailable"]
    assert not rig.hub.busy
    ledger.failing = False
    rig.hub.submit(AddMember(user="ann", conversation="c", member="cat"), answers.append, rig.now)
    assert rig.settle() == 1
    assert len(answers) == 2
    assert rig.ledger.members("c") == ("ann", "bob", "cat")


def test_of_a_failed_batch_those_behind_an_unreadable_question_are_answered() -> None:
    ledger = Unreadable()
    rig = Rig(ledger=ledger)
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    answers: list[Outcome] = []
    ann.send("c", "x", 1)
    ann.say(p.Call(id="1", op="list"))
    rig.hub.submit(AddMember(user="ann", conversation="c", member="cat"), answers.append, rig.now)
    assert len(rig.hub.take_batch(rig.now)) == 2
    ledger.failing = True
    with pytest.raises(LedgerUnavailable):
        rig.hub.batch_failed(rig.now)
    assert [answer.code for answer in answers if isinstance(answer, Refused)] == ["unavailable"]


def test_telling_a_member_of_a_new_conversation_does_not_read_all_it_has() -> None:
    ledger = Unreadable()
    rig = Rig(ledger=ledger)
    ann, bob = rig.connect("ann"), rig.connect("bob")
    bob.read()
    ann.say(p.Call(id="1", op="create", conversation="c", members=("bob",)))
    batch = rig.hub.take_batch(rig.now)
    outcomes = ledger.apply(batch, rig.now)
    ledger.failing = True
    rig.hub.settled(outcomes, rig.now)
    (heads,) = [item for item in bob.read() if isinstance(item, p.Heads)]
    assert [(head.conversation, head.seq) for head in heads.heads] == [("c", 1)]


def test_a_token_of_the_very_beginning_is_a_token() -> None:
    rig = Rig()
    (first,) = rig.listen("ann").take(p.Welcome)
    assert first.complete
    (again,) = rig.listen("ann", sync=first.sync).take(p.Welcome)
    assert not again.complete
    assert again.heads == ()
    (foreign,) = rig.listen("ann", sync="other@0").take(p.Welcome)
    assert foreign.complete


def test_a_status_counts_for_all_its_numbers_and_answers_each_once() -> None:
    rig = Rig(ServerSettings(rate_limit=None, waiting_per_link_max=100))
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    ann.send("c", "x", 1)
    ann.send("c", "x", 2)
    rig.settle()
    ann.read()
    ann.say(p.Status(conversation="c", stream=1, numbers=(2, 1) * 50))
    assert rig.hub.congested(ann.link)
    assert [item.n for item in ann.take(p.Delivered)] == [1, 2]
    assert not rig.hub.congested(ann.link)


def test_what_a_link_holds_counts_metadata_and_conversations() -> None:
    event = p.Event(
        conversation="c", epoch="e", seq=1, id="i", sender="ann", body="", metadata={"k": "v" * 4_000}
    )
    assert size_of(event) > 4_000
    assert size_of(p.Page(conversation="c", epoch="e", since=0, head=1, floor=0, events=(event,))) > 4_000
    info = p.ConversationInfo(id="c", title="T", epoch="e", members=("ann",) * 1_000, seq=1, floor=0)
    assert size_of(p.Answer(id="1", conversations=(info,))) > 10_000


def test_tokens_again_and_again_are_refused_and_leave_no_heap() -> None:
    rig = Rig()
    ann = rig.connect("ann")
    ann.read()
    for _ in range(100):
        ann.say(p.Auth(token=rig.token("ann")))
    refused = ann.take(p.Error)
    assert [error.code for error in refused] == ["rate_limited"] * 99
    assert {error.retry_after_s for error in refused} == {1.0}
    for _ in range(100):
        rig.pass_time(1.0)
        ann.say(p.Auth(token=rig.token("ann")), p.Ping(id=1))
    assert ann.take(p.Error) == []
    # One note for the greeting that came in time, one for when the link is looked after.
    assert len(rig.hub._deadlines._heap) <= 2
    rig.pass_time(121)
    assert ann.closing == "silent"


def test_starting_anew_while_a_batch_is_in_flight_keeps_who_was_there_before() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob", "cat")
    ann = rig.connect("ann")
    ann.say(p.Call(id="1", op="remove", conversation="c", user="cat"))
    batch = rig.hub.take_batch(rig.now)
    outcomes = rig.ledger.apply(batch, rig.now)
    before = rig.ledger.commit
    rig.hub.start_anew(rig.now)
    cat = rig.connect("cat", sync=f"{rig.ledger.history}@{before}")
    cat.read()
    rig.hub.settled(outcomes, rig.now)
    assert [event.seq for event in cat.take(p.Event)] == [2]
    assert rig.hub._fanout.members("c") == {"ann", "bob"}


def test_who_knows_less_than_the_server_thinks_is_told_all_heads_and_nobody_else() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    rig.create("d", "ann")
    ann = rig.connect("ann")
    ann.read()
    ann.say(p.Compare(version=2))
    assert ann.take(p.Heads) == []
    ann.say(p.Compare(version=1))
    (heads,) = ann.take(p.Heads)
    assert {(head.conversation, head.seq) for head in heads.heads} == {("c", 1), ("d", 1)}
    assert heads.sync == f"{rig.ledger.history}@{rig.ledger.commit}"
    # Behind what waits for the ledger: what is on its way there counts as told.
    ann.say(p.Send(conversation="c", stream=1, n=1, key="k", body="b", format="text"), p.Compare(version=3))
    assert ann.take(p.Heads) == []
