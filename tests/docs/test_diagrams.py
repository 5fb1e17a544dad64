"""The diagrams are those of the tables, in the documents too."""

from __future__ import annotations

import enum
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, documents
from whimbrel.core.life import TRANSITIONS as LIFE
from whimbrel.core.linkstate import TRANSITIONS as LINK
from whimbrel.testing.diagrams import DIAGRAMS, main, redrawn, state_diagram


class Door(enum.Enum):
    OPEN = "open"
    SHUT = "shut"
    GONE = "gone"


def test_a_table_as_a_diagram() -> None:
    table = {
        Door.OPEN: {"push": Door.SHUT, "burn": Door.GONE, "slam": Door.SHUT},
        Door.SHUT: {"pull": Door.OPEN},
        Door.GONE: {"push": Door.GONE},
    }
    assert state_diagram(table, Door.SHUT).splitlines() == [
        "stateDiagram-v2",
        "    [*] --> shut",
        "    open --> shut: push, slam",
        "    open --> gone: burn",
        "    shut --> open: pull",
        "    gone --> gone: push",
        "    gone --> [*]",
    ]


def test_every_transition_is_drawn_and_nothing_else() -> None:
    expected = {
        "life": {(a.value, event, b.value) for a, row in LIFE.items() for event, b in row.items()},
        "link": {(c.value, event, d.value) for c, row in LINK.items() for event, d in row.items()},
    }
    for name, diagram in DIAGRAMS.items():
        drawn = set()
        for line in diagram.splitlines()[1:]:
            arrow, _, events = line.strip().partition(": ")
            before, after = arrow.split(" --> ")
            drawn |= {(before, event, after) for event in events.split(", ") if events}
        assert drawn == expected[name]


def test_the_documents_show_the_tables() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    assert {path for path, text in texts.items() if redrawn(text) != text} == set()
    architecture = texts[ROOT / "docs" / "architecture.md"]
    for diagram in DIAGRAMS.values():
        assert f"```mermaid\n{diagram}\n```" in architecture


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("before\n<!-- diagram link -->\nold\n<!-- end of diagram -->\nafter\n", encoding="utf-8")
    assert main(["--check", str(file)]) == 1
    assert "old" in file.read_text(encoding="utf-8")
    assert main([str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    assert text == (
        "before\n<!-- diagram link -->\n```mermaid\n"
        + DIAGRAMS["link"]
        + "\n```\n<!-- end of diagram -->\nafter\n"
    )
    assert main(["--check", str(file)]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "<!-- diagram moon -->\n<!-- end of diagram -->\n",
        "<!-- diagram link -->\n",
        "<!-- end of diagram -->\n",
        "<!-- diagram link -->\n<!-- diagram life -->\n<!-- end of diagram -->\n",
    ],
)
def test_marks_that_do_not_fit_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="diagram"):
        redrawn(text)
