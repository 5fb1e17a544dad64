"""Users, their devices, and the sessions that a login opens.

Passwords are kept as argon2id. A device is bound to the first user who signs in with it. A login
opens a *family* of refresh tokens: every refresh gives a new one, the successor, and

* a token stays good until one of its successors was used, so an answer that got lost costs nothing:
  the old token is offered again and gives another successor;
* any other use of a token of the family, after that, means that two parties hold it: the family is
  revoked and everyone has to sign in again.

So a family needs one pointer: the token last used for the first time. It and its own successors are
good, all others are replays. Tokens are kept as digests; a token is shown once, when it is given.

All methods block (hashing takes tens of milliseconds on purpose) and may be called from any thread.
Another process may work on the same file (``user add`` while the server runs).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import argon2
import msgspec

from whimbrel.errors import Conflict, InvalidArgument, NotFound, Unauthorized
from whimbrel.server.auth import AccessTokens
from whimbrel.server.database import Readers, connect, migrate, store_errors

NAME_CHARS_MAX = 64
PASSWORD_CHARS_MIN = 8
PASSWORD_CHARS_MAX = 1024
REFRESH_LIFETIME_S = 90 * 24 * 3600.0
FAMILY_TOKENS_MAX = 1_000
"""Older tokens of a family are forgotten: used again, they are refused but revoke nothing."""
HASHES_AT_ONCE_MAX = 2
"""Each takes 64 MiB; further logins wait."""

_NAME = re.compile(rf"[a-z0-9._-]{{1,{NAME_CHARS_MAX}}}", re.ASCII)
_DEVICE = re.compile(r"[a-z2-7]{26}", re.ASCII)
_REFRESH = re.compile(r"wr_[A-Za-z0-9_-]{43}", re.ASCII)


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a login or a refresh gives."""

    user: str
    device: str
    access: str
    access_expires_in_s: float
    refresh: str

    def __repr__(self) -> str:
        return f"<Tokens of {self.user}>"


def fold_name(name: str) -> str:
    """Give the one form of a user's name. Raises ``InvalidArgument`` if it cannot be one."""
    folded = name.strip().casefold()
    if not _NAME.fullmatch(folded):
        raise InvalidArgument(f"a name has 1 to {NAME_CHARS_MAX} of a-z 0-9 . _ -")
    return folded


class Accounts:
    """The accounts in the file ``path``, encrypted with ``key``; made if it is not there.

    Raises ``StoreError`` as ``SqliteLedger`` does, on opening and later.
    """

    def __init__(
        self,
        path: str | Path,
        key: bytes,
        *,
        clock: Callable[[], float] = time.time,
        hasher: argon2.PasswordHasher | None = None,
    ) -> None:
        self._path = Path(path)
        self._clock = clock
        self._hasher = hasher or argon2.PasswordHasher()
        self._hashing = threading.BoundedSemaphore(HASHES_AT_ONCE_MAX)
        self._lock = threading.Lock()
        # What an unknown user's password is compared with, so that it takes as long as a known one's.
        self._nobody = self._hasher.hash(secrets.token_urlsafe(16))
        with store_errors(self._path):
            self._connection = connect(self._path, key)
            try:
                migrate(self._connection, "accounts")
            except BaseException:
                self._connection.close()
                raise
        self._readers = Readers(self._path, key)
        try:
            self._access = AccessTokens(self.secret("access"), clock=clock)
        except BaseException:
            self._connection.close()
            raise

    def __repr__(self) -> str:
        return f"<Accounts in {self._path.name}>"

    @property
    def access_tokens(self) -> AccessTokens:
        """What checks the access tokens given here."""
        return self._access

    def secret(self, name: str) -> bytes:
        """Give one of the server's own secrets (32 bytes), made when first asked for and kept."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
                (name, secrets.token_bytes(32)),
            )
            value: bytes = db.execute("SELECT value FROM secrets WHERE name = ?", (name,)).get
            return value

    # --- users ---------------------------------------------------------------------------------

    def add_user(self, name: str, password: str) -> str:
        """Add a user and give its folded name. Raises ``Conflict`` if there is one, ``InvalidArgument``."""
        folded = fold_name(name)
        hashed = self._hash(password)
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM users WHERE name = ?", (folded,)).get is not None:
                raise Conflict("there is a user of this name")
            db.execute(
                "INSERT INTO users (name, password, created_at) VALUES (?, ?, ?)",
                (folded, hashed, self._clock()),
            )
        return folded

    def set_password(self, name: str, password: str) -> None:
        """Change a password and sign out every device of the user. Raises ``NotFound``."""
        folded = fold_name(name)
        hashed = self._hash(password)
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM users WHERE name = ?", (folded,)).get is None:
                raise NotFound("no such user", hint="check the name")
            db.execute("UPDATE users SET password = ? WHERE name = ?", (hashed, folded))
            for (family,) in db.execute("SELECT no FROM families WHERE user = ?", (folded,)).fetchall():
                _revoke(db, family)

    def verify(self, name: str, password: str) -> bool:
        """Tell whether this is the user's password; an unknown user takes as long to deny."""
        return self._verified(name, password)[0] is not None

    def users_exist(self, names: Iterable[str]) -> set[str]:
        """Give those of the (folded) names that are users."""
        # Asked on the event loop: it must not wait for whoever writes.
        with store_errors(self._path), self._readers.snapshot() as db:
            return {
                name
                for name in set(names)
                if db.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone() is not None
            }

    # --- sessions ------------------------------------------------------------------------------

    def login(self, name: str, password: str, device: str) -> Tokens:
        """Sign in ``device`` and end the session it had.

        ``device``: 26 base32 characters, chosen by the client. Raises ``Unauthorized`` for a wrong
        name or password (it does not say which), ``Conflict`` if the device is another user's,
        ``InvalidArgument``.
        """
        if not _DEVICE.fullmatch(device):
            raise InvalidArgument("a device id has 26 characters of a-z 2-7")
        user, hashed = self._verified(name, password)
        if user is None:
            raise Unauthorized("wrong name or password", hint="check both")
        with self._transaction() as db:
            # Changed since it was looked up, it is no longer the password: that signed out everyone.
            if db.execute("SELECT password FROM users WHERE name = ?", (user,)).get != hashed:
                raise Unauthorized("wrong name or password", hint="check both")
            now = self._clock()
            owner = db.execute("SELECT user FROM devices WHERE id = ?", (device,)).get
            if owner is None:
                db.execute("INSERT INTO devices (id, user, created_at) VALUES (?, ?, ?)", (device, user, now))
            elif owner != user:
                raise Conflict("this device belongs to another user", hint="use a store of its own per user")
            former = db.execute("SELECT no FROM families WHERE device = ?", (device,)).get
            if former is not None:
                _revoke(db, former)
            db.execute(
                "INSERT INTO families (user, device, created_at) VALUES (?, ?, ?)", (user, device, now)
            )
            refresh = self._give_token(db, db.last_insert_rowid(), None, now)
        return self._tokens(user, device, refresh)

    def refresh(self, refresh_token: str) -> Tokens:
        """Give fresh tokens. Raises ``Unauthorized``: sign in again.

        The token offered stays good until the one given here was used. A replay revokes the family.
        """
        digest = _digest(refresh_token)
        replayed = True
        with self._transaction() as db:
            now = self._clock()
            row = db.execute(
                "SELECT t.family, t.parent, t.expires_at, f.used, f.user, f.device"
                " FROM tokens t JOIN families f ON f.no = t.family WHERE t.digest = ?",
                (digest,),
            ).fetchone()
            if row is None or row[2] <= now:
                raise Unauthorized("the session is over")
            family, parent, _, used, user, device = row
            if used in (digest, parent):
                replayed = False
                db.execute("UPDATE families SET used = ? WHERE no = ?", (digest, family))
                successor = self._give_token(db, family, digest, now)
            else:
                # Committed, so not raised from in here.
                _revoke(db, family)
        if replayed:
            raise Unauthorized("this refresh token was replaced: the session was ended to be safe")
        return self._tokens(user, device, successor)

    def logout(self, refresh_token: str) -> None:
        """End the session this token belongs to; a token that is no longer known is no error."""
        with contextlib.suppress(Unauthorized):
            digest = _digest(refresh_token)
            with self._transaction() as db:
                family = db.execute("SELECT family FROM tokens WHERE digest = ?", (digest,)).get
                if family is not None:
                    _revoke(db, family)

    def close(self) -> None:
        """Release the file. May be called twice."""
        with self._lock:
            self._readers.close()
            self._connection.close()

    # --- within --------------------------------------------------------------------------------

    def _give_token(self, db: apsw.Connection, family: int, parent: bytes | None, now: float) -> str:
        token = "wr_" + secrets.token_urlsafe(32)
        db.execute(
            "INSERT INTO tokens (digest, family, parent, expires_at) VALUES (?, ?, ?, ?)",
            (_digest(token), family, parent, now + REFRESH_LIFETIME_S),
        )
        db.execute(
            # Never the one in use: it is good however often its successors got lost.
            "DELETE FROM tokens WHERE family = ?1 AND no <= ("
            " SELECT no FROM tokens WHERE family = ?1 ORDER BY no DESC LIMIT 1 OFFSET ?2)"
            " AND digest IS NOT (SELECT used FROM families WHERE no = ?1)",
            (family, FAMILY_TOKENS_MAX),
        )
        return token

    def _tokens(self, user: str, device: str, refresh: str) -> Tokens:
        access, expires_in_s = self._access.issue(user, device)
        return Tokens(
            user=user, device=device, access=access, access_expires_in_s=expires_in_s, refresh=refresh
        )

    def _hash(self, password: str) -> str:
        if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
            raise InvalidArgument(f"a password has {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters")
        with self._hashing:
            try:
                return self._hasher.hash(password)
            except UnicodeEncodeError:
                raise InvalidArgument("the password holds half of a surrogate pair") from None

    def _verified(self, name: str, password: str) -> tuple[str | None, str | None]:
        """Give the folded name if this is its password, and the hash it was compared with."""
        folded: str | None = None
        with contextlib.suppress(InvalidArgument):
            folded = fold_name(name)
        with self._transaction(writes=False) as db:
            known = db.execute("SELECT password FROM users WHERE name = ?", (folded,)).get
        with self._hashing:
            try:
                self._hasher.verify(known or self._nobody, password[:PASSWORD_CHARS_MAX])
            except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError, ValueError):
                return None, known
        return (folded if known is not None and len(password) <= PASSWORD_CHARS_MAX else None), known

    @contextmanager
    def _transaction(self, *, writes: bool = True) -> Iterator[apsw.Connection]:
        with self._lock, store_errors(self._path):
            db = self._connection
            db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise


def _digest(token: str) -> bytes:
    """Give what is kept of a refresh token. Raises ``Unauthorized`` for what cannot be one."""
    if not _REFRESH.fullmatch(token):
        raise Unauthorized("this is no refresh token of this server")
    return hashlib.sha256(token.encode()).digest()


def _revoke(db: apsw.Connection, family: apsw.SQLiteValue) -> None:
    db.execute("DELETE FROM tokens WHERE family = ?", (family,))
    db.execute("DELETE FROM families WHERE no = ?", (family,))
