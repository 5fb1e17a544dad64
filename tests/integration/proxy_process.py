"""A fault proxy in a process of its own, before the server at a given port; writes its own into a book."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.integration.programs import Book
from whimbrel.testing.proxy import FaultProxy


async def main(target: int, book: Book) -> None:
    """Forward until it is killed."""
    async with FaultProxy("127.0.0.1", target) as proxy:
        book.write(f"port {proxy.port}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Book(Path(sys.argv[2]))))
