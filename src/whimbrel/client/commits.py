"""The commit in flight, one at a time on the writer thread, and who waits for it or for the next one.

In memory it is done at once: there is nothing to wait for, and a thread costs more than the work.
Whoever waits is settled once: when the commit that holds what they gave is on disk, or with its error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeAlias, TypeVar

from whimbrel.client.futures import fail, settle
from whimbrel.client.role import ClientStore
from whimbrel.core.contract import Changes, MessageRow

T = TypeVar("T")
Waiting: TypeAlias = list[tuple[asyncio.Future[str | None], str | None]]
"""Futures, and what each is to be given."""


class Commits:
    """All commits of one store; see the module. ``wake`` is called on the event loop when one has ended."""

    def __init__(self, store: ClientStore, writer: Executor, wake: Callable[[], None]) -> None:
        self._store = store
        self._writer = writer
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._in_flight: Future[list[MessageRow]] | None = None
        self._waiting: Waiting = []
        self._waiting_for_next: Waiting = []

    @property
    def in_flight(self) -> bool:
        """Whether one was begun and not ended yet."""
        return self._in_flight is not None

    def join(self, future: asyncio.Future[str | None], value: str | None) -> None:
        """Give ``value`` to the future once the next commit is on disk."""
        self._waiting_for_next.append((future, value))

    def begin(self, changes: Changes | None) -> None:
        """Write the changes; none is in flight. None: all there is is on disk already (a repeated key)."""
        waiting, self._waiting_for_next = self._waiting_for_next, []
        if changes is None:
            for future, value in waiting:
                settle(future, value)
            return
        self._waiting = waiting
        if not self._store.blocking:
            self._in_flight = _done(lambda: self._store.apply(changes))
            self._wake()
            return
        self._in_flight = self._writer.submit(self._store.apply, changes)
        self._in_flight.add_done_callback(self._ended)

    def end(self) -> Future[list[MessageRow]] | None:
        """The commit that was in flight, if it has ended; who waits for it is still to be told."""
        if self._in_flight is None or not self._in_flight.done():
            return None
        ended, self._in_flight = self._in_flight, None
        return ended

    def settle(self) -> None:
        """What ended is on disk."""
        waiting, self._waiting = self._waiting, []
        for future, value in waiting:
            settle(future, value)

    def fail(self, error: BaseException) -> None:
        """Neither what ended nor what was to come next is on disk, or will be."""
        waiting = self._waiting + self._waiting_for_next
        self._waiting, self._waiting_for_next = [], []
        for future, _ in waiting:
            fail(future, error)

    def give_up(self) -> None:
        """Wait for it no longer. One that hangs cannot be taken back: its thread ends with it."""
        if self._in_flight is not None:
            self._in_flight.cancel()

    def _ended(self, _: Future[list[MessageRow]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._wake)


def _done(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - as on a thread: whoever asks for the result gets it
        future.set_exception(error)
    return future
