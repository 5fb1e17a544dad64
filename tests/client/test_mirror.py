"""What a guest's app was told: everything once, by whatever way it came."""

from whimbrel.client.mirror import SETTLED_KEPT, Mirror
from whimbrel.core.contract import Changes, ConversationRow
from whimbrel.core.rows import conversation_of
from whimbrel.model import (
    ConversationChanged,
    Event,
    FailureReason,
    MessageChanged,
    MessageReceived,
    PermanentFailure,
    Receipt,
    ReceiptChanged,
    SendState,
    SendStatus,
    TypingChanged,
)
from whimbrel.store.memory import MemoryStore
from whimbrel.testing.store_rows import changes, conversation, entry, queued, update

DELIVERED = SendStatus(state=SendState.DELIVERED)


def begun(store: MemoryStore) -> Mirror:
    return Mirror(store.load())


def caught_up(mirror: Mirror, store: MemoryStore) -> list[Event]:
    """Everything that was missed and is told now."""
    told = [event for event in mirror.missed(store, store.load()) if mirror.news(event)]
    while page := mirror.arrivals(store):
        told += [event for event in page if mirror.news(event)]
    return told


def delivered(store: MemoryStore, n: int, seq: int) -> Changes:
    row = queued(n)
    done = update(row, state=SendState.DELIVERED, seq=seq, arrival=seq, delivered_at=5.0)
    return Changes(updates={row.id: done}, conversations={"c1": conversation(position=seq)})


def test_what_is_there_at_the_beginning_is_not_news() -> None:
    store = MemoryStore()
    talk = conversation(position=1, receipts=(("ben", 1, 1),))
    store.apply(changes(queued(1), entry(1, arrival=1), conversations={"c1": talk}))
    mirror = begun(store)
    assert caught_up(mirror, store) == []
    assert mirror.status(queued(1).id) == SendStatus(state=SendState.PENDING)


def test_what_nobody_told_is_told_once() -> None:
    store = MemoryStore()
    store.apply(changes(queued(1), queued(2), conversations={"c1": conversation()}, meta={"user": "anna"}))
    mirror = begun(store)
    refused = update(
        queued(2), state=SendState.FAILED, reason=FailureReason.REJECTED, can_retry=False, void=None
    )
    store.apply(delivered(store, 1, 1))
    store.apply(Changes(updates={queued(2).id: refused}))
    talk = conversation(title="New", position=2, receipts=(("ben", 2, 1),))
    store.apply(changes(entry(2, arrival=2), conversations={"c1": talk}))
    told = caught_up(mirror, store)
    assert {type(event) for event in told} == {
        MessageChanged,
        MessageReceived,
        PermanentFailure,
        ConversationChanged,
        ReceiptChanged,
    }
    positions = [event.message.position for event in told if isinstance(event, MessageReceived)]
    assert positions == [1, 2]
    statuses = {event.id: event.status for event in told if isinstance(event, MessageChanged)}
    # Ben has read it: that is how the store shows it by now.
    assert statuses[queued(1).id].state is SendState.READ
    assert statuses[queued(2).id].reason is FailureReason.REJECTED
    assert caught_up(mirror, store) == []
    assert mirror.status(queued(2).id) == statuses[queued(2).id]


def test_what_was_told_live_is_not_told_again() -> None:
    store = MemoryStore()
    store.apply(changes(queued(1), conversations={"c1": conversation()}))
    mirror = begun(store)
    store.apply(delivered(store, 1, 1))
    talk = conversation(title="New", position=1, receipts=(("ben", 1, 0),))
    store.apply(Changes(conversations={"c1": talk}))
    message = store.arrivals(0)[0]
    live: list[Event] = [
        MessageChanged(id=queued(1).id, conversation="c1", status=DELIVERED),
        MessageReceived(message=message),
        ConversationChanged(conversation=conversation_of(talk)),
        ReceiptChanged(conversation="c1", receipt=Receipt(user="ben", received=1)),
        PermanentFailure(id="x", conversation="c1", reason=FailureReason.EXPIRED),
    ]
    for event in live:
        assert mirror.news(event)
        assert not mirror.news(event)
    assert caught_up(mirror, store) == []
    typing = TypingChanged(conversation="c1", user="ben", on=True)
    assert mirror.news(typing)
    assert mirror.news(typing), "what is not in the store is told as it comes"


def test_a_message_that_is_followed_is_missed_when_it_settles() -> None:
    store = MemoryStore()
    store.apply(Changes(conversations={"c1": ConversationRow(id="c1")}))
    mirror = begun(store)
    mirror.follow(queued(1).id, SendStatus(state=SendState.PENDING))
    store.apply(changes(queued(1)))
    assert caught_up(mirror, store) == []
    store.apply(Changes(updates={queued(1).id: update(queued(1), state=SendState.CANCELLED)}))
    (told,) = caught_up(mirror, store)
    assert isinstance(told, MessageChanged)
    assert told.status.state is SendState.CANCELLED
    mirror.follow(queued(1).id, SendStatus(state=SendState.PENDING))
    assert mirror.status(queued(1).id) == told.status, "who comes late does not undo it"


def test_it_forgets_what_was_settled_long_ago() -> None:
    mirror = begun(MemoryStore())
    for n in range(SETTLED_KEPT + 10):
        assert mirror.news(MessageChanged(id=str(n), conversation="c", status=DELIVERED))
    assert mirror.status("0") is None
    assert mirror.status(str(SETTLED_KEPT)) == DELIVERED
