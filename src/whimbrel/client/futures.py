"""Futures that somebody waits for, and may have been cancelled meanwhile: each is settled once at most."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from whimbrel.core.contract import Command

T = TypeVar("T")


class Submitted:
    """A command and who waits for it."""

    __slots__ = ("command", "future")

    def __init__(self, command: Command, future: asyncio.Future[str | None]) -> None:
        self.command = command
        self.future = future


def settle(future: asyncio.Future[T], value: T) -> None:
    """Give the value to who waits, if somebody still does."""
    if not future.done():
        future.set_result(value)


def fail(future: asyncio.Future[T], error: BaseException) -> None:
    """Give the error to who waits, if somebody still does."""
    if not future.done():
        future.set_exception(error)
        # Nobody may be waiting any more; that is no reason for a warning.
        future.exception()


def refused(
    commands: deque[Submitted], kinds: tuple[type[Command], ...], error: BaseException
) -> deque[Submitted]:
    """Give the error to who waits for commands of these kinds; what is left are the others."""
    kept: deque[Submitted] = deque()
    for submitted in commands:
        if isinstance(submitted.command, kinds):
            fail(submitted.future, error)
        else:
            kept.append(submitted)
    return kept


class Watchers:
    """Who waits until something may have changed.

    A watch begins when it is made, so whoever watches first, and then looks, misses nothing.
    """

    def __init__(self) -> None:
        self._watching: set[asyncio.Future[None]] = set()

    def watch(self) -> asyncio.Future[None]:
        """Done at the next change; to be cancelled by who does not want to know any more."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watching.add(future)
        future.add_done_callback(self._watching.discard)
        return future

    def wake(self) -> None:
        """Something may have changed."""
        for future in list(self._watching):
            settle(future, None)

    def fail(self, error: BaseException) -> None:
        """Nothing will change any more."""
        for future in list(self._watching):
            fail(future, error)


class Places:
    """So many at once, and who comes first has one first."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Take a place, as soon as there is one."""
        if self._free > 0:
            self._free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.leave()  # it was given the place already
            raise

    def leave(self) -> None:
        """Give the place to who has waited longest."""
        while self._waiting:
            next_one = self._waiting.popleft()
            if not next_one.done():
                next_one.set_result(None)
                return
        self._free += 1


class Turns:
    """One at a time under each name; bounded by how many ask at once."""

    def __init__(self) -> None:
        self._taken: dict[str, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Wait until nobody else has this name, and have it."""
        while (other := self._taken.get(name)) is not None:
            await asyncio.wait([other])
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._taken[name] = mine
        try:
            yield
        finally:
            del self._taken[name]
            mine.set_result(None)
