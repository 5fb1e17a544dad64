"""Damages to files, from a seed: what disks, crashes and people do to a database and what lies beside it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

PAGE_BYTES = 4096


def copy(folder: Path, to: Path) -> Path:
    """A copy of a folder's files; the shared memory is no file of the disk."""
    to.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and not file.name.endswith("-shm"):
            shutil.copy(file, to / file.name)
    return to


def _beside(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _changed(file: Path, at: int, content: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        stream.write(content)


def _hit(path: Path, chance: random.Random) -> Path:
    """The log, if there is one, half of the time."""
    log = _beside(path)
    return log if log.exists() and log.stat().st_size and chance.random() < 0.5 else path


def flip_bits(path: Path, chance: random.Random, others: Path) -> str:
    file = _hit(path, chance)
    content = bytearray(file.read_bytes())
    places = [chance.randrange(len(content)) for _ in range(chance.choice((1, 1, 2, 5)))]
    for place in places:
        content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"flipped bits at {places} of {file.name}"


def cut_short(path: Path, chance: random.Random, others: Path) -> str:
    file = _hit(path, chance)
    size = file.stat().st_size
    left = chance.choice((0, chance.randrange(size), chance.randrange(size) // PAGE_BYTES * PAGE_BYTES))
    with file.open("r+b") as stream:
        stream.truncate(left)
    return f"cut {file.name} at {left} of {size}"


def zero_pages(path: Path, chance: random.Random, others: Path) -> str:
    file = _hit(path, chance)
    pages = -(-file.stat().st_size // PAGE_BYTES)
    first = 0 if chance.random() < 0.2 else chance.randrange(pages)
    count = min(chance.choice((1, 1, 2, 8)), pages - first)
    _changed(file, first * PAGE_BYTES, bytes(count * PAGE_BYTES))
    return f"zeroed {count} pages from {first} of {file.name}"


def take_log(path: Path, chance: random.Random, others: Path) -> str:
    _beside(path).unlink(missing_ok=True)
    return "took the log away"


def swap_log(path: Path, chance: random.Random, others: Path) -> str:
    """``others`` holds logs of other databases, and older ones of this one."""
    log = chance.choice(sorted(others.glob("*-wal")))
    shutil.copy(log, _beside(path))
    return f"put the log {log.name} in its place"


def foreign(path: Path, chance: random.Random, others: Path) -> str:
    content = chance.choice((b"", b"a letter to nobody\n" * 500, b"SQLite format 3\0" + bytes(8176)))
    path.write_bytes(content)
    if chance.random() < 0.5:
        _beside(path).unlink(missing_ok=True)
    return f"put a foreign file of {len(content)} bytes in its place"


Damage = Callable[[Path, random.Random, Path], str]
DAMAGES: tuple[Damage, ...] = (
    flip_bits,
    flip_bits,
    flip_bits,
    cut_short,
    cut_short,
    zero_pages,
    zero_pages,
    take_log,
    swap_log,
    foreign,
)


def damage(path: Path, chance: random.Random, others: Path) -> str:
    """Damage the database at ``path`` or its log, somehow; says how."""
    return chance.choice(DAMAGES)(path, chance, others)
