"""A program that opens its client again and again, writes and listens; killed at any instant, started again.

It writes a number into its book of what was sent only after ``send()`` returned; started again, it goes on
after the last one, so what it may have sent without knowing goes out under the same key. Everything that
comes is handled by a durable consumer, which writes it down and says ``done()``. Where it is (opening, open,
closing, closed) goes into the book of places. When the file ``enough`` is there it writes no more; when
``total`` is there it waits until it has heard so many messages, and ends.
"""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from tests.integration.programs import Book
from whimbrel import Client, Credentials


class Talk(msgspec.Struct, frozen=True, kw_only=True):
    """Who talks where."""

    url: str
    user: str
    password: str
    conversation: str
    folder: str
    seed: int
    pause_s: float = 0.01
    session_max: int = 40
    """At most so many messages from one opening of the client to the next."""
    close_within_s: float = 1.0

    @property
    def places(self) -> Path:
        """Where it is."""
        return Path(self.folder, f"{self.user}.places")

    @property
    def sent(self) -> Path:
        """Numbers for which ``send()`` returned."""
        return Path(self.folder, f"{self.user}.sent")

    @property
    def heard(self) -> Path:
        """What its consumer was handed: the life, position, seq, id, kind, text."""
        return Path(self.folder, f"{self.user}.heard")

    @property
    def store(self) -> Path:
        """The client's store."""
        return Path(self.folder, f"{self.user}.db")


def heard(path: Path) -> list[tuple[int, int, int, str, str, str]]:
    """What a consumer was handed, in order: the life, position, seq, id, kind, text."""
    found = []
    for line in Book(path).lines():
        life, position, seq, id, kind, text = line.split(" ", 5)
        found.append((int(life), int(position), int(seq), id, kind, text))
    return found


class Talker:
    """One life of the program."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.places = Book(talk.places)
        self.sent = Book(talk.sent)
        self.heard = Book(talk.heard)
        self.life = self.places.lines().count("begun")
        self.rng = random.Random(talk.seed * 1_000 + self.life)
        self.done = len(self.sent.lines())
        self.ids = {id for _, _, _, id, kind, _ in heard(talk.heard) if kind == "message"}

    async def run(self) -> None:
        """Open, talk, close, until everything is said and heard."""
        self.places.write("begun")
        while not self._heard_all():
            self.places.write("opening")
            client = Client(
                self.talk.url,
                self.talk.store,
                Credentials(self.talk.user, self.talk.password),
                key=b"k" * 32,
            )
            async with client:
                self.places.write("open")
                listening = asyncio.create_task(self._listen(client))
                try:
                    await self._session(client)
                finally:
                    self.places.write("closing")
                    await client.close(self.talk.close_within_s)
                    with suppress(asyncio.CancelledError):
                        await listening
            self.places.write("closed")

    async def _session(self, client: Client) -> None:
        conversation = client.conversation(self.talk.conversation)
        for _ in range(self.rng.randint(1, self.talk.session_max)):
            if Path(self.talk.folder, "enough").exists():
                await client.flush(60)
                self.places.write("flushed")
                while not self._heard_all():  # noqa: ASYNC110 - what is waited for is a file of the test
                    await asyncio.sleep(0.01)
                return
            await conversation.send(f"{self.talk.user} {self.done}", key=f"number-{self.done}")
            self.sent.write(str(self.done))
            self.done += 1
            await asyncio.sleep(self.talk.pause_s)

    async def _listen(self, client: Client) -> None:
        async for event in client.events(consumer="talker"):
            message = event.message
            if message.kind == "message":
                self.ids.add(message.id)
            place = f"{self.life} {message.position} {message.seq}"
            self.heard.write(f"{place} {message.id} {message.kind} {message.content!s}")
            await event.done()

    def _heard_all(self) -> bool:
        total = Path(self.talk.folder, "total")
        return total.exists() and len(self.ids) >= int(total.read_text())


if __name__ == "__main__":
    asyncio.run(Talker(msgspec.json.decode(sys.argv[1], type=Talk)).run())
