"""What is handed over to a store without a disk: the rules of ``store.handoff`` without a table.

A store in memory belongs to one client, which has nobody to hand anything over to it. It has the port
all the same: the driver asks every store, and a simulator may play the other process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whimbrel.core.contract import Changes, HandedOver, MessageRow, SendMessage, TakeHandoff
from whimbrel.core.rows import is_repeat
from whimbrel.errors import WhimbrelError
from whimbrel.model import message_id
from whimbrel.store.handoff import Fill, KeyRaced, Limits, Outcome, pending_row

Known = Callable[[str], MessageRow | None]


class MemoryHandoff:
    """The commands that wait, by number. All calls are under the store's lock."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._last = 0
        self._waiting: dict[int, tuple[HandedOver, float]] = {}

    def copy(self) -> MemoryHandoff:
        """The same, sharing nothing that changes."""
        out = MemoryHandoff(self._device)
        out._last, out._waiting = self._last, self._waiting.copy()
        return out

    def hand_over(
        self,
        commands: Sequence[tuple[HandedOver, float]],
        limits: Limits,
        *,
        known: Known,
        left: Callable[[str], bool],
        queued: list[MessageRow],
    ) -> list[Outcome]:
        """Take commands in; ``known`` gives the row of a queued message, ``queued`` are all that wait."""
        handed = self.rows(known)
        fill = Fill(
            limits=limits,
            messages=len(queued) + len(handed),
            size_bytes=sum(len(row.body.encode()) for row in queued + handed),
            others=len(self._waiting) - len(handed),
        )
        out: list[Outcome] = []
        for command, at in commands:
            row, gone = None, False
            if isinstance(command, SendMessage):
                id = message_id(self._device, command.key)
                row, gone = known(id) or self.row(id), left(command.conversation)
            try:
                if fill.admit(command, row, left=gone):
                    self._last += 1
                    self._waiting[self._last] = (command, at)
            except WhimbrelError as error:
                out.append(error)
            else:
                out.append(None)
        return out

    def handed_over(self, after: int, limit: int, known: Known) -> list[TakeHandoff]:
        """What is to be taken, with a number above ``after``."""
        return [
            TakeHandoff(number=number, command=None if self._row_of(command, known) else command, at=at)
            for number, (command, at) in self._waiting.items()
            if number > after
        ][:limit]

    def rows(self, known: Known) -> list[MessageRow]:
        """Messages that wait to be taken, as they read."""
        return [
            pending_row(command, message_id(self._device, command.key), at)
            for command, at in self._waiting.values()
            if isinstance(command, SendMessage) and self._row_of(command, known) is None
        ]

    def row(self, id: str) -> MessageRow | None:
        """The row of one of them."""
        return next((row for row in self.rows(lambda _: None) if row.id == id), None)

    def check(self, changes: Changes) -> None:
        """Raise ``KeyRaced`` if these changes queue other content under a key that waits here."""
        for number, (command, _) in self._waiting.items():
            if number not in changes.handoffs and isinstance(command, SendMessage):
                row = changes.messages.get(message_id(self._device, command.key))
                if row is not None and row.own and not is_repeat(row, command):
                    raise KeyRaced(row.id)

    def settle(self, changes: Changes) -> None:
        """Delete what these changes carry out."""
        for number in changes.handoffs:
            self._waiting.pop(number, None)

    def _row_of(self, command: HandedOver, known: Known) -> MessageRow | None:
        if not isinstance(command, SendMessage):
            return None
        return known(message_id(self._device, command.key))


class Unclaimed:
    """The claim on a consumer of a store that nobody else can open."""

    def release(self) -> None:
        """Nothing is held."""
