"""Backoff, budget, classification, tokens: the small machines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.core.backoff import backoff_s
from whimbrel.core.budget import TokenBucket
from whimbrel.core.classify import Consequence, classify, code_of_status
from whimbrel.core.contract import Settings, Sources
from whimbrel.core.tokens import Tokens
from whimbrel.model import FailureReason

SOURCES = Sources(random=lambda: 0.5, wall=lambda: 0.0)


def delay(failures: int, random: float = 0.0, spread: tuple[float, float] = (1.0, 1.1)) -> float:
    return backoff_s(failures, base_s=1.0, factor=2.0, cap_s=30.0, spread=spread, random=lambda: random)


def test_backoff_doubles_up_to_the_cap_and_is_spread_afterwards() -> None:
    assert [delay(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert delay(7, random=1.0) == pytest.approx(33.0)
    assert delay(7, random=0.5, spread=(0.0, 1.0)) == 15.0


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_in_its_bounds(failures: int, random: float) -> None:
    assert 1.0 <= delay(failures, random) <= 33.0


def test_the_bucket_gives_a_burst_then_its_rate() -> None:
    bucket = TokenBucket(10.0, 3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait_s(0.0) == pytest.approx(0.1)
    assert bucket.take(0.1)
    assert not bucket.take(0.1)
    assert all(TokenBucket(0.0, 0.0, 0.0).take(0.0) for _ in range(100))


@given(st.lists(st.floats(0.0, 1.0), max_size=50))
def test_the_bucket_never_gives_more_than_burst_and_rate(steps: list[float]) -> None:
    bucket = TokenBucket(5.0, 4.0, 0.0)
    now, taken = 0.0, 0
    for step in steps:
        now += step
        while bucket.take(now):
            taken += 1
    assert taken <= 4 + 5 * now + 1e-6


@pytest.mark.parametrize(
    ("status", "reason", "consequence"),
    [
        (400, FailureReason.REJECTED, Consequence.REJECT),
        (401, FailureReason.AUTHENTICATION_ERROR, Consequence.REFRESH),
        (403, FailureReason.REJECTED, Consequence.REJECT),
        (404, FailureReason.REJECTED, Consequence.REJECT),
        (408, FailureReason.SERVER_ERROR, Consequence.RETRY),
        (413, FailureReason.REJECTED, Consequence.REJECT),
        (429, FailureReason.RATE_LIMITED, Consequence.PAUSE),
        (500, FailureReason.SERVER_ERROR, Consequence.RETRY),
        (503, FailureReason.SERVER_ERROR, Consequence.RETRY),
    ],
)
def test_whose_fault_it_is(status: int, reason: FailureReason, consequence: Consequence) -> None:
    verdict = classify(code_of_status(status))
    assert (verdict.reason, verdict.consequence) == (reason, consequence)


def test_an_unknown_code_is_retried() -> None:
    assert classify("from_the_future").consequence is Consequence.RETRY


def test_the_token_is_refreshed_five_minutes_before_it_expires_once_for_everyone() -> None:
    tokens = Tokens(Settings(), SOURCES)
    assert tokens.due(0.0)
    tokens.refreshing = True
    assert not tokens.due(0.0)
    tokens.renewed("secret", 900.0, 0.0)
    assert not tokens.due(599.0)
    assert tokens.next_deadline(0.0) == 600.0
    assert tokens.due(600.0)
    assert "secret" not in repr(tokens)


def test_a_refresh_that_fails_for_now_is_tried_again_and_for_good_is_not() -> None:
    tokens = Tokens(Settings(), SOURCES)
    tokens.refreshing = True
    tokens.failed(False, 0.0)
    due = tokens.next_deadline(0.0)
    assert due is not None
    assert not tokens.due(due - 0.01)
    assert tokens.due(due)
    tokens.failed(True, due)
    assert not tokens.due(due + 1000)
    assert tokens.signed_out


def test_a_short_lived_token_is_not_refreshed_in_a_loop() -> None:
    tokens = Tokens(Settings(), SOURCES)
    tokens.renewed("t", 60.0, 0.0)
    assert not tokens.due(30.0)
    assert tokens.due(41.0)


def test_a_budget_lets_nobody_pass_for_free() -> None:
    bucket = TokenBucket(10.0, 100.0, 0.0)
    waits = [bucket.reserve(0.0) for _ in range(900)]
    assert sum(wait == 0 for wait in waits) == 100
    assert max(waits) == pytest.approx(80.0)
