"""Programs in processes of their own, killed or stopped at chosen places and at any instant.

A program writes down in a book (``Book``) where it is, a word to a line; a test waits for the word and kills.
Lines are written whole, by one ``write`` to a file opened for appending: what a kill leaves is never torn.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.client.real_server import LIMIT_S
from tests.integration.rig import until


class Book:
    """Lines that outlive their writer; the writer appends, anybody reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def write(self, line: str) -> None:
        """Append a line, whole."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        data = (line + "\n").encode()
        assert os.write(self._file, data) == len(data)

    def lines(self) -> list[str]:
        """All that was written."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def last(self) -> str:
        """The last line, none longer than 200 characters; empty if there is none."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200))
            lines = file.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Program:
    """A script below `tests`, started as often as wanted; ends with its context."""

    def __init__(self, script: str, arguments: Sequence[str], book: Book) -> None:
        self._script = Path(__file__).resolve().parent.parent / script
        self.arguments = arguments
        """Of the next life."""
        self.book = book
        self.kills = 0
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, for the first time or again."""
        assert not self.running
        root = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(self._script), *self.arguments, env={**os.environ, "PYTHONPATH": path}
        )

    async def until(self, word: str, times: int = 1) -> None:
        """Wait until it has written this word so often, over all its lives."""

        def there() -> bool:
            if self.times(word) >= times:
                return True
            assert self.running, f"it ended before it wrote {word}"
            return False

        await until(there)

    def times(self, word: str) -> int:
        """How often it has written this word."""
        return self.book.lines().count(word)

    async def kill(self) -> None:
        """Kill -9, and wait until it is gone; nothing if it has ended by itself."""
        self.kills += self.running
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def pause(self) -> None:
        """Take the processor from it (SIGSTOP)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def ended(self) -> None:
        """Wait until it has ended by itself, with all done."""
        assert self._process is not None
        async with asyncio.timeout(LIMIT_S):
            assert await self._process.wait() == 0
