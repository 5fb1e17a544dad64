"""Two thousand storms: every promise is kept in each of them."""

import os

import pytest

from tests.rounds import Rounds
from whimbrel.testing.report import SimReport
from whimbrel.testing.simplan import CONSEQUENCES, FAULTS, KINDS, SimPlan
from whimbrel.testing.simulator import run_seeds, simulate

SEEDS = 2_000
CHUNK = 20
SEEDS_PER_S = 30.0
"""What one processor is to manage."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_is_kept(first: int) -> None:
    report = run_seeds(range(first, first + CHUNK))
    assert report.ok, report.text()
    assert report.seeds == CHUNK


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_storms_that_no_run_had_before(rounds: Rounds) -> None:
    first = rounds.fresh_seed()
    count = rounds.of(ci=50, soak=100_000)
    report = run_seeds(range(first, first + count), jobs=len(os.sched_getaffinity(0)) if rounds.soak else 1)
    speed = report.seeds_per_s
    kept = speed >= SEEDS_PER_S or not rounds.soak
    rounds.figure("storms lived through", report.seeds, "seeds", ok=report.ok)
    rounds.figure("storms a second on one processor", speed, "seeds/s", target=SEEDS_PER_S, ok=kept)
    rounds.figure("the last message after the last fault", report.drained_s_max, "virtual s")
    assert report.ok, report.text()
    assert report.seeds == count


# Stories that found a bug once; each bug has a test of its own beside its cure.
REGRESSIONS = {
    4: "an own message settled beyond an overflowing gap read as sent",
    142: "a refused message that blocks was forgotten on reload",
    168: "a refused message that blocks was given up by its expiry",
    293: "what all had read was unread again when somebody came back",
    453: "an own entry confirmed twice within one commit lost its place",
    2382: "a 503 was forgotten when the link under suspicion was given up",
    2459: "a 503 was forgotten when the store failed",
    5162: "pauses that were kept on a slow link were taken for haste",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_was_found_once_stays_fixed(seed: int) -> None:
    result = simulate(seed)
    assert result.ok, f"{REGRESSIONS[seed]}: {result.text()}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_takes_effect_and_alone_breaks_nothing(kind: str) -> None:
    plan = SimPlan(fault_kinds=(kind,), messages=50)
    for seed in range(30):
        result = simulate(seed, plan=plan)
        assert result.ok, result.text()
        if result.faults.get(kind):
            return
    pytest.fail(f"{kind} never took effect")


RESTORES = {
    "few other faults": SimPlan(fault_kinds=("server_restored", "cut", "crash_any_time")),
    "disks and sleep": SimPlan(
        fault_kinds=("server_restored", "cut", "crash_any_time", "commit_failed", "suspended")
    ),
    "all other faults": SimPlan(fault_kinds=(*KINDS, *["server_restored"] * 8)),
}
"""Storms in which the server is restored from old backups again and again."""


@pytest.mark.timeout(600)
@pytest.mark.soak
@pytest.mark.parametrize("name", RESTORES)
def test_a_server_restored_from_old_backups_again_and_again(name: str, rounds: Rounds) -> None:
    count = rounds.of(ci=CHUNK, soak=2_000)
    report = run_seeds(range(count), plan=RESTORES[name])
    assert report.ok, report.text()
    assert report.faults["server_restored"] > count
    rounds.figure(f"storms of restores with {name}", report.seeds, "seeds", ok=report.ok)


STORMS = {
    "as they come": SimPlan(),
    "bursts and strangers": SimPlan(burst_share=1.0, tight_share=0.0, moves_share=1.0),
    "signed out": SimPlan(fault_kinds=("half_open", "held_down", "token_dead", "token_expired"), messages=30),
    "signed out in doubt": SimPlan(
        fault_kinds=("unanswered", "half_open", "token_dead", "token_expired", "stall", "held_up"),
        faults=30,
        messages=30,
    ),
    "ended in doubt": SimPlan(
        fault_kinds=("unanswered", "half_open", "token_dead", "token_dead", *["commit_failed"] * 3),
        faults=50,
        messages=60,
    ),
    "given up": SimPlan(fault_kinds=("crash_giving_up", "server_slow"), tight_share=1.0, early_share=0.5),
    "hard to digest": SimPlan(
        fault_kinds=("poison", "poison", "duplicated", "clock_stepped", "ledger_hiccup"),
        faults=24,
        tight_share=1.0,
        early_share=0.3,
        invalid_share=0.2,
    ),
    "refused late": SimPlan(
        fault_kinds=("poison", "duplicated"), faults=30, messages=40, tight_share=0.0, invalid_share=0.5
    ),
}
"""Storms that between them take every transition, and show every consequence."""
STORM_SEEDS_MAX = 200


@pytest.mark.timeout(1200)
def test_the_machines_take_every_transition_and_faults_show_where_they_should() -> None:
    """What never happened was never tested: nothing that the tables and the counts name may be missing."""
    report = SimReport()
    for seed in range(0, STORM_SEEDS_MAX, 5):
        for plan in STORMS.values():
            report.merge(run_seeds(range(seed, seed + 5), plan=plan))
        if not report.missing_transitions() and not report.missing_faults(CONSEQUENCES):
            break
    assert report.ok, report.text()
    assert report.missing_transitions() == []
    assert report.missing_faults(CONSEQUENCES) == []


def test_without_faults_everything_arrives_at_once() -> None:
    plan = SimPlan(fault_kinds=(), tight_share=0.0, burst_share=0.0)
    for seed in range(5):
        result = simulate(seed, plan=plan)
        assert result.ok, result.text()
        assert result.drained_s is not None
        assert result.drained_s < 15.0
        assert not any(times for kind, times in result.faults.items() if kind in FAULTS)
