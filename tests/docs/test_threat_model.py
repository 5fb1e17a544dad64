"""``docs/threat-model.md``: every threat has a test that is there, and every attacker a threat."""

from __future__ import annotations

import ast
from functools import cache

from tests.docs.markdown import ROOT, sections, table, text_of
from tests.docs.test_words import TEST, names_in

TEXT = text_of("docs/threat-model.md")
PARTS = sections(TEXT, 2)
THREATS = sections(PARTS["Threats"], 3)


def rows() -> list[list[str]]:
    return [row for section in THREATS.values() for row in table(section)]


@cache
def collected_in(file: str) -> frozenset[str]:
    """What pytest would collect there: a test that is skipped or expected to fail proves nothing."""
    found = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = {ast.unparse(mark) for mark in node.decorator_list}
            if not any("skip" in mark or "xfail" in mark for mark in marks):
                found.add(node.name)
    return frozenset(found)


def test_every_threat_says_what_is_done_and_names_a_test() -> None:
    assert len(rows()) >= 40
    for threat, done, tests in rows():
        assert threat
        assert done
        named = TEST.findall(tests)
        assert named, threat
        for file, name in named:
            assert name in names_in(ROOT / file), f"{threat}: {file}::{name}"
            assert name in collected_in(file), f"{threat}: {name} is no test that runs"


def test_no_threat_is_told_twice() -> None:
    told = [threat for threat, *_ in rows()]
    assert len(told) == len(set(told))


def test_every_attack_is_a_threat() -> None:
    """Each file of attacks is named, so that none stays unknown to who reads the document."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "attack").glob("test_*.py")}
    named = {file for *_, tests in rows() for file, _ in TEST.findall(tests)}
    assert files <= named, sorted(files - named)


def test_assets_attackers_and_what_is_not_defended_are_told() -> None:
    assert list(PARTS) == ["What is protected", "Who attacks", "Threats", "What is not defended"]
    assert len(table(PARTS["What is protected"])) >= 5
    assert len(table(PARTS["Who attacks"])) >= 8
    assert PARTS["What is not defended"].count("\n- **") >= 8
