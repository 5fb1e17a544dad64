"""How often the long tests repeat, and what they found: few rounds, or release figures with `--soak`.

A test asks for its rounds (`rounds.of(ci=3, soak=300)`) and its seeds (`rounds.seeds(7)`: one that stays
and a fresh one). Figures and fresh seeds are told at the end of the run. `--soak` runs the tests marked
`soak` alone, and writes their figures to `build/soak.json`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FIGURES = Path(__file__).resolve().parent.parent / "build" / "soak.json"
_FIGURE = "figure"
_SEED = "fresh seed"


class Rounds:
    """What one test knows of the run it is in."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.soak: bool = request.config.getoption("--soak")
        """Whether release figures are wanted."""
        self._chosen: int | None = request.config.getoption("--fresh-seed")
        self._node = request.node

    def of(self, *, ci: int, soak: int) -> int:
        """How many rounds this run wants."""
        return soak if self.soak else ci

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


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rounds")
    group.addoption("--soak", action="store_true", help="only the tests marked soak, with release figures")
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


def _properties(terminal: Any, name: str) -> Iterator[tuple[str, Any]]:
    for outcome in ("passed", "failed"):
        for report in terminal.getreports(outcome):
            if report.when == "call":
                yield from ((report.nodeid, value) for key, value in report.user_properties if key == name)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    seeds = list(_properties(terminalreporter, _SEED))
    figures = [figure for _, figure in _properties(terminalreporter, _FIGURE)]
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
        FIGURES.parent.mkdir(exist_ok=True)
        FIGURES.write_text(json.dumps(sorted(figures, key=lambda figure: figure["name"]), indent=1) + "\n")
