"""``whimbrel sim``: the simulator as a command."""

import json
from pathlib import Path

import pytest

from tests.cli.rig import Home, home_of


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_of(tmp_path, "anybody")


def test_one_storm_line_by_line(home: Home) -> None:
    out = home.run("sim", "--seed", "3", "--trace").ok().out
    assert "device0 start" in out
    assert "repeat with: whimbrel sim --seed 3" in out


def test_many_storms_are_counted(home: Home) -> None:
    out = home.run("sim", "--seeds", "3", "--from", "5", "--jobs", "1").ok().out
    assert "3 seeds, 0 failed" in out
    for what in ("faults:", "transitions:", "that never happened:"):
        assert what in out


def test_processes_share_the_storms_and_the_sum_is_the_same(home: Home) -> None:
    def told(jobs: str) -> dict[str, object]:
        fields: dict[str, object] = json.loads(
            home.run("sim", "--seeds", "12", "--jobs", jobs, "--json").ok().out
        )
        del fields["took_s"]
        return fields

    assert told("1") == told("2")
    assert told("1")["ok"] is True


def test_a_broken_promise_is_an_error_and_says_how_to_repeat_it(home: Home) -> None:
    done = home.run("sim", "--seeds", "2", "--ablation", "gaps_ignored", "--jobs", "1")
    assert done.code == 1
    command = next(line for line in done.out.splitlines() if "repeat with: " in line).partition("with: ")[2]
    assert command.startswith("whimbrel sim --seed ")
    again = home.run(*command.split()[1:])
    assert again.code == 1
    assert "FAILED" in again.out
