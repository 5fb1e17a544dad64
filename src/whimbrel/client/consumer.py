"""Durable consumers: every log entry, in the order it came to this store, until the app is done with it.

The position of a consumer is a number in the store: all entries up to it are done. It moves over a
contiguous prefix only. So an entry that was handed out and not done is handed out again after a
restart, with all behind it, done or not: at least once, each under its stable id, and none ever
skipped. A new consumer begins with the oldest entry of the store.

Bounds: ``PAGE`` entries are read at once; at most ``OPEN_MAX`` may be handed out and not done, then
the iteration waits for the app.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from types import TracebackType
from typing import Protocol, Self

from whimbrel.errors import ClientClosed, WhimbrelError
from whimbrel.model import Message

PAGE = 100
OPEN_MAX = 1_000
NAME_CHARS_MAX = 64

logger = logging.getLogger("whimbrel")


class Prefix:
    """Which of the positions handed out, in growing order, are done, and how far all of them are."""

    def __init__(self, position: int) -> None:
        self.position = position
        """All up to here are done."""
        self._open: deque[int] = deque()
        self._done: set[int] = set()

    def __len__(self) -> int:
        """How many were handed out and are at or behind the first that is not done."""
        return len(self._open)

    def hand_out(self, position: int) -> None:
        """The next entry went to the app."""
        assert position > (self._open[-1] if self._open else self.position)
        self._open.append(position)

    def done(self, position: int) -> bool:
        """Note that the app is done with it; True if the prefix grew."""
        if position <= self.position:
            return False
        self._done.add(position)
        before = self.position
        while self._open and self._open[0] in self._done:
            self.position = self._open.popleft()
            self._done.discard(self.position)
        return self.position > before


class ConsumerReads(Protocol):
    """What a consumer needs of the client."""

    async def consumer_position(self, name: str) -> int:
        """How far the consumer of this name has come."""

    async def arrivals(self, after: int, limit: int) -> list[Message]:
        """Entries of the store with a higher position."""

    async def claim_consumer(self, name: str) -> None:
        """Be the only program that reads as this consumer. Raises ``StoreInUse``."""

    def consumer_ended(self, stream: ConsumerStream) -> None:
        """This stream hands out nothing more: others may read under its name."""

    async def save_position(self, name: str, position: int) -> None:
        """Make the position durable."""


class ConsumedEvent:
    """One log entry handed to a durable consumer; say ``await event.done()`` when its work is done."""

    __slots__ = ("_consumer", "message")

    def __init__(self, consumer: ConsumerStream, message: Message) -> None:
        self._consumer = consumer
        self.message = message

    def __repr__(self) -> str:
        return f"<ConsumedEvent {self.id}>"

    @property
    def id(self) -> str:
        """The message's id: the same whenever this entry is handed out again."""
        return self.message.id

    async def done(self) -> None:
        """Never hand this entry out again, durable on return if all before it are done too.

        While an earlier one is not done, this is remembered in memory and becomes durable with it.
        Raises ``StoreError`` if it could not be written; say it again then.
        """
        position = self.message.position
        assert position is not None
        await self._consumer.done(position)


class ConsumerStream:
    """The entries a durable consumer has not done yet; ``async for`` over it, from one task at a time.

    Ends when the client closes or after ``aclose()``. The newest stream of a name owns it: an older
    one of this client raises ``InvalidArgument`` when it is read on. While another client on the same
    store, in this process or another, reads as this consumer, the first entry raises ``StoreInUse``.
    """

    def __init__(self, name: str, reads: ConsumerReads) -> None:
        self.name = name
        self._reads = reads
        self._prefix: Prefix | None = None
        self._cursor = 0
        self._page: deque[Message] = deque()
        self._woken = asyncio.Event()
        self._saving = asyncio.Lock()
        self._saved = 0
        self._ended = False
        self._error: WhimbrelError | None = None

    def __repr__(self) -> str:
        return f"<ConsumerStream {self.name}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ConsumedEvent:
        try:
            return await self._next()
        except ClientClosed:
            if self._ended and self._error is None:  # closed while it was reading: that is its end
                raise StopAsyncIteration from None
            raise

    async def _next(self) -> ConsumedEvent:
        if self._prefix is None:
            await self._reads.claim_consumer(self.name)
            position = await self._reads.consumer_position(self.name)
            self._prefix = Prefix(position)
            self._saved = self._cursor = position
        while True:
            self._woken.clear()
            if self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            if len(self._prefix) < OPEN_MAX:
                if not self._page:
                    self._page.extend(await self._reads.arrivals(self._cursor, PAGE))
                if self._page and not self._ended:
                    return self._hand_out(self._page.popleft(), self._prefix)
                if self._page:
                    continue
            await self._woken.wait()

    def _hand_out(self, message: Message, prefix: Prefix) -> ConsumedEvent:
        assert message.position is not None
        self._cursor = message.position
        prefix.hand_out(message.position)
        if len(prefix) == OPEN_MAX:
            logger.warning("consumer %s: %d entries are not done; waiting for it", self.name, OPEN_MAX)
        return ConsumedEvent(self, message)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hand out nothing more. May be called twice."""
        self.end(None)

    async def done(self, position: int) -> None:
        """Note that the app is done with the entry at this position, and save what can be saved."""
        prefix = self._prefix
        assert prefix is not None
        prefix.done(position)
        self._woken.set()
        async with self._saving:
            # Those that waited for the lock find their position saved by who held it.
            target = prefix.position
            if target > self._saved:
                await self._reads.save_position(self.name, target)
                self._saved = target

    def wake(self) -> None:
        """There may be new entries."""
        self._woken.set()

    def end(self, error: WhimbrelError | None) -> None:
        """Nothing more is handed out."""
        if not self._ended:
            self._ended, self._error = True, error
            self._reads.consumer_ended(self)
        self._woken.set()
