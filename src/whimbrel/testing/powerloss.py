"""A disk that loses its power, fills up and fails: an SQLite VFS below the cipher.

Everything SQLite does to files goes through it, and on to real files in a folder. A ``Disk`` keeps apart what
is durable and what was done since: per file the synced bytes and the writes and truncations after them, per
name the creations and removals since the folder was last synced.

``cut()`` takes the power away, or ``cut_at`` and ``cut_on`` do in the middle of an operation; from then on
every operation fails. ``restart()`` makes the disk of afterwards. It may be any that SQLite says it survives:

* what was not synced is kept, lost or torn, each write for itself, in any order. A torn write is one in
  pieces of a sector, each of which is kept, lost, cut off in its middle or garbage. Bytes beside a write are
  never harmed (``SQLITE_IOCAP_POWERSAFE_OVERWRITE``, which SQLite assumes of every disk here);
* of the creations and removals of one name, the last ones may be lost;
* shared memory is gone, and so may be a file of ``loose`` kind, which others write: it may also be as it was
  last synced (``loose_synced``), or torn.

``fail()`` makes single operations fail, once or until ``repair()``. A failed write leaves a part of it. A
failed sync is as bad as one can be: what it was to write stays readable and counts as clean, so that no later
sync writes it, and a cut may find any of it lost or torn.

Who syncs the folder beside SQLite says so with ``folder_synced()``.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec

from whimbrel.testing.torn import Chance, File

_NOT_CONTENT = (".lock", ".ballast")
_NUMBERS = itertools.count(1)
_MADE_BY_SQLITE = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """The operation that fails: number ``at`` of its ``kind``, counted from 1 since ``repair()``.

    Kinds: ``full`` (a write that makes a file longer), ``write``, ``sync``, ``read``, ``truncate``,
    ``lock``, ``delete``, ``open``.
    """

    kind: str
    at: int = 1
    lasting: bool = False
    """Whether all after it fail as well."""


_ERRORS: dict[str, tuple[type[apsw.Error], int]] = {
    "full": (apsw.FullError, apsw.SQLITE_FULL),
    "write": (apsw.IOError, apsw.SQLITE_IOERR_WRITE),
    "sync": (apsw.IOError, apsw.SQLITE_IOERR_FSYNC),
    "read": (apsw.IOError, apsw.SQLITE_IOERR_READ),
    "truncate": (apsw.IOError, apsw.SQLITE_IOERR_TRUNCATE),
    "lock": (apsw.IOError, apsw.SQLITE_IOERR_LOCK),
    "delete": (apsw.IOError, apsw.SQLITE_IOERR_DELETE),
    "open": (apsw.CantOpenError, apsw.SQLITE_CANTOPEN),
}


class Disk:
    """The disk under all SQLite files of ``folder``; ``vfs`` is the name to open a database with.

    All that happens by chance is of ``rng``. Of one process, any number of threads; call ``close`` last.
    """

    def __init__(self, folder: Path, rng: random.Random, *, loose: Sequence[str] = ()) -> None:
        """``loose``: suffixes of the files that others write here, in place."""
        self.folder = folder
        self.rng = rng
        self._loose = tuple(loose)
        self._loose_before: dict[str, bytes] = {}
        self.chance = Chance(rng)
        self.size_bytes_max: int | None = None
        """How much all files of the folder may hold together."""
        self.cut_at: int | None = None
        """The power goes in the middle of this operation, counted by ``operations``."""
        self.cut_on: str | None = None
        """The power goes in the middle of the next operation named so: "sync", "write x.db-wal"."""
        self.off = False
        self.operations = 0
        """How often anything was changed or synced."""
        self.last = ""
        """The operation at which the power went: kind and file."""
        self.counts: Counter[str] = Counter()
        """Operations by kind, since ``repair()``."""
        self.faults: tuple[Fault, ...] = ()
        self.failed = 0
        """How many operations were made to fail."""
        self.lock = threading.RLock()
        self.boot = 0
        self._names: dict[str, File] = {}
        self._durable_names: dict[str, File] = {}
        self._changed_names: list[tuple[str, File | None]] = []
        self._vfs = _Vfs(self, f"whimbrel-disk-{next(_NUMBERS)}")
        self.vfs = f"multipleciphers-{self._vfs.vfs_name}"

    def __repr__(self) -> str:
        return f"<Disk of {self.folder.name}, {self.operations} operations>"

    def close(self) -> None:
        """Take the VFS away. Nothing may be open on it."""
        self._vfs.unregister()

    # --- power ---------------------------------------------------------------------------------

    def cut(self) -> None:
        """Take the power away: nothing works until ``restart()``."""
        self.off = True

    def restart(self) -> None:
        """Make the disk that is found when the power is back. All that was open must be closed."""
        with self.lock:
            names = self._names_after()
            contents = {file: self.chance.after(file) for file in set(names.values())}
            self._begin({name: contents[file] for name, file in names.items()})
            self._scatter()

    def erase(self) -> None:
        """Make it an empty disk. All that was open must be closed."""
        self.restore({})

    def image(self) -> dict[str, bytes]:
        """What its files hold now, as everybody reads them."""
        return {path.name: path.read_bytes() for path in self._paths()}

    def restore(self, image: Mapping[str, bytes]) -> None:
        """Make it a disk with these files, all of them durable. All that was open must be closed."""
        with self.lock:
            for path in self._paths():
                path.unlink()
            self._loose_before = {}
            self._begin({name: bytearray(content) for name, content in image.items()})

    def _begin(self, contents: Mapping[str, bytearray]) -> None:
        """Begin anew with these files as all that is durable."""
        for path in self._paths():
            if not self.is_loose(path):
                path.unlink()
        for memory in self.folder.glob("*-shm"):
            memory.unlink()
        for name, content in contents.items():
            path = self.folder / name
            path.touch(mode=0o600)
            path.write_bytes(content)
        self._names = {name: File(content) for name, content in contents.items()}
        self._durable_names = dict(self._names)
        self._changed_names = []
        self.boot += 1
        self.off, self.cut_at, self.cut_on = False, None, None
        self.repair()

    def _scatter(self) -> None:
        """Keep, lose or tear what others wrote."""
        found = {path.name: path for path in self._paths() if self.is_loose(path)}
        for name, path in found.items():
            content, before = path.read_bytes(), self._loose_before.get(name, b"")
            if content == before:
                continue
            match self.rng.randrange(6):
                case 0:
                    path.unlink()
                case 1 | 2:
                    path.write_bytes(before)
                case 3:
                    path.write_bytes(self.rng.randbytes(len(content)))
                case _:
                    pass
        self._loose_before = {name: path.read_bytes() for name, path in found.items() if path.exists()}

    def is_loose(self, path: Path) -> bool:
        """Whether others write this file."""
        return path.suffix in self._loose

    def _paths(self) -> list[Path]:
        """All files but those of the system's own: locks, shared memory, room kept free."""
        return sorted(
            path
            for path in self.folder.iterdir()
            if path.is_file() and path.suffix not in _NOT_CONTENT and not path.name.endswith("-shm")
        )

    def _names_after(self) -> dict[str, File]:
        """Of each name's changes since the folder was synced, the last ones may be lost."""
        after = dict(self._durable_names)
        changed: dict[str, list[File | None]] = {}
        for name, file in self._changed_names:
            changed.setdefault(name, []).append(file)
        for name, files in changed.items():
            kept = self.names_kept(name, len(files))
            self.chance.fates["name kept" if kept == len(files) else "name lost"] += 1
            for file in files[:kept]:
                if file is None:
                    after.pop(name, None)
                else:
                    after[name] = file
        return after

    def names_kept(self, name: str, changes: int) -> int:
        """How many of the unsynced creations and removals of a name a cut leaves; the first ones."""
        return self.rng.randint(0, changes)

    # --- faults --------------------------------------------------------------------------------

    def fail(self, *faults: Fault) -> None:
        """Make these operations fail, counted from now on."""
        self.repair()
        self.faults = faults

    def repair(self) -> None:
        """Let nothing fail any more."""
        self.faults = ()
        self.counts.clear()

    def used_bytes(self) -> int:
        """What is taken of it."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def free_bytes(self) -> int:
        """What may still be written."""
        if self.size_bytes_max is None:
            return 1 << 40
        return max(0, self.size_bytes_max - self.used_bytes())

    # --- what the VFS asks ---------------------------------------------------------------------

    def check(self, kind: str, boot: int | None = None) -> None:
        """Raise if there is no power, or if this operation is to fail."""
        if self.off or (boot is not None and boot != self.boot):
            raise apsw.IOError("the power is off")
        self.counts[kind] += 1
        count = self.counts[kind]
        for fault in self.faults:
            if fault.kind == kind and (count == fault.at or (fault.lasting and count > fault.at)):
                self.failed += 1
                raise self._error(kind)

    @staticmethod
    def _error(kind: str) -> apsw.Error:
        error_type, extended = _ERRORS[kind]
        error = error_type(f"simulated: {kind}")
        error.extendedresult = extended  # type: ignore[attr-defined]  # as on a real one
        return error

    def step(self, what: str) -> None:
        """One more operation; the power may go in the middle of it."""
        self.operations += 1
        chosen = self.cut_on is not None and what.startswith(self.cut_on)
        if chosen or (self.cut_at is not None and self.operations >= self.cut_at):
            self.last = what
            self.off = True
            raise apsw.IOError("the power went")

    def write(self, handle: Handle, at: int, data: bytes) -> None:
        """Write, not durably."""
        with self.lock:
            size = handle.xFileSize()
            try:
                if at + len(data) > size:
                    self.check("full", handle.boot)
                    if self.free_bytes() < at + len(data) - size:
                        self.failed += 1
                        raise self._error("full")
                self.check("write", handle.boot)
            except apsw.Error:
                if not self.off and handle.boot == self.boot:
                    part = data[: min(self.rng.randrange(len(data)), self.free_bytes())]
                    if part:
                        handle.put(at, part)
                raise
            handle.put(at, data)
            self.step(f"write {handle.name}")

    def truncate(self, handle: Handle, size: int) -> None:
        """Truncate, not durably."""
        with self.lock:
            self.check("truncate", handle.boot)
            handle.put(size, None)
            self.step(f"truncate {handle.name}")

    def sync(self, handle: Handle) -> None:
        """Make what was done to a file durable."""
        with self.lock:
            try:
                self.check("sync", handle.boot)
            except apsw.Error:
                if not self.off and handle.boot == self.boot:
                    handle.file.durable = self.chance.after(handle.file)
                    handle.file.pending.clear()
                raise
            self.step(f"sync {handle.name}")
            handle.file.sync()

    def folder_synced(self) -> None:
        """Make all names durable."""
        with self.lock:
            if self.off:
                return
            self.step("sync folder")
            self._durable_names = dict(self._names)
            self._changed_names.clear()
            for name in self._loose_before.keys() - {path.name for path in self._paths()}:
                del self._loose_before[name]

    def loose_synced(self, name: str) -> None:
        """A file of others is durable as it is now."""
        with self.lock:
            if not self.off:
                self.step(f"sync {name}")
                self._loose_before[name] = (self.folder / name).read_bytes()

    def open(self, name: str, flags: int) -> tuple[File, bool]:
        """The file of this name, and whether it is new."""
        with self.lock:
            self.check("open")
            file = self._names.get(name)
            if file is not None:
                return file, False
            # Without the flag, somebody made it beside SQLite, as the store does.
            if not flags & apsw.SQLITE_OPEN_CREATE and not (self.folder / name).exists():
                raise apsw.CantOpenError(f"there is no {name}")
            file = self._names[name] = File()
            self._changed_names.append((name, file))
            self.step(f"create {name}")
            return file, True

    def delete(self, name: str) -> None:
        """Remove a name; who has the file open keeps it."""
        with self.lock:
            self.check("delete")
            if self._names.pop(name, None) is not None:
                self._changed_names.append((name, None))
                self.step(f"delete {name}")


class _Vfs(apsw.VFS):
    """Names."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        self.vfs_name = name
        super().__init__(name, "unix")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        if name is None:
            return apsw.VFSFile("unix", name, flags)
        return Handle(self._disk, name, flags)

    def excepthook(self, *_: object) -> bool:
        """Called with an error that SQLite has no use for: nobody else has either."""
        return True

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - apsw's name
        self._disk.delete(Path(filename).name)
        super().xDelete(filename, False)
        if syncdir:
            self._disk.folder_synced()


class Handle(apsw.VFSFile):
    """One open file. Locks and shared memory are those of the real one."""

    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self.boot = disk.boot
        self.name = Path(name if isinstance(name, str) else name.filename()).name
        self.file, made = disk.open(self.name, flags[0])
        # As SQLite's own does: the first sync of a new log makes its name durable too.
        self._sync_folder = made and bool(flags[0] & _MADE_BY_SQLITE)
        super().__init__("unix", name, flags)

    def excepthook(self, *_: object) -> bool:
        """See ``_Vfs``."""
        return True

    def put(self, at: int, data: bytes | None) -> None:
        """Write ``data`` at an offset, or truncate to a size; readable at once."""
        if data is None:
            super().xTruncate(at)
        else:
            super().xWrite(data, at)
        self.file.pending.append((at, data))

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - apsw's name
        with self._disk.lock:
            self._disk.check("read", self.boot)
            return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - apsw's name
        self._disk.write(self, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - apsw's name
        self._disk.truncate(self, newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        self._disk.sync(self)
        if self._sync_folder:
            self._disk.folder_synced()
            self._sync_folder = False

    def xLock(self, level: int) -> None:  # noqa: N802 - apsw's name
        if not self._disk.off:  # locks are memory, not disk
            self._disk.check("lock", self.boot)
        super().xLock(level)
