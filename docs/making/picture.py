"""Frames of a terminal, composed into one animated SVG.

A frame is what stands in each cell of each line. Lines of boxes that are in every frame become one path. The
rest is cut into pieces where two spaces stand or the screen has its middle; pieces that look the same are one
text, used wherever they stand. Each is shown from the frame in which it came to the one in which it went, by
one CSS animation for each such pair of frames.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

__all__ = ["Cell", "Frame", "compose"]

CELL_WIDTH, CELL_HEIGHT, FONT_SIZE = 8.4, 19, 14
MARGIN, TITLE_HEIGHT, FOOT_HEIGHT = 14, 34, 14
_BOXES = frozenset("─│╭╮╰╯")

_STYLE = """\
text{font:14px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,"Liberation Mono",monospace;\
fill:#d5dae3;white-space:pre}
.green{fill:#7fd18c}.yellow{fill:#e8c46a}.red{fill:#ff7b72}.cyan{fill:#6fc8d8}\
.bright-blue{fill:#6cb6ff}.bold{font-weight:bold}.dim{opacity:.55}
.box{fill:none;stroke:#5b6472}
.s{opacity:0;animation:1s step-end infinite}.z{opacity:1}
@media (prefers-reduced-motion:reduce){.s{animation:none!important}}
"""


class Cell(NamedTuple):
    """A character on the screen; ``look``: classes of colour and weight."""

    column: int
    width: int
    text: str
    look: str


Frame: TypeAlias = "tuple[tuple[Cell, ...], ...]"
"""The cells of each line, from left to right, without spaces."""


class Run(NamedTuple):
    """Characters side by side that look the same; ``column`` from the left of its piece."""

    column: int
    width: int
    text: str
    look: str


class Place(NamedTuple):
    """Where a piece of a line begins."""

    row: int
    column: int


Piece: TypeAlias = "tuple[Run, ...]"


def compose(
    frames: Sequence[Frame],
    *,
    columns: int,
    rows: int,
    title: str,
    last_lines: Sequence[str],
    frame_s: float,
    last_frame_s: float,
) -> str:
    """One SVG that shows the frames one after the other, and again; the last one longer, with its lines."""
    boxes = _lasting_boxes(frames)
    shown = _shown([dict(_pieces(frame, boxes, columns // 2)) for frame in frames])
    names = {piece: f"t{number}" for number, piece in enumerate(dict.fromkeys(piece for *_, piece in shown))}
    count = len(frames)
    total_s = (count - 1) * frame_s + last_frame_s
    width = columns * CELL_WIDTH + 2 * MARGIN
    foot = rows * CELL_HEIGHT + TITLE_HEIGHT
    height = foot + len(last_lines) * CELL_HEIGHT + FOOT_HEIGHT
    spans = sorted({(begin, end) for begin, end, *_ in shown if (begin, end) != (0, count)})
    spans += [] if (count - 1, count) in spans else [(count - 1, count)]

    def percent(frame: int) -> str:
        return f"{100 * frame * frame_s / total_s:.2f}%"

    def span_class(begin: int, end: int) -> str:
        if (begin, end) == (0, count):
            return ""
        return f' class="s{" z" if end == count else ""} f{begin}-{end}"'

    style = [_STYLE]
    for begin, end in spans:
        steps = ["0%{opacity:0}"] if begin else []
        steps.append(f"{percent(begin) if begin else '0%'}{{opacity:1}}")
        steps += [f"{percent(end)},to{{opacity:0}}"] if end < count else ["to{opacity:1}"]
        style.append(f"@keyframes k{begin}-{end}{{{''.join(steps)}}}")
        style.append(f".f{begin}-{end}{{animation-name:k{begin}-{end};animation-duration:{total_s:g}s}}")
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"'
        f' aria-label="{html.escape(" ".join([title, *last_lines]))}">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{chr(10).join(style)}</style>",
        "<defs>",
        *(f'<g id="{name}">{_drawn(piece)}</g>' for piece, name in names.items()),
        "</defs>",
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#15181e"/>',
        f'<text x="{MARGIN}" y="23" class="dim">{html.escape(title)}</text>',
        f'<g transform="translate({MARGIN} {TITLE_HEIGHT})">',
        f'<path class="box" d="{_box_path(boxes)}"/>',
    ]
    for begin, end, place, piece in shown:
        x = f' x="{_at(place.column)}"' if place.column else ""
        out.append(f'<use href="#{names[piece]}"{x} y="{place.row * CELL_HEIGHT}"{span_class(begin, end)}/>')
    out += [
        "</g>",
        f'<g transform="translate({MARGIN} {foot})">',
        f"<g{span_class(count - 1, count)}>",
        *(
            f'<text class="green" y="{row * CELL_HEIGHT + FONT_SIZE}" textLength="{_at(len(line))}"'
            f' lengthAdjust="spacingAndGlyphs">{html.escape(line)}</text>'
            for row, line in enumerate(last_lines)
        ),
        "</g>",
        "</g>",
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def _at(columns: int) -> str:
    return f"{columns * CELL_WIDTH:.1f}".removesuffix(".0")


# --- what is where, and when -------------------------------------------------------------------


def _lasting_boxes(frames: Sequence[Frame]) -> dict[tuple[int, int], str]:
    """The lines of boxes that are in every frame, by row and column."""
    found = [
        {
            ((row, cell.column), cell.text)
            for row, line in enumerate(frame)
            for cell in line
            if cell.text in _BOXES
        }
        for frame in frames
    ]
    return dict(set.intersection(*found))


def _pieces(frame: Frame, boxes: dict[tuple[int, int], str], middle: int) -> Iterator[tuple[Place, Piece]]:
    for row, line in enumerate(frame):
        cells = [cell for cell in line if boxes.get((row, cell.column)) != cell.text]
        begin = 0
        for end in range(1, len(cells) + 1):
            if end < len(cells) and not _apart(cells[end - 1], cells[end], middle):
                continue
            place = Place(row, cells[begin].column)
            yield place, tuple(_runs(cells[begin:end], place.column))
            begin = end


def _apart(left: Cell, right: Cell, middle: int) -> bool:
    """Whether a piece ends between these two."""
    return right.column - (left.column + left.width) >= 2 or left.column < middle <= right.column


def _runs(cells: Sequence[Cell], origin: int) -> list[Run]:
    """Cells that look the same, side by side or with one space between; a wide one stands alone."""
    found: list[Run] = []
    for cell in cells:
        column = cell.column - origin
        if found:
            last = found[-1]
            gap = column - last.column - last.width
            if gap <= 1 and last.look == cell.look and cell.width == 1 and len(last.text) == last.width:
                found[-1] = Run(
                    last.column, last.width + gap + 1, last.text + " " * gap + cell.text, last.look
                )
                continue
        found.append(Run(column, cell.width, cell.text, cell.look))
    return found


def _shown(frames: Sequence[dict[Place, Piece]]) -> list[tuple[int, int, Place, Piece]]:
    """From which frame on and until which each piece is at its place."""
    found: list[tuple[int, int, Place, Piece]] = []
    since: dict[tuple[Place, Piece], int] = {}
    for number, frame in enumerate([*frames, {}]):
        here = set(frame.items())
        gone = [key for key in since if key not in here]
        found += [(since.pop(key), number, *key) for key in gone]
        for key in sorted(here - since.keys()):
            since[key] = number
    return sorted(found)


# --- drawing -----------------------------------------------------------------------------------


def _drawn(piece: Piece) -> str:
    out = []
    for run in piece:
        look = f' class="{run.look}"' if run.look else ""
        x = f' x="{_at(run.column)}"' if run.column else ""
        # Whatever the font, the columns stay where they are.
        length = f' textLength="{_at(run.width)}" lengthAdjust="spacingAndGlyphs"' if run.width > 1 else ""
        out.append(f'<text{look}{x} y="{FONT_SIZE}"{length}>{html.escape(run.text, quote=False)}</text>')
    return "".join(out)


def _box_path(boxes: dict[tuple[int, int], str]) -> str:
    """Strokes through the middles of the cells; those of one line are joined."""
    half_width, half_height, curve = CELL_WIDTH / 2, CELL_HEIGHT / 2, 4
    out: list[str] = []
    for (row, column), character in sorted(boxes.items()):
        x, y = column * CELL_WIDTH + half_width, row * CELL_HEIGHT + half_height
        if character == "─":
            if boxes.get((row, column - 1)) != "─":
                end = column
                while boxes.get((row, end)) == "─":
                    end += 1
                out.append(f"M{x - half_width:.1f} {y}H{end * CELL_WIDTH:.1f}")
        elif character == "│":
            if boxes.get((row - 1, column)) != "│":
                end = row
                while boxes.get((end, column)) == "│":
                    end += 1
                out.append(f"M{x:.1f} {row * CELL_HEIGHT}V{end * CELL_HEIGHT}")
        else:
            side = 1 if character in "╭╰" else -1
            up = 1 if character in "╭╮" else -1
            out.append(
                f"M{x + side * half_width:.1f} {y}H{x + side * curve:.1f}"
                f"Q{x:.1f} {y} {x:.1f} {y + up * curve}V{y + up * half_height}"
            )
    return "".join(out)
