"""Handing over: commands of a guest's app on their way into the store, in the order they came.

As many as wait are written in one transaction; who gave one hears of it when it is on disk. Bounds:
``COMMANDS_MAX`` wait, then their senders do. A store that fails fails those that wait, and is tried
again with the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from whimbrel.client.futures import fail, settle
from whimbrel.core.contract import HandedOver
from whimbrel.errors import ClientClosed, StoreError, StoreUnavailable
from whimbrel.store.handoff import Handoff, Limits

COMMANDS_MAX = 1_000
AT_ONCE_MAX = 500

logger = logging.getLogger("whimbrel")


class Handing:
    """Writes commands for who syncs the store. All methods are for the event loop it was made on."""

    def __init__(self, store: Handoff, writer: Executor, limits: Limits, tell: Callable[[], None]) -> None:
        """``tell`` is called when something new lies in the store."""
        self._store = store
        self._writer = writer
        self._limits = limits
        self._tell = tell
        self._queue: deque[tuple[HandedOver, float, asyncio.Future[None]]] = deque()
        self._writing: asyncio.Task[None] | None = None
        self.places = asyncio.Semaphore(COMMANDS_MAX)
        """To be held while handing over."""

    def __repr__(self) -> str:
        return f"<Handing waiting={len(self._queue)}>"

    async def hand_over(self, command: HandedOver) -> None:
        """Write a command durably. Raises why it is refused, or ``StoreError``; then nothing is written.

        A caller that is cancelled takes its command back if it is not being written yet.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._queue.append((command, time.time(), done))
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write(), name="whimbrel-handing-over")
        await done

    async def drained(self, timeout_s: float | None = None) -> None:
        """Wait until all that waits is written, or refused."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing], timeout=timeout_s)

    def end(self, error: ClientClosed) -> None:
        """What waits is not written any more."""
        for _, _, done in self._queue:
            fail(done, error)
        self._queue.clear()

    async def _write(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), AT_ONCE_MAX))]
            batch = [entry for entry in batch if not entry[2].cancelled()]
            commands = [(command, at) for command, at, _ in batch]
            try:
                outcomes = await asyncio.get_running_loop().run_in_executor(
                    self._writer, self._store.hand_over, commands, self._limits
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be left waiting
                if not isinstance(error, StoreError | OSError | MemoryError):
                    logger.error("handing over failed because of a bug: %s", type(error).__name__)
                for _, _, done in batch:
                    fail(done, _as_store_error(error))
                continue
            for (_, _, done), outcome in zip(batch, outcomes, strict=True):
                if outcome is None:
                    settle(done, None)
                else:
                    fail(done, outcome)
            self._tell()


def _as_store_error(error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    return StoreUnavailable(f"the store could not be written ({type(error).__name__})")
