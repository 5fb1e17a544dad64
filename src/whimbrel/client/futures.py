"""Futures that somebody waits for, and may have been cancelled meanwhile: each is settled once at most."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from whimbrel.core.contract import Command

T = TypeVar("T")


class Submitted:
    """A command and who waits for it."""

    __slots__ = ("command", "future")

    def __init__(self, command: Command, future: asyncio.Future[str | None]) -> None:
        self.command = command
        self.future = future


def settle(future: asyncio.Future[T], value: T) -> None:
    """Give the value to who waits, if somebody still does."""
    if not future.done():
        future.set_result(value)


def fail(future: asyncio.Future[T], error: BaseException) -> None:
    """Give the error to who waits, if somebody still does."""
    if not future.done():
        future.set_exception(error)
        # Nobody may be waiting any more; that is no reason for a warning.
        future.exception()
