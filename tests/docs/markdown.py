"""Reading our own documents: code blocks, sections, tables, links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "whimbrel"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """All documents written by people, README first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return [body for tag, body in _FENCE.findall(text) if tag == language]


def sections(text: str, level: int) -> dict[str, str]:
    """What stands under each heading of a level, by the heading; headings inside code do not count."""
    prose = _FENCE.sub(lambda found: re.sub(r"^#", " #", found.group(), flags=re.MULTILINE), text)
    parts = re.split(rf"^#{{{level}}} (.+)$", prose, flags=re.MULTILINE)
    shallower = re.compile(rf"^#{{1,{level - 1}}} ", re.MULTILINE) if level > 1 else None
    out: dict[str, str] = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        assert title not in out, f"two sections are called {title!r}"
        out[title] = shallower.split(body)[0] if shallower is not None else body
    return out


def tables(text: str) -> list[list[list[str]]]:
    """The tables, as rows of cells without the heading."""
    found: list[list[list[str]]] = []
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            assert len({len(row) for row in rows}) == 1, f"a table has rows of different length: {rows[0]}"
            assert set("".join(rows[1])) <= set("-:"), f"a table has no heading: {rows[0]}"
            found.append(rows[2:])
            rows = []
    return found


def table(text: str) -> list[list[str]]:
    """The only table."""
    (only,) = tables(text)
    return only


def code(cell: str) -> str:
    """What stands between backticks."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found is not None, f"not one piece of code: {cell}"
    return found.group(1)


def links(text: str) -> list[str]:
    """The targets of all links."""
    return re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))
