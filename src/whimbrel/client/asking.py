"""A guest's connection to the one that syncs the store, while there is one, and the questions on it.

A question whose connection ends has no answer: who asked asks again, whoever syncs then.
"""

from __future__ import annotations

import asyncio

from whimbrel.client import relay
from whimbrel.client.futures import settle


class Asking:
    """The connection, or none, and who waits for answers on it."""

    def __init__(self) -> None:
        self._line: relay.Line | None = None
        self._asked: dict[int, asyncio.Future[relay.Reply | None]] = {}
        self._asks = 0

    def __repr__(self) -> str:
        return f"<Asking {'joined' if self.joined else 'alone'} asked={len(self._asked)}>"

    @property
    def joined(self) -> bool:
        """Whether there is a connection."""
        return self._line is not None

    def begin(self, line: relay.Line) -> None:
        """This is the connection from now on."""
        self._line = line

    def end(self) -> None:
        """There is none any more: what was asked has no answer."""
        self._line = None
        asked, self._asked = self._asked, {}
        for future in asked.values():
            settle(future, None)

    def tell(self, frame: relay.GuestFrame) -> None:
        """Say something that may be lost."""
        if self._line is not None:
            self._line.send(frame)

    def post(self, question: relay.Question) -> None:
        """Ask something whose answer nobody waits for."""
        self._asks += 1
        self.tell(relay.Ask(number=self._asks, question=question))

    async def ask(self, question: relay.Question) -> relay.Reply | None:
        """Ask, and wait; None when the connection ended first. Only while there is one."""
        answered: asyncio.Future[relay.Reply | None] = asyncio.get_running_loop().create_future()
        number = self._asks + 1
        self._asked[number] = answered
        self.post(question)
        try:
            return await answered
        finally:
            self._asked.pop(number, None)

    def answered(self, reply: relay.Reply) -> None:
        """An answer came; one that nobody waits for is dropped."""
        future = self._asked.get(reply.number)
        if future is not None:
            settle(future, reply)
