"""The diagrams of the documents, drawn from the tables of transitions.

    python -m whimbrel.testing.diagrams docs/architecture.md           rewrites the diagrams in the file
    python -m whimbrel.testing.diagrams --check docs/architecture.md   exit code 1 if it would change

A diagram stands between two marks, ``<!-- diagram NAME -->`` and ``<!-- end of diagram -->``; what is
between them is replaced as a whole. A name that is not in ``DIAGRAMS`` is an error, and so is a mark
without its end. Everything else in the file stays as it is.
"""

from __future__ import annotations

import argparse
import enum
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from whimbrel.core.life import TRANSITIONS as LIFE
from whimbrel.core.linkstate import TRANSITIONS as LINK
from whimbrel.core.linkstate import LinkState
from whimbrel.model import SendState

__all__ = ["DIAGRAMS", "main", "redrawn", "state_diagram"]

S = TypeVar("S", bound=enum.Enum)

_END = "<!-- end of diagram -->"
_MARK = re.compile(r"<!-- diagram (\S+) -->\n(.*?)^" + re.escape(_END), re.MULTILINE | re.DOTALL)


def state_diagram(transitions: Mapping[S, Mapping[str, S]], initial: S) -> str:
    """Draw a table of transitions as a mermaid state diagram, in the order of the table.

    The events between two states share one arrow. A state that nothing leaves is an end.
    """
    lines = ["stateDiagram-v2", f"    [*] --> {initial.value}"]
    for state, row in transitions.items():
        arrows: dict[S, list[str]] = {}
        for event, target in row.items():
            arrows.setdefault(target, []).append(event)
        for target, events in arrows.items():
            lines.append(f"    {state.value} --> {target.value}: {', '.join(events)}")
        if all(target is state for target in arrows):
            lines.append(f"    {state.value} --> [*]")
    return "\n".join(lines)


DIAGRAMS = {
    "life": state_diagram(LIFE, SendState.PENDING),
    "link": state_diagram(LINK, LinkState.STOPPED),
}
"""By the name in the mark."""


def redrawn(text: str) -> str:
    """The text with every diagram drawn anew. Raises ValueError for an unknown name or a lone mark."""

    def draw(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in DIAGRAMS:
            raise ValueError(f"there is no diagram {name}; there are: {', '.join(DIAGRAMS)}")
        return f"<!-- diagram {name} -->\n```mermaid\n{DIAGRAMS[name]}\n```\n{_END}"

    drawn, count = _MARK.subn(draw, text)
    if count != text.count("<!-- diagram ") or count != text.count(_END):
        raise ValueError("a mark of a diagram has no end, or an end no mark")
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite files, or check them; 0 if all is well."""
    parser = argparse.ArgumentParser(description="Draw the diagrams in documents.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing")
    chosen = parser.parse_args(arguments)
    stale = 0
    for path in chosen.files:
        text = path.read_text(encoding="utf-8")
        drawn = redrawn(text)
        if drawn == text:
            continue
        if chosen.check:
            sys.stderr.write(f"{path}: the diagrams are not those of the tables\n")
            stale = 1
        else:
            path.write_text(drawn, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
