"""The one thread that applies batches, so that the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from whimbrel.server.ledger import Ledger, LedgerUnavailable, Operation, Outcome

_log = logging.getLogger(__name__)

T = TypeVar("T")


class ServingLedger(Ledger, Protocol):
    """A ledger that can be told that it was restored from a backup."""

    def begin_new_history(self) -> None:
        """Give the history and every epoch new names; durable."""


class Writer:
    """Carries out batches one after the other, on a thread of its own."""

    def __init__(self, ledger: ServingLedger) -> None:
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def apply(self, batch: Sequence[Operation]) -> list[Outcome] | None:
        """Give the outcomes once they are durable; None if the ledger could not commit."""
        return await self._run(lambda: self._ledger.apply(batch, time.time()))

    async def begin_new_history(self) -> bool:
        """Tell whether it was done."""

        def begin() -> bool:
            self._ledger.begin_new_history()
            return True

        return bool(await self._run(begin))

    async def _run(self, work: Callable[[], T]) -> T | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except LedgerUnavailable as error:
            _log.error("the ledger cannot commit: %s", error)
        except Exception:  # noqa: BLE001 - the writer outlives whatever a batch raises
            # Nothing is known about what failed. Refusing the batch for now is always right: numbers
            # settled twice are settled once.
            _log.exception("the ledger failed")
        return None

    def close(self) -> None:
        """Wait for the batch in flight."""
        self._thread.shutdown()
