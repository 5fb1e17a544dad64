"""Every scenario has its test, or the part it waits for: `docs/scenarios.md` against the list."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SPECIFICATION = ROOT.parent / "shared" / "SPEC.md"
"""Where it lies beside the checkout."""
SCENARIOS = 23
PARTS = {
    "the circuit breakers",
    "the chat page",
    "the mobile life cycle",
    "jobs",
    "its other transports",
    "the retry state of other devices",
}
"""Parts that scenarios wait for. Who builds one takes it from here and puts tests into the table."""
TEST = re.compile(r"`(tests/scenarios/\w+\.py)::(\w+)`")
WAITS = re.compile(r"comes with ([^;|]+?)\s*(?:$|;)")


def rows(number: int) -> list[tuple[str, str]]:
    """The rows of one of the document's tables."""
    tables: list[list[tuple[str, str]]] = []
    inside = False
    for line in (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            tables.append([])
            inside = True
        left, right = (cell.strip() for cell in line.strip("|").split("|"))
        tables[-1].append((left, right))
    return tables[number][2:]


def functions_in(file: str) -> set[str]:
    nodes = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_scenario_has_its_test_or_waits_for_a_part() -> None:
    assert len(rows(0)) == SCENARIOS
    waiting = set()
    for scenario, proof in rows(0) + rows(1):
        named, parts = TEST.findall(proof), WAITS.findall(proof)
        assert named or parts, scenario
        for file, name in named:
            assert name in functions_in(file), f"{scenario}: {name}"
        waiting |= set(parts)
    assert waiting == PARTS


def test_every_test_of_a_scenario_is_in_the_table() -> None:
    named = {name for _, proof in rows(0) + rows(1) for _, name in TEST.findall(proof)}
    for path in Path(__file__).parent.glob("test_*.py"):
        if path != Path(__file__):
            tests = {
                name for name in functions_in(f"tests/scenarios/{path.name}") if name.startswith("test_")
            }
            assert tests <= named, path.name


@pytest.mark.skipif(not SPECIFICATION.is_file(), reason="the specification is not beside the checkout")
def test_the_table_has_the_scenarios_of_the_specification_word_by_word() -> None:
    text = SPECIFICATION.read_text(encoding="utf-8")
    chapter = text[text.index("\n## 10.") :].split("\n", 2)[2]
    wanted = chapter[: chapter.index("\nTargets:")].replace("\n", " ").rstrip(". ")
    assert [scenario for scenario, _ in rows(0)] == [part.strip() for part in wanted.split("·")]
