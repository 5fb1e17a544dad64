"""The server's databases through power cuts: a ledger beside one in memory, accounts beside a dump."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import apsw
import pytest

from tests.disks.rig import KEY, Life
from tests.server.app_rig import HASHER, device_of
from whimbrel.errors import StoreError, StoreFull
from whimbrel.server import database
from whimbrel.server import ledger as led
from whimbrel.server.accounts import Accounts, Tokens
from whimbrel.server.ledger_memory import MemoryLedger, MemoryState, random_id
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.testing.ledger_conformance_settle import NOW, add, append, create, log, receipt, remove, void
from whimbrel.testing.powerloss import Disk

USERS = ("ann", "ben", "cat")
CONVERSATIONS = ("c1", "c2", "c3")
DEVICES = {user: device_of(user) for user in USERS}
PASSWORDS = ("correct horse", "battery staple")


# --- the ledger ----------------------------------------------------------------------------------


def entries(ledger: Any) -> list[Any]:
    """All that a ledger gives of what is in it."""
    found: list[Any] = [ledger.history, ledger.commit]
    for user in USERS:
        found += [ledger.heads(user, 0), ledger.conversations(user)]
        for conversation in CONVERSATIONS:
            if ledger.page(user, conversation) is not None:
                found.append(log(ledger, user, conversation))
            for stream in (1, 2):
                last = ledger.settled(DEVICES[user], conversation, stream, 1 << 30)
                expected = last.expected if isinstance(last, led.Ahead) else 1
                found += [ledger.settled(DEVICES[user], conversation, stream, n) for n in range(expected + 1)]
    return found


class LedgerLife(Life[SqliteLedger, MemoryLedger]):
    """One ledger."""

    name = "ledger"
    errors = (StoreError, led.LedgerUnavailable)
    full = led.LedgerUnavailable
    restarts_log_after = (8, 64, database.CHECKPOINT_PAGES)

    def __init__(self, disk: Disk, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        self._ids: list[str] = []
        super().__init__(disk, rng, patch)

    def reseed(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def open(self) -> SqliteLedger:
        return SqliteLedger(self.path, KEY, new_id=self._id)

    def _id(self) -> str:
        """The name the model gave, so that both give the same."""
        return self._ids.pop(0) if self._ids else random_id()

    def close(self, opened: SqliteLedger) -> None:
        opened.close()

    def log_pages(self, pages: int) -> None:
        self.patch.setattr(database, "CHECKPOINT_PAGES", pages)

    def new_model(self, opened: SqliteLedger) -> MemoryLedger:
        model = MemoryLedger(MemoryState(opened.history))
        assert entries(opened) == entries(model), "a new ledger is empty"
        return model

    def same(self, opened: SqliteLedger, model: MemoryLedger) -> bool:
        return entries(opened) == entries(model)

    def write(self, opened: SqliteLedger, model: MemoryLedger) -> Iterator[MemoryLedger]:
        given: list[str] = []

        def new_id() -> str:
            given.append(random_id())
            return given[-1]

        after = model.copy()
        after.new_id = new_id
        if self.rng.random() < 0.03:
            # One name for all of them: in which order they are given is nobody's business.
            name = random_id()
            after.new_id = lambda: name
            after.begin_new_history()
            self._ids = [name] * 10
            yield after
            opened.begin_new_history()
            return
        batch = [self._operation(after) for _ in range(self.rng.choice((1, 1, 3, 10, 40)))]
        outcomes = after.apply(batch, NOW)
        self._ids = given
        yield after
        assert opened.apply(batch, NOW) == outcomes

    def _operation(self, model: MemoryLedger) -> led.Operation:
        rng = self.rng
        user, conversation, stream = rng.choice(USERS), rng.choice(CONVERSATIONS), rng.choice((1, 1, 1, 2))
        device = DEVICES[user]
        last = model.state.last_n((device, conversation, stream)) or 0
        kind = rng.randrange(20)
        if kind == 0 or model.state.conversation(conversation) is None:
            return create(conversation, *rng.choice((("ann", "ben"), USERS)))
        if kind == 1:
            return add(rng.choice(USERS), by=user, conversation=conversation)
        if kind == 2:
            return remove(rng.choice(USERS), by=user, conversation=conversation)
        if kind in (3, 4):
            return receipt(user, rng.randint(0, 50), rng.randint(0, 50), conversation=conversation)
        if kind == 5:
            item = void(last + 1, f"{user}-v{last + 1}", conversation=conversation, stream=stream)
            return led.AppendVoid(user=user, device=device, void=item.void)
        # The next number, as a batch would bring it; now and then one that was, or one beyond a gap.
        self._sent = getattr(self, "_sent", 0) + 1
        n = last + rng.choice((1, 1, 1, 1, 1, 1, 0, 2))
        body = "x" * rng.choice((5, 200, 200, 2_000, 9_000)) + str(self._sent)
        key = f"{user}-{n}" if rng.random() < 0.9 else f"{user}-{self._sent}"
        return append(
            max(n, 1), key, user=user, device=device, conversation=conversation, stream=stream, body=body
        )


# --- the accounts --------------------------------------------------------------------------------


class Book:
    """What the tables of the accounts must hold: this dump, or what fulfils this condition."""

    def __init__(self, holds: Callable[[dict[str, Any]], bool], tokens: dict[str, Tokens]) -> None:
        self.holds = holds
        self.tokens = tokens
        """The newest token of each device, as it was given."""
        self.tables: dict[str, Any] | None = None


def tables(accounts: Accounts) -> dict[str, Any]:
    """All that is in them."""
    db = accounts._connection
    return {
        name: sorted(db.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
        for name in ("users", "devices", "families", "tokens", "secrets")
    }


class AccountsLife(Life[Accounts, Book]):
    """Accounts, with sessions coming and going."""

    name = "accounts"
    errors = (StoreError, apsw.IOError)  # the latter from reading its tables for the dump
    full = StoreFull
    restarts_log_after = (8, 64, database.CHECKPOINT_PAGES)

    def reseed(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def open(self) -> Accounts:
        return Accounts(self.path, KEY, hasher=HASHER)

    def close(self, opened: Accounts) -> None:
        opened.close()

    def log_pages(self, pages: int) -> None:
        self.patch.setattr(database, "CHECKPOINT_PAGES", pages)

    def new_model(self, opened: Accounts) -> Book:
        found = tables(opened)
        assert not any(found[name] for name in found if name != "secrets")
        assert [name for name, _ in found["secrets"]] == ["access"], "what signs the tokens is durable"
        book = Book(lambda _: True, {})
        book.tables = found
        return book

    def same(self, opened: Accounts, model: Book) -> bool:
        found = tables(opened)
        if model.tables is not None:
            return found == model.tables
        if model.holds(found):
            model.tables = found
            return True
        return False

    def write(self, opened: Accounts, model: Book) -> Iterator[Book]:
        rng, user = self.rng, self.rng.choice(USERS)
        device, password = device_of(user, rng.randint(1, 3)), rng.choice(PASSWORDS)
        assert model.tables is not None
        known = {row[0] for row in model.tables["users"]}
        tokens = dict(model.tokens)
        if user not in known:
            after = Book(lambda now: {row[0] for row in now["users"]} == {*known, user}, tokens)
            yield after
            opened.add_user(user, password)
        elif device in tokens and rng.random() < 0.8:
            old = tokens[device]
            used = hashlib.sha256(old.refresh.encode()).digest()
            after = Book(lambda now: used in {row[3] for row in now["families"]}, tokens)
            if rng.random() < 0.2:
                after = Book(lambda now: device not in {row[2] for row in now["families"]}, tokens)
                del tokens[device]
                yield after
                opened.logout(old.refresh)
            else:
                yield after
                # Never refused: it is the newest that was given.
                tokens[device] = opened.refresh(old.refresh)
        elif rng.random() < 0.2:
            for name in [name for name, token in tokens.items() if token.user == user]:
                del tokens[name]
            after = Book(lambda now: user not in {row[1] for row in now["families"]}, tokens)
            yield after
            opened.set_password(user, password)
        else:
            password = next(word for word in PASSWORDS if opened.verify(user, word))
            families = set(model.tables["families"])
            after = Book(
                lambda now: bool({row for row in now["families"] if row[2] == device} - families), tokens
            )
            tokens.pop(device, None)  # ended with this, reported or not
            yield after
            tokens[device] = opened.login(user, password, device)
        faults, self.disk.faults = self.disk.faults, ()  # looking is not what is tried out
        after.tables = tables(opened)
        self.disk.faults = faults
        assert after.holds(after.tables)
