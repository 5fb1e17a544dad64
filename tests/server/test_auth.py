"""Access tokens: who, which device, until when; expired is told from invalid."""

import base64
import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from whimbrel.errors import Unauthorized
from whimbrel.server.auth import TOKEN_CHARS_MAX, AccessTokens, TokenExpired, TokenInvalid

SECRET = b"s" * 32
DEVICE = "a" * 26


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> AccessTokens:
    return AccessTokens(SECRET, clock=clock)


def test_token_says_who_and_until_when(tokens: AccessTokens, clock: Clock) -> None:
    token, expires_in_s = tokens.issue("ann", DEVICE)
    access = tokens.verify(token)
    assert (access.user, access.device, access.expires_at) == ("ann", DEVICE, clock.now + 900)
    assert expires_in_s == 900
    assert tokens.issue("ann", DEVICE)[0] != token


def test_token_runs_out_after_the_leeway(tokens: AccessTokens, clock: Clock) -> None:
    token, _ = tokens.issue("ann", DEVICE)
    clock.now += 900 + 29
    tokens.verify(token)
    clock.now += 1
    with pytest.raises(TokenExpired) as error:
        tokens.verify(token)
    assert isinstance(error.value, Unauthorized)
    assert (error.value.code, error.value.reason) == ("unauthorized", "expired")


def test_clock_set_back_within_the_leeway(tokens: AccessTokens, clock: Clock) -> None:
    token, _ = tokens.issue("ann", DEVICE)
    clock.now -= 29
    tokens.verify(token)
    clock.now -= 10
    with pytest.raises(TokenInvalid):
        tokens.verify(token)


def unsigned(claims: dict[str, Any]) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "none", "typ": "JWT"}, claims)
    ]
    return ".".join([*parts, ""])


def signed(claims: Any, *, secret: bytes = SECRET, alg: str = "HS256") -> str:
    return jwt.encode({"alg": alg}, claims, OctKey.import_key(secret), algorithms=[alg])


GOOD = {"user": "ann", "device": DEVICE, "iat": 1_700_000_000, "exp": 1_700_000_900, "jti": "x"}


def test_forged_and_damaged_tokens_are_invalid(tokens: AccessTokens) -> None:
    tokens.verify(signed(GOOD))
    forged = [
        "",
        "x",
        "a.b.c",
        "..",
        "\ud800.a.b",
        "ä.ä.ä",
        "A" * (TOKEN_CHARS_MAX + 1),
        unsigned(GOOD),
        signed(GOOD, secret=b"t" * 32),
        signed(GOOD, alg="HS512", secret=SECRET * 2),
        signed(GOOD)[:-1],
        signed(GOOD) + "x",
        *(
            signed({name: value for name, value in GOOD.items() if name != missing})
            for missing in ("user", "device", "iat", "exp")
        ),
        signed({**GOOD, "exp": "never"}),
        signed({**GOOD, "user": 7}),
    ]
    for token in forged:
        with pytest.raises(TokenInvalid):
            tokens.verify(token)


def test_each_changed_character_is_noticed(tokens: AccessTokens) -> None:
    token, _ = tokens.issue("ann", DEVICE)
    # The last character of a part carries unused bits; all others count.
    for position in range(0, len(token) - 1, 3):
        changed = token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]
        with pytest.raises(TokenInvalid):
            tokens.verify(changed)


def test_errors_and_reprs_show_no_secret(tokens: AccessTokens) -> None:
    token = signed(GOOD, secret=b"t" * 32)
    with pytest.raises(TokenInvalid) as error:
        tokens.verify(token)
    assert error.value.__cause__ is None
    assert token[:20] not in repr(error.value) + str(error.value)
    assert "ssss" not in repr(tokens)
    with pytest.raises(ValueError, match="32 bytes"):
        AccessTokens(b"short")
