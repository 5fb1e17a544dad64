"""What a storm does, from a seed: a timetable of faults (``schedule.Schedule``), one gust after the other.

A gust is one kind of fault with a beginning and an end. Kinds are drawn evenly; how long a gust lasts is
drawn from a wide range, so that short and long ones come; they overlap. The last tenth is calm.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from whimbrel.testing.proxy_faults import (
    AnyFault,
    ChunkLoss,
    DropAnswer,
    HalfOpen,
    Kill,
    Latency,
    LimitCapacity,
    Refuse,
    Reset,
    Stall,
)
from whimbrel.testing.schedule import Schedule

__all__ = ["FAULT_KINDS", "storm_plan"]

GUSTS_MAX: Final = 200

_Gust = Callable[[random.Random, float, float], AnyFault]


def _dead_zone(rng: random.Random, at_s: float, until_s: float) -> AnyFault:
    return Stall(at_s=at_s, until_s=until_s, direction=rng.choice(("both", "up", "down")))


def _cut(rng: random.Random, at_s: float, until_s: float) -> AnyFault:
    return Reset(
        at_s=at_s, until_s=until_s, every_s=max(0.01, round((until_s - at_s) / rng.randint(1, 5), 3))
    )


def _half_open(rng: random.Random, at_s: float, until_s: float) -> AnyFault:
    return HalfOpen(at_s=at_s, until_s=until_s, direction=rng.choice(("both", "up", "down")))


def _slow(rng: random.Random, at_s: float, until_s: float) -> AnyFault:
    latency_s = round(rng.uniform(0.1, 3.0), 3)
    jitter_s = round(latency_s * rng.random(), 3)
    return Latency(at_s=at_s, until_s=until_s, latency_s=latency_s, jitter_s=jitter_s)


def _narrow(rng: random.Random, at_s: float, until_s: float) -> AnyFault:
    return LimitCapacity(at_s=at_s, until_s=until_s, bytes_per_s=float(rng.randint(1_000, 50_000)))


def _loss(rng: random.Random, at_s: float, until_s: float) -> AnyFault:
    return ChunkLoss(
        at_s=at_s, until_s=until_s, probability=round(rng.uniform(0.05, 0.5), 2), direction="both"
    )


def _lost_answers(rng: random.Random, at_s: float, until_s: float) -> AnyFault:
    return DropAnswer(
        at_s=at_s, until_s=until_s, probability=round(rng.uniform(0.2, 0.9), 2), times_max=rng.randint(1, 5)
    )


def _refused(_: random.Random, at_s: float, until_s: float) -> AnyFault:
    return Refuse(at_s=at_s, until_s=until_s)


def _server_crash(_: random.Random, at_s: float, until_s: float) -> AnyFault:
    return Kill(at_s=at_s, target="server", restart_at_s=until_s)


_GUSTS: Final[dict[str, _Gust]] = {
    "dead_zone": _dead_zone,
    "cut": _cut,
    "half_open": _half_open,
    "slow": _slow,
    "narrow": _narrow,
    "loss": _loss,
    "lost_answers": _lost_answers,
    "refused": _refused,
    "server_crash": _server_crash,
}
_APP_CRASH: Final = "app_crash"
FAULT_KINDS: Final = (*_GUSTS, _APP_CRASH)
"""All kinds of faults; ``app_crash`` comes only to apps that were given to the storm."""


def storm_plan(
    seed: int, *, duration_s: float = 300.0, faults: Sequence[str] = FAULT_KINDS, apps: int = 0
) -> Schedule:
    """Give the timetable of a storm; the same arguments give the same. Raises ``ValueError``.

    ``faults``: the kinds that come, of ``FAULT_KINDS``. ``apps``: how many there are to crash.
    """
    unknown = set(faults) - set(FAULT_KINDS)
    if unknown or not faults:
        raise ValueError(
            f"faults are some of {', '.join(FAULT_KINDS)}, not {', '.join(sorted(unknown)) or '-'}"
        )
    rng = random.Random(seed)
    return Schedule(
        name=f"storm {seed}", duration_s=duration_s, faults=tuple(_gusts(rng, duration_s, faults, apps))
    )


def _gusts(rng: random.Random, duration_s: float, kinds: Sequence[str], apps: int) -> Iterator[AnyFault]:
    end_s = round(0.9 * duration_s, 3)
    if "slow" in kinds:
        # Behind all gusts the network is a bad one: what takes no time hides what can happen meanwhile.
        latency_s = round(min(rng.uniform(0.02, 0.8), duration_s / 100), 3)
        yield Latency(until_s=end_s, latency_s=latency_s, jitter_s=round(latency_s / 2, 3))
    at_s = rng.uniform(0.0, 0.02) * duration_s
    server_up_at_s = 0.0
    app_up_at_s = [0.0] * apps
    possible = [kind for kind in kinds if kind != _APP_CRASH or apps]
    for _ in range(GUSTS_MAX):
        if at_s >= end_s or not possible:
            return
        # Most are short, some last a fifth of the storm.
        until_s = round(min(at_s + duration_s * 0.2 * rng.random() ** 2 + 0.01, end_s), 3)
        at_s = round(min(at_s, until_s), 3)
        kind = rng.choice(possible)
        if kind == _APP_CRASH:
            number = rng.randrange(apps)
            if at_s >= app_up_at_s[number]:
                app_up_at_s[number] = until_s
                yield Kill(at_s=at_s, target=f"client:{number + 1}", restart_at_s=until_s)
        elif kind != "server_crash" or at_s >= server_up_at_s:
            if kind == "server_crash":
                server_up_at_s = until_s
            yield _GUSTS[kind](rng, at_s, until_s)
        # The next may begin before this one has ended: faults compose.
        at_s += (until_s - at_s) * rng.uniform(0.1, 0.7) + duration_s * rng.uniform(0.0, 0.02)
