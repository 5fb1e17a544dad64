"""Runs the server of a peer as a process of its own, on a free port of the loopback."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.rate_ends import Served

START_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
_LOOK_EVERY_S = 0.02
PORTS_TRIED_MAX = 5


def program(name: str) -> str:
    """Find a program that a package brought along. Raises `ImportError` if it is not installed."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ImportError(f"{name} is not installed: it is in the dependency group `bench`")
    return found


def free_port() -> int:
    """Give a port that was free a moment ago; whoever takes it may find it taken."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def essential(work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    """Do this beside everything else. If it fails, the process ends at once: nobody waits in vain."""

    async def run() -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 - whatever it is, nothing goes on without it
            traceback.print_exc()
            os._exit(1)

    return asyncio.create_task(run())


@asynccontextmanager
async def running(arguments: Callable[[int], list[str]], folder: Path) -> AsyncIterator[Served]:
    """Run a server until it is left; its output goes to a file in its folder.

    `arguments` makes its command line for a port. If another program was quicker to take the port, the
    server ends at once, and another port is tried.
    """
    for _ in range(PORTS_TRIED_MAX):
        port = free_port()
        with (folder / "output.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *arguments(port), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            if await _listens(process, port):
                yield Served(pid=process.pid, address=f"127.0.0.1:{port}")
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(STOP_WITHIN_S):
                    await process.wait()
                return
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    last = (folder / "output.log").read_text(errors="replace")[-500:]
    raise RuntimeError(f"the server did not start: {last}")


async def _listens(process: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until it takes connections; False when it ended instead."""
    async with asyncio.timeout(START_WITHIN_S):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            writer.close()
            return True
    return False
