"""Whether a send may go on to the ledger, by its user's credits.

A send over the rate leaves a *hole*: its number is still expected, and all that follows it on the same
link and stream is refused too, without costing a credit, until the number comes again. The hole is
forgotten after a while, should the client have settled the number some other way.
"""

from __future__ import annotations

import msgspec

from whimbrel import protocol as p
from whimbrel.server.credits import Buckets
from whimbrel.server.session import Session
from whimbrel.server.settings import ServerSettings

VOIDS_PER_SEND = 10
"""A user may give up messages so many times faster than send them: a full outbox is emptied at once."""


_NAMES = (("conversation", p.ID_CHARS_MAX), ("key", p.KEY_CHARS_MAX), ("reason", p.ID_CHARS_MAX))
CALL_ID_CHARS_MAX = p.FRAME_BYTES


def shortened(item: p.ClientItem, numbers_max: int) -> p.ClientItem:
    """Give the item with names no longer than it takes to see that they are too long.

    Names are kept while something waits, and come back with the answer: a megabyte of them would, too.
    """
    if (
        isinstance(item, p.Send)
        and len(item.conversation) <= p.ID_CHARS_MAX
        and len(item.key) <= p.KEY_CHARS_MAX
    ):
        return item  # nearly all
    if isinstance(item, p.Status):
        item = msgspec.structs.replace(item, numbers=item.numbers[:numbers_max])
    elif isinstance(item, p.Call) and len(item.id) > CALL_ID_CHARS_MAX:
        item = msgspec.structs.replace(item, id=item.id[:CALL_ID_CHARS_MAX])
    cut = {name: text[: most + 1] for name, most in _NAMES if len(text := getattr(item, name, "")) > most}
    return msgspec.structs.replace(item, **cut) if cut else item


class Admission:
    """The credits of all users; a user's devices share them."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._buckets = Buckets(settings.rate_limit, settings.rate_burst, settings.buckets_max)
        void_rate = None if settings.rate_limit is None else VOIDS_PER_SEND * settings.rate_limit
        self._voids = Buckets(void_rate, VOIDS_PER_SEND * settings.rate_burst, settings.buckets_max)

    def charge(self, user: str, now: float) -> float:
        """Take one credit and give 0.0, or give the seconds to wait."""
        wait_s = self._buckets.take(user, now)
        return max(wait_s, self._settings.rate_retry_s_min) if wait_s else 0.0

    def check_void(self, user: str, void: p.Void, now: float) -> p.Rejected | None:
        """Give why this number may not be voided now, or None; costs none of the credits for sends."""
        wait_s = self._voids.take(user, now)
        if not wait_s:
            return None
        return p.Rejected(
            conversation=void.conversation,
            stream=void.stream,
            n=void.n,
            code="rate_limited",
            text="too fast",
            retry_after_s=max(wait_s, self._settings.rate_retry_s_min),
        )

    def credits(self, user: str, now: float) -> p.Credits:
        """Tell a user's credits."""
        settings = self._settings
        return p.Credits(
            rate=settings.rate_limit or 0.0,
            burst=settings.rate_burst,
            available=self._buckets.available(user, now),
        )

    def check(self, session: Session, user: str, send: p.Send, now: float) -> p.Rejected | None:
        """Give why this send may not go on now, or None."""
        stream = (send.conversation, send.stream)
        hole = session.holes.get(stream)
        if hole is not None and send.n > hole[0] and now < hole[1] + self._settings.hole_kept_s:
            wait_s = max(hole[1] - now, self._settings.rate_retry_s_min)
        else:
            if hole is not None:
                del session.holes[stream]
            wait_s = self.charge(user, now)
            if not wait_s:
                return None
            while len(session.holes) >= self._settings.waiting_per_link_max:
                del session.holes[next(iter(session.holes))]
            session.holes[stream] = (send.n, now + wait_s)
        return p.Rejected(
            conversation=send.conversation,
            stream=send.stream,
            n=send.n,
            code="rate_limited",
            text="too fast",
            retry_after_s=wait_s,
        )
