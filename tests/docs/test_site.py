"""The site has every page, public name and command; the recording is one, and refers to nothing outside."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import whimbrel
import whimbrel.testing
from docs.making import command_line
from docs.making.picture import Cell, Frame, compose
from docs.making.recording import BYTES_MAX
from tests.docs.markdown import ROOT, blocks, text_of
from whimbrel.testing import plugin

RECORDING = ROOT / "docs" / "demo.svg"
SVG = "{http://www.w3.org/2000/svg}"


def navigation(entries: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Every page of the navigation, with its title."""
    for entry in entries:
        for title, place in entry.items():
            if isinstance(place, str):
                yield title, place
            else:
                yield from navigation(place)


def pages() -> list[tuple[str, str]]:
    return list(navigation(tomllib.loads(text_of("zensical.toml"))["project"]["nav"]))


def test_every_page_is_in_the_navigation_once() -> None:
    named = Counter(place for _, place in pages())
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(named) == there
    assert max(named.values()) == 1


def test_titles_of_decisions_are_their_own() -> None:
    for title, place in pages():
        if place.startswith("decisions/"):
            assert text_of(f"docs/{place}").startswith(f"# {title}\n")


def referenced() -> list[str]:
    found = []
    for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
        found += re.findall(r"^::: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found


def test_every_public_name_is_in_the_reference_once() -> None:
    public = {f"whimbrel.{name}" for name in whimbrel.__all__ if name != "__version__"}
    public |= {f"whimbrel.testing.{name}" for name in whimbrel.testing.__all__}
    fixtures = re.findall(r"@pytest\.fixture\ndef (\w+)", text_of("src/whimbrel/testing/plugin.py"))
    assert all(hasattr(plugin, name) for name in fixtures)
    public |= {f"whimbrel.testing.plugin.{name}" for name in fixtures}
    named = Counter(referenced())
    assert set(named) == public
    assert max(named.values()) == 1


def test_the_reference_of_the_command_line_is_that_of_the_commands() -> None:
    page = text_of("docs/reference/command-line.md")
    assert page == command_line.page(), "make pages"
    assert page.count("\n## whimbrel ") >= 20


def test_home_shows_what_the_package_says_of_itself() -> None:
    (block,) = blocks(text_of("docs/index.md"), "python")
    shown = [" ".join(line.split()) for line in block.splitlines()]
    said = " ".join(str(whimbrel.__doc__).split())
    for line in shown[2:]:
        assert line in said, line


# --- the recording -----------------------------------------------------------------------------


def test_the_recording_is_small_and_refers_to_nothing_outside() -> None:
    text = RECORDING.read_text(encoding="utf-8")
    assert len(text.encode()) <= BYTES_MAX
    picture = ET.fromstring(text)  # noqa: S314 - our own file
    assert {element.tag for element in picture.iter()} <= {
        SVG + name for name in ("svg", "title", "style", "defs", "g", "text", "use", "rect", "path")
    }
    targets = {value for element in picture.iter() for name, value in element.items() if "href" in name}
    ids = {f"#{element.get('id')}" for element in picture.iter() if element.get("id")}
    assert targets
    assert targets <= ids
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "url(" not in text
    assert "@import" not in text


def test_the_recording_is_of_a_run_that_kept_every_promise() -> None:
    text = RECORDING.read_text(encoding="utf-8")
    (verdict,) = re.findall(r">Every promise was kept: ([^<]+);<", text)
    counts = {name: int(count) for name, count in re.findall(r"([a-z ]+?) (\d+)", verdict)}
    broken = [count for name, count in counts.items() if name.strip() not in {"sent", "received"}]
    assert broken == [0, 0, 0, 0]
    assert counts["sent"] > 200
    assert "kill -9 of the server" in text
    assert len(re.findall(r"@keyframes", text)) > 20


def frame(*lines: str) -> Frame:
    """Characters as cells; capital letters are bold, 🦭 is two cells wide."""
    found = []
    for line in lines:
        column, cells = 0, []
        for character in line:
            width = 2 if character == "🦭" else 1
            if character != " ":
                look = "bold" if character.isupper() else ""
                cells.append(Cell(column=column, width=width, text=character, look=look))
            column += width
        found.append(tuple(cells))
    return tuple(found)


def drawn(*frames: Frame) -> ET.Element:
    text = compose(
        frames, columns=12, rows=3, title="t<t", last_lines=["end & over"], frame_s=1.0, last_frame_s=2.0
    )
    return ET.fromstring(text)  # noqa: S314 - our own text


def test_what_stays_is_drawn_once_and_what_changes_has_its_time() -> None:
    picture = drawn(frame("╭────╮", "│ ab │", "X 🦭<"), frame("╭────╮", "│ cd │", "X 🦭<"))
    texts = {"".join(element.itertext()): element.get("id") for element in picture.iter(f"{SVG}g")}
    assert {"ab", "cd", "X🦭<"} <= set(texts)
    classes = {use.get("href"): use.get("class") for use in picture.iter(f"{SVG}use")}
    assert classes[f"#{texts['X🦭<']}"] is None
    assert classes[f"#{texts['ab']}"] == "s f0-1"
    assert classes[f"#{texts['cd']}"] == "s z f1-2"
    (path,) = picture.iter(f"{SVG}path")
    assert "H" in str(path.get("d"))
    assert "╭" not in "".join(picture.itertext())
    style = "".join(next(picture.iter(f"{SVG}style")).itertext())
    assert "33.33%,to{opacity:0}" in style
    assert "prefers-reduced-motion" in style


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_line_that_moves_is_one_text(count: int) -> None:
    frames = [frame(*([" "] * (number % 3)), "moving") for number in range(count)]
    picture = drawn(*frames)
    assert ["".join(g.itertext()) for g in picture.iter(f"{SVG}g") if g.get("id")] == ["moving"]
    shown = [use for use in picture.iter(f"{SVG}use") if use.get("class") is None]
    assert len(list(picture.iter(f"{SVG}use"))) == count
    assert len(shown) == (1 if count == 1 else 0)


def test_the_last_lines_are_on_the_last_frame_only() -> None:
    picture = drawn(frame("a"), frame("b"))
    (group,) = [
        g for g in picture.iter(f"{SVG}g") if "".join(g.itertext()).strip() == "end & over" and g.get("class")
    ]
    assert group.get("class") == "s z f1-2"
