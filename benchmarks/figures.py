"""What every benchmark gives and gets: figures with their targets, and the settings of one run.

A benchmark is a module of this package with `def measure(settings: Settings) -> Iterable[Figure]`, often a
generator, so that a figure is shown as soon as it is known. `run.py` lists the modules by name in
`MODULES`, calls each, prints the table and writes `build/bench.json`. A module also lists itself there to
be run.

A target is text, `>= 10000` or `<= 0.6`, empty when the figure is for information. `figure()` compares and
sets `ok`; a figure whose measurement was found invalid (a message lost, doubled or out of order) is
`invalid()`: it has no value and is never `ok`.
"""

import operator
import signal
import sys
from pathlib import Path
from statistics import median

import msgspec

COMPARISONS = {">=": operator.ge, "<=": operator.le}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How much one run measures, and where it may write."""

    quick: bool = False
    """Small counts, one pair: shows that the benchmark works. Its figures mean little."""
    pairs: int = 5
    """How often a figure, or a pair of whimbrel and a peer, is measured; the median counts. Quick: 1."""
    folder: Path
    """On a real disk; it exists. Each benchmark makes folders of its own below it and removes them."""

    @property
    def rounds(self) -> int:
        """How often to measure: `pairs`, once when quick."""
        return 1 if self.quick else self.pairs


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number with its unit and what it should be."""

    name: str
    value: float | None
    """None: the measurement was invalid."""
    unit: str
    target: str = ""
    """`>= 10000`, `<= 0.6`, or empty: for information."""
    ok: bool | None = None
    """Whether the value meets the target; None without one."""
    note: str = ""
    """What a reader must know beside the number: what a peer does not do, why a value is missing."""


def figure(name: str, value: float, unit: str, target: str = "", *, note: str = "") -> Figure:
    """Make a figure and compare it with its target."""
    return Figure(name=name, value=value, unit=unit, target=target, ok=meets(value, target), note=note)


def figure_of(name: str, values: list[float], unit: str, target: str = "", *, note: str = "") -> Figure:
    """Make a figure of the median of several measurements."""
    return figure(name, median(values), unit, target, note=note)


def invalid(name: str, unit: str, target: str = "", *, why: str) -> Figure:
    """Make the figure of a measurement that showed something wrong."""
    return Figure(name=name, value=None, unit=unit, target=target, ok=False, note=why)


def meets(value: float, target: str) -> bool | None:
    """Whether a value meets a target, None for no target. A target of another form is a `ValueError`."""
    if not target:
        return None
    sign, _, bound = target.partition(" ")
    if sign not in COMPARISONS:
        raise ValueError(f"a target reads `>= 10` or `<= 10`, not {target!r}")
    return bool(COMPARISONS[sign](value, float(bound)))


def show_progress(line: str) -> None:
    """Tell a person who waits what was just measured; on standard error, apart from the figures."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def end_in_order() -> None:
    """Let SIGTERM unwind the program, as Ctrl-C does: what it started is ended and its data removed."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
