"""Access tokens: who this is and which device, signed, good for 15 minutes.

A token is a JWT (HS256) with ``user``, ``device``, ``iat``, ``exp`` and ``jti``. Nothing is looked up
to check one, so it cannot be called back: signing out ends the refresh token (``accounts``) and the
access token runs out. An expired token is told from an invalid one, because a client refreshes after
the first and has to sign in after the second.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from whimbrel.errors import Unauthorized

ACCESS_LIFETIME_S = 15 * 60
CLOCK_LEEWAY_S = 30.0
TOKEN_CHARS_MAX = 4096

_ALGORITHM = "HS256"


class TokenExpired(Unauthorized):
    """The access token was good and has run out."""

    default_hint = "refresh the access token and try again"
    reason = "expired"


class TokenInvalid(Unauthorized):
    """This is no access token of this server."""

    reason = "invalid"


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What a good access token says."""

    user: str
    device: str
    expires_at: float
    """Wall clock; the token is taken up to ``CLOCK_LEEWAY_S`` longer."""


class _Claims(msgspec.Struct, frozen=True):
    user: str
    device: str
    exp: float
    iat: float


class AccessTokens:
    """Issues and checks access tokens with the server's secret (at least 32 bytes)."""

    def __init__(
        self,
        secret: bytes,
        *,
        clock: Callable[[], float] = time.time,
        lifetime_s: float = ACCESS_LIFETIME_S,
        leeway_s: float = CLOCK_LEEWAY_S,
    ) -> None:
        if len(secret) < 32:
            raise ValueError("a secret has at least 32 bytes")
        self._key = OctKey.import_key(secret)
        self._clock = clock
        self._lifetime_s = lifetime_s
        self._leeway_s = leeway_s

    def __repr__(self) -> str:
        return "<AccessTokens>"

    def issue(self, user: str, device: str) -> tuple[str, float]:
        """Give (token, seconds it is good for)."""
        now = int(self._clock())
        claims = {
            "user": user,
            "device": device,
            "iat": now,
            "exp": now + int(self._lifetime_s),
            "jti": secrets.token_urlsafe(12),
        }
        return jwt.encode({"alg": _ALGORITHM}, claims, self._key), float(int(self._lifetime_s))

    def verify(self, token: str) -> Access:
        """Give what the token says. Raises ``TokenExpired`` or ``TokenInvalid``, and nothing else."""
        if len(token) > TOKEN_CHARS_MAX:
            raise TokenInvalid("the access token is not one of this server")
        try:
            decoded = jwt.decode(token, self._key, algorithms=[_ALGORITHM])
            claims = msgspec.convert(decoded.claims, _Claims)
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            # msgspec.ValidationError is a ValueError. No `from`: a cause may quote the token.
            raise TokenInvalid(
                f"the access token is not one of this server ({type(error).__name__})"
            ) from None
        now = self._clock()
        if now >= claims.exp + self._leeway_s:
            raise TokenExpired("the access token has expired")
        if claims.iat > now + self._leeway_s:
            raise TokenInvalid("the access token is from the future: check the clocks")
        return Access(user=claims.user, device=claims.device, expires_at=claims.exp)
