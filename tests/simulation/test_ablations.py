"""With a safeguard switched off, the checkers notice: within the first 200 seeds."""

import pytest

from whimbrel.testing.ablations import ABLATIONS
from whimbrel.testing.simulator import simulate

SEEDS = 200


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_is_caught(name: str) -> None:
    for seed in range(SEEDS):
        result = simulate(seed, ablation=name)
        if not result.ok:
            assert result.command == f"whimbrel sim --seed {seed} --ablation {name}"
            # It is the promise that breaks, not the simulated world.
            assert not any(violation.startswith("raised") for violation in result.violations), result.text()
            return
    pytest.fail(f"{name}: {ABLATIONS[name].says}, and no seed below {SEEDS} shows it")


def test_unknown_ablation_is_refused() -> None:
    with pytest.raises(KeyError):
        simulate(0, ablation="no such")
