"""The embedded server's ledger: one encrypted SQLite file, one writer, any number of readers.

The rules are those of ``settle``; here is how records are read and how a staged batch is written.
``apply`` writes all of a batch in one transaction that is synced before it returns. If SQLite
refuses a row, the transaction is rolled back to its beginning and the operations are carried out
one by one, each under a savepoint. If the machine fails (disk full, I/O error), the transaction is
rolled back, the writer's connection is given up, and the next ``apply`` opens a new one.

A commit that fails in its last step may have left its pages in the write-ahead log, where a later
recovery would take them for committed. While this process lives that cannot happen: one more
connection, the anchor, keeps the log's index, by which they do not exist, and the next commit writes
over them. After a crash it is harmless: whoever asked was told to try later, a number settled twice
is settled once, and all sessions begin anew.

Readers see one committed state each and never wait for the writer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw

from whimbrel import protocol as p
from whimbrel.errors import StoreCorrupt, StoreUnavailable
from whimbrel.mark import Mark, remove_mark
from whimbrel.server.database import MACHINE_ERRORS, Readers, connect, migrate, store_errors, sync_folder
from whimbrel.server.integrity import DAMAGE, Watch, damaged, examine, key_is_right
from whimbrel.server.ledger import LedgerUnavailable, Operation, Outcome
from whimbrel.server.ledger_memory import random_id
from whimbrel.server.ledger_rows import LedgerRows
from whimbrel.server.records import Batch, Conversation, Member, NewId, head_of, info_of, page_of, page_range
from whimbrel.server.settle import cannot, settle, settle_all, settled

HEADS_BY_COMMIT_MAX = 256
"""Up to so many changed conversations are looked at one by one; beyond, the user's own are."""


class SqliteLedger:
    """A ``Ledger`` in the file ``path``, encrypted with ``key`` (32 bytes); made if it is not there.

    Raises ``StoreError``: ``StoreKeyError`` for another key, ``StoreTooNew``, ``StoreCorrupt``,
    ``StoreFull``, ``StoreUnavailable``. That only one process writes is for the caller to ensure
    (``data.open_data`` does).
    """

    def __init__(self, path: str | Path, key: bytes, *, new_id: NewId = random_id) -> None:
        self._path = Path(path)
        self._key = key
        self._new_id = new_id
        self._lock = threading.Lock()
        self._closed = False
        self._damage: StoreCorrupt | None = None
        self._on_damage: Callable[[StoreCorrupt], None] | None = None
        self._watch: Watch | None = None
        self._readers = Readers(self._path, key)
        self._writer: apsw.Connection | None = None
        with store_errors(self._path), contextlib.ExitStack() as undo:
            writer = _connect(self._path, key)
            undo.callback(writer.close)
            try:
                writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                examine(writer, self._path, key)
                writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
                migrate(writer, "ledger")
                self._rows = LedgerRows(writer.cursor())
                writer.execute(
                    "INSERT INTO meta (one, history, clock, renewed) VALUES (1, ?, 0, 0)"
                    " ON CONFLICT (one) DO NOTHING",
                    (new_id(),),
                )
                self._history, self._commit = self._rows.clock()
                self._mark = self._new_mark()
                undo.callback(self._mark.close)
                self._anchor = connect(self._path, key, writes=False)
                undo.callback(self._anchor.close)
                self._anchor.execute("SELECT clock FROM meta").fetchall()
            except DAMAGE as error:
                raise damaged(self._path, "a page is not what was written") from error
            undo.pop_all()
        self._writer = writer

    def __repr__(self) -> str:
        return f"<SqliteLedger {self._path.name} at commit {self._commit}>"

    @property
    def history(self) -> str:
        """See ``Ledger``."""
        return self._history

    @property
    def commit(self) -> int:
        """See ``Ledger``."""
        return self._commit

    # --- writing -------------------------------------------------------------------------------

    def apply(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """See ``Ledger``."""
        with self._writing() as writer:
            commit = self._commit + 1
            writer.execute("BEGIN IMMEDIATE")
            batch, outcomes = settle_all(
                self._rows, commit, operations, now, self._new_id, fatal=MACHINE_ERRORS
            )
            if not batch:
                writer.execute("ROLLBACK")
                return outcomes
            try:
                self._rows.write(batch)
            except MACHINE_ERRORS:
                raise
            except Exception:  # noqa: BLE001 - one row SQLite does not take must not cost the others
                writer.execute("ROLLBACK")
                writer.execute("BEGIN IMMEDIATE")
                self._rows.forget()
                changed, outcomes = self._one_by_one(writer, commit, operations, now)
                if not changed:
                    writer.execute("ROLLBACK")
                    return outcomes
            writer.execute("COMMIT")
            self._commit = commit
            self._mark.note(commit)
            return outcomes

    def _one_by_one(
        self, writer: apsw.Connection, commit: int, operations: Sequence[Operation], now: float
    ) -> tuple[bool, list[Outcome]]:
        """Carry out each operation under its own savepoint; one that fails is refused alone."""
        changed = False
        outcomes: list[Outcome] = []
        for operation in operations:
            batch = Batch(self._rows, commit)
            writer.execute("SAVEPOINT one")
            try:
                outcome = settle(batch, operation, now, self._new_id)
                if batch:
                    self._rows.write(batch)
            except MACHINE_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001 - as in ``apply``
                writer.execute("ROLLBACK TO one")
                self._rows.forget()
                outcome = cannot(operation, error)
            else:
                changed = changed or bool(batch)
            writer.execute("RELEASE one")
            outcomes.append(outcome)
        return changed, outcomes

    def begin_new_history(self) -> None:
        """Say that this file is a restored backup. Durable; call it before the server takes anything.

        The history and every epoch get new names, so clients fetch anew what they have. What was
        settled under which number is forgotten, because numbers settled after the backup cannot be
        known: a stream without a trace is answered ``Ahead(expected=0)``, its client opens a new
        one, and what the log has already is found by its message id.
        """
        with self._writing() as writer:
            writer.execute("BEGIN IMMEDIATE")
            history, commit = self._new_id(), self._commit + 1
            writer.execute("DELETE FROM numbers")
            writer.execute("DELETE FROM streams")
            for (no,) in writer.execute("SELECT no FROM conversations").fetchall():
                writer.execute(
                    "UPDATE conversations SET epoch = ?, changed = ?, log_changed = ? WHERE no = ?",
                    (self._new_id(), commit, commit, no),
                )
            writer.execute("UPDATE meta SET history = ?, clock = ?, renewed = 1", (history, commit))
            # No mark at all until the new history has its own: killed in between, either one opens.
            self._mark.close()
            remove_mark(self._path)
            sync_folder(self._path)
            writer.execute("COMMIT")
            self._rows.forget()
            self._history, self._commit = history, commit
            self._mark = self._new_mark()

    @contextmanager
    def _writing(self) -> Iterator[apsw.Connection]:
        with self._lock:
            if self._closed:
                raise LedgerUnavailable("the ledger is closed")
            if self._damage is not None:
                raise LedgerUnavailable(str(self._damage))
            try:
                if self._writer is None:
                    self._writer = connect(self._path, self._key)
                    self._rows = LedgerRows(self._writer.cursor())
                self._rows.make_room()
                yield self._writer
            except (apsw.Error, *MACHINE_ERRORS) as error:
                self._note_damage(error)
                self._give_up()
                raise LedgerUnavailable(f"{self._path.name}: {type(error).__name__}") from error
            except BaseException:
                self._give_up()
                raise

    def _give_up(self) -> None:
        """Close the writer, which rolls back; the next call opens another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            if self._damage is not None:
                writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            # What it could not roll back or write back is rolled back by whoever opens the file next.
            with contextlib.suppress(*MACHINE_ERRORS):
                writer.close(True)

    # --- reading -------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[LedgerRows]:
        if self._damage is not None:
            raise LedgerUnavailable(str(self._damage))
        try:
            with self._readers.snapshot() as cursor:
                yield LedgerRows(cursor)
        except (apsw.Error, RecursionError, *MACHINE_ERRORS) as error:
            self._note_damage(error)
            raise LedgerUnavailable(f"{self._path.name}: {type(error).__name__}") from error

    def heads(self, user: str, since_commit: int) -> list[p.Head]:
        """See ``Ledger``."""
        with self._reading() as rows:
            changed = rows.changed(user, since_commit, HEADS_BY_COMMIT_MAX)
            heads = [_head(rows, conversation, member, since_commit) for conversation, member in changed]
            return [head for head in heads if head is not None]

    def head(self, user: str, conversation: str, since_commit: int) -> p.Head | None:
        """See ``Ledger``."""
        with self._reading() as rows:
            found = rows.conversation(conversation)
            if found is None or found.changed <= since_commit:
                return None
            member = rows.member(conversation, user)
            return None if member is None else _head(rows, found, member, since_commit)

    def page(
        self, user: str, conversation: str, *, since: int = 0, before: int | None = None, limit: int = 50
    ) -> p.Page | None:
        """See ``Ledger``."""
        with self._reading() as rows:
            found = rows.conversation(conversation)
            member = rows.member(conversation, user) if found else None
            if found is None or member is None:
                return None
            first, last, count = page_range(found, member, since=since, before=before, limit=limit)
            events = rows.events(found, first, last, count, newest=before is not None)
            return page_of(found, member, events, since=since, before=before)

    def conversations(self, user: str) -> list[p.ConversationInfo]:
        """See ``Ledger``."""
        with self._reading() as rows:
            return [
                info_of(conversation, member, rows.present(conversation.id))
                for conversation, member in rows.changed(user, 0, 0)
                if member.left_at is None
            ]

    def version(self, user: str) -> int:
        """See ``Ledger``."""
        with self._reading() as rows:
            return rows.version(user)

    def members(self, conversation: str) -> tuple[str, ...]:
        """See ``Ledger``."""
        with self._reading() as rows:
            return tuple(sorted(rows.present(conversation)))

    def settled(self, device: str, conversation: str, stream: int, n: int) -> Outcome | None:
        """See ``Ledger``."""
        with self._reading() as rows:
            return settled(rows, (device, conversation, stream), n)

    def find(self, user: str, conversation: str, id: str) -> int | None:
        """See ``Ledger``."""
        with self._reading() as rows:
            located = rows.located(id)
            if located is None or located[0] != conversation:
                return None
            found, member = rows.conversation(conversation), rows.member(conversation, user)
            if found is None or member is None:
                return None
            return located[1] if member.floor < located[1] <= member.top(found) else None

    def watch(self, on_damage: Callable[[StoreCorrupt], None]) -> None:
        """Have damage told, once, on whatever thread finds it; and look for it beside the work.

        From then on every call raises ``LedgerUnavailable``: a damaged ledger answers nothing.
        """
        self._on_damage = on_damage
        if self._damage is not None:
            on_damage(self._damage)
        self._watch = Watch(self._path, self._key, self._found_damage)
        self._watch.start()

    def _note_damage(self, error: BaseException) -> None:
        if isinstance(error, DAMAGE):
            self._found_damage(damaged(self._path, "a page is not what was written"))

    def _found_damage(self, error: StoreCorrupt) -> None:
        if self._damage is None:
            self._damage = error
            if self._on_damage is not None:
                self._on_damage(error)

    def _new_mark(self) -> Mark:
        try:
            return Mark(self._path, self._key, self._history, self._commit)
        except OSError as error:
            raise StoreUnavailable(f"{self._path.name} cannot be marked: {error.strerror}") from error

    def close(self) -> None:
        """See ``Ledger``."""
        if self._watch is not None:
            self._watch.end()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._mark.close()
                self._readers.close()
                self._anchor.close(True)
                # The last to close brings the write-ahead log into the file.
                self._give_up()


def _connect(path: Path, key: bytes) -> apsw.Connection:
    """Open it; a first page that is damaged, under the right key, is no wrong key."""
    if not path.exists() and key_is_right(path, key):
        raise damaged(path, "it is not there any more")
    try:
        return connect(path, key)
    except DAMAGE as error:
        if isinstance(error, apsw.NotADBError) and not key_is_right(path, key):
            raise
        raise damaged(path, "a page is not what was written") from error


def _head(rows: LedgerRows, conversation: Conversation, member: Member, since_commit: int) -> p.Head | None:
    others: list[Member] = []
    if member.left_at is None:
        others = [other for other in rows.members(conversation.id) if other.user != member.user]
    return head_of(
        conversation,
        member,
        since_commit=since_commit,
        present=(*(other.user for other in others), member.user),
        others=others,
    )
