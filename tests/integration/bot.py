"""A bot: a durable consumer in a process of its own, killed between its handler and ``done()`` and elsewhere.

For every entry it is handed it does what a handler does in one transaction of its own database: keep the
entry's id, unless it is there (``INSERT OR IGNORE``), and only then add the entry's number to a sum. So the
sum is right however often an entry comes. Beside it a careless handler's sum counts every time.

Where it is goes into the books: ``<consumer>.steps`` has a line for every step with every entry. At the step
and the entry it is told, it halts and waits for its killer, or (``halt="any"``) goes on until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
from pathlib import Path

import msgspec

from tests.integration.programs import Book
from whimbrel import Client, ConsumedEvent, Credentials


class Halt(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bot waits to be killed."""

    step: str
    """``got`` (nothing done), ``half`` (inside its transaction), ``handled``, ``done``."""
    after: int
    """How many entries it handles first, in this life."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the bot is to do."""

    url: str
    user: str
    password: str
    folder: str
    life: int = 0
    """The number of this life of the process."""
    consumers: tuple[str, ...] = ("bot",)
    halt: Halt | None = None
    """Of the first of the consumers."""
    until: int | None = None
    """Ends when every consumer has handled so many entries, over all its lives; None: never."""


def steps(folder: Path, consumer: str) -> list[tuple[int, str, int, str]]:
    """What a consumer went through, in order: the life, step, position, id."""
    found = []
    for line in Book(folder / f"{consumer}.steps").lines():
        life, step, position, id = line.split(" ")
        found.append((int(life), step, int(position), id))
    return found


def totals(folder: Path, consumer: str) -> tuple[int, int, int]:
    """What its handlers came to: different entries, the careful sum, the careless one."""
    with contextlib.closing(open_database(folder, consumer)) as database:
        (count,) = database.execute("SELECT count(*) FROM handled").fetchone()
        return (count, *database.execute("SELECT careful, careless FROM sums").fetchone())


def open_database(folder: Path, consumer: str) -> sqlite3.Connection:
    """The bot's own database, which knows nothing of the client's store."""
    database = sqlite3.connect(folder / f"{consumer}.sqlite", isolation_level=None)
    database.execute("PRAGMA synchronous = FULL")
    database.execute("BEGIN IMMEDIATE")
    database.execute("CREATE TABLE IF NOT EXISTS handled (id TEXT PRIMARY KEY)")
    database.execute("CREATE TABLE IF NOT EXISTS sums (careful INTEGER, careless INTEGER)")
    database.execute("INSERT INTO sums SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM sums)")
    database.execute("COMMIT")
    return database


class Bot:
    """One consumer in one life of the process."""

    def __init__(self, folder: Path, consumer: str, life: int, halt: Halt | None) -> None:
        self.book = Book(folder / f"{consumer}.steps")
        self.life = life
        self.consumer = consumer
        self.database = open_database(folder, consumer)
        self.halt = halt
        self.handled = 0
        (self.known,) = self.database.execute("SELECT count(*) FROM handled").fetchone()

    async def run(self, client: Client, until: int | None) -> None:
        """Handle what comes, until so many were handled."""
        if until is not None and self.known >= until:
            return
        async for event in client.events(consumer=self.consumer):
            await self._step("got", event)
            await self._handle(event)
            await self._step("handled", event)
            await event.done()
            await self._step("done", event)
            self.handled += 1
            if until is not None and self.known >= until:
                return

    async def _handle(self, event: ConsumedEvent) -> None:
        """One transaction: the id and its effect, together or not at all."""
        database, content = self.database, event.message.content
        number = int(content.split()[-1]) if isinstance(content, str) else 0
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE sums SET careless = careless + ?", (number,))
        if database.execute("INSERT OR IGNORE INTO handled VALUES (?)", (event.id,)).rowcount:
            database.execute("UPDATE sums SET careful = careful + ?", (number,))
            self.known += 1
        await self._step("half", event)
        database.execute("COMMIT")

    async def _step(self, step: str, event: ConsumedEvent) -> None:
        self.book.write(f"{self.life} {step} {event.message.position} {event.id}")
        halt = self.halt
        if halt is not None and halt.step == step and self.handled >= halt.after:
            self.book.write(f"{self.life} halted {event.message.position} {event.id}")
            await asyncio.Event().wait()


async def main(work: Work) -> None:
    """One life of the process."""
    folder = Path(work.folder)
    bots = [
        Bot(folder, name, work.life, work.halt if number == 0 else None)
        for number, name in enumerate(work.consumers)
    ]
    client = Client(work.url, folder / "bot.db", Credentials(work.user, work.password), key=b"k" * 32)
    async with client, asyncio.TaskGroup() as group:
        for bot in bots:
            group.create_task(bot.run(client, work.until))


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Work)))
