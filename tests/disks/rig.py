"""Databases on a disk that can lose its power, and the life of one through many cuts.

A ``Life`` holds a database beside a model of what it was told: the implementation in memory, which is given
what was reported as done. What is found after a cut must be the model, or the model with the one change that
was under way, whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import apsw
import pytest

from whimbrel.testing.powerloss import Disk

KEY = bytes(range(32))
Opened = TypeVar("Opened")
Model = TypeVar("Model")


OPEN: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()
"""All connections made by ``connection_on``."""


def connection_on(disk: Disk, synchronous: str | None) -> type[apsw.Connection]:
    """A connection whose files are on the disk, if they are in its folder.

    apsw raises whatever its VFS raised, also where SQLite went on without it: in a checkpoint after a commit,
    and while closing. Here, as with a disk of the system, nobody hears of that.
    """
    plain = apsw.Connection

    class Connection(plain):  # type: ignore[valid-type, misc] # whichever is in use
        def __init__(self, filename: str, **options: Any) -> None:
            self._on_disk = Path(filename).parent == disk.folder
            if self._on_disk:
                options["vfs"] = disk.vfs
            super().__init__(filename, **options)
            OPEN.add(self)

        def pragma(self, name: str, *value: Any, **options: Any) -> Any:
            if name == "synchronous" and value and synchronous is not None:
                value = (synchronous,)
            found = super().pragma(name, *value, **options)
            if name == "wal_autocheckpoint" and value and self._on_disk:
                pages_max = value[0]

                def committed(db: apsw.Connection, schema: str, pages: int) -> int:
                    if pages >= pages_max:
                        with contextlib.suppress(apsw.Error):
                            db.wal_checkpoint(schema)
                    return apsw.SQLITE_OK

                self.set_wal_hook(committed)
            return found

        def close(self, force: bool = False) -> None:
            with contextlib.suppress(apsw.IOError, apsw.FullError, apsw.CantOpenError):
                super().close(force)

    return Connection


@contextmanager
def below_the_cipher(disk: Disk, *, synchronous: str | None = None) -> Iterator[None]:
    """Every database opened in the disk's folder is on it; ``synchronous`` is put in place of ``full``."""
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        try:
            if os.path.samestat(found, disk.folder.stat()):
                disk.folder_synced()
            for path in disk.folder.iterdir():
                if disk.is_loose(path) and os.path.samestat(found, path.stat()):
                    disk.loose_synced(path.name)
        except apsw.Error as error:
            raise OSError(errno.EIO, "simulated") from error

    def free_bytes(folder: Path) -> int:
        return disk.free_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apsw, "Connection", connection_on(disk, synchronous))
        patch.setattr(os, "fsync", synced)
        patch.setattr("whimbrel.store.files.free_bytes", free_bytes)
        patch.setattr("whimbrel.store.faults.free_bytes", free_bytes)
        yield


@contextmanager
def disk_in(folder: Path, rng: random.Random, *, synchronous: str | None = None) -> Iterator[Disk]:
    """A disk for ``folder``, in use."""
    folder.mkdir(exist_ok=True)
    disk = Disk(folder, rng, loose=(".mark",))
    with below_the_cipher(disk, synchronous=synchronous):
        yield disk
    disk.close()


class Life(ABC, Generic[Opened, Model]):
    """One database through many cuts."""

    name: str
    """Of its file, and what it is."""
    errors: tuple[type[Exception], ...]
    """What opening it and its calls raise when the disk fails."""
    full: type[Exception]
    """What they raise when it has no room."""
    restarts_log_after: tuple[int, ...]
    """How many pages its log may have, turn by turn: fewer, and more of the cuts strike a checkpoint."""

    def __init__(self, disk: Disk, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.disk = disk
        self.rng = rng
        self.patch = patch
        self.path = disk.folder / f"{self.name}.db"
        self.lost = 0
        """How often something reported was not found again; only ever more than 0 without ``full``."""
        self.rolled = 0
        """How often the change under way was not there."""
        self.whole = 0
        """How often it was."""
        self.refused = 0
        """How often there was no room."""
        self.rounds = 0
        self.cuts: Counter[str] = Counter()
        """Where the power went."""
        self.model: Model | None = None
        """What was reported; None: not even that there is a database."""
        self.may_be: list[Model] = []
        """The model with the change under way."""
        self.before: list[Model] = []
        """What the model was, oldest first, since the last cut."""
        self.creating = self._operations_of_opening()
        self.begin_anew()

    # --- what a life is of ---------------------------------------------------------------------

    @abstractmethod
    def open(self) -> Opened:
        """Open the database, making it if there is none."""

    @abstractmethod
    def close(self, opened: Opened) -> None:
        """Close it, the disk being there or not."""

    @abstractmethod
    def new_model(self, opened: Opened) -> Model:
        """The model of a database just made. Fails if that is not empty."""

    @abstractmethod
    def same(self, opened: Opened, model: Model) -> bool:
        """Whether the database holds just what the model does."""

    @abstractmethod
    def write(self, opened: Opened, model: Model) -> Iterator[Model]:
        """Give the model with the next change, then make that change."""

    @abstractmethod
    def reseed(self, seed: int) -> None:
        """Let the next steps follow from this seed."""

    @abstractmethod
    def log_pages(self, pages: int) -> None:
        """From the next opening on, write the log back when it has so many pages."""

    def grown(self) -> bool:
        """Whether to begin with an empty disk again: looking at everything takes too long."""
        return sum(path.stat().st_size for path in self.disk.folder.glob("*.db*[!t]")) > 600_000

    # --- a round -------------------------------------------------------------------------------

    def _operations_of_opening(self) -> int:
        self.disk.erase()
        before = self.disk.operations
        self.close(self.open())
        return self.disk.operations - before

    def begin_anew(self) -> None:
        """Nothing is there yet."""
        self.disk.erase()
        self.model, self.may_be, self.before = None, [], []

    def round(self, steps: int) -> None:
        """Open, look, write, until the power goes: at the latest when there is nothing to do."""
        rng, disk = self.rng, self.disk
        aim = rng.choice(("create", "open", "work", "work", "commit", "commit", "idle", "close", "full"))
        if aim == "create" or (self.model is not None and self.grown()):
            self.begin_anew()
        disk.chance.sector_bytes = rng.choice((512, 4096))
        self.log_pages(rng.choice(self.restarts_log_after))
        if aim == "create":
            disk.cut_at = disk.operations + rng.randint(1, self.creating)
        elif aim == "open":
            disk.cut_at = disk.operations + rng.randint(1, 12)
        elif aim == "work":
            disk.cut_at = disk.operations + rng.randint(1, 40 * steps)
        self.live(steps, aim)
        disk.restart()
        disk.size_bytes_max = None

    def live(self, steps: int, aim: str) -> None:
        """Until the power goes, at the latest when there is nothing to do; the disk is off then."""
        self.rounds += 1
        phase, opened, disk = "create" if self.model is None else "open", None, self.disk
        try:
            opened = self.open()
            self.look(opened)
            phase = "work"
            if aim == "full":
                disk.size_bytes_max = disk.used_bytes() + self.rng.choice((0, 5_000, 200_000))
            chosen = self.rng.randrange(steps) if aim == "commit" else None
            for step in range(steps):
                if step == chosen:
                    disk.cut_on = "sync"
                self._step(opened)
            phase = "idle"
            if aim == "close":
                disk.cut_at = disk.operations + self.rng.randint(1, 20)
                phase = "close"
                self.close(opened)
        except self.errors:
            if not disk.off:
                raise
        finally:
            disk.cut()
            if opened is not None:
                self.close(opened)
            # One that an opening that failed left to the garbage collector goes with the power, too.
            for connection in list(OPEN):
                connection.close(True)
        self.cuts[phase] += 1
        self.cuts[disk.last] += 1
        disk.last = ""

    def _step(self, opened: Opened) -> None:
        assert self.model is not None
        change = self.write(opened, self.model)
        after = next(change)
        self.may_be = [after]
        try:
            next(change, None)
        except self.full:
            if self.disk.off or self.disk.size_bytes_max is None:
                raise
            # Refused: it must not be there, now or later.
            self.may_be = []
            self.refused += 1
            assert self.same(opened, self.model), "refused, and there all the same"
            return
        self.model, self.may_be = after, []
        self.before.append(after)

    def look(self, opened: Opened) -> None:
        """Everything reported must be there, and nothing by halves."""
        if self.model is None:
            self._believe(self.new_model(opened))
            return
        if self.same(opened, self.model):
            self.rolled += len(self.may_be)
            self._believe(self.model)
            return
        for model in self.may_be:
            if self.same(opened, model):
                self.whole += 1
                self._believe(model)
                return
        for model in reversed(self.before):
            if self.same(opened, model):
                self.lost += 1
                self._believe(model)
                return
        # Not one of them: at the most one in which nothing was reported yet.
        self.lost += 1
        self._believe(self.new_model(opened))

    def _believe(self, model: Model) -> None:
        self.model, self.may_be, self.before = model, [], [model]
