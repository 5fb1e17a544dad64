"""The server of a storm, in a process of its own: the real one, which ends with whoever started it.

    python -m whimbrel.cli.storm_server DATA PORT

Says its address in one line once it listens. Logins and sending are not limited here: a storm signs in
hundreds of users from one address, and plays the day of a crowd in minutes. Started with the same port and
data after ``kill -9``, it goes on where it was.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from whimbrel.server.hub import ServerSettings
from whimbrel.server.run import ServeSettings, run
from whimbrel.server.service import HttpSettings

__all__ = ["main"]

LOGINS_PER_S = 100_000.0


def main() -> int:
    """Serve until told to stop, or until standard input ends."""
    settings = ServeSettings(
        data=Path(sys.argv[1]),
        port=int(sys.argv[2]),
        shutdown_spread_s=0.0,
        shutdown_within_s=2.0,
        server=ServerSettings(rate_limit=None),
        http=HttpSettings(login_per_s=LOGINS_PER_S, login_burst=int(LOGINS_PER_S)),
    )
    threading.Thread(target=_end_with_input, name="standard input", daemon=True).start()
    run(settings, ready=lambda url: print(url, flush=True))
    return 0


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
