"""A program that shares its store with others like it, sends and listens; killed at any instant, run again.

It writes a number into its book of what was sent only after ``send()`` returned; started again, it goes on
after the last one under the same keys. When it syncs the store it says so, with the time. One that follows
writes down what its live events tell, and what its durable consumer is handed. When the file ``enough`` is
there it sends no more, waits until nothing is queued, and says so; it ends when ``end`` is there.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import msgspec

from tests.integration.programs import Book
from whimbrel import Client, Credentials, MessageReceived
from whimbrel.client.guest import Guest

LOOK_S = 0.005


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """Who shares what."""

    name: str
    url: str
    user: str
    password: str
    conversations: list[str]
    folder: str
    seed: int
    follows: bool = False

    @property
    def store(self) -> Path:
        """The store that all share."""
        return Path(self.folder, "shared.db")

    def book(self, kind: str) -> Book:
        """``places``; ``sent`` (numbers), ``live`` and ``handed`` (the life, position, id)."""
        return Book(Path(self.folder, f"{self.name}.{kind}"))

    def conversation(self, number: int) -> str:
        """Where the message of this number goes, in every life."""
        return random.Random(f"{self.seed} {self.name} {number}").choice(self.conversations)

    def text(self, number: int) -> str:
        """What it says."""
        return f"{self.name} {number}"


class Sharer:
    """One life of the program."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.places = share.book("places")
        self.life = self.places.lines().count("begun")
        self.rng = random.Random(share.seed * 1_000 + self.life)
        self.live = 0
        """Up to here everything was told by live events, or was there before them."""

    def said(self, name: str) -> bool:
        return Path(self.share.folder, name).exists()

    async def run(self) -> None:
        share = self.share
        self.places.write("begun")
        credentials = Credentials(share.user, share.password)
        async with Client(share.url, share.store, credentials, key=b"k" * 32) as client:
            self.places.write("open")
            tasks = [asyncio.create_task(self.watch_role(client))]
            if share.follows:
                tasks += [
                    asyncio.create_task(self.follow(client)),
                    asyncio.create_task(self.consume(client)),
                ]
            sending = asyncio.create_task(self.send(client))
            done, _ = await asyncio.wait([*tasks, sending], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await client.flush()
            self.places.write("flushed")
            while not self.said("end"):  # noqa: ASYNC110 - of a file nobody tells
                await asyncio.sleep(LOOK_S)
            if share.follows:
                await self.heard_all(client)
            for task in tasks:
                task.cancel()
        self.places.write("ended")

    async def send(self, client: Client) -> None:
        sent = self.share.book("sent")
        number = len(sent.lines())
        while not self.said("enough"):
            conversation = self.share.conversation(number)
            await client.send(conversation, self.share.text(number), key=self.share.text(number))
            sent.write(str(number))
            number += 1
            await asyncio.sleep(self.rng.random() * 0.02)

    async def watch_role(self, client: Client) -> None:
        session = client._session
        assert session is not None
        while isinstance(session.role, Guest):  # noqa: ASYNC110 - the app is not told, and need not be
            await asyncio.sleep(LOOK_S)
        self.places.write(f"owner {time.monotonic()}")
        await asyncio.Event().wait()

    async def follow(self, client: Client) -> None:
        book = self.share.book("live")
        events = client.events()
        while page := await client.arrivals(self.live, 1000):  # what was there before
            self.live = page[-1].position or 0
        async for event in events:
            if isinstance(event, MessageReceived):
                book.write(f"{self.life} {event.message.position} {event.message.id}")
                self.live = max(self.live, event.message.position or 0)

    async def consume(self, client: Client) -> None:
        book = self.share.book("handed")
        async for event in client.events(consumer="bot"):
            book.write(f"{self.life} {event.message.position} {event.id}")
            await event.done()

    async def heard_all(self, client: Client) -> None:
        """Wait until what is in the store was told and handed out."""
        while await client.arrivals(await client.consumer_position("bot"), 1):  # noqa: ASYNC110 - see run
            await asyncio.sleep(LOOK_S)
        while await client.arrivals(self.live, 1):  # noqa: ASYNC110 - see run
            await asyncio.sleep(LOOK_S)


if __name__ == "__main__":
    asyncio.run(Sharer(msgspec.json.decode(sys.argv[1], type=Share)).run())
