"""Five hundred storms: every promise is kept in each of them."""

import pytest

from whimbrel.testing.report import all_transitions
from whimbrel.testing.simplan import CONSEQUENCES, FAULTS, SimPlan
from whimbrel.testing.simulator import run_seeds, simulate

SEEDS = 500
CHUNK = 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_is_kept(first: int) -> None:
    report = run_seeds(range(first, first + CHUNK))
    assert report.ok, report.text()
    assert report.seeds == CHUNK


# Seeds that found a bug once.
REGRESSIONS = {
    4: "an own message settled beyond an overflowing gap read as sent",
    142: "a refused message that blocks was forgotten on reload",
    168: "a refused message that blocks was given up by its expiry",
    453: "an own entry confirmed twice within one commit lost its place",
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


@pytest.mark.timeout(600)
def test_faults_show_where_they_should_and_the_machines_move() -> None:
    report = run_seeds(range(1_000, 1_060))
    assert report.ok, report.text()
    assert not report.missing_faults(CONSEQUENCES), report.text()
    taken = [name for name in all_transitions() if report.transitions[name]]
    assert len(taken) > len(all_transitions()) / 2, report.text()


def test_without_faults_everything_arrives_at_once() -> None:
    plan = SimPlan(fault_kinds=(), tight_share=0.0)
    for seed in range(5):
        result = simulate(seed, plan=plan)
        assert result.ok, result.text()
        assert result.drained_s is not None
        assert result.drained_s < 15.0
        assert not set(result.faults) & set(FAULTS) or not any(
            times for kind, times in result.faults.items() if kind in FAULTS
        )
