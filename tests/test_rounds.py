"""The long run's own book: shares of rounds, seeds that are told, and failures that show in the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CASES = """
import pytest

@pytest.mark.soak
def test_kept(rounds):
    rounds.seeds(7)
    rounds.figure("rounds", rounds.of(ci=3, soak=300), "rounds", target=3)

@pytest.mark.soak
def test_not_kept(rounds):
    rounds.figure("latency", 9.0, "s", target=5.0, ok=9.0 <= 5.0)

@pytest.mark.soak
def test_failed(rounds):
    rounds.seeds(7)
    raise AssertionError

@pytest.mark.soak
def test_never_began(no_such_fixture):
    pass

@pytest.mark.soak
def test_left_out():
    pytest.skip("nothing to do it with")

def test_short():
    raise AssertionError("only what is marked runs")
"""


def soak(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run these cases in a working copy of their own."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = soak: repeats\n")
    (folder / "test_cases.py").write_text(CASES)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ptests.rounds", "-pno:cacheprovider", "--soak", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, json.loads((folder / "build" / "soak.json").read_bytes()), done.stdout


def test_failures_show_in_the_file_and_come_first(tmp_path: Path) -> None:
    code, book, said = soak(tmp_path, "--soak-share", "0.02", "--fresh-seed", "4711")
    assert code != 0
    assert not book["passed"]
    assert [(test["test"].rpartition("::")[2], test["outcome"]) for test in book["tests"]] == [
        ("test_failed", "failed"),
        ("test_never_began", "error"),
        ("test_left_out", "skipped"),
        ("test_kept", "passed"),
        ("test_not_kept", "passed"),
    ]
    assert [test["fresh_seeds"] for test in book["tests"]] == [[4711], [], [], [4711], []]
    assert [(figure["name"], figure["value"], figure["ok"]) for figure in book["figures"]] == [
        ("latency", 9.0, False),
        ("rounds", 6, True),
    ]
    assert "4711  test_cases.py::test_failed" in said
    assert "NOT KEPT" in said


def test_passed_and_whole_are_said_apart(tmp_path: Path) -> None:
    code, book, _ = soak(tmp_path, "-k", "kept and not not_kept")
    assert code == 0
    assert (book["passed"], book["whole"], book["share"]) == (True, True, 1)
    assert book["figures"][0]["value"] == 300
    code, book, _ = soak(tmp_path, "-k", "kept and not not_kept", "--soak-share", "0.001")
    assert (code, book["passed"], book["whole"]) == (0, True, False)
    assert book["figures"][0]["value"] == 3
    code, book, _ = soak(tmp_path, "-k", "left_out")
    assert (code, book["passed"], book["whole"]) == (0, True, False)
    code, book, _ = soak(tmp_path, "-k", "not_kept")
    assert (code, book["passed"], book["whole"]) == (0, False, False)
