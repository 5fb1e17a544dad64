"""Profiles of a process and of each of its threads, for who wants to make it faster.

`profiled(folder, name)` leaves `name.prof` of the main thread and `name-<thread>.prof` of every other
thread that ended; read them with `python -m pstats`. `python -m benchmarks.rate_profile FOLDER NAME MODULE
ARGUMENT…` runs a module as a program that way. Profiling slows everything down, small functions most: what
it shows are proportions and counts of calls.
"""

import cProfile
import re
import runpy
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def profiled(folder: Path | None, name: str) -> Iterator[None]:
    """Leave profiles of what runs meanwhile in this folder; None: do nothing."""
    if folder is None:
        yield
        return
    plain_run = threading.Thread.run

    def run(self: threading.Thread) -> None:
        profile = cProfile.Profile()
        with suppress(ValueError):  # newer Pythons profile one thread at a time
            profile.enable()
        try:
            plain_run(self)
        finally:
            profile.disable()
            if profile.getstats():
                thread_name = re.sub(r"\W+", "-", self.name).strip("-")
                profile.dump_stats(folder / f"{name}-{thread_name}.prof")

    # A profiler sees its own thread only, and the threads of others are begun out of our sight.
    threading.Thread.run = run  # type: ignore[method-assign]
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        profile.dump_stats(folder / f"{name}.prof")
        threading.Thread.run = plain_run  # type: ignore[method-assign]


def main() -> None:
    """Run a module under the profiler."""
    folder, name, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    with profiled(Path(folder), name):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
