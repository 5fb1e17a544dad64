"""The driver of the hub on asyncio: it decides nothing, it carries things between hub, ledger and links.

Inputs are given to the hub at once; what follows from them (the next batch, waking writers, the timer)
is done once per turn of the event loop, so that a burst costs one commit and one write per link.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable

from whimbrel import protocol as p
from whimbrel.server.hub import Hub, Identity
from whimbrel.server.ledger import LedgerUnavailable, Operation, Outcome, Refused
from whimbrel.server.writer import Writer

_log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 30.0
"""How long an HTTP call waits for its batch; then it is answered 503 and may be repeated."""
CLOSE_WITHIN_S = 10.0
"""How long a link that is to be closed may take to read what is left for it."""


class Link:
    """One connection: what wakes its writer, what lets its reader go on, and how to end it at once."""

    __slots__ = ("abort", "number", "relief", "wake")

    def __init__(self, number: int, abort: Callable[[], object]) -> None:
        self.number = number
        self.abort = abort
        self.wake = asyncio.Event()
        self.relief = asyncio.Event()


class Gateway:
    """Owns the hub; every method is called on the event loop."""

    def __init__(self, hub: Hub, writer: Writer) -> None:
        self.hub = hub
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._links: dict[int, Link] = {}
        self._paused: dict[int, Link] = {}
        self._ending: dict[int, asyncio.TimerHandle] = {}
        self._turning = False
        self._commit: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._idle = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    # --- links

    def open(self, abort: Callable[[], object]) -> Link:
        """Take in a connection; it is greeted by its first item."""
        link = self._new(abort)
        self.hub.open(link.number, time.monotonic())
        self.turn()
        return link

    def listen(
        self,
        identity: Identity,
        *,
        sync: str | None = None,
        only: str | None = None,
        abort: Callable[[], object],
    ) -> Link:
        """Take in a stream that only listens. Raises ``RemoteError``."""
        link = self._new(abort)
        try:
            self.hub.listen(link.number, identity, time.monotonic(), sync=sync, only=only)
        except BaseException:
            self.close(link)
            raise
        self.turn()
        return link

    def close(self, link: Link) -> None:
        """The connection is gone. May be called twice."""
        self._links.pop(link.number, None)
        if not self._links:
            self._empty.set()
        self._paused.pop(link.number, None)
        ending = self._ending.pop(link.number, None)
        if ending is not None:
            ending.cancel()
        self.hub.close(link.number, time.monotonic())
        self.turn()

    def receive(self, link: Link, items: list[p.ClientItem | p.Unknown]) -> None:
        """Give the hub what came in one frame."""
        now = time.monotonic()
        for item in items:
            self.hub.receive(link.number, item, now)
        self.turn()

    def greeted(self, link: Link) -> bool:
        """Whether it is known who speaks on this link."""
        return self.hub.greeted(link.number)

    def broken(self, link: Link) -> None:
        """What came cannot be read."""
        self.hub.broken(link.number, time.monotonic())
        self.turn()

    def outgoing(self, link: Link) -> list[p.ServerItem]:
        """Take what waits for a link that can take more."""
        items = self.hub.outgoing(link.number, time.monotonic())
        if link.number in self._paused:
            self.turn()
        return items

    async def relieved(self, link: Link) -> None:
        """Return when more of this link may be read."""
        while link.number in self._links and self.hub.congested(link.number):
            link.relief.clear()
            self._paused[link.number] = link
            await link.relief.wait()

    # --- calls

    def charge(self, user: str) -> float:
        """Take one of the user's credits and give 0.0, or give the seconds to wait."""
        return self.hub.charge(user, time.monotonic())

    async def carry_out(self, operation: Operation) -> Outcome:
        """Have an operation settled with the next batch; ``Refused(code="unavailable")`` if it cannot be."""
        answered: asyncio.Future[Outcome] = self._loop.create_future()

        def answer(outcome: Outcome) -> None:
            if not answered.done():
                answered.set_result(outcome)

        self.hub.submit(operation, answer, time.monotonic())
        self.turn()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await answered
        except TimeoutError:
            return Refused(code="unavailable", text="not settled in time")

    # --- turns

    def turn(self) -> None:
        """See to it that what the hub wants is done in this turn of the event loop."""
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        try:
            self._take_batch()
        except LedgerUnavailable:
            self._in_doubt()
        for number in self.hub.take_ready():
            link = self._links.get(number)
            if link is not None:
                link.wake.set()
                if number in self.hub.closing and number not in self._ending:
                    self._ending[number] = self._loop.call_later(CLOSE_WITHIN_S, link.abort)
        for number, link in list(self._paused.items()):
            if not self.hub.congested(number):
                del self._paused[number]
                link.relief.set()
        self._set_timer()
        if self._commit is None and not self.hub.busy:
            self._idle.set()
        else:
            self._idle.clear()

    def _take_batch(self) -> None:
        if self._commit is not None:
            return
        if self.hub.rewound:
            self._commit = self._loop.create_task(self._begin_new_history())
        elif batch := self.hub.take_batch(time.monotonic()):
            self._commit = self._loop.create_task(self._carry_out(batch))

    async def _carry_out(self, batch: list[Operation]) -> None:
        try:
            outcomes = await self._writer.apply(batch)
            now = time.monotonic()
            if outcomes is None:
                self.hub.batch_failed(now)
            else:
                self.hub.settled(outcomes, now)
        except Exception:  # noqa: BLE001 - the server goes on whatever one batch did to it
            # Whoever was not told of this batch learns of it from the heads, on coming back.
            _log.exception("could not tell what a batch came to")
            self._in_doubt()
        finally:
            self._commit = None
            self.turn()

    async def _begin_new_history(self) -> None:
        _log.error("a client has seen more than the ledger has: it was restored, and begins a new history")
        try:
            if await self._writer.begin_new_history():
                self._in_doubt()
            else:
                await asyncio.sleep(1.0)
        finally:
            self._commit = None
            self.turn()

    def _in_doubt(self) -> None:
        self.hub.start_anew(time.monotonic())
        self.turn()

    def _set_timer(self) -> None:
        deadline = self.hub.next_deadline()
        if self._timer is not None:
            if deadline is not None and self._timer_at == deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            # The loop's clock is the monotonic one, on every loop we run on.
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self.hub.handle_timer(time.monotonic())
        except LedgerUnavailable:
            self._in_doubt()
        self.turn()

    # --- the end

    async def shutdown(self, *, spread_s: float, within_s: float) -> None:
        """Take nothing more, settle what waits, send every link away and wait until they are gone."""
        self.hub.shutdown(time.monotonic(), spread_s=spread_s)
        self._idle.clear()
        self.turn()
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
                await self._empty.wait()
        except TimeoutError:
            _log.warning("%d links did not close in time", len(self._links))
        for link in list(self._links.values()):
            link.abort()
        if self._timer is not None:
            self._timer.cancel()

    def _new(self, abort: Callable[[], object]) -> Link:
        link = Link(next(self._numbers), abort)
        self._links[link.number] = link
        self._empty.clear()
        return link
