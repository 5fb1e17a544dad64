"""Runs benchmarks by name, shows their figures in a table, and writes them to `build/bench.json`.

`python -m benchmarks [name…] [--pairs 5] [--quick]`. Exits with 1 if something could not be measured, or
showed a lost, doubled or reordered message; a target that was missed is told, and counts with `--strict`
only: targets are for a quiet machine.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import msgspec

from benchmarks.figures import Figure, Settings, end_in_order, figure, invalid, show_progress
from benchmarks.machine import Jiffies, described

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
FIGURES = "bench.json"

MODULES = (
    "rate",
    "latency",
    "layers",
    "start",
    "queued",
    "memory",
    "flat",
    "idle",
    "fanout",
    "network_back",
    "offline_crash",
    "storms",
)
"""In the order in which they run: what is disturbed by a warm machine comes first."""

_SIGNS = {True: "ok", False: "MISSED", None: ""}


def main() -> int:
    """Run what the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(MODULES)}; without, all")
    parser.add_argument("--pairs", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--quick", action="store_true", help="once and little: shows that it works")
    parser.add_argument("--strict", action="store_true", help="a missed target is an error")
    parser.add_argument(
        "--folder", type=Path, default=BUILD, help="for data, on a real disk (default: build)"
    )
    parser.add_argument("--output", type=Path, default=BUILD / FIGURES, help="default: build/bench.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MODULES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    if arguments.pairs < 1:
        parser.error("--pairs must be at least 1")
    end_in_order()
    for folder in (arguments.folder, arguments.output.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.folder) as below:
        settings = Settings(quick=arguments.quick, pairs=arguments.pairs, folder=Path(below).resolve())
        figures = run(arguments.names or MODULES, settings, arguments.output)
    return verdict(figures, strict=arguments.strict)


def run(names: Iterable[str], settings: Settings, output: Path) -> list[Figure]:
    """Measure, show, and write what is known after each benchmark."""
    machine = described(settings.folder)
    for name, value in machine:
        _say(f"{name:<12} {value}")
    if settings.quick:
        _say("quick: these figures show that the benchmarks work, and nothing else")
    before = Jiffies.now()
    figures: list[Figure] = []
    for name in names:
        begun = time.monotonic()
        show_progress(f"{name} …")
        mine = measured(name, settings)
        figures += mine
        _say(f"\n{name} ({time.monotonic() - begun:.0f} s)")
        for one in mine:
            _say(line(one))
        write([*figures, *_circumstances(before)], output)
    _say("")
    for one in _circumstances(before):
        _say(line(one))
    for note in dict.fromkeys(f"{one.name}: {one.note}" for one in figures if one.note):
        _say(f"  {note}")
    _say(f"\nwritten to {output}")
    return figures


def measured(name: str, settings: Settings) -> list[Figure]:
    """All figures of one benchmark. If it breaks off, those it had, and one that says so."""
    figures: list[Figure] = []
    try:
        figures.extend(import_module(f"benchmarks.{name}").measure(settings))
    except Exception as error:  # noqa: BLE001 - the others are measured all the same
        sys.excepthook(type(error), error, error.__traceback__)
        figures.append(invalid(f"{name}: not measured", "", why=f"{type(error).__name__}: {error}"))
    return figures


def _circumstances(before: Jiffies) -> list[Figure]:
    now = Jiffies.now()
    return [figure("time of the machine stolen by its host meanwhile", now.stolen_since(before), "%")]


def line(one: Figure) -> str:
    """One figure as a line of the table."""
    value = "none" if one.value is None else f"{one.value:,.{0 if abs(one.value) >= 1000 else 2}f}"
    return f"  {one.name:<70} {value:>10} {one.unit:<14} {one.target:<10} {_SIGNS[one.ok]}".rstrip()


def write(figures: list[Figure], output: Path) -> None:
    """Write the figures for programs: name, value, unit, target, ok of each."""
    rows = [
        {"name": one.name, "value": one.value, "unit": one.unit, "target": one.target, "ok": one.ok}
        for one in figures
    ]
    output.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")


def verdict(figures: list[Figure], *, strict: bool) -> int:
    """Give the exit code."""
    if any(one.value is None for one in figures):
        return 1
    return int(strict and any(one.ok is False for one in figures))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
