"""With a safeguard switched off, the judge it belongs to notices: within the first 200 seeds."""

import pytest

from whimbrel.testing import checker
from whimbrel.testing.ablations import ABLATIONS
from whimbrel.testing.report import SimResult
from whimbrel.testing.simplan import SimPlan
from whimbrel.testing.simulator import simulate

SEEDS = 200
# Where it was seen last: tried first. Which seed it is depends on all that the code under test does.
SEEN = {
    "send_before_commit": 23,
    "numbers_unchecked": 11,
    "keys_forgotten": 22,
    "voids_forgotten": 12,
    "never_asked_after": 79,
    "pause_ignored": 6,
    "retry_after_ignored": 28,
    "fetched_once": 3,
    "buffer_unbounded": 26,
    "slow_consumer_forgotten": 5,
    "token_before_receipts": 0,
}


def noticed(name: str, result: SimResult) -> bool:
    """Whether the judge of this safeguard found something, and nothing was raised.

    It is the promise that must break, not the simulated world.
    """
    if any(violation.startswith("raised") for violation in result.violations):
        return False
    return any(violation.startswith(f"{ABLATIONS[name].judge}: ") for violation in result.violations)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_is_caught(name: str) -> None:
    for seed in (SEEN.get(name, 0), *range(SEEDS)):
        result = simulate(seed, ablation=name)
        if noticed(name, result):
            assert result.command == f"whimbrel sim --seed {seed} --ablation {name}"
            # It is the safeguard that was missed: the same storm with it breaks nothing.
            whole = simulate(seed, plan=ABLATIONS[name].plan(SimPlan()))
            assert whole.ok, whole.text()
            return
    pytest.fail(f"{name}: {ABLATIONS[name].says}, and no seed below {SEEDS} shows it")


def test_every_ablation_says_what_is_wrong_and_who_must_notice() -> None:
    judges = {check.__name__ for check in checker.CHECKS}
    for name, parts in ABLATIONS.items():
        assert parts.says, name
        assert parts.judge in judges, name


def test_unknown_ablation_is_refused() -> None:
    with pytest.raises(KeyError):
        simulate(0, ablation="no such")
