"""Looks over a simulated device's shoulder: does it keep its bounds, and does it obey the server?

It sees what passes between engine, network and disk, and knows no rule of the engine but those the protocol
and the settings state: nobody connects before the time a 503 named, numbers are not repeated again and again
before the time their refusal named, and no more is kept than the settings allow.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.testing.history import History
from whimbrel.testing.simclock import OwnClock
from whimbrel.testing.simnet import Items

__all__ = ["Watch"]

LOOK_EVERY: Final = 16
"""Commits between two looks at what is kept."""
SLACK_S: Final = 0.1
REPEATED_MAX: Final = 30
"""So often a number may go out again before its time: its refusal was overtaken by that of another copy.

On a link of some seconds, a refusal or two of each pause is. Who pauses for nothing comes to 70 in a storm.
"""


class Watch:
    """The watcher of one device; what it finds goes into `History.faults`."""

    def __init__(self, device: str, user: str, clock: OwnClock, history: History, bounds: c.Settings) -> None:
        self.device = device
        self.user = user
        self.clock = clock
        self.history = history
        self.bounds = bounds
        self._commits = 0
        self._repeated = 0
        self._wait_until_s = 0.0
        """Before that the server wants no connection."""
        self._too_fast: dict[tuple[int, str, int], tuple[float, set[int]]] = {}
        """By link and stream: until when the server wants nothing, and the numbers that it refused."""

    def forget(self) -> None:
        """The process died, or its app asked to connect at once: it knows better than the server."""
        self._wait_until_s = 0.0
        self._too_fast.clear()

    def closed(self, fault: c.Fault) -> None:
        """A connection failed."""
        if fault.retry_after_s is not None and self.clock.standing_until_s is None:
            self._wait_until_s = self.clock.now_s + fault.retry_after_s

    def opens(self) -> None:
        """The engine begins a connection."""
        now_s = self.clock.now_s
        if now_s < self._wait_until_s - SLACK_S:
            self._complain(f"opened a connection at {now_s:.3f}, not to before {self._wait_until_s:.3f}")

    def received(self, link: int, items: Items) -> None:
        """A frame came: the server takes connections again."""
        self._wait_until_s = 0.0
        for item in items:
            if type(item) is p.Rejected and item.retry_after_s and item.code == "rate_limited":
                stream = (link, item.conversation, item.stream)
                # The first is obeyed; those behind it are told later, and go out again with it.
                until_s = self.clock.now_s + item.retry_after_s - SLACK_S
                self._too_fast.setdefault(stream, (until_s, set()))[1].add(item.n)

    def sends(self, link: int, items: Items) -> None:
        """A frame goes out."""
        if not self._too_fast:
            return
        for item in items:
            if type(item) is p.Send:
                stream = (link, item.conversation, item.stream)
                until_s, numbers = self._too_fast.get(stream, (0.0, set()))
                if self.clock.now_s >= until_s:
                    self._too_fast.pop(stream, None)
                elif item.n in numbers:
                    self._repeated += 1
                    if self._repeated == REPEATED_MAX:
                        self._complain(f"repeats too fast what was refused as too fast, {REPEATED_MAX} times")

    def wants_look(self, changes: c.Changes) -> bool:
        """Whether these changes may have gone beyond a bound."""
        self._commits += 1
        return self._commits % LOOK_EVERY == 0 or any(
            row.arrival is None and not row.own for row in changes.messages.values()
        )

    def committed(self, conversations: list[c.ConversationRow]) -> None:
        """These rows are on disk."""
        for row in conversations:
            self.history.stored(self.user, row.id, self.clock.now_s, row.position)

    def look(self, snapshot: c.Snapshot) -> None:
        """What is kept must be within the bounds."""
        self.committed(snapshot.conversations)
        # What a lost history had waits again, however much it is.
        if len(snapshot.outbox) > self.bounds.outbox_messages_max and not self.history.restored:
            self._complain(f"{len(snapshot.outbox)} messages wait, more than may")
        beyond = Counter(row.conversation for row in snapshot.buffered if not row.own)
        if beyond and max(beyond.values()) > self.bounds.out_of_order_max:
            self._complain(f"{max(beyond.values())} entries beyond a gap, more than may be")

    def _complain(self, text: str) -> None:
        self.history.faults.append(f"{self.device}: {text}")
