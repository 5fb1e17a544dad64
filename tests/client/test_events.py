"""Live event streams: from now on, bounded, and each for itself."""

import asyncio
import gc

import pytest

from whimbrel.client.events import EventHub
from whimbrel.errors import ClientClosed, EventsLost
from whimbrel.model import TypingChanged


def typing(n: int) -> TypingChanged:
    return TypingChanged(conversation="c", user=str(n), on=True)


async def test_every_stream_gets_what_happens_from_its_making_on() -> None:
    hub = EventHub()
    early = hub.stream()
    hub.publish(typing(1))
    late = hub.stream()
    hub.publish(typing(2))
    hub.end(None)
    assert [event async for event in early] == [typing(1), typing(2)]
    assert [event async for event in late] == [typing(2)]


async def test_who_falls_behind_is_told_and_nobody_else_is_hurt() -> None:
    hub = EventHub()
    slow, fast = hub.stream(limit=2), hub.stream(limit=3)
    for n in range(3):
        hub.publish(typing(n))
    assert await anext(slow) == typing(0)
    assert await anext(slow) == typing(1)
    with pytest.raises(EventsLost) as caught:
        await anext(slow)
    assert caught.value.code == "events_lost"
    assert caught.value.hint
    assert await anext(slow, None) is None
    hub.publish(typing(3))
    hub.end(None)
    # `fast` had its three and lost the fourth: that is said after them.
    got = [await anext(fast) for _ in range(3)]
    assert got == [typing(0), typing(1), typing(2)]
    with pytest.raises(EventsLost):
        await anext(fast)


async def test_a_waiting_reader_is_woken_by_event_and_by_end() -> None:
    hub = EventHub()
    stream = hub.stream()
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    hub.publish(typing(1))
    assert await waiting == typing(1)
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    await stream.aclose()
    assert await waiting is None


async def test_a_bug_of_the_client_reaches_the_reader_behind_what_is_queued() -> None:
    hub = EventHub()
    stream = hub.stream()
    hub.publish(typing(1))
    hub.end(ClientClosed("stopped because of a bug"))
    assert await anext(stream) == typing(1)
    with pytest.raises(ClientClosed):
        await anext(stream)
    assert await anext(stream, None) is None


async def test_a_stream_nobody_holds_is_forgotten() -> None:
    hub = EventHub()
    kept = hub.stream()
    for _ in range(100):
        hub.stream()
    gc.collect()
    assert len(hub._streams) == 1
    await kept.aclose()
    assert len(hub._streams) == 0
