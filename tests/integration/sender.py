"""A program that sends numbered messages and can be killed at any instant.

It writes a number down only after ``send()`` returned. Started again, it goes on after the last
number it wrote down, so a message it may have sent without knowing goes out under the same key.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from whimbrel import Client, Credentials


async def main(url: str, store: Path, log: Path, *rest: str) -> None:
    conversation_id, count, password = rest[0], int(rest[1]), rest[2]
    lines = log.read_text().split("\n") if log.exists() else [""]
    done = len(lines) - 1  # a torn last line has no end, and is sent again under its key
    log.write_text("".join(line + "\n" for line in lines[:done]))
    async with Client(url, store, Credentials("anna", password), key=b"k" * 32) as client:
        conversation = client.conversation(conversation_id)
        with log.open("a") as file:
            for number in range(done, count):
                await conversation.send(f"text {number}", key=f"number-{number}")
                file.write(f"{number}\n")
                file.flush()
                await asyncio.sleep(0.002)
        await client.flush(60)
    sys.stdout.write("done\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:]))
