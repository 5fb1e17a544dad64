"""Sync tokens say what was put in, to the server that made them, and nothing to anyone else."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.server.synctoken import TOKEN_CHARS_MAX, SyncTokens

TOKENS = SyncTokens(b"s" * 32)


@given(st.text(max_size=40), st.integers(0, 2**63 - 1))
def test_round_trip(history: str, commit: int) -> None:
    assert TOKENS.decode(TOKENS.encode(history, commit, "ann"), "ann") == (history, commit)


def test_token_is_short_and_fit_for_a_url() -> None:
    token = TOKENS.encode("0123456789abcdef0123", 1_000_000, "ann")
    assert len(token) < 80
    assert token.replace("-", "").replace("_", "").isalnum()


def test_every_changed_character_is_noticed() -> None:
    token = TOKENS.encode("history", 17, "ann")
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for position in range(len(raw)):
        for bit in range(8):
            forged = bytearray(raw)
            forged[position] ^= 1 << bit
            assert TOKENS.decode(base64.urlsafe_b64encode(forged).decode().rstrip("="), "ann") is None


def test_token_of_another_server_is_none() -> None:
    assert TOKENS.decode(SyncTokens(b"t" * 32).encode("history", 17, "ann"), "ann") is None


@given(st.text(max_size=8), st.text(max_size=8))
def test_token_of_another_user_is_none(ann: str, bob: str) -> None:
    assert (TOKENS.decode(TOKENS.encode("history", 17, ann), bob) is None) == (ann != bob)


@given(st.text(max_size=100))
def test_anything_else_is_none(token: str) -> None:
    assert TOKENS.decode(token, "ann") is None


@pytest.mark.parametrize("token", ["", "=", "a", "====", "\ud800", "ä" * 40, "A" * (TOKEN_CHARS_MAX + 1)])
def test_odd_tokens_are_none(token: str) -> None:
    assert TOKENS.decode(token, "ann") is None


def test_secret_is_long_and_never_shown() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SyncTokens(b"short")
    assert "ssss" not in repr(TOKENS)
