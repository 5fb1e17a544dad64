"""What members are told when something was lost on the way: leavings above all, and answers over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.server.hub_rig import Client, Rig
from whimbrel import protocol as p
from whimbrel.server.hub import ServerSettings
from whimbrel.server.ledger import (
    AddMember,
    Append,
    Committed,
    ConversationSet,
    LedgerUnavailable,
    Operation,
    Outcome,
    RemoveMember,
)
from whimbrel.server.ledger_memory import MemoryLedger


def left_in(items: Sequence[p.ServerItem]) -> set[str]:
    """The conversations which these items say were left."""
    return {
        head.conversation
        for item in items
        if isinstance(item, p.Heads | p.Welcome)
        for head in item.heads
        if head.left
    }


def remove(rig: Rig, member: str) -> None:
    rig.hub.submit(RemoveMember(user="ann", conversation="c", member=member), lambda _: None, rig.now)
    rig.settle()


def test_who_missed_its_own_removal_is_told_when_it_compares() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    bob = rig.connect("bob")
    bob.read()
    remove(rig, "bob")
    assert left_in(bob.read()) == {"c"}  # and this is lost on the way
    bob.say(p.Compare(version=1))
    rig.settle()
    assert left_in(bob.read()) == {"c"}
    bob.say(p.Compare(version=0))
    rig.settle()
    assert bob.read() == []


def test_comparing_while_behind_does_not_hide_a_removal() -> None:
    rig = Rig(ServerSettings(rate_limit=None, queue_items_max=3))
    rig.create("c", "ann", "bob")
    bob = rig.connect("bob")
    bob.read()
    ann = rig.connect("ann")
    for n in range(1, 6):
        ann.send("c", "x", n)
    rig.settle()
    remove(rig, "bob")
    bob.say(p.Compare(version=1))
    rig.settle()
    assert left_in(bob.read()) == {"c"}


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_leaving_is_told_to_who_was_there_before_the_first_commit(comes_back: bool) -> None:
    rig = Rig(ServerSettings(rate_limit=None, queue_items_max=2))
    bob = rig.connect("bob")
    (welcome,) = (item for item in bob.read() if isinstance(item, p.Welcome))
    assert welcome.sync.endswith("@0")
    ann = rig.connect("ann")
    ann.say(p.Call(id="1", op="create", conversation="c", members=("bob",)))
    rig.settle()
    assert [head.left for item in bob.read() if isinstance(item, p.Heads) for head in item.heads] == [False]
    if comes_back:
        rig.hub.close(bob.link, rig.now)
    else:  # falls behind, and no sync token went out since the first
        for n in range(1, 4):
            ann.send("c", "x", n)
        rig.settle()
    remove(rig, "bob")
    if comes_back:
        bob = rig.connect("bob", sync=welcome.sync)
    assert left_in(bob.read()) == {"c"}


def test_who_comes_and_goes_in_the_first_commit_is_told_that_it_went() -> None:
    rig = Rig()
    bob: Client = rig.connect("bob")
    ann = rig.connect("ann")
    ann.say(
        p.Call(id="1", op="create", conversation="c", members=("bob",)),
        p.Call(id="2", op="remove", conversation="c", user="bob"),
    )
    rig.settle()
    assert left_in(bob.read()) == {"c"}


def test_comparisons_by_the_hundred_stop_the_reading_of_a_link() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    bob.send("c", "x", 1)
    batch = rig.hub.take_batch(rig.now)  # behind a batch in flight, questions wait
    ann.say(*[p.Compare(version=99)] * 3)
    assert not rig.hub.congested(ann.link)
    ann.say(p.Compare(version=99))
    assert rig.hub.congested(ann.link), "each may be answered with all heads of a user who has thousands"
    rig.hub.settled(rig.ledger.apply(batch, rig.now), rig.now)
    rig.settle()
    assert not rig.hub.congested(ann.link)


class Unreadable(MemoryLedger):
    """Cannot tell a head, when told so."""

    broken = False

    def head(self, user: str, conversation: str, since_commit: int) -> p.Head | None:
        if self.broken:
            raise LedgerUnavailable("told to fail")
        return super().head(user, conversation, since_commit)


def test_what_is_committed_is_answered_though_it_cannot_be_published() -> None:
    ledger = Unreadable()
    rig = Rig(ledger=ledger)
    rig.create("c", "ann", "bob")
    rig.connect("bob")
    outcomes: list[list[Outcome]] = [[], [], []]
    send = p.Send(conversation="c", stream=1, n=1, key="k", body="b")
    operations: tuple[Operation, ...] = (
        Append(user="ann", device="d", send=send),
        AddMember(user="ann", conversation="c", member="cat"),
        RemoveMember(user="ann", conversation="c", member="cat"),
    )
    for operation, answers in zip(operations, outcomes, strict=True):
        rig.hub.submit(operation, answers.append, rig.now)
    batch = rig.hub.take_batch(rig.now)
    settled = ledger.apply(batch, rig.now)
    ledger.broken = True
    with pytest.raises(LedgerUnavailable):
        rig.hub.settled(settled, rig.now)
    # Each once: they would otherwise wait until they give up, for what is done.
    assert [[type(outcome) for outcome in answers] for answers in outcomes] == [
        [Committed],
        [ConversationSet],
        [ConversationSet],
    ]
