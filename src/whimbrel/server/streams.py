"""Listening over HTTP: server-sent events and long polling, on hub sessions that own no device.

Each ``data:`` is an array of items, as a frame of the WebSocket. Resuming loses nothing:

* ``/api/events`` and ``/api/poll`` go by sync token. A resumed stream begins with ``Welcome``, whose
  heads say which logs grew meanwhile; the client fetches what it lacks.
* ``/api/conversations/{id}/events`` goes by ``seq``, and brings the entries themselves: those since the
  last id first, read from the ledger, then what comes. Without an id it begins now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server.bodies import Polled
from whimbrel.server.gateway import Gateway, Link
from whimbrel.server.http import EVENTS, Call, Query, Route, json
from whimbrel.server.ledger import Ledger, LedgerUnavailable
from whimbrel.server.settle import NUMBER_MAX


def _latest_token(items: list[p.ServerItem]) -> str | None:
    for item in reversed(items):
        if isinstance(item, p.Welcome | p.Heads) and item.sync:
            return item.sync
    return None


class _All:
    """What the stream of a whole user says: the hub's items, under their sync token."""

    def __init__(self, gateway: Gateway, link: Link) -> None:
        self._gateway = gateway
        self._link = link

    def chunks(self) -> Iterator[bytes]:
        items = self._gateway.outgoing(self._link)
        token = self._gateway.hub.sync(self._link.number) or _latest_token(items)
        *frames, last = p.frames(items) or [b""]
        for frame in frames:
            yield _event(frame)
        if last:
            # The token promises all of the items, so it goes with the last of their frames.
            yield _event(last, token)

    @property
    def over(self) -> bool:
        return False


class _Log:
    """What the stream of one conversation says: its log from a position on, and all else as it comes."""

    def __init__(
        self,
        gateway: Gateway,
        link: Link,
        *,
        ledger: Ledger,
        user: str,
        conversation: str,
        position: int | None,
    ) -> None:
        self._gateway = gateway
        self._link = link
        self._ledger = ledger
        self._user = user
        self._conversation = conversation
        self._position = position
        self._left = False

    @property
    def over(self) -> bool:
        return self._left

    def chunks(self) -> Iterator[bytes]:
        others: list[p.ServerItem] = []
        for item in self._gateway.outgoing(self._link):
            if isinstance(item, p.Welcome | p.Heads):
                if item.heads:
                    others.append(p.Heads(heads=item.heads))
                self._left = self._left or any(head.left for head in item.heads)
            elif not isinstance(item, p.Event):
                others.append(item)
        for frame in p.frames(others):
            yield _event(frame)
        # The ledger is where the entries are read from, not the queue: one way for those missed, those
        # dropped for a slow reader, and those of this moment, and no gap between them.
        while page := self._page():
            self._position = page.events[-1].seq
            for event in page.events:
                yield _event(p.encode([event]), str(event.seq))

    def _page(self) -> p.Page | None:
        if self._position is None:
            page = self._ledger.page(self._user, self._conversation, before=NUMBER_MAX, limit=1)
            self._position = page.head if page is not None else 0
            return None
        page = self._ledger.page(self._user, self._conversation, since=self._position, limit=p.PAGE_MAX)
        return page if page is not None and page.events else None


def _event(data: bytes, id: str | None = None) -> bytes:
    # JSON on one line holds no line break, so it is one data line.
    head = b"" if id is None else b"id: " + id.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


class EventStream(Response):
    """A response that lasts until the client goes, the hub ends the link, or the stream is over."""

    media_type = EVENTS

    def __init__(self, gateway: Gateway, link: Link, source: _All | _Log, keep_alive_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._gateway = gateway
        self._link = link
        self._source = source
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None, "runs in a task"
        self._link.abort = task.cancel
        leaving = asyncio.ensure_future(_gone(receive, self._link))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._write(leaving, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            pass  # the hub's patience with this link is over
        finally:
            self._gateway.close(self._link)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _write(self, leaving: asyncio.Future[None], send: Send) -> None:
        # A comment at once: the client learns that it is connected, however long nothing happens.
        await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})
        while not leaving.done():
            self._link.wake.clear()
            try:
                for chunk in self._source.chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except LedgerUnavailable:
                return
            closing = self._link.number in self._gateway.hub.closing and not self._link.wake.is_set()
            if closing or self._source.over:
                return
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    await self._link.wake.wait()
            except TimeoutError:
                await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})


async def _gone(receive: Receive, link: Link) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    link.wake.set()


def _nothing() -> None:
    """End nothing: a poll ends when it is woken, and a stream says how once it runs."""


async def all_events(call: Call) -> Response:
    """Stream everything that happens in the user's conversations; ``id:`` is a sync token."""
    gateway = call.service.gateway
    sync = call.request.headers.get("last-event-id") or call.request.query_params.get("sync")
    link = gateway.listen(call.identity, sync=sync, abort=_nothing)
    return EventStream(gateway, link, _All(gateway, link), call.service.http.keep_alive_s)


async def conversation_events(call: Call) -> Response:
    """Stream one conversation's log from a ``seq`` on, which is also the ``id:``, and its receipts."""
    gateway, ledger = call.service.gateway, call.service.ledger
    user, conversation = call.identity.user, call.path("conversation")
    # A past member has no head either. Strangers cost one lookup more than what does not exist.
    if ledger.head(user, conversation, 0) is None:
        raise errors.NotFound("no such conversation")
    position: int | None = None
    last = call.request.headers.get("last-event-id", "")
    if last:
        if not (last.isascii() and last.isdecimal() and len(last) <= 11):
            raise errors.InvalidRequest("Last-Event-ID is a seq here")
        position = int(last)
    elif "since" in call.request.query_params:
        position = call.number("since", 0, 0, NUMBER_MAX)
    link = gateway.listen(call.identity, only=conversation, abort=_nothing)
    log = _Log(gateway, link, ledger=ledger, user=user, conversation=conversation, position=position)
    return EventStream(gateway, link, log, call.service.http.keep_alive_s)


async def poll(call: Call) -> Response:
    """Wait until something happens, or for ``timeout`` seconds; ask again with the ``sync`` given."""
    gateway, http = call.service.gateway, call.service.http
    timeout_s = float(call.number("timeout", int(http.poll_s), 0, int(http.poll_s_max)))
    sync = call.request.query_params.get("sync")
    link = gateway.listen(call.identity, sync=sync, abort=_nothing)
    # Who is gone holds none of the links its user may have: on a bad network it asks again and again.
    leaving = asyncio.ensure_future(_gone(call.request.receive, link))
    try:
        items = gateway.outgoing(link)
        token = _latest_token(items) or ""
        news = [item for item in items if not _says_nothing(item)]
        if not news:
            link.wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    while not news and not leaving.done():
                        await link.wake.wait()
                        link.wake.clear()
                        news = gateway.outgoing(link)
            except TimeoutError:
                pass
            token = gateway.hub.sync(link.number) or _latest_token(news) or token
        return json(Polled(items=tuple(news), sync=token))
    finally:
        gateway.close(link)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


def _says_nothing(item: p.ServerItem) -> bool:
    return isinstance(item, p.Welcome) and not item.heads and not item.complete


ROUTES = (
    Route(
        method="GET",
        path="/api/conversations/{conversation}/events",
        name="conversation_events",
        handler=conversation_events,
        media_type=EVENTS,
        query=(
            Query(name="since", about="begin after this seq; now, if not given", kind="integer"),
            Query(name="Last-Event-ID", about="the last id seen; goes before since", where="header"),
        ),
        problems=(400, 401, 404, 429, 503),
    ),
    Route(
        method="GET",
        path="/api/events",
        name="all_events",
        handler=all_events,
        media_type=EVENTS,
        query=(
            Query(name="sync", about="a sync token to resume from"),
            Query(name="Last-Event-ID", about="the last id seen; goes before sync", where="header"),
        ),
        problems=(401, 429, 503),
    ),
    Route(
        method="GET",
        path="/api/poll",
        name="poll",
        handler=poll,
        answer=Polled,
        query=(
            Query(name="sync", about="the token of the last answer"),
            Query(name="timeout", about="seconds, 25 if not given, at most 60", kind="integer"),
        ),
        problems=(400, 401, 429, 503),
    ),
)
