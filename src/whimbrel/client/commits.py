"""The commit in flight, one at a time on the writer thread, and who waits for it or for the next one.

In memory it is done at once: there is nothing to wait for, and a thread costs more than the work.
Whoever waits is settled once: when the commit that holds what they gave is on disk, or with its error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeAlias

from whimbrel.client.futures import fail, settle
from whimbrel.client.role import ClientStore
from whimbrel.core.contract import Changes, MessageRow

Waiting: TypeAlias = list[tuple[asyncio.Future[str | None], str | None]]
"""Futures, and what each is to be given."""


class Commits:
    """All commits of one store; see the module. ``wake`` is called on the event loop when one has ended."""

    def __init__(self, store: ClientStore, writer: Executor, wake: Callable[[], None]) -> None:
        self._store = store
        self._writer = writer
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._in_flight: asyncio.Future[list[MessageRow]] | None = None
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
        if self._store.blocking:
            self._in_flight = self._loop.run_in_executor(self._writer, self._store.apply, changes)
            self._in_flight.add_done_callback(lambda _: self._wake())
        else:
            self._in_flight = self._done(changes)
            self._wake()

    def end(self) -> asyncio.Future[list[MessageRow]] | None:
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

    def _done(self, changes: Changes) -> asyncio.Future[list[MessageRow]]:
        done: asyncio.Future[list[MessageRow]] = self._loop.create_future()
        try:
            done.set_result(self._store.apply(changes))
        except Exception as error:  # noqa: BLE001 - as from a thread: whoever asks for the result gets it
            done.set_exception(error)
        return done
