"""What is decided but not on disk yet, and what becomes true when it is.

At most one ``Changes`` is in flight. What the app is told (events) and what may leave (queued
messages) waits here for the transaction it rests on.
"""

from __future__ import annotations

from collections import deque

from whimbrel.core.contract import Changes
from whimbrel.core.life import Entry
from whimbrel.model import Event


class _Batch:
    __slots__ = ("changes", "entries", "events")

    def __init__(self) -> None:
        self.changes = Changes()
        self.entries: list[Entry] = []
        self.events: list[Event] = []


class Staging:
    """The open batch, the one in flight, and the events that may be told."""

    def __init__(self) -> None:
        self._open = _Batch()
        self._in_flight: _Batch | None = None
        self._told: deque[Event] = deque()

    @property
    def changes(self) -> Changes:
        """The open batch's changes: write into it."""
        return self._open.changes

    @property
    def in_flight(self) -> bool:
        """Whether a batch is being written."""
        return self._in_flight is not None

    def entry(self, entry: Entry) -> None:
        """This message may leave once the open batch is on disk."""
        self._open.entries.append(entry)

    def event(self, event: Event) -> None:
        """Tell the app once the open batch is on disk."""
        self._open.events.append(event)

    def tell(self, event: Event) -> None:
        """Tell the app at once: it rests on nothing stored."""
        self._told.append(event)

    def take(self) -> Changes | None:
        """Begin writing the open batch; None when there is nothing to write."""
        if self._in_flight is not None:
            return None
        batch = self._open
        if not batch.changes:
            self._told.extend(batch.events)
            batch.events.clear()
            return None
        self._in_flight, self._open = batch, _Batch()
        return batch.changes

    def committed(self) -> tuple[list[Entry], Changes]:
        """The batch in flight is on disk; gives the messages that may leave now, and what was written."""
        batch = self._in_flight
        assert batch is not None, "nothing was being written"
        self._in_flight = None
        self._told.extend(batch.events)
        return batch.entries, batch.changes

    def forget(self) -> None:
        """Throw away all that is not on disk."""
        self._open, self._in_flight = _Batch(), None

    def events(self) -> list[Event]:
        """What the app must be told now; drained."""
        if not self._told:
            return []
        events = list(self._told)
        self._told.clear()
        return events
