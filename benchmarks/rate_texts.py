"""The messages of a measurement, and the check that each arrived, once and in order.

A message is a number and what fills it up to `TEXT_BYTES`. The filling changes from message to message and
does not compress well, and the receiver compares the whole text, so a message that was changed is found
too. A measurement with anything wrong in it is no figure: `Arrivals.wrong` says what it was.
"""

import random
import time
from functools import cache

TEXT_BYTES = 200
_DIGITS = 9
_FILLING_BYTES = 4096
_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,. "


@cache
def _filling() -> str:
    return "".join(random.Random(1).choices(_ALPHABET, k=_FILLING_BYTES + TEXT_BYTES))


def text(number: int) -> str:
    """Give the message of this number: `TEXT_BYTES` of ASCII."""
    begin = number * 7 % _FILLING_BYTES
    return f"{number:0{_DIGITS}d}{_filling()[begin : begin + TEXT_BYTES - _DIGITS]}"


class Arrivals:
    """What the receiving app got. Numbers go on from one order to the next, from 0."""

    def __init__(self, *, ordered: bool) -> None:
        """Not ordered: any order will do, but each once."""
        self._ordered = ordered
        self._begin = 0
        self._end = 0
        self._seen: set[int] = set()
        self.count = 0
        """How many arrived since the beginning."""
        self.times: list[float] = []
        """When, on the monotonic clock, each of this order arrived, in their order of arrival."""
        self.wrong = ""
        """The first thing that was wrong."""

    def expect(self, count: int) -> None:
        """Begin an order of so many messages."""
        self._begin = self._end
        self._end += count
        self._seen.clear()
        self.times = []

    @property
    def complete(self) -> bool:
        """Whether as many came as were ordered; `wrong` says whether they were the right ones."""
        return self.count >= self._end

    def take(self, received: str) -> None:
        """Note one message."""
        self.times.append(time.monotonic())
        number = self.count
        self.count = number + 1
        if self._ordered:
            if received != text(number):
                self._note(f"place {number} has {received[:_DIGITS]!r}")
            elif number >= self._end:
                self._note(f"{number} was not sent")
            return
        try:
            number = int(received[:_DIGITS])
        except ValueError:
            self._note(f"no number: {received[:_DIGITS]!r}")
            return
        if received != text(number):
            self._note(f"{number} was changed")
        elif number in self._seen:
            self._note(f"{number} came twice")
        elif not self._begin <= number < self._end:
            self._note(f"{number} was not sent now")
        self._seen.add(number)

    def _note(self, wrong: str) -> None:
        self.wrong = self.wrong or wrong
