"""The real server in a process of its own: killed, stopped, started again on the same port, its disk full."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from argon2 import PasswordHasher

from whimbrel.server.data import open_accounts
from whimbrel.server.settings import ServerSettings

LIMIT_S = 60.0
"""Far more than anything here takes."""
PASSWORD = "correct horse battery"

_PROGRAM = """
import sys
from pathlib import Path
import msgspec
from whimbrel.server.run import ServeSettings, run
from whimbrel.server.settings import ServerSettings

server = msgspec.json.decode(sys.argv[3], type=ServerSettings)
settings = ServeSettings(data=Path(sys.argv[1]), port=int(sys.argv[2]), server=server)
run(settings, ready=lambda url: print(url, flush=True))
"""
UNLIMITED = ServerSettings(rate_limit=None)


class RealServer:
    """A server with these users, who all have the same password."""

    def __init__(
        self, folder: Path, users: tuple[str, ...], *, settings: ServerSettings = UNLIMITED, port: int = 0
    ) -> None:
        self._folder = folder
        self._users = users
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self.port = port
        self.url = ""

    async def __aenter__(self) -> Self:
        # Hashing as weakly as can be: what is tested is not how long a guess takes.
        hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        accounts = open_accounts(self._folder, hasher=hasher)
        try:
            for user in self._users:
                accounts.add_user(user, PASSWORD)
        finally:
            accounts.close()
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, on the port it had before, and wait until it listens."""
        process = await self.spawn()
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            line = await process.stdout.readline()
        assert line, "the server did not start"
        self.url = line.decode().strip()
        self.port = int(self.url.rpartition(":")[2])

    async def spawn(self) -> asyncio.subprocess.Process:
        """Start it and wait for nothing."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PROGRAM,
            str(self._folder),
            str(self.port),
            msgspec.json.encode(self._settings).decode(),
            stdout=asyncio.subprocess.PIPE,
        )
        return self._process

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        """From now on every write of the running process to a file fails; at the end they work again."""
        pid = self.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # killed meanwhile
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    async def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()
