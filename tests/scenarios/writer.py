"""A program that writes numbered messages, and notes every state they go through; to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.integration.programs import Book
from whimbrel import Client, Credentials, SentMessage


async def tell(sent: dict[SentMessage, str], book: Book) -> None:
    """Note what a page that shows these messages would show: that they are on their way is no event."""
    while True:
        for message, before in list(sent.items()):
            state = message.status.state.value
            if state != before:
                sent[message] = state
                book.write(state)
        await asyncio.sleep(0.002)


async def main(url: str, folder: Path, conversation: str, count: int, password: str) -> None:
    """One life: hand all over again, under their keys, and end when all are delivered."""
    book = Book(folder / "writer.states")
    async with Client(url, folder / "writer.db", Credentials("anna", password), key=b"k" * 32) as client:
        sent: dict[SentMessage, str] = {}
        telling = asyncio.create_task(tell(sent, book))
        for number in range(count):
            sent[await client.send(conversation, f"text {number}", key=f"number-{number}")] = ""
        book.write("returned")
        await client.flush(60)
        telling.cancel()
    book.write("end")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]))
