"""A seed decides everything: nothing else may."""

import os
import subprocess
import sys

import pytest

from whimbrel.testing.simulator import run_seeds, simulate

SCRIPT = (
    "from whimbrel.testing.simulator import simulate; print(*(simulate(s).trace_hash for s in range({}, {})))"
)


def test_same_seed_same_run() -> None:
    for seed in range(3):
        first = simulate(seed, keep_trace=True)
        again = simulate(seed, keep_trace=True)
        assert first.trace == again.trace
        assert first.trace_hash == again.trace_hash
        assert (first.violations, first.faults, first.steps) == (again.violations, again.faults, again.steps)


def test_other_seed_other_run() -> None:
    assert simulate(1).trace_hash != simulate(2).trace_hash


@pytest.mark.timeout(600)
def test_hash_seed_of_the_interpreter_changes_nothing() -> None:
    script = SCRIPT.format(10, 22)
    hashes = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(hashes) == 1


@pytest.mark.timeout(600)
def test_jobs_change_nothing() -> None:
    alone, together = run_seeds(range(20)), run_seeds(range(20), jobs=2)
    assert alone.faults == together.faults
    assert alone.transitions == together.transitions
    assert [result.seed for result in alone.failures] == [result.seed for result in together.failures]


def test_the_trace_names_what_happened_and_shows_no_content() -> None:
    result = simulate(3, keep_trace=True)
    assert any("device0 start" in line for line in result.trace)
    assert "whimbrel sim --seed 3" in result.text()
    assert not any("...." in line for line in result.trace)  # the padding of every longer message
    assert simulate(3).trace_hash == result.trace_hash
