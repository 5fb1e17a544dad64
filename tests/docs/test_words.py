"""What the documents name is there: tests, files, links, words, decisions."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.markdown import PACKAGE, ROOT, code, documents, links, sections, table, text_of

GUARANTEES = ("Durable", "Exactly once", "In order", "Without gaps", "Live", "Visible")
TEST = re.compile(r"`((?:tests|src)/[\w/]+\.py)::([\w:]+)`")
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


@cache
def names_in(file: Path) -> frozenset[str]:
    """Functions, classes, their methods, and what is assigned, as pytest would name them."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                found.add(name)
                found |= {
                    f"{name}::{inner.name}"
                    for inner in body
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                }
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case _:
                pass
    return frozenset(found)


def named_tests() -> list[tuple[str, str]]:
    return sorted({found for path in documents() for found in TEST.findall(path.read_text(encoding="utf-8"))})


@pytest.mark.parametrize(("file", "name"), named_tests())
def test_every_named_test_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    assert name in names_in(ROOT / file)


def test_nothing_looks_like_a_test_and_is_none() -> None:
    for path in documents():
        text = path.read_text(encoding="utf-8")
        assert len(TEST.findall(text)) == text.count(".py::")


def test_every_guarantee_names_tests_that_prove_it() -> None:
    described = sections(text_of("docs/guarantees.md"), 2)
    assert tuple(described) == (*GUARANTEES, "Not promised")
    for name in GUARANTEES:
        assert len(TEST.findall(described[name])) >= 5
    promised = [
        row[0].strip("*") for row in table(sections(text_of("README.md"), 2)["What it promises"]) if row[0]
    ]
    assert promised == list(GUARANTEES)


def test_every_behaviour_names_its_module_and_its_test() -> None:
    section = sections(text_of("docs/architecture.md"), 2)["Where each behaviour lives"]
    rows = table(section)
    assert len(rows) >= 30
    assert len({behaviour for behaviour, *_ in rows}) == len(rows)
    for _, module, test in rows:
        assert (PACKAGE / code(module)).is_file()
        assert TEST.fullmatch(test)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_module_that_is_named_exists(path: Path) -> None:
    for name in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", path.read_text(encoding="utf-8")):
        assert any((base / name).exists() for base in (PACKAGE, ROOT, ROOT / "src")), name


def anchor(title: str) -> str:
    """How a heading is linked to."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in links(path.read_text(encoding="utf-8")):
        assert "://" not in link, "the documents speak of the project alone"
        name, _, part = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if part:
            text = target.read_text(encoding="utf-8")
            titles = {anchor(title) for level in (2, 3) for title in sections(text, level)}
            assert part in titles, link


def test_words_are_used_where_the_glossary_says() -> None:
    rows = table(text_of("docs/glossary.md"))
    words = [word for word, *_ in rows]
    assert words == sorted(set(words))
    for word, meaning, where in rows:
        assert meaning.endswith(".")
        used = (PACKAGE / code(where)).read_text(encoding="utf-8").lower()
        assert re.search(rf"\b{word.replace(' ', '[ _]')}", used), f"{word} is not in {where}"


def test_decisions_are_numbered_and_say_why() -> None:
    assert len(DECISIONS) >= 9
    for number, path in enumerate(DECISIONS, 1):
        assert path.name.startswith(f"{number:04}-")
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {number:04}. ")
        assert list(sections(text, 2)) == ["Context", "Decision", "Consequences"]
        assert len(text.split()) <= 400, "a decision is short"
