"""Taking what was handed over: the driver's third source of inputs, beside commands and links.

What waits when an engine starts is known then, and fed before anything else: an app that was a guest
until now must not overtake what it handed over itself. Later on, rows are read on the writer thread
when somebody says that there are some (``look``), and at a pass of the driver ``LOOK_EVERY_S`` after the
last time all the same, should nobody have been able to say so.

Nothing is fed twice to one engine, and nothing in another order than it was written. After a failed
commit all of it is fed again, from the disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from whimbrel.core.contract import SendMessage, TakeHandoff
from whimbrel.core.engine import Engine
from whimbrel.errors import StoreCorrupt, StoreError
from whimbrel.store.handoff import TAKEN_AT_ONCE, Handoff

LOOK_EVERY_S = 30.0
_AGAIN_S = 1.0

logger = logging.getLogger("whimbrel")


class Taking:
    """What was handed over and not fed yet; for the event loop of its driver."""

    def __init__(
        self,
        store: Handoff,
        writer: Executor,
        wake: Callable[[], None],
        damaged: Callable[[StoreCorrupt], None],
    ) -> None:
        """``wake`` is called when there may be something to do; ``damaged`` has the store made anew."""
        self._store = store
        self._writer = writer
        self._wake = wake
        self._damaged = damaged
        self._rows: deque[TakeHandoff] = deque()
        self._after = 0
        self._due = False
        self._looked_at = time.monotonic()
        self._reading: asyncio.Future[list[TakeHandoff]] | None = None

    def begin(self, rows: list[TakeHandoff]) -> None:
        """Start again: these are all that wait."""
        self._drop_reading()
        self._rows = deque(rows)
        self._after = rows[-1].number if rows else 0
        self._due = True  # for what came since they were read

    @property
    def waiting(self) -> int:
        """How many are to be fed."""
        return len(self._rows)

    @property
    def messages(self) -> int:
        """How many of them are messages to be queued; also once it has ended."""
        return sum(isinstance(row.command, SendMessage) for row in self._rows)

    def look(self) -> None:
        """Somebody handed something over."""
        self._due = True
        self._wake()

    def feed(self, engine: Engine, now: float, limit: int) -> int:
        """Feed what is here, at most ``limit``; says how many. Has more read when there may be more."""
        self._take_in()
        fed = min(len(self._rows), max(0, limit))
        for _ in range(fed):
            engine.submit(self._rows.popleft(), now)
        if self._rows or self._reading is not None:
            return fed
        if self._due or now - self._looked_at >= LOOK_EVERY_S:
            self._due, self._looked_at = False, now
            loop = asyncio.get_running_loop()
            self._reading = loop.run_in_executor(self._writer, self._store.handed_over, self._after)
            self._reading.add_done_callback(lambda _: self._wake())
        return fed

    def end(self) -> None:
        """Read nothing more."""
        self._drop_reading()

    def _take_in(self) -> None:
        if self._reading is None or not self._reading.done():
            return
        reading, self._reading = self._reading, None
        try:
            rows = reading.result()
        except (StoreError, OSError) as error:
            logger.info("what was handed over cannot be read now (%s)", type(error).__name__)
            if isinstance(error, StoreCorrupt):
                self._damaged(error)  # no commit reads these pages; all begins again from the new store
                return
            # The next commit will say what is wrong with the store; this is only tried again.
            asyncio.get_running_loop().call_later(_AGAIN_S, self.look)
            return
        self._rows.extend(rows)
        if rows:
            self._after = rows[-1].number
            self._due = self._due or len(rows) >= TAKEN_AT_ONCE

    def _drop_reading(self) -> None:
        if self._reading is not None:
            self._reading.add_done_callback(_looked_at)
            self._reading = None


def _looked_at(reading: asyncio.Future[list[TakeHandoff]]) -> None:
    """Nobody wants its result any more."""
    if not reading.cancelled():
        reading.exception()
