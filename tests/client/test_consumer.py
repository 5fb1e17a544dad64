"""Durable consumers: the prefix rule, and the stream over a store."""

import asyncio
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.client.consumer import OPEN_MAX, ConsumerStream, Prefix
from whimbrel.client.consumers import Consumers
from whimbrel.client.role import Claim
from whimbrel.core.contract import Changes, ConversationRow, MessageRow
from whimbrel.errors import InvalidArgument, StoreFull
from whimbrel.model import Message
from whimbrel.store.memory import MemoryStore


@given(start=st.integers(0, 5), steps=st.lists(st.integers(1, 3), max_size=12), seed=st.integers())
def test_position_is_the_longest_done_prefix(start: int, steps: list[int], seed: int) -> None:
    prefix = Prefix(start)
    positions, at = [], start
    for step in steps:
        at += step
        positions.append(at)
        prefix.hand_out(at)
    done: set[int] = set()
    order = positions.copy()
    Random(seed).shuffle(order)
    for position in order:
        before = prefix.position
        done.add(position)
        moved = prefix.done(position)
        expected = start
        for candidate in positions:
            if candidate not in done:
                break
            expected = candidate
        assert prefix.position == expected
        assert moved is (expected > before)
    assert prefix.position == at
    assert len(prefix) == 0


class StoreReads:
    """A consumer's reads, straight from a store in memory."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.fail_saving = False

    async def claim_consumer(self, name: str) -> None:
        pass

    def consumer_ended(self, stream: ConsumerStream) -> None:
        pass

    async def consumer_position(self, name: str) -> int:
        return self.store.consumer_position(name)

    async def arrivals(self, after: int, limit: int) -> list[Message]:
        await asyncio.sleep(0)
        return self.store.arrivals(after, limit)

    async def save_position(self, name: str, position: int) -> None:
        await asyncio.sleep(0)
        if self.fail_saving:
            raise StoreFull
        self.store.set_consumer_position(name, position)


def fill(store: MemoryStore, first: int, last: int) -> None:
    changes = Changes()
    for n in range(first, last + 1):
        changes.messages[f"m{n}"] = MessageRow(
            id=f"m{n}", conversation="c", sender="ann", body=str(n), seq=n, arrival=n
        )
    changes.conversations["c"] = ConversationRow(id="c", position=last, head=last)
    store.apply(changes)


@pytest.fixture
def reads() -> StoreReads:
    store = MemoryStore()
    fill(store, 1, 5)
    return StoreReads(store)


async def test_hands_out_in_order_and_again_what_was_not_done(reads: StoreReads) -> None:
    stream = ConsumerStream("bot", reads)
    events = [await anext(stream) for _ in range(5)]
    assert [event.id for event in events] == ["m1", "m2", "m3", "m4", "m5"]
    await events[0].done()
    await events[2].done()
    assert reads.store.consumer_position("bot") == 1
    again = ConsumerStream("bot", reads)
    assert [(await anext(again)).id for _ in range(4)] == ["m2", "m3", "m4", "m5"]
    await events[1].done()
    assert reads.store.consumer_position("bot") == 3
    await events[1].done()
    assert reads.store.consumer_position("bot") == 3


async def test_waits_for_what_arrives_later(reads: StoreReads) -> None:
    stream = ConsumerStream("bot", reads)
    for _ in range(5):
        await (await anext(stream)).done()
    later = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not later.done()
    fill(reads.store, 6, 6)
    stream.wake()
    assert (await later).id == "m6"


async def test_a_position_that_could_not_be_saved_is_saved_by_the_next_word(reads: StoreReads) -> None:
    stream = ConsumerStream("bot", reads)
    event = await anext(stream)
    reads.fail_saving = True
    with pytest.raises(StoreFull):
        await event.done()
    assert reads.store.consumer_position("bot") == 0
    reads.fail_saving = False
    await event.done()
    assert reads.store.consumer_position("bot") == 1


async def test_done_from_many_tasks_at_once(reads: StoreReads) -> None:
    stream = ConsumerStream("bot", reads)
    events = [await anext(stream) for _ in range(5)]
    await asyncio.gather(*(event.done() for event in reversed(events)))
    assert reads.store.consumer_position("bot") == 5


async def test_hands_out_no_more_than_may_be_open(reads: StoreReads) -> None:
    fill(reads.store, 6, OPEN_MAX + 10)
    stream = ConsumerStream("bot", reads)
    events = [await anext(stream) for _ in range(OPEN_MAX)]
    blocked = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await events[1].done()
    await asyncio.sleep(0)
    assert not blocked.done()
    await events[0].done()
    assert (await blocked).id == f"m{OPEN_MAX + 1}"


async def test_ends_quietly_when_closed_and_loudly_when_replaced(reads: StoreReads) -> None:
    stream = ConsumerStream("bot", reads)
    async with stream:
        for _ in range(5):
            await anext(stream)
        waiting = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
    assert await waiting is None
    assert [event async for event in stream] == []
    replaced = ConsumerStream("bot", reads)
    await anext(replaced)
    replaced.end(InvalidArgument("another stream was opened"))
    with pytest.raises(InvalidArgument):
        await anext(replaced)


class Claiming:
    """Makes a claim when it is let to; says how many there are."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.held = 0

    async def __call__(self) -> Claim:
        self.begun.set()
        await asyncio.shield(self._made())
        return self

    async def _made(self) -> None:
        """A thread takes the lock: nobody can call it back."""
        await self.go.wait()
        assert self.held == 0, "somebody has it already"
        self.held += 1

    def release(self) -> None:
        self.held -= 1


async def test_a_claim_belongs_to_the_stream_though_its_first_reader_was_cancelled() -> None:
    consumers, claiming = Consumers(), Claiming()
    stream = consumers.begin(ConsumerStream("bot", StoreReads(MemoryStore())))
    reading = asyncio.ensure_future(consumers.claim("bot", claiming))
    await claiming.begun.wait()
    reading.cancel()
    await asyncio.wait([reading])
    claiming.go.set()
    await consumers.claim("bot", claiming)
    assert claiming.held == 1
    consumers.ended(stream)
    assert claiming.held == 0


async def test_a_claim_that_comes_after_the_end_is_released() -> None:
    consumers, claiming = Consumers(), Claiming()
    stream = consumers.begin(ConsumerStream("bot", StoreReads(MemoryStore())))
    reading = asyncio.ensure_future(consumers.claim("bot", claiming))
    await claiming.begun.wait()
    consumers.ended(stream)
    claiming.go.set()
    await reading
    assert claiming.held == 0
