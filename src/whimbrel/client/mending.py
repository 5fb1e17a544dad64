"""Damage to a store that is in use: it is made anew, everything begins again from it, and the app is told.

Whoever meets damage (``Rebuilds.whole``) asks the driver to begin again from disk (``Mending``),
where the store makes itself anew (``store.salvage``), and then reads once more. What was found and lost is
in the store until the app was told: the first live stream begins with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from whimbrel.client.events import EventStream
from whimbrel.client.futures import fail, settle
from whimbrel.errors import StoreCorrupt, StoreError, WhimbrelError
from whimbrel.model import Event, StoreRebuilt
from whimbrel.store.salvage import REPORT
from whimbrel.store.secrets import Secrets

logger = logging.getLogger("whimbrel")
T = TypeVar("T")


class Mending:
    """Between who met damage and the driver, which begins again from disk."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: list[asyncio.Future[None]] = []
        self._over: BaseException | None = None
        self.error: StoreCorrupt | None = None
        """The damage that was met; None: nothing is to be done."""
        self.on_reload: Callable[[], None] | None = None
        """Called whenever the driver has begun again from disk."""

    def met(self, error: StoreCorrupt) -> None:
        """Somebody met damage, and does not wait."""
        self.error = self.error or error
        self._wake()

    async def done(self, error: StoreCorrupt) -> None:
        """Wait until the store is whole again. Raises what the driver ends with, if it does before."""
        if self._over is not None:
            raise self._over
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.met(error)
        await future

    def end(self, error: BaseException | None) -> None:
        """It is whole again, or (``error``) never will be here."""
        self._over = error
        waiting, self._waiting, self.error = self._waiting, [], None
        for future in waiting:
            settle(future, None) if error is None else fail(future, error)
        if error is None and self.on_reload is not None:
            self.on_reload()


class Rebuilds:
    """Reading a store that may turn out damaged, and telling the app once of its being made anew."""

    def __init__(
        self,
        store: Secrets,
        readers: ThreadPoolExecutor,
        publish: Callable[[Event], None],
        heard: Callable[[], bool],
    ) -> None:
        """``heard``: whether anybody listens to what is published."""
        self._store = store
        self._readers = readers
        self._publish = publish
        self._heard = heard
        self._mending: Mending | None = None
        self._write: Callable[[Callable[[], None]], Awaitable[None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = False
        self.report: StoreRebuilt | None = None
        """What happened to the store, the last time that it was made anew."""

    def __repr__(self) -> str:
        return f"<Rebuilds report={self.report is not None}>"

    async def begin(self, mending: Mending, write: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """This client syncs the store: damage is its to mend. ``write`` runs on the writer thread."""
        self._mending, self._write = mending, write
        mending.on_reload = lambda: self._start(self._look())
        try:
            await self._look()
        except StoreError as error:
            logger.warning("whether the store was made anew cannot be read (%s)", error.code)

    async def read(self, function: Callable[[], T]) -> T:
        """Run a blocking read on a reader thread; of a store that turns out damaged, when it is made anew."""
        loop = asyncio.get_running_loop()
        return await self.whole(lambda: loop.run_in_executor(self._readers, function))

    async def whole(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what reads or writes the store; if that turns out damaged, once more when it is made anew."""
        try:
            return await work()
        except StoreCorrupt as error:
            if self._mending is None:
                raise
            await self._mending.done(error)
        return await work()

    def told(self, stream: EventStream) -> EventStream:
        """A live stream begins: the first one is told what was not told yet."""
        if self.report is not None and not self._told:
            stream.put(self.report)
            self._note_told()
        return stream

    def _note_told(self) -> None:
        """The app knows: the store need not keep it any longer."""
        self._told = True
        if self._write is not None:
            write = self._write
            self._start(write(lambda: self._store.set_secret(REPORT, None)))

    async def _look(self) -> None:
        text = await asyncio.get_running_loop().run_in_executor(self._readers, self._store.get_secret, REPORT)
        if text is None:
            return
        try:
            report = msgspec.json.decode(text, type=StoreRebuilt)
        except msgspec.DecodeError:
            return
        if report != self.report:
            self.report, self._told = report, False
            self._publish(report)
            if self._heard():
                self._note_told()

    def _start(self, work: Awaitable[None]) -> None:
        async def quietly() -> None:
            # What cannot be written now is told once more at the next start.
            with contextlib.suppress(StoreError, WhimbrelError, RuntimeError):
                await work

        task = asyncio.get_running_loop().create_task(quietly(), name="whimbrel-rebuilt")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Wait for what was begun."""
        if self._tasks:
            await asyncio.wait(set[asyncio.Task[Any]](self._tasks))
