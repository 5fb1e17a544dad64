"""The SQLite ledger where it meets the machine: bad rows, full disks, killed processes, wrong keys."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from whimbrel.errors import StoreError, StoreKeyError, StoreTooNew, StoreUnavailable
from whimbrel.server import ledger as led
from whimbrel.server import ledger_sqlite
from whimbrel.server.database import connect
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.testing.ledger_conformance_settle import DEVICE, NOW, append, create, log, one

KEY = b"k" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SqliteLedger]:
    ledger = SqliteLedger(path, KEY)
    try:
        one(ledger, create())
        yield ledger
    finally:
        ledger.close()


def test_nothing_is_readable_without_the_key(ledger: SqliteLedger, path: Path) -> None:
    one(ledger, append(1, body="a needle to look for"))
    for file in path.parent.iterdir():
        assert b"needle" not in file.read_bytes()
    ledger.close()
    for file in path.parent.iterdir():
        assert b"needle" not in file.read_bytes()
        assert b"SQLite format" not in file.read_bytes()


def test_wrong_key_leaves_the_file_alone(ledger: SqliteLedger, path: Path) -> None:
    ledger.close()
    before = path.read_bytes()
    with pytest.raises(StoreKeyError):
        SqliteLedger(path, b"x" * 32)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="32 bytes"):
        SqliteLedger(path, b"short")


def test_unusable_places(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        SqliteLedger(tmp_path / "nowhere" / "ledger.db", KEY)
    with pytest.raises(StoreError):
        SqliteLedger(tmp_path, KEY)


def test_newer_file_is_left_alone(ledger: SqliteLedger, path: Path) -> None:
    ledger.close()
    connection = connect(path, KEY)
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(StoreTooNew):
        SqliteLedger(path, KEY)


def test_row_that_sqlite_refuses_costs_only_itself(ledger: SqliteLedger, path: Path) -> None:
    connection = connect(path, KEY)
    connection.execute(
        "CREATE TRIGGER poison BEFORE INSERT ON entries WHEN new.body = 'poison'"
        " BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )
    connection.close()
    commit = ledger.commit
    ahead: list[led.Operation] = [append(1), append(2), append(1, conversation="c2"), create("c2")]
    outcomes = ledger.apply(
        [*ahead, append(3, body="poison"), append(4), append(1, "k", conversation="c2", stream=2)], NOW
    )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Committed"] * 2 + ["WasVoided", "ConversationSet", "Refused", "Ahead", "Committed"]
    refused = outcomes[4]
    assert isinstance(refused, led.Refused)
    assert refused.code == "unavailable"
    assert ledger.commit == commit + 1
    assert len(log(ledger)) == 3
    # A batch of nothing but bad rows leaves no trace.
    assert [type(o) for o in ledger.apply([append(3, body="poison")], NOW)] == [led.Refused]
    assert ledger.commit == commit + 1
    assert isinstance(one(ledger, append(3)), led.Committed)


def test_full_disk_leaves_nothing_and_is_survived(ledger: SqliteLedger, path: Path) -> None:
    one(ledger, append(1))
    before, commit = log(ledger), ledger.commit
    writer = ledger._writer
    assert writer is not None
    writer.pragma("max_page_count", writer.pragma("page_count") + 5)
    batch = [append(2), *(append(n, body="x" * 100_000) for n in range(3, 8))]
    with pytest.raises(led.LedgerUnavailable):
        ledger.apply(batch, NOW)
    assert (log(ledger), ledger.commit) == (before, commit)
    # There is room again (the limit went with the connection): nothing has to be restarted.
    assert all(isinstance(outcome, led.Committed) for outcome in ledger.apply(batch, NOW))
    ledger.close()
    again = SqliteLedger(path, KEY)
    assert len(log(again)) == 8
    again.close()


class FailingFile(apsw.VFSFile):
    """A file whose writes fail while the switch is on."""

    def __init__(self, vfs: "FailingVFS", name: Any, flags: list[int]) -> None:
        self._vfs = vfs
        super().__init__(vfs.base, name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        if self._vfs.fails == "write":
            self._vfs.failed += 1
            raise apsw.IOError("simulated")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._vfs.fails == "sync":
            self._vfs.failed += 1
            raise apsw.IOError("simulated")
        super().xSync(flags)


class FailingVFS(apsw.VFS):
    """The disk below the cipher."""

    def __init__(self, name: str) -> None:
        self.base = ""
        self.fails = ""
        self.failed = 0
        super().__init__(name, self.base)

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        return FailingFile(self, name, flags)


@pytest.mark.parametrize("fails", ["write", "sync"])
def test_failing_disk_leaves_nothing_and_is_survived(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    name = f"failing-{fails}-{os.getpid()}"
    vfs = FailingVFS(name)
    plain = apsw.Connection

    def below_the_cipher(filename: str) -> apsw.Connection:
        return plain(filename, vfs=f"multipleciphers-{name}")

    monkeypatch.setattr("whimbrel.server.database.apsw.Connection", below_the_cipher)
    ledger = SqliteLedger(path, KEY)
    try:
        ledger.apply([create(), append(1)], NOW)
        vfs.fails = fails
        for _ in range(3):
            with pytest.raises(led.LedgerUnavailable):
                ledger.apply([append(2), append(3)], NOW)
        vfs.fails = ""
        assert vfs.failed
        assert len(log(ledger)) == 2
        assert all(isinstance(o, led.Committed) for o in ledger.apply([append(2), append(3)], NOW))
        assert [event.seq for event in log(ledger)] == [1, 2, 3, 4]
    finally:
        vfs.fails = ""
        ledger.close()
        vfs.unregister()


COMMITTING = """
import sys
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.testing.ledger_conformance_settle import append, create, one
from pathlib import Path

ledger = SqliteLedger(Path(sys.argv[1]), b"k" * 32)
one(ledger, create())
ahead = ledger.settled("a" * 26, "c1", 1, 1 << 30)
n = ahead.expected
while True:
    outcomes = ledger.apply([append(n + i) for i in range(3)], 1.0)
    assert all(type(outcome).__name__ == "Committed" for outcome in outcomes)
    n += 3
    sys.stdout.write(f"{n - 1}\\n")
    sys.stdout.flush()
"""


def test_killed_process_loses_nothing_it_reported(path: Path) -> None:
    reported = 0
    for kill in range(10):
        child = subprocess.Popen([sys.executable, "-c", COMMITTING, str(path)], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            for _ in range(5 + 7 * kill):
                reported = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            # What it wrote before it died counts as well; a torn last line was reported to nobody.
            for line in child.stdout.read().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    reported = int(line)
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        ledger = SqliteLedger(path, KEY)
        try:
            events = log(ledger)
            # The batch in flight may be there or not, whole.
            assert len(events) - 1 in (reported, reported + 3)
            assert [event.body for event in events[1:]] == [
                f"text of c1-1-{n + 1}" for n in range(len(events) - 1)
            ]
            last = ledger.settled(DEVICE, "c1", 1, len(events) - 1)
            assert isinstance(last, led.Committed)
            assert last.event == events[-1]
        finally:
            ledger.close()


def test_readers_see_whole_batches(ledger: SqliteLedger) -> None:
    seen: list[int] = []
    errors: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                page = ledger.page("ben", "c1", before=1 << 40, limit=1)
                (head,) = ledger.heads("ben", 0)
                assert page is not None
                assert page.events[-1].seq == page.head
                assert (page.head - 1) % 10 == 0
                assert head.seq >= page.head
                seen.append(page.head)
        except Exception as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(12)]
    for reader in readers:
        reader.start()
    try:
        for batch in range(60):
            ledger.apply([append(batch * 10 + n) for n in range(1, 11)], NOW)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert errors == []
    assert seen
    assert len(ledger._readers._idle) <= 8


@pytest.mark.parametrize("kind", [MemoryLedger, SqliteLedger])
def test_restored_backup_begins_a_new_history(kind: Any, path: Path) -> None:
    restored: Any = kind() if kind is MemoryLedger else SqliteLedger(path, KEY)
    try:
        restored.apply([create(), append(1, "a"), append(2, "b")], NOW)
        history, commit, epoch = restored.history, restored.commit, log(restored)[0].epoch
        restored.begin_new_history()
        assert restored.history != history
        assert restored.commit == commit + 1
        assert {event.epoch for event in log(restored)} == {restored.heads("ann", 0)[0].epoch}
        assert log(restored)[0].epoch != epoch
        # How far the old stream was settled in what was lost cannot be known: a new one is asked for.
        assert one(restored, append(9, "j")) == led.Ahead(expected=0)
        assert restored.settled(DEVICE, "c1", 1, 9) == led.Ahead(expected=0)
        # There, what the log still has is found, and what it lost is taken again.
        again, lost = restored.apply([append(1, "b", stream=2), append(2, "c", stream=2)], NOW)
        assert (again.event.seq, again.repeated) == (3, True)
        assert (lost.event.seq, lost.repeated) == (4, False)
        assert one(restored, append(9, "k", stream=2)) == led.Ahead(expected=3)
        # A new stream whose first message is blocked is not taken for a lost one.
        blocked = restored.apply(
            [append(n, f"s{n}", stream=3, role="root", on_reject="block") for n in (1, 2)], NOW
        )
        assert isinstance(blocked[0], led.Refused)
        assert blocked[1] == led.Ahead(expected=1)
        assert one(restored, append(2, "s2", stream=3)) == led.Ahead(expected=1)
    finally:
        restored.close()


def test_what_cannot_be_decoded_is_unavailable(ledger: SqliteLedger, path: Path) -> None:
    one(ledger, append(1, metadata={"k": "v"}))
    connection = connect(path, KEY)
    try:
        deep = '{"k":' + "[" * 50_000 + "]" * 50_000 + "}"
        connection.execute("UPDATE entries SET metadata = ? WHERE metadata IS NOT NULL", (deep,))
    finally:
        connection.close()
    with pytest.raises(led.LedgerUnavailable):
        ledger.page("ann", "c1")
    assert ledger.page("ann", "c1", limit=1) is not None


@pytest.mark.parametrize("at", ["connect", "first read"])
def test_what_opening_took_is_given_back_when_it_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    SqliteLedger(path, KEY).close()

    def failing(path: Path, key: bytes, *, writes: bool = True) -> apsw.Connection:
        if writes:
            return connect(path, key)
        if at == "connect":
            raise apsw.CantOpenError("no file is left")
        anchor = connect(path, key, writes=False)
        anchor.set_authorizer(lambda *_: apsw.SQLITE_DENY)
        return anchor

    before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(ledger_sqlite, "connect", failing)
        with pytest.raises(StoreError):
            SqliteLedger(path, KEY)
        # Closed by name, not by the collector: nothing of the log is left beside the file.
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not path.with_name(path.name + "-wal").exists()
    SqliteLedger(path, KEY).close()
