"""How often the long tests repeat, and what they found: few rounds, or release figures with `--soak`.

A test asks for its rounds (`rounds.of(ci=3, soak=300)`) and its seeds (`rounds.seeds(7)`: one that stays
and a fresh one). Figures and fresh seeds are told at the end of the run. `--soak` runs the tests marked
`soak` alone, and writes what came of each to `build/soak.json`, what failed first. `passed` in it is false
if a test failed, a figure was not kept or the run was cut short; `whole` says that besides nothing was
skipped or done in part only. `--soak-share 0.01` does a hundredth of the rounds, to see whether the long run
would work.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FIGURES = Path("build", "soak.json")
"""From the root of the working copy."""
_FIGURE = "figure"
_SEED = "fresh seed"
_OUTCOMES = ("failed", "error", "skipped", "passed")
"""In the order in which they are told."""


class Rounds:
    """What one test knows of the run it is in."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.soak: bool = request.config.getoption("--soak")
        """Whether release figures are wanted."""
        self._share: float = request.config.getoption("--soak-share")
        self._chosen: int | None = request.config.getoption("--fresh-seed")
        self._node = request.node

    def of(self, *, ci: int, soak: int) -> int:
        """How many rounds this run wants."""
        return max(ci, round(soak * self._share)) if self.soak else ci

    def seeds(self, fixed: int) -> tuple[int, int]:
        """The seed that never changes, and a fresh one, which is told (`--fresh-seed` repeats it)."""
        return fixed, self.fresh_seed()

    def fresh_seed(self) -> int:
        """A seed no run had before."""
        seed = self._chosen if self._chosen is not None else int.from_bytes(os.urandom(4))
        self._node.user_properties.append((_SEED, seed))
        return seed

    def figure(
        self, name: str, value: float, unit: str, *, target: float | None = None, ok: bool = True
    ) -> None:
        """Tell a figure; `target` is what was promised and `ok` whether it was kept."""
        figure = {"name": name, "value": value, "unit": unit, "target": target, "ok": ok}
        self._node.user_properties.append((_FIGURE, figure))


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Rounds:
    """How often to repeat, and where to tell figures."""
    return Rounds(request)


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise ValueError("a share is above 0 and at most 1")
    return share


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rounds")
    group.addoption("--soak", action="store_true", help="only the tests marked soak, with release figures")
    group.addoption(
        "--soak-share", type=_share, default=1.0, help="with --soak: this share of the rounds (default: 1)"
    )
    group.addoption(
        "--fresh-seed", type=int, default=None, help="the seed to take where a fresh one is wanted"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        return
    chosen = [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in items:
        item.add_marker(pytest.mark.timeout(12 * 3600), append=False)


def _reports(terminal: Any) -> Iterator[tuple[str, Any]]:
    """What came of each test, with its outcome; a test that passed and then could not be ended has two."""
    for outcome in _OUTCOMES:
        for report in terminal.getreports(outcome):
            # Beside these there are reports of folders and files that could not be read.
            if outcome != "passed" or report.when == "call":
                yield outcome, report


def _properties(report: Any, name: str) -> list[Any]:
    return [value for key, value in getattr(report, "user_properties", ()) if key == name]


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    reports = list(_reports(terminalreporter))
    seeds = [(report.nodeid, seed) for _, report in reports for seed in _properties(report, _SEED)]
    figures = [figure for _, report in reports for figure in _properties(report, _FIGURE)]
    if seeds:
        terminalreporter.section("fresh seeds")
        for node, seed in seeds:
            terminalreporter.write_line(f"{seed:>10}  {node}")
    if figures:
        terminalreporter.section("figures")
        for figure in figures:
            kept = "" if figure["ok"] else "  NOT KEPT"
            terminalreporter.write_line(
                f"{figure['value']:>12,g} {figure['unit']:<12} {figure['name']}{kept}"
            )
    if config.getoption("--soak"):
        share: float = config.getoption("--soak-share")
        came_of_it = _came_of_it(reports, figures, passed=exitstatus == 0, share=share)
        path = config.rootpath / FIGURES
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(came_of_it, indent=1) + "\n")


def _came_of_it(
    reports: list[tuple[str, Any]], figures: list[dict[str, Any]], *, passed: bool, share: float
) -> dict[str, Any]:
    passed = passed and bool(reports) and all(figure["ok"] for figure in figures)
    return {
        "passed": passed,
        "whole": passed and share == 1 and all(outcome == "passed" for outcome, _ in reports),
        "share": share,
        "figures": sorted(figures, key=lambda figure: (figure["ok"], figure["name"])),
        "tests": [
            {
                "test": report.nodeid,
                "outcome": outcome,
                "took_s": round(getattr(report, "duration", 0.0), 1),
                "fresh_seeds": _properties(report, _SEED),
            }
            for outcome, report in reports
        ],
    }
