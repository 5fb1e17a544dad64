"""``sim``: the deterministic simulator, from the command line."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Annotated, Any

from cyclopts import Parameter

from whimbrel import errors
from whimbrel.cli.access import Json
from whimbrel.cli.exits import Exit
from whimbrel.cli.output import emit, show

SEEDS_MAX = 10_000_000


def sim(
    *,
    seeds: int = 100,
    first: Annotated[int, Parameter(name="--from")] = 0,
    seed: int | None = None,
    jobs: int | None = None,
    ablation: str | None = None,
    trace: Annotated[
        bool, Parameter(name=("--trace", "--verbose", "-v"), negative="", show_default=False)
    ] = False,
    json: Json = False,
) -> int:
    """Live through storms on a simulated network, and judge whether every promise was kept.

    Real engines, stores and server on virtual time; each seed is another storm, and
    the same seed is the same storm to the last step. The report counts how often
    each fault took effect and each transition of the machines was taken, and names
    those that never happened; of a storm in which a promise broke it gives the
    command that repeats it. Exit code 0: every promise was kept in every run; 1:
    not.

    Parameters
    ----------
    seeds
        How many storms.
    first
        The first seed of them.
    seed
        This storm only.
    jobs
        How many processes; by default one per processor.
    ablation
        Switch a safeguard off, to see that the judges notice (they should: exit code 1). An unknown
        name is answered with those there are.
    trace
        With --seed: every line of what happened.
    """
    from whimbrel.testing.ablations import ABLATIONS
    from whimbrel.testing.simulator import run_seeds, simulate

    if ablation is not None and ablation not in ABLATIONS:
        raise errors.InvalidArgument(
            f"there is no ablation {ablation}", hint=f"one of: {', '.join(ABLATIONS)}"
        )
    if not (1 <= seeds <= SEEDS_MAX and first >= 0 and (seed is None or seed >= 0)):
        raise errors.InvalidArgument(f"--seeds must be 1 to {SEEDS_MAX}, --from and --seed 0 or more")
    if jobs is not None and not 1 <= jobs <= 256:
        raise errors.InvalidArgument("--jobs must be 1 to 256")
    if seed is not None:
        result = simulate(seed, ablation=ablation, keep_trace=trace)
        if json:
            emit(_fields(result) | {"ok": result.ok, "command": result.command})
        else:
            for line in (*result.trace, result.text()):
                show(line)
        return Exit.OK if result.ok else Exit.ERROR
    every = range(first, first + seeds)
    processes = jobs or min(len(os.sched_getaffinity(0)), math.ceil(seeds / 10))
    report = run_seeds(every, jobs=processes, ablation=ablation)
    if json:
        emit(_fields(report) | {"ok": report.ok})
    else:
        show(report.text())
    return Exit.OK if report.ok else Exit.ERROR


def _fields(report: Any) -> dict[str, Any]:
    # Not `asdict`, which makes nonsense of the counters.
    return {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
