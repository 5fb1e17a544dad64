"""``whimbrel demo``: a minute of storm, live, with real processes, and a verdict at its end."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from whimbrel.cli.demo_run import DemoResult, run_demo
from whimbrel.cli.demo_view import LiveView, PlainView, View, judged
from whimbrel.cli.exits import Exit, run
from whimbrel.cli.output import escaped, say, show
from whimbrel.cli.storm_process import StormError
from whimbrel.errors import InvalidArgument, WhimbrelError

__all__ = ["demo"]

SECONDS_MIN, SECONDS_MAX = 5.0, 3600.0
_LINES_MIN, _COLUMNS_MIN = 24, 72


def demo(
    *,
    seconds: float = 60.0,
    seed: int = 1,
    plain: Annotated[bool, Parameter(negative="")] = False,
    keep: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """See messages survive a storm, with real processes.

    Anna and Ben talk while the network falls silent, cuts every connection, turns
    slow and loses what it carries, and while the server and one of them are killed
    with `kill -9`. A judge who reads nothing but what the two wrote down counts
    what was lost, doubled, out of order or changed. Exit code 0: nothing was, and
    both outboxes are empty.

    Parameters
    ----------
    seconds
        How long the storm is, 5 to 3600.
    seed
        Decides what they say and which losses strike.
    plain
        Tell it in lines instead of drawing it; so it is anyway where there is no terminal.
    keep
        Keep the folder with stores and journals, and say where it is; always so if a promise was broken.
    """
    if not (math.isfinite(seconds) and SECONDS_MIN <= seconds <= SECONDS_MAX):
        raise InvalidArgument(f"--seconds must be {SECONDS_MIN:g} to {SECONDS_MAX:g}")
    folder = Path(tempfile.mkdtemp(prefix="whimbrel-demo-"))
    try:
        show("Setting up a server and two clients, each a process of its own.")
        result = run(run_demo(folder, _view(plain=plain), seconds=seconds, seed=seed))
        keep = keep or not result.passed
    except StormError as error:
        raise WhimbrelError(str(error)) from error
    finally:
        if keep:
            say(f"stores and journals: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    _close(result)
    return Exit.OK if result.passed else Exit.ERROR


def _view(*, plain: bool) -> View:
    console = Console(highlight=False, emoji=False)
    # On a terminal without colour the picture could not be read at a glance.
    drawn = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if plain or not drawn or console.height < _LINES_MIN or console.width < _COLUMNS_MIN:
        return PlainView(console)
    return LiveView(console)


def _close(result: DemoResult) -> None:
    show()
    show(
        f"{'Every promise was kept' if result.passed else 'A PROMISE WAS BROKEN'}: {judged(result.verdict)},"
    )
    show(
        f"left in outboxes {result.queued}; {result.kills} processes were killed,"
        f" {result.resets} connections cut,"
    )
    show(f"and {result.drained_s:.1f} s after the storm everything was where it belongs.")
    for example in result.verdict.examples:
        show(f"  {escaped(example)}")
    show()
    show("The marks: ⏰ queued, ✓ in the server's hands, ✓✓ in its permanent record (blue: read), ⟳ a retry.")
    show("A message was on disk, encrypted, before `send()` returned; that is why kill -9 cost nothing.")
    show()
    show("To try next:")
    show("  whimbrel demo --seed 7            another storm")
    show("  whimbrel sim --seeds 200          hundreds of storms, simulated, in a minute")
    show("  whimbrel replay CHAT.LOG          a chat log of yours, with every nick a user")
    show("  whimbrel serve                    a server of your own; whimbrel --help shows the rest")
