"""What happens, handed to the app: live streams of events, each with a queue of its own.

A live stream holds what happened since it was made. It is bounded: an app that falls
``LIVE_EVENTS_MAX`` events behind gets what is in its queue, then ``EventsLost``; nothing and nobody
else is affected, and everything is in the store. What must not be missed is the business of a
durable consumer (``client.consumer``).
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from types import TracebackType
from typing import Self

from whimbrel.errors import ClientClosed, EventsLost, InvalidArgument
from whimbrel.model import Event

LIVE_EVENTS_MAX = 10_000
STREAMS_MAX = 1_000


class EventStream:
    """Events from the moment it was made; ``async for`` over it, from one task at a time.

    Ends when the client closes or after ``aclose()``; raises ``EventsLost`` once after falling
    behind, and ``ClientClosed`` if the client stopped because of a bug.
    """

    def __init__(self, hub: EventHub, limit: int) -> None:
        self._hub = hub
        self._limit = limit
        self._queue: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._lost = False
        self._ended = False
        self._error: ClientClosed | None = None

    def __repr__(self) -> str:
        return f"<EventStream waiting={len(self._queue)}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._lost:
                self._lost, self._ended = False, True
                raise EventsLost(f"more than {self._limit} events were waiting")
            if self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Take no more events; who waits for one sees the end. May be called twice."""
        self._queue.clear()
        self.end(None)

    def put(self, *events: Event) -> None:
        """Append events, or note that they were lost."""
        if self._ended or self._lost:
            return
        room = self._limit - len(self._queue)
        self._queue.extend(events if len(events) <= room else events[:room])
        if len(events) > room:
            self._lost = True
            self._hub.remove(self)
        self._arrived.set()

    def end(self, error: ClientClosed | None) -> None:
        """Nothing more comes; what is queued is still handed out."""
        if not self._ended:
            self._ended, self._error = True, error
        self._hub.remove(self)
        self._arrived.set()


class EventHub:
    """Who listens. A stream that nobody holds any more is forgotten."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()

    def stream(self, limit: int = LIVE_EVENTS_MAX) -> EventStream:
        """Open a stream that begins now. Raises ``InvalidArgument`` if too many are open."""
        if limit < 1:
            raise InvalidArgument("the limit of a stream must be at least 1")
        if len(self._streams) >= STREAMS_MAX:
            raise InvalidArgument(f"more than {STREAMS_MAX} event streams are open")
        stream = EventStream(self, limit)
        self._streams.add(stream)
        return stream

    @property
    def listening(self) -> bool:
        """Whether anybody listens."""
        return bool(self._streams)

    def remove(self, stream: EventStream) -> None:
        """Send nothing more to it."""
        self._streams.discard(stream)

    def publish(self, *events: Event) -> None:
        """Give events to everyone who listens."""
        for stream in list(self._streams):
            stream.put(*events)

    def end(self, error: ClientClosed | None) -> None:
        """End every stream."""
        for stream in list(self._streams):
            stream.end(error)
