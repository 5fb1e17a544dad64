"""The stand on which the benchmarks of bad days run: a real server in a process, users, processes of Python.

What is started here is ended here, by its own process id, however the measurement ends. A server neither
limits logins nor sending, so that a crowd can be signed in and the system is measured, not its limits.

`alone` runs one benchmark from the command line: `python -m benchmarks.MODULE [--quick]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path

import argon2

from benchmarks.figures import Figure, Settings, end_in_order
from whimbrel import Credentials
from whimbrel.cli.storm_process import Child, StormError
from whimbrel.server.data import open_accounts, open_data
from whimbrel.server.ledger import ConversationSet, CreateConversation

__all__ = [
    "PASSWORD",
    "RunningServer",
    "add_users",
    "alone",
    "create_rooms",
    "credentials",
    "device_of",
    "files_at_most",
    "own_folder",
    "percentile",
    "resident_bytes",
    "running_server",
    "until",
]

PASSWORD = "of an account that lives for minutes"  # noqa: S105 - it guards nothing, behind the loopback
KIB = 1024
READY_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.005


class RunningServer:
    """A server process that listens."""

    def __init__(self, child: Child, folder: Path) -> None:
        self.child = child
        self.folder = folder
        self.url = ""

    def __repr__(self) -> str:
        return f"<RunningServer {self.url}>"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pids[-1]


@contextlib.asynccontextmanager
async def running_server(folder: Path) -> AsyncIterator[RunningServer]:
    """Serve from `folder/server`, on a free port, in a process of its own; it ends with the block."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_line(line: bytes) -> None:
        if not address.done():
            address.set_result(line.decode().strip())

    command = [sys.executable, "-m", "whimbrel.cli.storm_server", str(folder / "server"), "0"]
    child = Child("server", command, folder, on_line=on_line)
    server = RunningServer(child, folder)
    try:
        await child.start()
        async with asyncio.timeout(READY_WITHIN_S):
            while not address.done():
                child.check()
                await asyncio.sleep(_LOOK_EVERY_S)
        server.url = address.result()
        yield server
    finally:
        await child.stop()


def add_users(folder: Path, names: Iterable[str], *, with_tokens: bool = False) -> dict[str, str]:
    """Add users to `folder/server`; gives each an access token if asked to, else empty strings.

    Passwords are hashed as weakly as can be: what is measured is never how long a guess takes.
    """
    hasher = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    tokens: dict[str, str] = {}
    with contextlib.closing(open_accounts(folder / "server", hasher=hasher)) as accounts:
        for name in names:
            accounts.add_user(name, PASSWORD)
            tokens[name] = accounts.login(name, PASSWORD, device_of(name)).access if with_tokens else ""
    return tokens


def create_rooms(folder: Path, rooms: dict[str, tuple[str, ...]]) -> None:
    """Write conversations into the ledger of `folder/server`, which is not being served; its users exist."""
    with open_data(folder / "server") as data:
        operations = [
            CreateConversation(user=members[0], conversation=id, title=id, members=members)
            for id, members in rooms.items()
        ]
        outcomes = data.ledger.apply(operations, time.time())
        if not all(isinstance(outcome, ConversationSet) for outcome in outcomes):
            raise StormError("a conversation could not be created")


def device_of(user: str) -> str:
    """The device id of a user who speaks without a client: always the same, 26 characters."""
    digest = hashlib.sha256(user.encode()).hexdigest()
    return "".join("abcdefghijklmnop"[int(digit, 16)] for digit in digest[:26])


def credentials(user: str) -> Credentials:
    """What a user added here signs in with."""
    return Credentials(user, PASSWORD)


def resident_bytes(pid: int, *, peak: bool = False) -> int:
    """How much memory a process holds, or held at most (Linux). Raises `OSError` if it is gone."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^Vm{'HWM' if peak else 'RSS'}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise OSError(f"the memory of process {pid} is not told here")
    return int(found[1]) * KIB


def files_at_most(count: int) -> int:
    """Let this process and its children hold so many open files, if the system allows; gives how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else count


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that `percent` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


async def until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    """Look until it holds. Raises `StormError` after `within_s` seconds."""
    ends_at_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > ends_at_s:
            raise StormError(f"waited {within_s:g} s for {what}")
        await asyncio.sleep(_LOOK_EVERY_S)


@contextlib.contextmanager
def own_folder(settings: Settings, name: str) -> Iterator[Path]:
    """A fresh folder below the run's own, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=settings.folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def alone(measure: Callable[[Settings], Iterable[Figure]]) -> int:
    """Run one benchmark and print its figures; 1 if a target was missed."""
    end_in_order()
    quick = "--quick" in sys.argv[1:]
    build = Path("build")
    build.mkdir(exist_ok=True)
    missed = False
    with tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder:
        for figure in measure(Settings(quick=quick, folder=Path(folder).resolve())):
            value = "invalid" if figure.value is None else f"{figure.value:.4g} {figure.unit}"
            verdict = "" if figure.ok is None else "   ok" if figure.ok else "   MISSED"
            target = f"   ({figure.target})" if figure.target else ""
            note = f"\n        {figure.note}" if figure.note else ""
            sys.stdout.write(f"{figure.name}: {value}{target}{verdict}{note}\n")
            sys.stdout.flush()
            missed = missed or figure.ok is False
    return int(missed)
