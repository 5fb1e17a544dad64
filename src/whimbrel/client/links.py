"""The links that are open or opening, and what they told that the engine has not been fed yet.

Invariants: nothing is fed of a link that the engine closed or that was fed its end; each link is
ended once, in a task of its own that is waited for in ``reaped``. Bounds: ``ITEMS_MAX`` items wait,
then the readers of the links do, and soon after them the sockets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from whimbrel import protocol as p
from whimbrel.core.contract import Fault
from whimbrel.core.engine import Engine
from whimbrel.core.linkstate import LinkState

ITEMS_MAX = 5_000

logger = logging.getLogger("whimbrel")


class Link(Protocol):
    """One connection; it tells a ``LinkListener`` what happens on it."""

    def send(self, items: tuple[p.ClientItem, ...]) -> None:
        """Write items, in order, without waiting."""

    async def close(self) -> None:
        """End it, soon; tells the listener nothing more."""


class LinkListener(Protocol):
    """Who is told what happens on a link, always on the event loop."""

    def link_opened(self, link: int) -> None:
        """Frames can be written now."""

    def link_alive(self, link: int) -> None:
        """Bytes came, if not a whole frame."""

    def link_writable(self, link: int, size_bytes: int) -> None:
        """This many more bytes can be written now."""

    async def link_received(self, link: int, items: list[p.ServerItem | p.Unknown]) -> None:
        """A frame came; waits while too many items are waiting."""

    def link_closed(self, link: int, fault: Fault) -> None:
        """It did not open, or ended, and not at our wish. The last thing said of a link."""


class Links:
    """All links of one client, and their inbox. Implements ``LinkListener``."""

    def __init__(self, open_link: Callable[[int, LinkListener], Link], wake: Callable[[], None]) -> None:
        """``wake`` is called whenever there is something to feed."""
        self._open_link = open_link
        self._wake = wake
        self._links: dict[int, Link] = {}
        self._opened: set[int] = set()
        """Those the engine knows to be open; only of these is it told the room."""
        self._inbox: deque[tuple[int, p.ServerItem | p.Unknown | Fault | None]] = deque()
        """None: it opened."""
        self._inbox_room = asyncio.Event()
        self._alive: dict[int, float] = {}
        """When bytes last came on a link since the engine was fed."""
        self._any_byte_matters = False
        self._room_bytes: dict[int, int] = {}
        self._sending = False
        self._reaping: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._links)

    @property
    def waiting(self) -> int:
        """How many items wait to be fed."""
        return len(self._inbox)

    # --- what the engine asks for --------------------------------------------------------------

    def open(self, number: int) -> None:
        """Begin to open a link under this number."""
        self._links[number] = self._open_link(number, self)

    def send(self, number: int, items: tuple[p.ClientItem, ...]) -> None:
        """Write items on it, if it is still there."""
        link = self._links.get(number)
        if link is not None:
            self._sending = True
            try:
                link.send(items)
            finally:
                self._sending = False

    def sent(self, engine: Engine) -> None:
        """Tell the engine what room is left by what was just sent; comes back soon if more waits for it."""
        if self._tell_room(engine) and engine.outbox.turns:
            self._wake()
        self._any_byte_matters = engine.link.state is LinkState.SUSPECT

    def close(self, number: int) -> None:
        """End it; nothing it told is fed any more."""
        link = self._links.pop(number, None)
        self._opened.discard(number)
        self._alive.pop(number, None)
        self._room_bytes.pop(number, None)
        if link is not None:
            task = asyncio.get_running_loop().create_task(_closed(link), name=f"whimbrel-close-{number}")
            self._reaping.add(task)
            task.add_done_callback(self._reaping.discard)

    def close_all(self) -> None:
        """End all of them, and forget what they told."""
        for number in list(self._links):
            self.close(number)
        self._inbox.clear()
        self._inbox_room.set()

    async def reaped(self) -> None:
        """Wait until nothing is left of the links that were closed."""
        if self._reaping:
            await asyncio.wait(self._reaping)

    # --- feeding -------------------------------------------------------------------------------

    def feed(self, engine: Engine, now: float, limit: int) -> int:
        """Feed the engine what waits, at most ``limit`` items; says how many."""
        if self._alive:
            alive, self._alive = self._alive, {}
            for number, at in alive.items():
                engine.alive(number, at)
        fed = min(len(self._inbox), max(0, limit))
        for _ in range(fed):
            number, item = self._inbox.popleft()
            if number not in self._links:
                continue
            if item is None:
                self._opened.add(number)
                engine.opened(number, now)
            elif isinstance(item, Fault):
                self.close(number)
                engine.closed(number, item, now)
            else:
                engine.receive(number, item, now)
        self._tell_room(engine)
        if len(self._inbox) < ITEMS_MAX:
            self._inbox_room.set()
        return fed

    def _tell_room(self, engine: Engine) -> bool:
        if not self._room_bytes:
            return False
        for number in self._opened & self._room_bytes.keys():
            engine.writable(number, self._room_bytes.pop(number))
        return True

    # --- LinkListener --------------------------------------------------------------------------

    def link_opened(self, link: int) -> None:
        """The link can be written to."""
        self._inbox.append((link, None))
        self._wake()

    def link_alive(self, link: int) -> None:
        """Bytes came: noted for when the engine looks, unless it waits for just that."""
        if link in self._links:
            self._alive[link] = time.monotonic()
            if self._any_byte_matters:
                self._wake()

    def link_writable(self, link: int, size_bytes: int) -> None:
        """There is room for this many bytes."""
        if link in self._links:
            self._room_bytes[link] = size_bytes
            if not self._sending:
                self._wake()

    async def link_received(self, link: int, items: list[p.ServerItem | p.Unknown]) -> None:
        """A frame came."""
        while len(self._inbox) >= ITEMS_MAX and link in self._links:
            self._inbox_room.clear()
            await self._inbox_room.wait()
        if link in self._links:
            self._inbox.extend((link, item) for item in items)
            self._wake()

    def link_closed(self, link: int, fault: Fault) -> None:
        """The link ended by itself."""
        self._inbox.append((link, fault))
        self._wake()


async def _closed(link: Link) -> None:
    try:
        await link.close()
    except Exception as error:  # noqa: BLE001 - the link is gone; its bug must be seen
        logger.error("a link ended because of a bug: %s", type(error).__name__)
