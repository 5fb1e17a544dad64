"""Sync tokens: how far a client has come in a history, signed so that it cannot be made up.

A token says ``(history, {shard: commit})`` and carries 16 bytes of HMAC-SHA256. The embedded server
has one shard, "0"; the vector leaves room for many. A token of another server, of an unknown
version, or changed on the way reads as None: the client is then told everything.

A signed token whose commit is beyond the ledger's proves that the ledger was restored from a
backup; what follows from that is left to the caller.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

TOKEN_CHARS_MAX = 4096

_VERSION = 1
_MAC_BYTES = 16
_SHARD = "0"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, str, dict[str, int]]).decode


class SyncTokens:
    """Signs and reads sync tokens with the server's secret (at least 32 bytes)."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError("a secret has at least 32 bytes")
        self._secret = secret

    def __repr__(self) -> str:
        return "<SyncTokens>"

    def encode(self, history: str, commit: int, user: str) -> str:
        """Give the token that says: this user has everything of ``history`` up to ``commit``."""
        said = _encode((_VERSION, history, {_SHARD: commit}))
        return base64.urlsafe_b64encode(self._mac(user, said) + said).decode().rstrip("=")

    def decode(self, token: str, user: str) -> tuple[str, int] | None:
        """Give (history, commit), or None for what this server did not sign for this user. Never raises."""
        if len(token) > TOKEN_CHARS_MAX or not token.isascii():
            return None
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        mac, said = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(user, said)):
            return None
        try:
            version, history, commits = _decode(said)
        except msgspec.DecodeError:
            return None
        commit = commits.get(_SHARD, -1)
        return (history, commit) if version == _VERSION and commit >= 0 else None

    def _mac(self, user: str, said: bytes) -> bytes:
        # The prefix keeps a signature of ours from being good for anything else under this secret, and the
        # user from being good for others: what one was told of, another was not.
        whose = b"whimbrel sync token\0%d\0" % len(user) + user.encode()
        return hmac.digest(self._secret, whose + said, hashlib.sha256)[:_MAC_BYTES]
