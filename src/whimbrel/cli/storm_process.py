"""Processes that are started, killed at any instant, started again, and never left behind.

A `Child` is one role with any number of lives: its process ids, its peak of memory over all of them, and
whether it ended when nobody had asked for that. What it says on its standard output is handed over line by
line; its standard error goes to a file in the storm's folder, whose end is quoted if it fails.

Its standard input is a pipe held by this process: a worker ends with it, so even ``kill -9`` of this process
leaves no worker behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

__all__ = ["Child", "StormError", "reap"]

LINE_BYTES_MAX = 1024 * 1024
END_WITHIN_S = 10.0
_QUOTED_CHARS = 2000


class StormError(RuntimeError):
    """The storm itself could not go on: a process failed, or did not become ready in time."""


class Child:
    """One process of the storm, over all its lives."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        on_line: Callable[[bytes], None] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.pids: list[int] = []
        self.kills = 0
        self.memory_bytes_max = 0
        self._errors = folder / f"{name}.err"
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ending = False

    def __repr__(self) -> str:
        return f"<Child {self.name} {self.pids[-1] if self.pids else 'not started'}>"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, for the first time or again."""
        assert not self.running
        self._ending = False
        with self._errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=LINE_BYTES_MAX,
                # A Ctrl-C at the terminal is for the one who started all this; the others are told by it.
                start_new_session=True,
            )
        self.pids.append(self._process.pid)
        self._reading = asyncio.create_task(self._read(self._process), name=f"{self.name} output")

    async def write(self, line: bytes) -> None:
        """Write a line to its standard input; nothing if it is gone."""
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(line + b"\n")
            await process.stdin.drain()

    async def kill(self) -> None:
        """End it with ``kill -9`` and wait until it is gone."""
        process = self._process
        if process is None:
            return
        self.sample_memory()
        self._ending = True
        self.kills += 1
        await self._end(process)

    async def wait(self) -> int:
        """Wait until it ends by itself, and give its exit code."""
        assert self._process is not None
        self._ending = True
        code = await self._process.wait()
        await self._finish()
        return code

    async def stop(self) -> None:
        """Ask it to end (SIGTERM), and kill it if it does not within ten seconds. May be called twice."""
        process = self._process
        if process is None:
            return
        self.sample_memory()
        self._ending = True
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(END_WITHIN_S):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        await self._finish()

    async def _finish(self) -> None:
        self._process = None
        if self._reading is not None:
            await asyncio.wait([self._reading])
            self._reading = None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if self._on_line is not None and line.endswith(b"\n"):
                self._on_line(line)

    def check(self) -> None:
        """Raise ``StormError`` if it ended without being asked to."""
        process = self._process
        if process is not None and process.returncode is not None and not self._ending:
            raise StormError(f"{self.name} ended with code {process.returncode}:\n{self.last_words()}")
        reading = self._reading
        if reading is not None and reading.done() and (error := reading.exception()) is not None:
            raise StormError(f"what {self.name} said was not understood ({type(error).__name__})") from error

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        with contextlib.suppress(OSError):
            return self._errors.read_text(errors="replace")[-_QUOTED_CHARS:].strip()
        return ""

    def sample_memory(self) -> None:
        """Look how much memory it has used at most; where that is not told (not Linux), it stays 0."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii", errors="replace")
            found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
            if found is not None:
                self.memory_bytes_max = max(self.memory_bytes_max, int(found[1]) * 1024)


async def reap(children: Iterable[Child]) -> None:
    """End all of them, together, whatever state they are in."""
    results = await asyncio.gather(*(child.stop() for child in children), return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
