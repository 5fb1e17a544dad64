"""The real server in a process of its own, which can be killed and started again on the same port."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from argon2 import PasswordHasher

from whimbrel.server.data import open_accounts

LIMIT_S = 60.0
"""Far more than anything here takes."""
PASSWORD = "correct horse battery"

_PROGRAM = """
import sys
from pathlib import Path
from whimbrel.server.run import ServeSettings, run
from whimbrel.server.settings import ServerSettings

settings = ServeSettings(
    data=Path(sys.argv[1]), port=int(sys.argv[2]), server=ServerSettings(rate_limit=None)
)
run(settings, ready=lambda url: print(url, flush=True))
"""


class RealServer:
    """A server with these users, who all have the same password."""

    def __init__(self, folder: Path, users: tuple[str, ...]) -> None:
        self._folder = folder
        self._users = users
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0
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

    async def start(self) -> None:
        """Start it, on the port it had before."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PROGRAM,
            str(self._folder),
            str(self.port),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            line = await process.stdout.readline()
        assert line, "the server did not start"
        self.url = line.decode().strip()
        self.port = int(self.url.rpartition(":")[2])

    async def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()
