"""Record the demo as one animated picture: ``python -m docs.making.recording docs/demo.svg``.

The real demo runs (``whimbrel demo``: three processes, a storm, a judge), and every few seconds what its
live view draws is kept. Nothing is staged, nothing is drawn afterwards: a run in which a promise was broken
is not written, and the last lines are the verdict.

What makes the picture small is that a terminal changes little: a piece of a line that stays is one element
that is shown from one frame to another, and pieces that say the same are one text. It refers to nothing
outside itself (no fonts, no scripts), and stands still, on its last frame, for whoever prefers that.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style

from docs.making.picture import Cell, Frame, compose
from whimbrel.cli.demo_run import DemoResult, run_demo
from whimbrel.cli.demo_view import Scene, draw, judged

COLUMNS, ROWS = 108, 26
FRAME_S, LAST_FRAME_S = 0.7, 6.0
BYTES_MAX = 300_000


class RecordingView:
    """Draws what the live view draws, and keeps it every few seconds."""

    def __init__(self, every_s: float) -> None:
        self.frames: list[Frame] = []
        self._every_s = every_s
        self._next_s = 0.0
        self._news = ""
        self._last: Scene | None = None
        self._console = Console(
            file=io.StringIO(),
            width=COLUMNS,
            height=ROWS,
            force_terminal=True,
            color_system="standard",
            highlight=False,
            emoji=False,
            legacy_windows=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._keep(self._last)

    def show(self, scene: Scene) -> None:
        """Keep it if it is time."""
        self._last = scene
        if scene.at_s >= self._next_s:
            self._next_s += self._every_s
            self._keep(scene)

    def tell(self, at_s: float, text: str) -> None:
        """Keep it for the line of the news."""
        self._news = f"{at_s:.1f} s: {text}"

    def _keep(self, scene: Scene) -> None:
        console = self._console
        options = console.options.update(height=ROWS, width=COLUMNS)
        lines = console.render_lines(draw(scene, self._news, ROWS), options)
        self.frames.append(tuple(tuple(_cells(line)) for line in lines))


def _cells(line: list[Segment]) -> list[Cell]:
    """What stands where in a line; spaces are left out."""
    found: list[Cell] = []
    column = 0
    for segment in line:
        if segment.control:
            continue
        for character in segment.text:
            width = cell_len(character)
            if width == 0:  # belongs to the one before it
                if found:
                    last = found[-1]
                    found[-1] = last._replace(text=last.text + character)
                continue
            if character != " ":
                found.append(
                    Cell(column=column, width=width, text=character, look=_look(segment.style or Style()))
                )
            column += width
    return found


def _look(style: Style) -> str:
    """The classes of a text: its colour, and whether it is bold or dim."""
    words = []
    if style.color is not None and not style.color.is_default:
        words.append(style.color.name.replace("_", "-"))
    if style.bold:
        words.append("bold")
    if style.dim:
        words.append("dim")
    return " ".join(words)


def verdict(result: DemoResult) -> tuple[str, str]:
    """The last lines of the picture: what `whimbrel demo` says at its end."""
    return (
        f"Every promise was kept: {judged(result.verdict)};",
        f"left in outboxes {result.queued}; {result.kills} processes were killed,"
        f" {result.resets} connections cut.",
    )


def record(seconds: float, seed: int, every_s: float) -> str:
    """Run the demo and give its picture. Ends the program if a promise was broken."""
    folder = Path(tempfile.mkdtemp(prefix="whimbrel-demo-"))
    view = RecordingView(every_s)
    try:
        result = asyncio.run(run_demo(folder, view, seconds=seconds, seed=seed))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not result.passed:
        sys.exit(f"not recorded, a promise was broken: {judged(result.verdict)}")
    return compose(
        view.frames,
        columns=COLUMNS,
        rows=ROWS,
        title="$ whimbrel demo",
        last_lines=verdict(result),
        frame_s=FRAME_S,
        last_frame_s=LAST_FRAME_S,
    )


def main() -> None:
    """Record it into the file that is named."""
    parser = argparse.ArgumentParser(prog="python -m docs.making.recording", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the storm is")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two frames")
    asked = parser.parse_args()
    picture = record(asked.seconds, asked.seed, asked.every)
    if len(picture.encode()) > BYTES_MAX:
        sys.exit(f"not written: {len(picture.encode())} bytes, at most {BYTES_MAX}")
    asked.file.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
