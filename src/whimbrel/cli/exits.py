"""How a command ends: its exit code, and the one line that says why.

Whatever a command raises becomes a line ``whimbrel: what happened (what to do)`` on standard error
and one of the codes below, which scripts may rely on. Errors never carry content, keys or
passwords, but may quote what the server said: control characters are escaped. A traceback is shown
only with ``WHIMBREL_DEBUG=1``.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import enum
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from whimbrel import errors
from whimbrel.cli.output import escaped, flush_output, say, set_up_streams, silence_output

T = TypeVar("T")

DEBUG_VARIABLE = "WHIMBREL_DEBUG"
LINE_CHARS_MAX = 1_000


class Exit(enum.IntEnum):
    """The exit codes; ``whimbrel --help`` lists them."""

    OK = 0
    ERROR = 1
    USAGE = 2
    QUEUED = 3
    REFUSED = 4
    UNREACHABLE = 5
    STORE = 6
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
    TERMINATED = 143


EXIT_CODES = """\
Exit codes:
  0    done
  1    something else went wrong
  2    the command was wrong: an option, a value, an address, not logged in
  3    queued on this device, but not delivered yet
  4    refused: wrong password, not allowed, no such conversation or message
  5    the server cannot be reached, or cannot answer now: try again later
  6    the store, a profile or the data folder is in use, locked by another
       key, full, read-only or damaged
  130  interrupted (Ctrl-C)"""


class Terminated(BaseException):
    """SIGTERM came; everything was closed."""


class Unfinished(errors.WhimbrelError):
    """A command that did all it could and has already said how that went; only its code is left."""

    def __init__(self, code: Exit) -> None:
        super().__init__("")
        self.exit = code


_CODES: tuple[tuple[type[BaseException], Exit], ...] = (
    (errors.UsageError, Exit.USAGE),
    (errors.StoreError, Exit.STORE),
    (errors.QueueFull, Exit.STORE),
    (errors.LinkError, Exit.UNREACHABLE),
    (errors.RateLimited, Exit.UNREACHABLE),
    (errors.ServerFailed, Exit.UNREACHABLE),
    (errors.RemoteError, Exit.REFUSED),
    (errors.DeliveryFailed, Exit.REFUSED),
    (errors.DeliveryPending, Exit.QUEUED),
)


def run_to_exit(arguments: Sequence[str]) -> int:
    """Run the command line and turn whatever comes of it into an exit code and at most one line."""
    set_up_streams()
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    _set_up_logging(debug)
    try:
        code = _run(arguments)
        flush_output()
        return code
    except BaseException as error:  # noqa: BLE001 - every ending gets its line and code
        if debug and not isinstance(error, SystemExit | Unfinished):
            traceback.print_exception(error)
        code = _told(error)
        try:
            flush_output()
        except OSError:
            silence_output()
        return code


def _run(arguments: Sequence[str]) -> int:
    try:
        from whimbrel.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("cyclopts", "rich", "attrs"):
            raise
        raise errors.WhimbrelError(
            f"the command line needs the package {error.name}", hint='pip install "whimbrel[cli]"'
        ) from error
    words, apps, _ = app.parse_commands(arguments)
    for word, chosen in zip(words, apps[1:], strict=True):
        if chosen.default_command is not None and not word.startswith("-"):
            chosen.help = None  # that line was for the list; its own help is its docstring
    result = app(arguments)
    return result if isinstance(result, int) else Exit.OK


def _told(error: BaseException) -> int:
    """Say what happened, in one line, and give the code."""
    match error:
        case SystemExit(__context__=BrokenPipeError()):  # of the library that draws help and tables
            return Exit.OUTPUT_CLOSED
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        case Unfinished():
            return error.exit
        case Terminated():
            return Exit.TERMINATED
        case KeyboardInterrupt() | asyncio.CancelledError():
            with contextlib.suppress(OSError):
                say("")  # behind the ^C
            return Exit.INTERRUPTED
        case BrokenPipeError():
            silence_output()
            return Exit.OUTPUT_CLOSED
        case _:
            pass
    text, code = _described(error)
    with contextlib.suppress(OSError):
        say(f"whimbrel: {text}")
    return code


def _described(error: BaseException) -> tuple[str, Exit]:
    if isinstance(error, errors.WhimbrelError):
        return described(error), exit_code(error)
    if isinstance(error, BaseExceptionGroup):
        return _described(error.exceptions[0])
    if type(error).__module__.partition(".")[0] == "cyclopts":
        return _usage(error), Exit.USAGE
    if isinstance(error, ModuleNotFoundError):
        hint = 'pip install "whimbrel[cli]"'
        return f"this command needs the package {error.name} ({hint})", Exit.ERROR
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError):
        return "out of memory", Exit.ERROR
    # Without its text, which may quote content.
    hint = f"a bug; {DEBUG_VARIABLE}=1 shows where"
    return f"unexpected {type(error).__name__} ({hint})", Exit.ERROR


def _of_system(error: OSError) -> tuple[str, Exit]:
    reason = error.strerror or type(error).__name__
    file = f"{error.filename}: " if error.filename else ""
    code = Exit.ERROR
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        code = Exit.STORE
    return _line(f"{file}{reason}"), code


def described(error: errors.WhimbrelError) -> str:
    """The error and its hint, in one line fit for a terminal."""
    hint = f" ({error.hint})" if error.hint else ""
    return _line(f"{error}{hint}")


def exit_code(error: errors.WhimbrelError) -> Exit:
    """The exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.ERROR)


def _line(text: str) -> str:
    return escaped(" ".join(text.split()))[:LINE_CHARS_MAX]


def _usage(error: BaseException) -> str:
    """What the parser did not understand. Its own text for unknown commands would load every command."""
    chain = " ".join(["whimbrel", *(getattr(error, "command_chain", None) or ())])
    unused = getattr(error, "unused_tokens", None)
    if type(error).__name__ == "UnknownCommandError" and unused:
        app = getattr(error, "app", None)
        names = [name for name in app or () if not name.startswith("-")]
        close = difflib.get_close_matches(unused[0], names, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        return _line(f"there is no command {unused[0]} ({guess}see: {chain} --help)")
    return _line(f"{str(error).rstrip('.')} (see: {chain} --help)")


def _set_up_logging(debug: bool) -> None:
    """What happened is told by the commands; the library's log is for those who look for a fault."""
    if debug:
        logging.basicConfig(
            level=logging.DEBUG, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
        )
        logging.getLogger("asyncio").setLevel(logging.INFO)
    else:
        logging.getLogger("whimbrel").addHandler(logging.NullHandler())
        logging.lastResort = None


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C and SIGTERM cancel it, so that everything is closed in order."""
    return asyncio.run(_until_terminated(work))


async def _until_terminated(work: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await work
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
