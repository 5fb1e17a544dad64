"""The files beside the store's own: the locks that only one process holds, and the ballast.

``<store>.lock`` makes its holder the one that syncs the store; ``<store>.consumer-….lock`` makes it the
one that reads under a consumer's name. They are locked, not made and removed: a lock goes with the process,
however that ends, and the empty file stays. ``<store>.ballast`` holds room on the disk that is given up when
the disk is full, so that what was delivered can still be written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path

from whimbrel.errors import StoreInUse
from whimbrel.store.faults import free_bytes

BALLAST_BYTES = 3 * 1024 * 1024
"""What the log of the database may hold (``schema.WAL_PAGES``), and a large change more.

Less would not do: on a full disk the log cannot be written back until the file has room for all of
it, and until then it only grows. With this much given up it is written back, and used again from its
beginning: the outbox drains for as long as it takes.
"""


class ProcessLock:
    """Held from the start until ``release`` or the end of the process. Raises ``StoreInUse``, OSError."""

    def __init__(self, store: Path, consumer: str | None = None) -> None:
        """``consumer``: the lock of this consumer's name, instead of the one of the store."""
        if consumer is None:
            path = store.with_name(store.name + ".lock")
            refusal = f"another program, or another client in this one, uses {store}"
        else:
            named = hashlib.sha256(consumer.encode()).hexdigest()[:16]
            path = store.with_name(f"{store.name}.consumer-{named}.lock")
            refusal = f"another program, or another client in this one, reads as consumer {consumer}"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreInUse(refusal) from error
            raise

    def release(self) -> None:
        """Let others open the store; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Ballast:
    """Room kept on the disk for what must still be written when it is full."""

    def __init__(self, store: Path, size_bytes: int = BALLAST_BYTES) -> None:
        self._path = store.with_name(store.name + ".ballast")
        self._size_bytes = size_bytes
        self._held = False

    def spent(self) -> bool:
        """Whether the room was given up and the disk has hardly any again; takes it again if it can."""
        return not self.fill() and free_bytes(self._path.parent) < self._size_bytes

    def gone(self) -> bool:
        """Whether there is none, and hardly any room: what a guest looks at, who keeps no ballast."""
        return not self._path.exists() and free_bytes(self._path.parent) < self._size_bytes

    def fill(self) -> bool:
        """Take the room, if the disk has it and some more; says whether it is held."""
        if self._held:
            return True
        try:
            if self._path.exists() and self._path.stat().st_size >= self._size_bytes:
                self._held = True
                return True
            if free_bytes(self._path.parent) < 2 * self._size_bytes:
                return False
            self._path.touch(mode=0o600)
            with self._path.open("r+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self._size_bytes)
                else:
                    file.write(os.urandom(self._size_bytes))  # zeros may take no room on the disk
        except OSError:
            self.free()
            return False
        self._held = True
        return True

    def free(self) -> bool:
        """Give the room up; says whether there was any."""
        self._held = False
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
