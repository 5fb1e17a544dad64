"""The command line: ``whimbrel``.

``main`` is all there is here, so that starting costs little: the parser is loaded when there is
something to parse, client, server, simulator and tables only by the commands that use them. Every
ending is told in one line on standard error and by an exit code (``cli.exits``); a traceback is
shown only with ``WHIMBREL_DEBUG=1``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; ``arguments`` without the program's name."""
    chosen = list(sys.argv[1:] if arguments is None else arguments)
    if chosen in (["--version"], ["-V"]):
        from whimbrel import __version__

        sys.stdout.write(f"{__version__}\n")
        return 0
    # An empty variable means the same as none; the parser would take it for a value.
    for name in [name for name, value in os.environ.items() if name.startswith("WHIMBREL_") and not value]:
        del os.environ[name]
    from whimbrel.cli.exits import run_to_exit

    return run_to_exit(chosen)
