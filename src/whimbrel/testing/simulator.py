"""The deterministic simulator: real engines, stores, hub and ledger, on virtual time, all from one seed.

A run is 60 virtual seconds of storm, in which apps on a few devices write about a hundred messages while
networks, disks, processes and tokens fail; then the faults stop and everything must arrive. Checkers that
know nothing of engine and server judge what the apps saw (`checker`). One seed decides all of it, so the
command of a failing seed repeats it to the last step.

    simulate(seed) ──▶ SimResult        run_seeds(range(500), jobs=2) ──▶ SimReport

    whimbrel sim --seeds 100
    whimbrel sim --seed 17 --trace

What it is built of: `simclock` (time), `simnet` and `simlane` (paths and connections), `simdisk` and
`simledger` (what is durable), `simclient` and `simsignin` (the client's driver), `simapp`, `simserver`,
`simplan` and `simstory` (the story), `simfaults` (what goes wrong), `simwatch` (bounds), `simworld` (all of
them together), `simrecord` (the evidence), `checker` and `checker_seen` (the judges), `ablations`.
"""

from __future__ import annotations

import multiprocessing
import random
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from whimbrel.testing.ablations import ABLATIONS, Parts
from whimbrel.testing.checker import check
from whimbrel.testing.report import SimReport, SimResult
from whimbrel.testing.simplan import SimPlan
from whimbrel.testing.simstory import draw
from whimbrel.testing.simworld import World

__all__ = ["SimPlan", "SimReport", "SimResult", "run_seeds", "simulate"]

CHUNK = 10
FRAMES_SHOWN = 4


def simulate(
    seed: int, *, plan: SimPlan | None = None, ablation: str | None = None, keep_trace: bool = False
) -> SimResult:
    """Live through the run of this seed and judge it.

    Never raises for what the code under test does: an exception in it is a violation like any other.
    `ablation` names a safeguard to switch off; raises KeyError if there is none of that name.
    `keep_trace`: keep every line of what happened; it names messages by id and never shows content.
    """
    began = time.process_time()
    parts = Parts() if ablation is None else ABLATIONS[ablation]
    plan = parts.plan(plan or SimPlan())
    rng = random.Random(seed)
    world = World(draw(rng, plan), plan, parts, rng, keep_trace=keep_trace)
    violations: list[str] = []
    try:
        world.run()
    except Exception as error:  # noqa: BLE001 - whatever the code under test raises is its failure
        violations.append(f"raised at {world.clock.now_s:.3f}: {_where(error)}")
    else:
        violations += check(world.history)
    transitions: Counter[str] = Counter()
    for client in world.clients:
        transitions.update(client.gather())
    drained = world.history.drained_s
    return SimResult(
        seed=seed,
        ablation=ablation,
        violations=tuple(violations),
        faults=dict(world.faults),
        transitions=dict(transitions),
        messages=len(world.history.submissions),
        virtual_s=world.clock.now_s,
        drained_s=None if drained is None else drained - plan.storm_s,
        took_s=time.process_time() - began,
        steps=world.clock.steps,
        trace_hash=world.trace_hash,
        trace=tuple(world.trace),
    )


def run_seeds(
    seeds: Iterable[int], *, jobs: int = 1, plan: SimPlan | None = None, ablation: str | None = None
) -> SimReport:
    """Live through many runs, over `jobs` processes, and sum them up."""
    every = list(seeds)
    report = SimReport()
    if jobs <= 1:
        for seed in every:
            report.add(simulate(seed, plan=plan, ablation=ablation))
        return report
    chunks = [every[start : start + CHUNK] for start in range(0, len(every), CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        tasks = [pool.submit(run_seeds, chunk, plan=plan, ablation=ablation) for chunk in chunks]
        for task in tasks:
            report.merge(task.result())
    return report


def _where(error: BaseException) -> str:
    """An exception with the innermost lines it came through; no values, they could be content."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_SHOWN:]
    places = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames))
    return f"{type(error).__name__}: {error} in {places}"
