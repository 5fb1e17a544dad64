"""What a benchmark ran on, and how much of it others had meanwhile: figures mean little without."""

import os
import platform
import time
from pathlib import Path
from statistics import median
from typing import Self

import msgspec

SYNCS = 50
SYNC_BYTES = 4096
COMMIT_BYTES = 7 * 2072
"""What the commit of one message writes to the log: about seven pages, each with its header."""


class Jiffies(msgspec.Struct, frozen=True, kw_only=True):
    """Time of all processors since the machine started, as the kernel counts it."""

    busy: int
    stolen: int
    total: int

    @classmethod
    def now(cls) -> Self:
        """Read the counters."""
        # user nice system idle iowait irq softirq steal guest guest_nice; guests are in user and nice as well
        counters = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle = counters[3] + counters[4]
        return cls(busy=sum(counters) - idle - counters[7], stolen=counters[7], total=sum(counters))

    def stolen_since(self, before: "Jiffies") -> float:
        """Percentage of the time in which the machine's host ran something else."""
        return 100 * (self.stolen - before.stolen) / max(1, self.total - before.total)


def cpu_model() -> str:
    """Give the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def filesystem(folder: Path) -> str:
    """Give the kind of the file system a folder is on."""
    path = str(folder.resolve())
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, its_kind, *_ = line.split()
        mount = mount.replace("\\040", " ")
        if len(mount) >= len(best) and (path == mount or path.startswith(f"{mount.rstrip('/')}/")):
            best, kind = mount, its_kind
    return kind


def sync_ms(folder: Path) -> float:
    """Measure how long the disk takes to keep one page: the median of a few."""
    return median(_synced(folder, SYNC_BYTES, pause_s=0.0)) * 1e3


def floor_ms(folder: Path, *, pause_s: float) -> float:
    """Measure a commit with nothing in it: as many bytes as a small one, written and synced after a pause."""
    return median(_synced(folder, COMMIT_BYTES, pause_s=pause_s)) * 1e3


def _synced(folder: Path, size_bytes: int, *, pause_s: float) -> list[float]:
    path = folder / f"sync-{os.getpid()}"
    times = []
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        for number in range(SYNCS):
            content = os.urandom(size_bytes)
            time.sleep(pause_s)  # a disk and a processor that rested are slower: that is what is asked
            begun = time.monotonic()
            os.pwrite(file, content, number * size_bytes)
            os.fdatasync(file)
            times.append(time.monotonic() - begun)
    finally:
        os.close(file)
        path.unlink()
    return times


def described(folder: Path) -> list[tuple[str, str]]:
    """Say what there is to say before anything is measured."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return [
        ("processor", f"{cpu_model()}, {os.cpu_count()} cores"),
        ("system", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("file system", f"{filesystem(folder)}, {sync_ms(folder):.2f} ms a sync"),
        ("load before", load),
    ]
