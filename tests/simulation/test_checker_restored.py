"""What the checks excuse after the server was restored from an old backup: no more than they must."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.simulation.test_checker import (
    USERS,
    claim,
    good,
    lost,
    receipt_too_far,
    received_too_far,
    seen,
    seen_by_a_stranger,
    turned_away_for_nothing,
)
from whimbrel.model import FailureReason, SendState
from whimbrel.testing import checker
from whimbrel.testing.history import History, Move
from whimbrel.testing.simclock import EPOCH_S


def test_after_a_restore_what_was_delivered_may_wait_again_and_must_arrive() -> None:
    history = good()
    history.restored.append(9.5)
    history.claims.insert(3, claim(3, SendState.PENDING, at_s=10.0))
    history.claims.insert(4, claim(3, SendState.DELIVERED, at_s=10.5))
    history.whole["all"][2] = replace(history.whole["all"][2], at_s=EPOCH_S + 10.2)
    # What its device offered again is a new entry under the same id; live, everything may come again.
    history.consumed.append(seen(3, device="phone", at_s=11.0))
    history.live += [seen(seq, device="laptop", at_s=11.0) for seq in (1, 2, 3)]
    assert checker.check(history) == []
    twice = claim(3, SendState.PENDING, at_s=11.0)
    assert list(checker.no_lie(replace(history, claims=[*history.claims, twice]))) != []
    lost(history)
    assert list(checker.nothing_lost(history)) != []


def restored() -> History:
    """The ledger was put back at 9.5 to a backup that had everything; somebody wanted to move the club."""
    history = good()
    history.restored.append(9.5)
    history.moving.add("club")
    history.members["club"] = ("ann", "bob")
    history.whole["club"] = [replace(seen(1, at_s=EPOCH_S + 1), id="c1", conversation="club")]
    history.submissions["c1"] = replace(
        history.submissions["m1"], id="c1", conversation="club", body="text 1"
    )
    history.moves["club"] = [Move(user=user, seq=1, at_s=0.0, joined=True) for user in USERS.values()]
    for device, user in USERS.items():
        one = replace(history.whole["club"][0], device=device, at_s=1.0)
        history.consumed.append(one)
        history.logs[user, "club"] = history.whole["club"].copy()
        history.told_received[device, "club", "bob" if user == "ann" else "ann"] = 1
    history.claims.append(replace(claim(1, SendState.DELIVERED), id="c1", conversation="club"))
    return history


def lost_in_the_club(history: History) -> None:
    history.claims = [one for one in history.claims if one.id != "c1"]
    history.whole["club"].clear()


def delivered_never_in_the_club(history: History) -> None:
    history.whole["club"].clear()


def failed_but_in_the_club(history: History) -> None:
    told = claim(1, SendState.FAILED, at_s=30.0, reason=FailureReason.REJECTED)
    history.claims.append(replace(told, id="c1", conversation="club"))


def handled_again_of_another(history: History) -> None:
    history.consumed.append(seen(3, device="laptop", at_s=11.0))


def handled_thrice(history: History) -> None:
    history.consumed += [seen(3, device="phone", at_s=11.0)] * 2


def handled_out_of_order(history: History) -> None:
    two = next(one for one in history.consumed if one.device == "laptop" and one.seq == 2)
    history.consumed.remove(two)
    history.consumed.append(replace(two, at_s=11.0))


def begun_anew_twice(history: History) -> None:
    history.live += [seen(seq, device="laptop", at_s=11.0) for seq in (1, 2, 3, 1)]


def left_out(history: History) -> None:
    history.live = [one for one in history.live if one.device == "phone" or one.seq == 1]
    history.consumed = [
        replace(one, at_s=30.0) if one.device == "laptop" and one.seq == 2 else one
        for one in history.consumed
    ]
    history.live += [seen(seq, device="laptop", at_s=11.0) for seq in (1, 3)]


def expired_too_early(history: History) -> None:
    history.submissions["m4"] = replace(
        history.submissions["m3"], id="m4", index=4, expires=True, expires_at_s=9.5
    )
    history.claims.append(claim(4, SendState.FAILED, reason=FailureReason.EXPIRED))


NOT_EXCUSED: list[tuple[Callable[[History], None], checker.Check]] = [
    (lost_in_the_club, checker.nothing_lost),
    (delivered_never_in_the_club, checker.no_lie),
    (failed_but_in_the_club, checker.no_lie),
    (handled_again_of_another, checker.seen_by_all),
    (handled_thrice, checker.seen_by_all),
    (handled_out_of_order, checker.seen_by_all),
    (begun_anew_twice, checker.lives_in_order),
    (left_out, checker.lives_in_order),
    (seen_by_a_stranger, checker.closed_to_others),
    (turned_away_for_nothing, checker.closed_to_others),
    (receipt_too_far, checker.no_lie_about_reading),
    (received_too_far, checker.no_lie_about_reading),
    (expired_too_early, checker.no_lie),
]


@pytest.mark.parametrize(("break_it", "check"), NOT_EXCUSED)
def test_a_restore_excuses_no_more_than_it_must(
    break_it: Callable[[History], None], check: checker.Check
) -> None:
    history = restored()
    assert checker.check(history) == []
    break_it(history)
    assert list(check(history)) != []


def test_an_expiry_is_in_time_or_the_clock_was_set() -> None:
    history = good()
    expired_too_early(history)
    assert list(checker.no_lie(history)) != []
    history.submissions["m4"].expires_at_s = 9.0
    assert checker.check(history) == []
    history.submissions["m4"].expires_at_s = 9.5
    history.stepped.add("phone")
    assert checker.check(history) == []
