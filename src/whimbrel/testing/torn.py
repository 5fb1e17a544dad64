"""What a power cut leaves of a file: each write that was not synced is kept, lost or torn, by chance.

The bytes of ``powerloss``, which says what may happen and why; here nothing is opened, read or written.
"""

from __future__ import annotations

import random
from collections import Counter

SECTORS_BYTES = (512, 4096)


class File:
    """One file: what of it is durable, and what was done since."""

    __slots__ = ("durable", "pending")

    def __init__(self, durable: bytearray | None = None) -> None:
        self.durable = bytearray() if durable is None else durable
        self.pending: list[tuple[int, bytes | None]] = []
        """(offset, bytes written), or (size, None) where it was truncated."""

    def sync(self) -> None:
        """Make durable what is to be written."""
        for at, data in self.pending:
            carry_out(self.durable, at, data)
        self.pending.clear()


def carry_out(content: bytearray, at: int, data: bytes | None) -> None:
    """Write ``data`` at an offset, or (None) truncate to a size."""
    if data is None:
        del content[at:]
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class Chance:
    """Decides what a cut leaves of what was not synced."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.sector_bytes = SECTORS_BYTES[0]
        self.fates: Counter[str] = Counter()
        """What became of it, over all cuts."""

    def after(self, file: File) -> bytearray:
        """Keep, lose or tear each write that is not durable."""
        content = bytearray(file.durable)
        # Where most is kept, the one that is missing is noticed; where most is lost, the one that is there.
        kept = self.rng.choice((0.0, 0.1, 0.5, 0.9, 1.0, 1.0))
        for at, data in file.pending:
            if data and 0.0 < kept < 1.0 and self.rng.random() < 0.25:
                self.fates["torn"] += 1
                self._tear(content, at, data)
            elif self.rng.random() < kept:
                self.fates["kept"] += 1
                carry_out(content, at, data)
            else:
                self.fates["lost"] += 1
        return content

    def _tear(self, content: bytearray, at: int, data: bytes) -> None:
        start = 0
        while start < len(data):
            end = min(len(data), start + self.sector_bytes - (at + start) % self.sector_bytes)
            piece = data[start:end]
            match self.rng.randrange(5):
                case 0 | 1:
                    carry_out(content, at + start, piece)
                case 2:
                    carry_out(content, at + start, piece[: self.rng.randrange(len(piece) + 1)])
                case 3:
                    self.fates["garbage"] += 1
                    carry_out(content, at + start, self.rng.randbytes(len(piece)))
                case _:
                    pass
            start = end
