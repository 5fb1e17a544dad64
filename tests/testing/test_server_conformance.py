"""The same tests for the server in a process of its own, over sockets, and for the one in memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import argon2
import pytest

from whimbrel import Credentials
from whimbrel.server.data import open_accounts
from whimbrel.testing import MemoryServer
from whimbrel.testing.server_conformance import ServerConformance
from whimbrel.testing.server_conformance_life import LifeConformance
from whimbrel.testing.server_speaker import ServerStage

HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PROGRAM = """
import sys
from pathlib import Path
from whimbrel.server.run import ServeSettings, run
from whimbrel.server.service import HttpSettings

http = HttpSettings(login_per_s=1e6, login_burst=1_000_000)
settings = ServeSettings(data=Path(sys.argv[1]), port=int(sys.argv[2]), http=http)
run(settings, ready=lambda url: print(url, flush=True))
"""


class ServerProcess:
    """`whimbrel serve` as it is, on a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def up(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self._folder), port], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the server did not start"

    def user(self, name: str) -> Credentials:
        with contextlib.closing(open_accounts(self._folder, hasher=HASHER)) as accounts:
            if not accounts.users_exist([name]):
                accounts.add_user(name, f"password of {name}")
        return Credentials(name, f"password of {name}")

    def crash(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    async def start(self) -> None:
        self.up()


@pytest.fixture(scope="module")
def server_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("server"))
    try:
        server.up()
        yield server
    finally:
        server.crash()


class TestServerProcess(ServerConformance):
    @pytest.fixture
    def stage(self, server_process: ServerProcess) -> ServerStage:
        return server_process


class TestMemoryServer(ServerConformance):
    """On a virtual network, in virtual time."""

    @pytest.fixture
    def stage(self, whimbrel_server: MemoryServer) -> ServerStage:
        return whimbrel_server


@pytest.mark.real_time
class TestMemoryServerOverSockets(LifeConformance):
    """Half of it: that the same server listens on real sockets as well."""

    @pytest.fixture
    def stage(self, whimbrel_server: MemoryServer) -> ServerStage:
        return whimbrel_server
