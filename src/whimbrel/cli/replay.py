"""``whimbrel replay``: chat logs lived through again on bad links, in processes that are killed."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from whimbrel.cli.chatlog import ChatLog, ChatLogError
from whimbrel.cli.exits import Exit, run
from whimbrel.cli.output import escaped, say, table
from whimbrel.cli.replay_run import Replay
from whimbrel.cli.storm_process import StormError
from whimbrel.errors import InvalidArgument, WhimbrelError
from whimbrel.testing.schedule import Schedule, ScheduleError
from whimbrel.testing.traces import Trace, TraceError

__all__ = ["replay"]

REPLAY_S_MAX = 240.0
"""How long a log is to take when no speed is asked for."""
PROCESSES_MAX = 64


def replay(
    *logs: Path,
    trace: tuple[str, str] | None = None,
    schedule: Path | None = None,
    speed: float | None = None,
    seed: int = 1,
    report: Path | None = None,
    kill: Annotated[bool, Parameter(negative="--no-kill")] = True,
    processes: int = 4,
    receipts_every: float = 5.0,
    keep: bool = False,
) -> int:
    """Replay chat logs through a fault proxy, with every nick a user, and judge what arrived.

    Ends with 0 only if every message arrived at every member once, in order and
    unchanged, and every outbox is empty.

    Parameters
    ----------
    logs
        Chat logs: lines like `[21:58] <nick> text`. Each is a conversation of all its nicks.
    trace
        The recorded capacity of a link, up and down: two .csv files, or names of recordings that come
        along (att-lte-driving-2016, tmobile-umts-driving). Default: an unlimited link.
    schedule
        A file with a timetable of faults, played beside the trace.
    speed
        How many times faster than in the log people write. Default: so fast that it takes four minutes.
    seed
        Decides who is in which process, when they are killed, and where in the trace each begins.
    report
        Write the report there as JSON.
    kill
        Kill every client process once on the way, and start it again.
    processes
        How many client processes there are.
    receipts_every
        How often a client says how far it has received, in seconds. In a conversation of hundreds every
        receipt goes to hundreds.
    keep
        Keep the folder with stores and journals, and say where it is; always so if a promise was broken.
    """
    if not logs:
        raise InvalidArgument("which log?", hint="give one or more files of chat logs")
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        raise InvalidArgument("the speed must be a number above 0")
    if not 1 <= processes <= PROCESSES_MAX:
        raise InvalidArgument(f"there may be 1 to {PROCESSES_MAX} processes")
    try:
        read = tuple(ChatLog.load(path) for path in logs)
        job = Replay(
            logs=read,
            speed=speed or max(1.0, max(log.duration_s for log in read) / REPLAY_S_MAX),
            seed=seed,
            processes=processes,
            kills=kill,
            trace=None if trace is None else (_trace(trace[0], "up"), _trace(trace[1], "down")),
            trace_names=trace or ("", ""),
            schedule=None if schedule is None else Schedule.load(schedule),
            receipt_interval_s=receipts_every,
        )
    except (ChatLogError, TraceError, ScheduleError) as error:
        raise InvalidArgument(str(error)) from error
    return _carry_out(job, report, keep=keep)


def _leave(folder: Path, *, keep: bool) -> None:
    """Remove the folder, or say where it is: what went wrong can be read there."""
    if keep:
        say(f"stores and journals: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _trace(name: str, direction: Literal["up", "down"]) -> Trace:
    """A recording: a file (its name ends in .csv), or one that comes along. Raises ``TraceError``."""
    if name.endswith(".csv"):
        return Trace.load(name)
    return Trace.builtin(name, direction)


def _carry_out(job: Replay, report: Path | None, *, keep: bool) -> int:
    folder = Path(tempfile.mkdtemp(prefix="whimbrel-replay-"))
    try:
        result = run(job.run(folder, lambda text: say(escaped(text))))
    except BaseException as error:
        _leave(folder, keep=keep)
        if isinstance(error, StormError):
            raise WhimbrelError(str(error)) from error
        raise
    _leave(folder, keep=keep or not result.passed)
    table(("what", "how much"), result.rows())
    for example in result.verdict.examples:
        say(escaped(example))
    if report is not None:
        report.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return Exit.OK if result.passed else Exit.ERROR
