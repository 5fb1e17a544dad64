"""How many messages a second, and at what cost in CPU; beside NATS, Valkey and a bare loop.

`python -m benchmarks.rate --in-flight 100` runs one system once and shows rate and CPU; `--profile FOLDER`
leaves profiles of its processes. Which whimbrel it measures is a question of `PYTHONPATH`.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from benchmarks.figures import Figure, Settings, end_in_order, figure_of, invalid, show_progress
from benchmarks.machine import filesystem, sync_ms
from benchmarks.rate_ends import SYSTEMS, by_name
from benchmarks.rate_stage import Burst, Cpu, Invalid, Stage

BURST_S, WARM_UP = 4.0, 3_000
QUICK_S, QUICK_WARM_UP = 0.3, 200


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One system, measured one way."""

    system: str
    in_flight: int = 100
    told: str
    """Whimbrel's ways by what differs, peers by their names; peers have 100 in flight."""


Bursts: TypeAlias = dict[Run, list[Burst]]

HUNDRED = Run(system="whimbrel", told="100 in flight")
THOUSAND = Run(system="whimbrel", in_flight=1_000, told="1,000 in flight")
MEMORY = Run(system="whimbrel-memory", told="100 in flight, in memory")
NATS = Run(system="nats", told="NATS JetStream")
VALKEY = Run(system="valkey", told="Valkey Streams, one call each")
PIPELINED = Run(system="valkey-pipelined", told="Valkey Streams, 100 in a pipeline")
BARE = Run(system="bare", told="a bare loop")

ROUND = (MEMORY, NATS, HUNDRED, VALKEY, THOUSAND, BARE, PIPELINED)
"""In this order, so that what is compared against a target runs one right after the other."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure whimbrel and its peers in turn, each beside those it is compared with."""
    bursts: dict[Run, list[Burst]] = {run: [] for run in ROUND}
    wrong: dict[Run, str] = {}
    for number in range(settings.rounds):
        for run in ROUND:
            if run in wrong:
                continue
            try:
                burst = asyncio.run(_burst(run, settings))
            except (Invalid, ImportError, RuntimeError) as error:
                wrong[run] = f"{run.system}: {error}"
                continue
            bursts[run].append(burst)
            show_progress(f"rate {number + 1}/{settings.rounds}: {run.system}, {run.told}: {told(burst)}")
    yield from _own(bursts, wrong)
    yield from _beside(bursts, wrong)
    yield from _cost(bursts, wrong)
    yield from _peers(bursts, wrong)


async def _burst(run: Run, settings: Settings) -> Burst:
    async with Stage.of(run.system, settings.folder) as stage:
        return await stage.burst(
            in_flight=run.in_flight,
            seconds=QUICK_S if settings.quick else BURST_S,
            warm_up=QUICK_WARM_UP if settings.quick else WARM_UP,
        )


def _own(bursts: Bursts, wrong: dict[Run, str]) -> Iterator[Figure]:
    for run, target in ((HUNDRED, ">= 10000"), (THOUSAND, ">= 16000"), (MEMORY, ">= 15000")):
        name = f"rate, {run.told}"
        if run in wrong:
            yield invalid(name, "messages/s", target, why=wrong[run])
        else:
            yield figure_of(name, [burst.rate for burst in bursts[run]], "messages/s", target)


def _beside(bursts: Bursts, wrong: dict[Run, str]) -> Iterator[Figure]:
    pairs = (
        (HUNDRED, NATS, ">= 1.5"),
        (HUNDRED, VALKEY, ">= 1"),
        (MEMORY, NATS, ">= 2.5"),
        (HUNDRED, PIPELINED, ""),
        (HUNDRED, BARE, ""),
    )
    for own, peer, target in pairs:
        name = f"rate, {own.told}: times {peer.told}"
        why = wrong.get(own) or wrong.get(peer)
        if why:
            yield invalid(name, "times", target, why=why)
            continue
        ratios = [mine.rate / its.rate for mine, its in zip(bursts[own], bursts[peer], strict=True)]
        yield figure_of(name, ratios, "times", target)


def _cost(bursts: Bursts, wrong: dict[Run, str]) -> Iterator[Figure]:
    parts: tuple[tuple[str, str, Callable[[Cpu], float]], ...] = (
        ("all three", "<= 110", lambda cpu: cpu.total_us),
        ("sender", "", lambda cpu: cpu.sender_us),
        ("server", "", lambda cpu: cpu.server_us),
        ("receiver", "", lambda cpu: cpu.receiver_us),
    )
    for part, target, of in parts:
        name = f"CPU, {HUNDRED.told}: {part}"
        if HUNDRED in wrong:
            yield invalid(name, "µs a message", target, why=wrong[HUNDRED])
        else:
            yield figure_of(name, [of(burst.cpu) for burst in bursts[HUNDRED]], "µs a message", target)


def _peers(bursts: Bursts, wrong: dict[Run, str]) -> Iterator[Figure]:
    for peer in (NATS, VALKEY, PIPELINED, BARE):
        name = f"peer's rate, 100 in flight: {peer.told}"
        if peer in wrong:
            yield invalid(name, "messages/s", why=wrong[peer])
            continue
        yield figure_of(
            name,
            [burst.rate for burst in bursts[peer]],
            "messages/s",
            note=by_name(peer.system).lacks(peer.system),
        )
        yield figure_of(
            f"peer's CPU, 100 in flight: {peer.told}", [b.cpu.total_us for b in bursts[peer]], "µs a message"
        )


def main() -> None:
    """Measure one system as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate", description=__doc__)
    parser.add_argument("--system", choices=sorted(SYSTEMS), default="whimbrel")
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--count", type=int, help="messages; by default, as many as take --seconds")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm-up", type=int, default=3_000, help="messages before each burst")
    parser.add_argument("--repeat", type=int, default=1, help="bursts, by the same processes")
    parser.add_argument("--store", choices=("disk", "none"), default="disk", help="of whimbrel's two apps")
    parser.add_argument("--uvloop", action="store_true", help="the two apps on uvloop")
    parser.add_argument("--profile", type=Path, help="leave profiles in this folder")
    parser.add_argument("--folder", type=Path, help="where data goes: on the disk to be measured")
    arguments = parser.parse_args()
    if arguments.system == "whimbrel" and arguments.store == "none":
        arguments.system = "whimbrel-memory"
    end_in_order()
    asyncio.run(_show(arguments))


async def _show(arguments: argparse.Namespace) -> None:
    if arguments.profile is not None:
        arguments.profile = arguments.profile.absolute()
        arguments.profile.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder or Path(tempfile.gettempdir())
    sys.stdout.write(f"data on {filesystem(folder)}, {sync_ms(folder):.2f} ms a sync\n")
    async with Stage.of(
        arguments.system, folder, profile=arguments.profile, uvloop=arguments.uvloop
    ) as stage:
        for _ in range(arguments.repeat):
            burst = await stage.burst(
                in_flight=arguments.in_flight,
                seconds=arguments.seconds,
                warm_up=arguments.warm_up,
                count=arguments.count,
            )
            sys.stdout.write(f"{arguments.system}, {arguments.in_flight} in flight: {told(burst)}\n")
            sys.stdout.flush()
    if lacks := by_name(arguments.system).lacks(arguments.system):
        sys.stdout.write(f"lacks: {lacks}\n")


def told(burst: Burst) -> str:
    """Put a burst in one line."""
    cpu = burst.cpu
    return (
        f"{burst.rate:,.0f}/s ({burst.count:,} in {burst.duration_s:.2f} s), "
        f"CPU {cpu.total_us:.0f} µs a message: "
        f"sender {cpu.sender_us:.0f}, server {cpu.server_us:.0f}, receiver {cpu.receiver_us:.0f}"
    )


if __name__ == "__main__":
    main()
