"""Each check finds a violation made by hand, and finds nothing in a history that keeps every promise."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from whimbrel.model import FailureReason, SendState
from whimbrel.testing import checker
from whimbrel.testing.history import Claim, History, Move, ReadUpTo, Sighting, Submission, Usage
from whimbrel.testing.simclock import EPOCH_S

USERS = {"phone": "ann", "laptop": "bob"}


def seen(seq: int, *, device: str = "", at_s: float | None = None, life: int = 0) -> Sighting:
    return Sighting(
        conversation="all",
        seq=seq,
        id=f"m{seq}",
        sender="ann",
        kind="message",
        body=f"text {seq}",
        at_s=float(seq) if at_s is None else at_s,
        device=device,
        incarnation=life,
    )


def claim(seq: int, state: SendState, *, at_s: float = 9.0, reason: FailureReason | None = None) -> Claim:
    return Claim(
        device="phone", incarnation=0, at_s=at_s, id=f"m{seq}", conversation="all", state=state, reason=reason
    )


def good() -> History:
    """Ann's phone sends three messages; both devices see them; Bob reads two."""
    history = History(members={"all": ("ann", "bob")}, users=dict(USERS))
    for seq in (1, 2, 3):
        history.submissions[f"m{seq}"] = Submission(
            id=f"m{seq}",
            device="phone",
            conversation="all",
            index=seq,
            body=f"text {seq}",
            at_s=0.0,
            returned_at_s=0.5,
        )
        history.claims.append(claim(seq, SendState.DELIVERED))
        for device in USERS:
            history.live.append(seen(seq, device=device))
            history.consumed.append(seen(seq, device=device))
    history.whole["all"] = [seen(seq, at_s=EPOCH_S + seq) for seq in (1, 2, 3)]
    for user in USERS.values():
        history.logs[user, "all"] = history.whole["all"].copy()
        history.stored(user, "all", 2.0, 3)
    history.moves["all"] = [Move(user=user, seq=1, at_s=0.0, joined=True) for user in USERS.values()]
    history.reads.append(ReadUpTo(user="bob", conversation="all", seq=2, at_s=10.0))
    history.claims.append(claim(2, SendState.READ, at_s=11.0))
    told = ReadUpTo(user="bob", conversation="all", seq=2, at_s=11.0, received=3)
    history.receipts.append(("phone", 0, told))
    history.told_received = {("phone", "all", "bob"): 3, ("laptop", "all", "ann"): 3}
    for phase in checker.LIMITS:
        history.usage["phone", phase, 0] = Usage(opened=1, items=10, refreshed=1, turns=20)
    history.waiting = {"phone": 0, "laptop": 0}
    history.drained_s = 20.0
    return history


def logs(history: History) -> list[list[Sighting]]:
    return [history.whole["all"], *history.logs.values()]


def lost(history: History) -> None:
    for log in logs(history):
        log.pop()


def doubled(history: History) -> None:
    for log in logs(history):
        log.append(replace(log[2], seq=4))


def holed(history: History) -> None:
    for log in logs(history):
        log[2] = replace(log[2], seq=4)


def written_by_a_stranger(history: History) -> None:
    history.moves["all"].append(Move(user="ann", seq=2, at_s=1.5, joined=False))


def invented(history: History) -> None:
    del history.submissions["m3"]


def reordered(history: History) -> None:
    for log in logs(history):
        log[0], log[1] = replace(log[1], seq=1), replace(log[0], seq=2)


def changed(history: History) -> None:
    history.consumed[-1] = replace(history.consumed[-1], body="other")


def of_another(history: History) -> None:
    history.live[0] = replace(history.live[0], sender="bob")


def disagreed(history: History) -> None:
    history.logs["bob", "all"].pop()


def read_by_a_stranger(history: History) -> None:
    history.logs["eve", "all"] = history.whole["all"].copy()


def shut_out(history: History) -> None:
    del history.logs["bob", "all"]


def seen_by_a_stranger(history: History) -> None:
    history.moves["all"][1] = Move(user="bob", seq=2, at_s=1.5, joined=True)


def turned_away_for_nothing(history: History) -> None:
    history.turned_away.append(("phone", "all", 3.0))


def unseen(history: History) -> None:
    history.consumed.pop()


def seen_with_a_gap(history: History) -> None:
    history.consumed = [one for one in history.consumed if not (one.device == "laptop" and one.seq == 2)]


def handled_twice(history: History) -> None:
    history.consumed.append(seen(3, device="laptop"))


def live_with_a_gap(history: History) -> None:
    history.live = [one for one in history.live if one.seq != 2]


def live_twice(history: History) -> None:
    history.live.append(seen(3, device="phone"))


def delivered_too_early(history: History) -> None:
    history.claims[0] = claim(1, SendState.DELIVERED, at_s=0.9)


def delivered_never(history: History) -> None:
    history.submissions["m4"] = replace(history.submissions["m3"], id="m4", index=4, returned_at_s=None)
    history.claims.append(claim(4, SendState.DELIVERED))


def cancelled_but_there(history: History) -> None:
    history.submissions["m1"].cancel_at_s = 1.0
    history.claims.append(claim(1, SendState.CANCELLED))


def cancelled_by_nobody(history: History) -> None:
    lost(history)
    history.claims.append(claim(3, SendState.CANCELLED))


def undone(history: History) -> None:
    history.claims.append(claim(1, SendState.PENDING))


def read_too_early(history: History) -> None:
    history.claims.append(claim(3, SendState.READ, at_s=12.0))


def receipt_too_far(history: History) -> None:
    history.receipts.append(("phone", 0, ReadUpTo(user="bob", conversation="all", seq=3, at_s=12.0)))


def received_too_far(history: History) -> None:
    history.receipts[0][2].at_s = 1.0


def receipt_back(history: History) -> None:
    history.receipts.append(("phone", 0, ReadUpTo(user="bob", conversation="all", seq=1, at_s=12.0)))


def receipt_missing(history: History) -> None:
    history.told_received["phone", "all", "bob"] = 2


def undecided(history: History) -> None:
    refused = replace(history.submissions["m1"], id="m0", index=0, refusable=True, blocks=True)
    history.submissions["m0"] = refused
    history.claims.append(claim(0, SendState.FAILED, reason=FailureReason.REJECTED))


def invalid_but_there(history: History) -> None:
    history.submissions["m1"].refusable = True


def still_waiting(history: History) -> None:
    history.waiting["phone"] = 1


def never_drained(history: History) -> None:
    history.drained_s = None


def connects_too_much(history: History) -> None:
    history.usage["phone", "storm", 1] = Usage(opened=checker.LIMITS["storm"]["opened"] + 1)


def sends_too_much(history: History) -> None:
    items = checker.LIMITS["recovery"]["items"] + 2 * 3 + 3 * 3
    history.usage["phone", "recovery", 1] = Usage(items=items + 1, backlog=3)


def is_not_quiet(history: History) -> None:
    history.usage["phone", "idle", 1] = Usage(turns=checker.LIMITS["idle"]["turns"] + 1)


def asks_for_tokens(history: History) -> None:
    history.usage["phone", "storm", 1] = Usage(refreshed=checker.LIMITS["storm"]["refreshed"] + 1)


def retries_too_much(history: History) -> None:
    history.retry_budget = (1.0, 0.5)
    for number in range(6):
        told = claim(1, SendState.RETRYING, at_s=1.0 + number / 10)
        history.claims.insert(0, replace(told, retry=2, live=True))


def broken_world(history: History) -> None:
    history.faults.append("phone: send() raised")


BROKEN: list[tuple[Callable[[History], None], checker.Check]] = [
    (lost, checker.nothing_lost),
    (doubled, checker.logs_whole),
    (holed, checker.logs_whole),
    (invented, checker.logs_whole),
    (invalid_but_there, checker.logs_whole),
    (written_by_a_stranger, checker.logs_whole),
    (read_by_a_stranger, checker.agreed),
    (shut_out, checker.agreed),
    (seen_by_a_stranger, checker.closed_to_others),
    (turned_away_for_nothing, checker.closed_to_others),
    (reordered, checker.order_kept),
    (changed, checker.unchanged),
    (of_another, checker.unchanged),
    (disagreed, checker.agreed),
    (unseen, checker.seen_by_all),
    (seen_with_a_gap, checker.seen_by_all),
    (handled_twice, checker.seen_by_all),
    (live_with_a_gap, checker.lives_in_order),
    (live_twice, checker.lives_in_order),
    (delivered_too_early, checker.no_lie),
    (delivered_never, checker.no_lie),
    (cancelled_but_there, checker.no_lie),
    (cancelled_by_nobody, checker.no_lie),
    (undone, checker.no_lie),
    (read_too_early, checker.no_lie_about_reading),
    (receipt_too_far, checker.no_lie_about_reading),
    (received_too_far, checker.no_lie_about_reading),
    (receipt_back, checker.no_lie_about_reading),
    (undecided, checker.decisions_awaited),
    (receipt_missing, checker.receipts_arrived),
    (still_waiting, checker.drained),
    (never_drained, checker.drained),
    (connects_too_much, checker.no_spinning),
    (sends_too_much, checker.no_spinning),
    (is_not_quiet, checker.no_spinning),
    (asks_for_tokens, checker.no_spinning),
    (retries_too_much, checker.within_budget),
    (broken_world, checker.world_sound),
]


def test_a_history_that_keeps_every_promise_passes() -> None:
    assert checker.check(good()) == []


@pytest.mark.parametrize(("break_it", "finds"), BROKEN)
def test_check_finds(break_it: Callable[[History], None], finds: checker.Check) -> None:
    history = good()
    break_it(history)
    assert list(finds(history)) != []
    assert any(text.startswith(finds.__name__) for text in checker.check(history))


def test_every_check_is_tried() -> None:
    assert {finds for _, finds in BROKEN} == set(checker.CHECKS)


def test_what_is_allowed() -> None:
    history = good()
    # Redelivered after a crash, from the first that was not recorded on.
    history.consumed += [seen(2, device="laptop", life=1), seen(3, device="laptop", life=1)]
    # A send that never returned may be missing, and one withdrawn in time.
    kept = history.submissions["m3"]
    history.submissions["m8"] = replace(kept, id="m8", index=8, returned_at_s=None)
    history.submissions["m9"] = replace(kept, id="m9", index=9, cancel_at_s=1.0)
    history.claims.append(claim(9, SendState.CANCELLED))
    # One that expired, and one that was refused.
    history.submissions["m10"] = replace(kept, id="m10", index=10, expires=True, expires_at_s=9.0)
    history.claims.append(claim(10, SendState.FAILED, reason=FailureReason.EXPIRED))
    history.submissions["m11"] = replace(kept, id="m11", index=11, refusable=True)
    history.claims.append(claim(11, SendState.FAILED, reason=FailureReason.REJECTED))
    assert checker.check(history) == []


def joined_late(history: History) -> None:
    """Bob is added by the third entry, and sees nothing before it."""
    history.moves["all"][1] = Move(user="bob", seq=3, at_s=2.5, joined=True)
    history.logs["bob", "all"] = history.whole["all"][2:]
    for sightings in (history.live, history.consumed):
        sightings[:] = [one for one in sightings if one.device == "phone" or one.seq == 3]


def test_who_joined_late_sees_what_came_since() -> None:
    history = good()
    joined_late(history)
    assert checker.check(history) == []


def test_who_left_need_not_see_the_end_and_may_be_refused() -> None:
    history = good()
    history.members["all"] = ("ann",)
    history.moves["all"].append(Move(user="bob", seq=2, at_s=1.5, joined=False))
    history.logs["bob", "all"].pop()
    history.live = [one for one in history.live if one.device == "phone" or one.seq < 3]
    history.consumed = [one for one in history.consumed if one.device == "phone" or one.seq < 3]
    history.told_received = {}
    kept = history.submissions["m3"]
    history.submissions["m8"] = replace(kept, id="m8", device="laptop", index=1)
    told = claim(8, SendState.FAILED, reason=FailureReason.REJECTED)
    history.claims.append(replace(told, device="laptop"))
    history.turned_away.append(("laptop", "all", 5.0))
    assert checker.check(history) == []


def test_many_violations_are_cut_short() -> None:
    history = good()
    history.faults += ["again"] * 100
    assert len(checker.check(history)) == checker.VIOLATIONS_MAX + 1
