"""The example's bug is found by a storm, soon, and the fixed bot passes all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.order_bot import first, fixed
from examples.order_bot.test_order_bot import scenario
from tests.rounds import Rounds
from whimbrel.testing import World

ROOT = Path(__file__).resolve().parents[2]
FOUND_WITHIN = 3
"""Seeds: a bug that is found later is not found by somebody who tries it out."""


def survives(seed: int, folder: Path, bot: type[first.OrderBot]) -> bool:
    folder.mkdir()
    with World(seed=seed) as world:
        try:
            world.run(scenario(world.server, world.storm, folder, bot))
        except AssertionError as error:
            assert "confirmed once" in str(error), "the storm broke whimbrel"  # noqa: PT017 - any other is a bug
            return False
    return True


@pytest.mark.soak
def test_the_storm_finds_the_bug_and_the_fixed_bot_passes(tmp_path: Path, rounds: Rounds) -> None:
    seeds = range(1, 1 + rounds.of(ci=FOUND_WITHIN, soak=200))
    found: list[int] = []
    for seed in seeds:
        if not survives(seed, tmp_path / f"first-{seed}", first.OrderBot):
            found.append(seed)
            if not rounds.soak:
                break
    assert found, "no storm found the bug"
    assert found[0] <= FOUND_WITHIN
    fixed_seeds = seeds if rounds.soak else found
    failed = [seed for seed in fixed_seeds if not survives(seed, tmp_path / f"fixed-{seed}", fixed.OrderBot)]
    assert not failed, f"the fixed bot fails with {failed}"
    if rounds.soak:
        rounds.figure("storms that find the bug of the example", 100 * len(found) / len(seeds), "%")


def run_tests(*options: str) -> str:
    """The example's own tests, with the bot as it was first."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short", *options],
        cwd=ROOT,
        env=os.environ | {"ORDER_BOT": "first", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def story_of(output: str) -> list[str]:
    return re.findall(r"^ +\d+\.\d{3}  .+$", output, re.MULTILINE)


@pytest.mark.timeout(600)  # two processes, each with some storms
def test_a_failing_seed_is_told_and_repeats_the_run() -> None:
    output = run_tests("examples/order_bot", "--storm-seeds", str(FOUND_WITHIN), "-x")
    (test, seed) = re.findall(r"repeat it: pytest '([^']+)' --storm-seed (\d+)", output)[0]
    again = run_tests(test, "--storm-seed", seed)
    assert f"--storm-seed {seed}" in again
    assert story_of(again)
    assert story_of(again) == story_of(output)
