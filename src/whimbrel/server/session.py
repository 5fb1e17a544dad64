"""One link as the server sees it: who it is, what waits for it, and how far it was told.

A session is *waiting* (opened, no hello yet), *live*, or *closing* (a reason is set: what is queued
still goes out, nothing that comes is heard any more). A *listening* session belongs to an HTTP stream:
it owns no device and sends nothing.

The queue has two classes. **Answers** concern what the client did and are never dropped; they are
bounded because a link with many unread answers is congested and not read from. **Pushes** are news:
beyond the bound the session falls *behind*, its pushes are dropped, and when the client has read what
was left it gets the current heads instead and fetches at its own pace.

``covered`` is the commit up to which the client was told everything, by a sync token that is out or
in the queue. Nothing is lost when pushes are dropped, since the heads then sent begin there.
"""

from __future__ import annotations

import math
from collections import deque

import msgspec

from whimbrel import protocol as p
from whimbrel.server.credits import Bucket
from whimbrel.server.settings import ServerSettings

_encode = msgspec.json.Encoder().encode


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whom an access token speaks for; ``expires_at`` in seconds since 1970."""

    user: str
    device: str
    expires_at: float


class _Queued(msgspec.Struct, frozen=True):
    item: p.ServerItem
    size_bytes: int
    push: bool
    commit: int | None
    """The commit which the item's sync token promises."""


def size_of(item: p.ServerItem) -> int:
    """About how many bytes an item takes on the wire; cheap, for bounds only."""
    if isinstance(item, p.Event):
        return _event_size(item)
    if isinstance(item, p.Page):
        return sum(_event_size(event) for event in item.events) + 100
    if isinstance(item, p.Welcome | p.Heads):
        return 300 + sum(
            150 + 24 * len(head.members or ()) + 60 * len(head.receipts or ()) for head in item.heads
        )
    if isinstance(item, p.Receipts):
        return 100 + 60 * len(item.receipts)
    if isinstance(item, p.Answer):
        return (
            200
            + len(item.id)
            + sum(200 + len(info.title) + 24 * len(info.members) for info in item.conversations)
        )
    return 200


def _event_size(event: p.Event) -> int:
    metadata_bytes = 0 if event.metadata is None else len(_encode(event.metadata))
    return len(event.body) + metadata_bytes + 300


class Session:
    """The state of one link; the hub decides what goes in."""

    def __init__(self, link: int, settings: ServerSettings, now: float) -> None:
        self.link = link
        self.identity: Identity | None = None
        self.listening = False
        self.only: str | None = None
        """The one conversation a listening session cares for; None: all."""
        self.closing: str | None = None
        self.behind = False
        self.covered = 0
        self.touched = False
        """Something was pushed or answered that no sync token covers yet."""
        self.sync_due = False
        self.waiting = 0
        """Operations of this link not settled yet."""
        self.holes: dict[tuple[str, int], tuple[int, float]] = {}
        """Streams with a number refused for its rate, still expected: (number, when to try again)."""
        self.opened_at = now
        self.heard_at = now
        self.expires_at: float | None = None
        """Monotonic."""
        self.due = math.inf
        """When it is looked after next."""
        self.renewed_at = -math.inf
        """When it last brought an access token."""
        self.unknown_items = 0
        self.typing = Bucket(settings.typing_per_s, settings.typing_burst, now)
        self._settings = settings
        self._queue: deque[_Queued] = deque()
        self._pongs: deque[p.Pong] = deque(maxlen=settings.pongs_max)
        self._answers = 0
        self._size_bytes = 0
        self._drained = 0

    def __repr__(self) -> str:
        return f"<Session link={self.link} queued={len(self._queue)} closing={self.closing}>"

    @property
    def live(self) -> bool:
        """Greeted and not closing."""
        return self.identity is not None and self.closing is None

    @property
    def empty(self) -> bool:
        """Nothing is queued and nothing was dropped: the client was given all there was."""
        return not self._queue and not self._pongs and not self.behind

    @property
    def congested(self) -> bool:
        """Reading more of this link would only make a heap: too many operations wait, or answers."""
        limits = self._settings
        return (
            self.waiting >= limits.waiting_per_link_max
            or self._answers >= limits.queue_items_max
            or self._size_bytes >= limits.queue_bytes_max
        )

    def due_by_now(self) -> float:
        """When to look after it, by what is known now; monotonic."""
        limits = self._settings
        if self.identity is None:
            return self.opened_at + limits.greet_within_s
        assert self.expires_at is not None, "a greeted session has a token"
        expiry = self.expires_at + limits.expiry_grace_s
        return expiry if self.listening else min(expiry, self.heard_at + limits.silent_after_s)

    def answer(self, item: p.ServerItem, commit: int | None = None) -> None:
        """Queue what the client must get; ``commit``: what its sync token promises."""
        self._put(_Queued(item, size_of(item), False, commit))
        self._answers += 1

    def push(self, item: p.ServerItem, commit: int | None = None) -> None:
        """Queue news; beyond the bound the session falls behind instead."""
        if self.behind:
            return
        size_bytes = size_of(item)
        limits = self._settings
        if self._queue and (
            len(self._queue) >= limits.queue_items_max
            or self._size_bytes + size_bytes > limits.queue_bytes_max
        ):
            self._fall_behind()
            return
        self._put(_Queued(item, size_bytes, True, commit))

    def pong(self, item: p.Pong) -> None:
        """Queue it before all else; of many unread pongs only the latest count."""
        self._pongs.append(item)

    def drain(self) -> list[p.ServerItem]:
        """Give all that is queued, pongs first."""
        items: list[p.ServerItem] = [*self._pongs]
        for queued in self._queue:
            items.append(queued.item)
            if queued.commit is not None:
                self._drained = max(self._drained, queued.commit)
        self._pongs.clear()
        self._queue.clear()
        self._answers = self._size_bytes = 0
        return items

    def cover(self, commit: int) -> None:
        """A token for ``commit`` goes out now, behind everything drained before."""
        self.covered = self._drained = max(self._drained, commit)
        self.touched = False

    def _put(self, queued: _Queued) -> None:
        self._queue.append(queued)
        self._size_bytes += queued.size_bytes
        if queued.commit is not None:
            self.covered = max(self.covered, queued.commit)
            self.touched = False

    def _fall_behind(self) -> None:
        self.behind = True
        kept = [queued for queued in self._queue if not queued.push]
        self._queue = deque(kept)
        self._size_bytes = sum(queued.size_bytes for queued in kept)
        # Tokens among the dropped were never seen: what was covered is what the client has or will get.
        self.covered = max([self._drained, *(q.commit for q in kept if q.commit is not None)])
        self.touched = True
