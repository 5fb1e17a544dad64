"""The WebSocket of a client: frames in, frames out, with backpressure both ways.

Reading stops while the hub says that the link is congested; uvicorn then stops reading the socket.
Writing takes from the hub only when the socket took the last frames, so the hub's bound on a link's
queue is what a slow client costs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from starlette.types import Message, Receive, Scope, Send

from whimbrel import protocol as p
from whimbrel.errors import ProtocolError, StoreError
from whimbrel.server.gateway import Gateway, Link
from whimbrel.server.ledger import LedgerUnavailable

_log = logging.getLogger(__name__)

PART_ITEMS_MAX = 128
"""So many items of a frame are taken in before it is seen whether the link can take their answers."""
CLOSE_CODES = {"bye": 1000, "shutdown": 1001, "protocol": 1002, "unauthorized": 1008, "replaced": 1008}
CLOSE_CODE_OTHERS = 1013
"""Try again later."""


async def serve_websocket(
    gateway: Gateway, receive: Receive, send: Send, trust: Callable[[], None] | None = None
) -> None:
    """Serve one connection until either side closes it; ``trust`` is called once it has greeted."""
    await receive()
    await send({"type": "websocket.accept"})
    task = asyncio.current_task()
    assert task is not None, "runs in a task"
    link = gateway.open(task.cancel)
    writing = asyncio.ensure_future(_write(gateway, link, send))
    reading = asyncio.ensure_future(_read(gateway, link, receive, trust))
    try:
        # Reading ends when the client is gone; writing when the hub wants the link closed.
        await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        pass  # the hub's patience with this link is over: returning closes the connection
    finally:
        gateway.close(link)
        for part in (reading, writing):
            part.cancel()
        for end in await asyncio.gather(reading, writing, return_exceptions=True):
            # A peer that is gone is no news (OSError); all else is our mistake. Its text may show content.
            if isinstance(end, Exception) and not isinstance(end, OSError):
                _log.error("a link ended by %s", type(end).__name__)


async def _read(gateway: Gateway, link: Link, receive: Receive, trust: Callable[[], None] | None) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            for index, part in enumerate(_parts(p.decode_client(_payload(message)))):
                if index:
                    await asyncio.sleep(0)  # others' turn, however much one frame holds
                gateway.receive(link, part)
                if trust is not None and gateway.greeted(link):
                    trust()
                    trust = None
                await gateway.relieved(link)
        except ProtocolError:
            gateway.broken(link)
        except (LedgerUnavailable, StoreError):
            return


def _parts(items: list[p.ClientItem | p.Unknown]) -> Iterator[list[p.ClientItem | p.Unknown]]:
    """Split a frame so that what one part costs is bounded: a small item may ask for a large answer."""
    part: list[p.ClientItem | p.Unknown] = []
    for item in items:
        costly = isinstance(item, p.Fetch | p.Status | p.Compare) or (
            isinstance(item, p.Call) and item.op == "list"
        )
        if part and (costly or len(part) >= PART_ITEMS_MAX):
            yield part
            part = []
        part.append(item)
        if costly:
            yield part
            part = []
    if part:
        yield part


async def _write(gateway: Gateway, link: Link, send: Send) -> None:
    while True:
        await link.wake.wait()
        link.wake.clear()
        try:
            items = gateway.outgoing(link)
        except LedgerUnavailable:
            await send({"type": "websocket.close", "code": CLOSE_CODE_OTHERS, "reason": "unavailable"})
            return
        for frame in p.frames(items):
            await send({"type": "websocket.send", "text": frame.decode()})
        reason = gateway.hub.closing.get(link.number)
        if reason is not None and not link.wake.is_set():
            code = CLOSE_CODES.get(reason, CLOSE_CODE_OTHERS)
            await send({"type": "websocket.close", "code": code, "reason": reason})
            return


def _payload(message: Message) -> bytes | str:
    text: str | None = message.get("text")
    data: bytes | None = message.get("bytes")
    return text if text is not None else data or b""


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Turn away a WebSocket at any other path."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})
