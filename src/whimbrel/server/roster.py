"""Who is here: sessions by link, by user and by owned device, and when something is due.

Invariant: a session is under its user exactly while it is live, so nothing is pushed to a closing one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from whimbrel.server.session import Identity, Session


class Deadlines:
    """What is due when, by (kind, key); whoever takes an entry checks that it still holds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str, int | str]] = []
        self._count = 0

    def add(self, at: float, kind: str, key: int | str = 0) -> None:
        """Note it."""
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, kind, key))

    def next(self) -> float | None:
        """The earliest time noted."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[tuple[float, str, int | str]]:
        """Take what is due, earliest first: (when, kind, key)."""
        while self._heap and self._heap[0][0] <= now:
            at, _, kind, key = heapq.heappop(self._heap)
            yield at, kind, key


class Roster:
    """The sessions of one process."""

    def __init__(self) -> None:
        self.sessions: dict[int, Session] = {}
        self.closing: dict[int, str] = {}
        self._users: dict[str, dict[int, Session]] = {}
        self._owners: dict[tuple[str, str], Session] = {}
        self._ready: dict[int, None] = {}

    def add(self, session: Session) -> None:
        """Take in a link that was opened."""
        assert session.link not in self.sessions, "a link is opened once"
        self.sessions[session.link] = session

    def remove(self, link: int) -> Session | None:
        """Forget a link."""
        session = self.sessions.pop(link, None)
        if session is not None:
            self.closing.pop(link, None)
            self._ready.pop(link, None)
            self._leave(session)
            # What it still has in the pipe is settled, but there is nobody to answer.
            session.closing = session.closing or "closed"
        return session

    def join(self, session: Session, identity: Identity) -> None:
        """It is known now who it is: from here on, it is pushed to."""
        session.identity = identity
        self._users.setdefault(identity.user, {})[session.link] = session

    def own(self, session: Session) -> Session | None:
        """Make it the owner of its device; gives the one that was, if another."""
        identity = session.identity
        assert identity is not None, "only a greeted session owns a device"
        device = (identity.user, identity.device)
        before = self._owners.get(device)
        self._owners[device] = session
        return before if before is not session else None

    def end(self, session: Session, reason: str) -> None:
        """Close it when its output is out; the first reason stays."""
        if session.closing is None:
            session.closing = reason
            self.closing[session.link] = reason
            self._leave(session)
        self.wake(session)

    def of(self, user: str) -> list[Session]:
        """The live sessions of a user."""
        sessions = self._users.get(user)
        return list(sessions.values()) if sessions else []

    def wake(self, session: Session) -> None:
        """There is something to write for it, or it is to be closed."""
        self._ready[session.link] = None

    def take_ready(self) -> list[int]:
        """The links woken since the last call, oldest first: in every run in the same order."""
        ready = sorted(self._ready)
        self._ready.clear()
        return ready

    def _leave(self, session: Session) -> None:
        identity = session.identity
        if identity is None:
            return
        sessions = self._users.get(identity.user)
        if sessions is not None and sessions.pop(session.link, None) is not None and not sessions:
            del self._users[identity.user]
        device = (identity.user, identity.device)
        if self._owners.get(device) is session:
            del self._owners[device]
