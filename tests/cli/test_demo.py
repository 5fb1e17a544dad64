import io
import itertools
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.rounds import Rounds
from whimbrel.cli.demo_run import DemoResult
from whimbrel.cli.demo_view import PlainView, Scene, Screen, Span, draw
from whimbrel.cli.demo_words import USERS, small_talk
from whimbrel.cli.judge import Verdict
from whimbrel.cli.storm_words import Line

DEMO_WITHIN_S = 400


def verdict(**counts: int) -> Verdict:
    none = Verdict(
        sent=0, delivered=0, expected=0, received=0, lost=0, doubled=0, out_of_order=0, changed=0, unsent=0
    )
    return msgspec.structs.replace(none, **counts)


def scene(*, alive: bool = True, lost: int = 0, at_s: float = 12.0) -> Scene:
    lines = (
        Line(sender="anna", text="one [red]bar[/red] left \x1b[2J here", mark="⟳ 1/3", state="retrying"),
        Line(sender="ben", text="in the tunnel", mark="", state=""),
    )
    screen = Screen(
        user="anna",
        alive=alive,
        link="connected",
        latency_ms=42.0,
        quality="excellent",
        queued=3,
        received=7,
        lines=lines,
    )
    return Scene(
        at_s=at_s,
        duration_s=60.0,
        fault="silence",
        spans=(Span(begin_s=20.0, end_s=30.0, what="half-open"),),
        server="pid 4711",
        screens=(screen,),
        verdict=verdict(sent=9, lost=lost),
    )


def drawn(what: Scene) -> str:
    console = Console(file=io.StringIO(), width=100, height=30, force_terminal=False, emoji=False)
    console.print(draw(what, "ben came back", console.height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_picture_shows_marks_link_fault_and_judge() -> None:
    text = drawn(scene())
    for part in (
        "⟳ 1/3",
        "connected",
        "excellent 42 ms",
        "queued 3",
        "now:  silence",
        "next: half-open in 8 s",
        "last: ben came back",
        "lost 0",
        "pid 4711",
    ):
        assert part in text, part
    assert len(text.splitlines()) <= 30


def test_what_others_wrote_is_text_and_nothing_else() -> None:
    text = drawn(scene())
    assert "[red]bar[/red]" in text
    assert "\x1b" not in text


def test_the_picture_shows_who_was_killed_and_what_was_lost() -> None:
    text = drawn(scene(alive=False, lost=2))
    assert "kill -9" in text
    assert "lost 2" in text


def test_plain_lines_tell_of_changes() -> None:
    console = Console(file=io.StringIO(), width=40, force_terminal=False)
    view = PlainView(console)
    with view:
        view.show(scene(at_s=0.0))
        view.show(scene(at_s=0.2))
        view.show(scene(at_s=0.4, alive=False))
        view.tell(0.5, "kill -9 of anna")
        view.show(scene(at_s=6.0))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line[:7].strip() for line in lines] == ["0.0 s", "0.4 s", "0.5 s", "6.0 s", "6.0 s"]
    assert "anna: killed" in lines[1]
    assert "anna: connected" in lines[3]


def test_small_talk_never_pauses_and_is_the_same_for_a_seed() -> None:
    plan = small_talk(60.0, 3)
    assert plan == small_talk(60.0, 3)
    assert plan != small_talk(60.0, 4)
    assert len({line.label for line in plan}) == len(plan)
    for user in USERS:
        moments = [line.at_s for line in plan if line.user == user]
        assert 2.0 <= len(moments) / 60.0 <= 3.0
        assert max(later - sooner for sooner, later in itertools.pairwise(moments)) < 1.0


@pytest.mark.parametrize(
    ("counts", "queued", "passed"),
    [
        ({"sent": 9}, 0, True),
        ({"sent": 8}, 0, False),
        ({"sent": 9}, 1, False),
        ({"sent": 9, "lost": 1}, 0, False),
        ({"sent": 9, "doubled": 1}, 0, False),
        ({"sent": 9, "out_of_order": 1}, 0, False),
        ({"sent": 9, "changed": 1}, 0, False),
        ({"sent": 9, "unsent": 1}, 0, False),
    ],
)
def test_only_a_clean_and_whole_run_passes(counts: dict[str, int], queued: int, passed: bool) -> None:
    result = DemoResult(verdict=verdict(**counts), planned=9, queued=queued, drained_s=1.0, kills=2, resets=3)
    assert result.passed is passed


# --- the whole thing, with real processes ------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a short name, as people have it: sockets lie beside their stores then."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-") as name:
        yield Path(name)


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "whimbrel.cli", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.soak
@pytest.mark.timeout(DEMO_WITHIN_S + 30)
@pytest.mark.parametrize("which", ["fixed", "fresh"])
def test_the_demo_keeps_every_promise(which: str, rounds: Rounds, folder: Path) -> None:
    for number in range(rounds.of(ci=1, soak=10)):
        seed = 2 + number if which == "fixed" else rounds.fresh_seed()
        run_demo(folder, seed)


def run_demo(folder: Path, seed: int) -> None:
    process = demo(folder, "--seconds", "12", "--seed", str(seed))
    try:
        output, _ = process.communicate(timeout=DEMO_WITHIN_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    for part in (
        "silence begins",
        "kill -9 of the server",
        "the server is back",
        "kill -9 of ben",
        "ben is started again",
        "Every promise was kept",
        "lost 0, doubled 0, out of order 0, changed 0",
        "left in outboxes 0; 2 processes were killed",
        "To try next:",
    ):
        assert part in output, output
    assert list(folder.iterdir()) == []


@pytest.mark.timeout(DEMO_WITHIN_S + 30)
def test_interrupted_it_leaves_no_process_and_no_file_behind(folder: Path) -> None:
    process = demo(folder, "--plain")
    assert process.stdout is not None
    try:
        seen = ""
        while "begin to talk" not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        children = _children(process.pid)
        assert len(children) == 3
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=DEMO_WITHIN_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list(folder.iterdir()) == []


@pytest.mark.timeout(DEMO_WITHIN_S + 30)
def test_even_killed_itself_it_leaves_no_process_behind(folder: Path) -> None:
    process = demo(folder, "--plain")
    try:
        children: list[int] = []
        while len(children) < 3:
            assert process.poll() is None
            children = _children(process.pid)
    finally:
        process.kill()
        process.communicate()
    for pid in children:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended, _, _ = select.select([handle], [], [], DEMO_WITHIN_S)
            assert ended, f"process {pid} goes on"
        finally:
            os.close(handle)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    if not (tasks / str(pid) / "children").exists():
        pytest.skip("this system does not tell which processes are whose")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
