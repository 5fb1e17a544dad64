"""A real server in a process of its own whose clock can be set, and whose disk can be full or fail.

It reads commands from its standard input, a line each: ``clock SECONDS`` (off the real one), ``full``,
``fail``, ``well``; it answers each with ``done``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.client.real_server import LIMIT_S
from tests.server.app_rig import add_users

_PROGRAM = """
import random, sys, threading, time
from pathlib import Path

real, off_s = time.time, 0.0
time.time = lambda: real() + off_s

from tests.disks.rig import below_the_cipher
from whimbrel.server.run import ServeSettings, run
from whimbrel.server.settings import ServerSettings
from whimbrel.testing.powerloss import Disk, Fault

folder = Path(sys.argv[1])
disk = Disk(folder, random.Random(1))

def obey():
    global off_s
    for line in sys.stdin:
        command, _, value = line.strip().partition(" ")
        if command == "clock":
            off_s = float(value)
        elif command == "full":
            disk.size_bytes_max = disk.used_bytes()
        elif command == "fail":
            disk.fail(Fault(kind="sync", lasting=True))
        else:
            disk.size_bytes_max = None
            disk.repair()
        print("done", flush=True)

threading.Thread(target=obey, daemon=True).start()
with below_the_cipher(disk):
    settings = ServeSettings(data=folder, port=int(sys.argv[2]), server=ServerSettings(rate_limit=None))
    run(settings, ready=lambda url: print(url, flush=True))
"""


class OddServer:
    """A server with these users."""

    def __init__(self, folder: Path, *users: str) -> None:
        self._folder = folder
        self._users = users
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._folder.mkdir(mode=0o700)
        add_users(self._folder, *self._users)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PROGRAM,
            str(self._folder),
            "0",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.url = await self._line()
        return self

    async def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            line = await self._process.stdout.readline()
        assert line, "the server is gone"
        return line.decode().strip()

    async def tell(self, command: str) -> None:
        """Give it a command and wait until it is done."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        assert await self._line() == "done"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            # Reads what is left and closes the pipes.
            await process.communicate()
