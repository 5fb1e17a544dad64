"""How soon an app that starts can show its conversations, offline, and how long its import takes.

A store with 10,000 and one with 100,000 messages are made; then a client opens each, again and again, and
lists its conversations. In this process, with everything imported, the store's key at hand (where it is kept
costs what the key store costs) and the file in the system's cache. There is no network: nobody listens.

Importing is measured apart, each time in a process of its own, from before the first import of whimbrel
until its client is there, from compiled files: `import whimbrel` alone loads next to nothing, since names are
loaded when first used.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Settings, figure
from benchmarks.stand import alone, credentials, own_folder, percentile
from benchmarks.stores import KEY, USER, fill_store
from whimbrel import Client

SIZES = {10_000: "<= 50", 100_000: "<= 100"}
MESSAGES_PER_CONVERSATION = 500
STARTS = 20
IMPORTS = 10
CHILD_WITHIN_S = 60.0
_IMPORT = """
import time
busy, begin = time.process_time(), time.perf_counter()
import whimbrel
light = time.perf_counter() - begin
whimbrel.Client
print(light, time.perf_counter() - begin, time.process_time() - busy)
"""


def measure(settings: Settings) -> Iterable[Figure]:
    """Starting and importing."""
    with own_folder(settings, "compiled") as folder:
        yield from _imports(folder)
    for size, target in SIZES.items():
        if settings.quick and size > 10_000:
            continue
        with own_folder(settings, "start") as folder:
            path = folder / "store.db"
            rooms = len(fill_store(path, size, size // MESSAGES_PER_CONVERSATION))
            took = [1000 * seconds for seconds in asyncio.run(_starts(path, rooms))]
        name = f"start with {size:,} messages → {rooms} conversations listed, median"
        note = f"the slowest of {STARTS}: {max(took):.0f} ms; 90th percentile {percentile(took, 90):.0f} ms"
        yield figure(name, median(took), "ms", target, note=note)


def _imports(folder: Path) -> Iterable[Figure]:
    # Compiled, as what is installed is; whether this work copy may be compiled in its place is not asked.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    light, whole, busy = [], [], []
    for _ in range(IMPORTS + 1):
        command = [sys.executable, "-c", _IMPORT]
        done = subprocess.run(
            command, capture_output=True, check=True, timeout=CHILD_WITHIN_S, env=environment
        )
        first, second, third = done.stdout.split()
        light.append(1000 * float(first))
        whole.append(1000 * float(second))
        busy.append(1000 * float(third))
    # The first one compiled.
    note = f"of that {median(busy[1:]):.0f} ms of processor time; no module was loaded before"
    name = "import whimbrel, and its Client with all it needs"
    yield figure(name, median(whole[1:]), "ms", "<= 150", note=note)
    yield figure("import whimbrel alone", median(light[1:]), "ms", "<= 150")


async def _starts(path: Path, rooms: int) -> list[float]:
    with socket.socket() as nobody:
        # Bound and not listening: what connects there is refused.
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        took = []
        for _ in range(STARTS + 1):
            client = Client(url, path, credentials(USER), key=KEY)
            begin = time.perf_counter()
            try:
                await client.open()
                listed = await client.conversations()
                took.append(time.perf_counter() - begin)
            finally:
                await client.close(timeout=0.0)
            if len(listed) != rooms:
                raise RuntimeError(f"{len(listed)} conversations instead of {rooms}")
    return took[1:]


if __name__ == "__main__":
    raise SystemExit(alone(measure))
