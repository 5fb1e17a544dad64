"""What leaves now, and on which links: the actions, derived from committed state when asked for.

Nothing is kept in a list that could outlive what it was for: a frame for a link that died meanwhile does not
exist. What depends on nothing stored (a ping, a hello, typing) is never held back by a slow disk.
"""

from __future__ import annotations

from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.core.calls import Calls
from whimbrel.core.link import LinkMachine
from whimbrel.core.linkstate import LinkState
from whimbrel.core.outbox import Outbox
from whimbrel.core.timeline import Timeline
from whimbrel.core.tokens import Tokens

_ITEM_BYTES = 100
_WRITABLE_BYTES = 64 * 1024


class Departures:
    """Asks the machines what they want to do, and remembers what concerns one link only."""

    def __init__(self, link: LinkMachine, tokens: Tokens, calls: Calls, *, compare_every_s: float) -> None:
        self._compare_every_s = compare_every_s
        self._link = link
        self._tokens = tokens
        self._calls = calls
        self.outbox: Outbox
        self.timeline: Timeline
        self.meta: dict[str, str]
        self.typing: dict[str, bool] = {}
        self.greet: list[int] = []
        """Links that stand and are to be greeted."""
        self.auth_due = False
        """The token must be told on the active link: the one it was greeted with is another."""
        self.greeted_with: str | None = None
        self.compare_at = 0.0
        """When what is known of the logs is compared with the server, at the earliest."""
        self._writable: dict[int, int] = {}

    def opened(self, link: int) -> None:
        """A connection stands."""
        self._writable.setdefault(link, _WRITABLE_BYTES)

    def closed(self, link: int) -> None:
        """A connection is gone."""
        self._writable.pop(link, None)
        if link in self.greet:
            self.greet.remove(link)

    def writable(self, link: int, size_bytes: int) -> None:
        """How many more bytes this link may be given now."""
        self._writable[link] = size_bytes

    def take(self, now: float, *, resetting: bool, reloading: bool) -> list[c.Action]:
        """What the driver must do now; each is given once.

        ``resetting``: no link is greeted. ``reloading``: nothing leaves that rests on the store.
        """
        out: list[c.Action] = []
        link = self._link
        if link.state is not LinkState.STOPPED and self._tokens.due(now):
            self._tokens.refreshing = True
            out.append(c.RefreshToken())
        if link.changing:
            for number, reason in link.take_closes():
                self._writable.pop(number, None)
                out.append(c.CloseLink(link=number, reason=reason))
            out.extend(c.OpenLink(link=number) for number in link.take_opens())
        if self.greet and not resetting:
            for number in self.greet:
                if self._tokens.token is not None and link.knows(number):
                    self.greeted_with = self._tokens.token
                    hello = p.Hello(token=self._tokens.token, sync=self.meta.get("sync"))
                    out.append(c.SendItems(link=number, items=(hello,)))
            self.greet.clear()
        if link.active is not None and self._any():
            items = self._items(link.active, now, reloading)
            if items:
                out.append(c.SendItems(link=link.active, items=tuple(items)))
        return out

    def _any(self) -> bool:
        """Whether anything may have to be sent; most turns have nothing, and are spared the search."""
        return bool(
            self.timeline.untold
            or self.outbox.turns
            or self.timeline.wanting
            or self._link.heartbeat.pings
            or self._calls.waiting
            or self.outbox.asks
            or self.auth_due
            or self.typing
        )

    def _items(self, link: int, now: float, reloading: bool) -> list[p.ClientItem]:
        items: list[p.ClientItem] = [p.Ping(id=id) for id in self._link.take_pings()]
        if items and now >= self.compare_at and not reloading:
            self.compare_at = now + self._compare_every_s
            items.append(p.Compare(version=self.timeline.version))
        if self.auth_due and self._tokens.token is not None:
            items.append(p.Auth(token=self._tokens.token))
            self.auth_due = False
        if reloading:
            return items
        if self.typing:
            items.extend(p.Typing(conversation=name, on=on) for name, on in self.typing.items())
            self.typing.clear()
        items.extend(self.timeline.receipts(link, now))
        unanswered = len(items)
        items.extend(self._calls.due(link))
        items.extend(self.timeline.fetches(link, now))
        items.extend(self.outbox.take_asks())
        budget = self._writable.get(link, _WRITABLE_BYTES) - len(items) * _ITEM_BYTES
        for send in self.outbox.take(budget, now):
            budget -= _ITEM_BYTES * 2 + (len(send.body) if isinstance(send, p.Send) else 0)
            items.append(send)
        if not items:
            return items
        self._writable[link] = max(0, budget)
        if len(items) > unanswered:
            self._link.sent(now)
            items[:0] = [p.Ping(id=id) for id in self._link.take_pings()]
        return items
