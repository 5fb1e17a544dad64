"""The engine takes what another process handed over: in order, once, whatever fails."""

from typing import Any

from tests.core.rig import WALL, Rig
from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.model import SendState, message_id
from whimbrel.store.handoff import Limits


def send(key: str, body: str = "text", **fields: Any) -> c.SendMessage:
    return c.SendMessage(conversation="c", key=key, format="text", body=body, **fields)


def hand(rig: Rig, *commands: c.HandedOver) -> None:
    assert rig.store.hand_over([(command, WALL - 60.0) for command in commands], Limits()) == [None] * len(
        commands
    )


def take(rig: Rig) -> None:
    for handoff in rig.store.handed_over(0):
        rig.engine.submit(handoff, rig.now)


def test_it_is_deleted_by_the_change_that_carries_it_out() -> None:
    rig = Rig()
    hand(rig, send("a", expires_in_s=90.0), send("b"))
    take(rig)
    changes = rig.engine.take_changes()
    assert changes is not None
    assert changes.handoffs == [1, 2]
    rows = list(changes.messages.values())
    assert [(row.key, row.n, row.sent_at) for row in rows] == [("a", 1, WALL - 60), ("b", 2, WALL - 60)]
    assert rows[0].expires_at == WALL + 30, "from when it was handed over"
    assert rig.engine.status(rows[0].id) is not None
    rig.store.apply(changes)
    assert rig.store.handed_over(0) == []
    rig.engine.committed(rig.now)
    link = rig.connect()
    rig.settle()
    assert [item.key for item in rig.take(link) if isinstance(item, p.Send)] == []
    rig.engine.writable(link, 100_000)
    rig.settle()
    assert rig.engine.pending == 2


def test_a_failed_commit_leaves_it_where_it_was() -> None:
    rig = Rig()
    hand(rig, send("a"))
    take(rig)
    assert rig.engine.take_changes() is not None
    rig.engine.commit_failed(rig.now)
    rig.engine.reload(rig.store.load(), rig.now)
    assert rig.engine.pending == 0
    take(rig)
    rig.settle()
    assert [message.key for message in rig.store.pending()] == ["a"]
    assert rig.store.handed_over(0) == []


def test_it_is_taken_whatever_the_limits_are_and_where_the_conversation_was_left() -> None:
    rig = Rig(c.Settings(outbox_messages_max=1))
    rig.store.apply(c.Changes(conversations={"c": c.ConversationRow(id="c")}))
    hand(rig, send("a"), send("b"))
    rig.store.apply(c.Changes(conversations={"c": c.ConversationRow(id="c", left=True)}))
    rig.restart()
    take(rig)
    rig.settle()
    assert [message.key for message in rig.store.pending()] == ["a", "b"]


def test_other_commands_too_and_what_is_done_already_is_only_deleted() -> None:
    rig = Rig()
    rig.engine.submit(send("a"), rig.now)
    rig.settle()
    id = message_id(rig.store.device, "a")
    hand(rig, send("a"), c.RetryMessage(), c.MarkRead(conversation="c", seq=3), c.CancelMessage(id=id))
    take(rig)
    rig.settle()
    message = rig.store.message(id)
    assert message is not None
    assert message.status is not None
    assert message.status.state is SendState.CANCELLED
    assert rig.store.handed_over(0) == []
    rig.engine.submit(c.TakeHandoff(number=99, command=None, at=0.0), rig.now)
    changes = rig.engine.take_changes()
    assert changes is not None
    assert (changes.handoffs, changes.messages) == ([99], {})


def test_the_same_message_queued_in_this_very_batch_is_one() -> None:
    rig = Rig()
    hand(rig, send("a"))
    rig.engine.submit(send("a"), rig.now)
    take(rig)
    rig.settle()
    assert rig.engine.pending == 1
    assert [message.key for message in rig.store.pending()] == ["a"]
