"""One message at a time: how soon it is on disk, delivered, and with the other app.

Three real processes, as in `rate.py`. The clock starts when the sending app calls `send()`. On disk: it
returned. Delivered: `delivered()` returned, so the message is in the server's permanent store and marked so
in the sender's. Received: the other app has it, behind a commit in its own store. The next message is sent
when the one before is delivered and a pause is over.
"""

import asyncio
from collections.abc import Iterator
from statistics import quantiles

from benchmarks.figures import Figure, Settings, figure, figure_of, invalid, show_progress
from benchmarks.machine import floor_ms
from benchmarks.rate_stage import Invalid, Singles, Stage

COUNT, WARM_UP, PAUSE_S = 800, 100, 0.004
QUICK_COUNT, QUICK_WARM_UP = 50, 10

TARGETS = (
    ("on disk", "<= 0.6", "<= 3"),
    ("delivered", "<= 2.5", "<= 6"),
    ("received by the other app", "<= 2.5", "<= 6"),
)


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure 50th and 99th percentiles, and give the median of each over all rounds."""
    rounds = []
    try:
        for number in range(settings.rounds):
            singles = asyncio.run(_singles(settings))
            rounds.append((singles.on_disk_ms, singles.delivered_ms, singles.received_ms))
            show_progress(f"latency {number + 1}/{settings.rounds}: {told(singles)}")
    except Invalid as error:
        for what, p50, p99 in TARGETS:
            yield invalid(f"one at a time: {what}, p50", "ms", p50, why=str(error))
            yield invalid(f"one at a time: {what}, p99", "ms", p99, why=str(error))
        return
    for place, (what, p50, p99) in enumerate(TARGETS):
        values = [percentiles(times[place]) for times in rounds]
        yield figure_of(f"one at a time: {what}, p50", [value[0] for value in values], "ms", p50)
        yield figure_of(f"one at a time: {what}, p99", [value[1] for value in values], "ms", p99)
    floor = floor_ms(settings.folder, pause_s=PAUSE_S)
    note = "as many bytes as the commit of one message, of which its way has three, one after the other"
    yield figure("beside it: bytes written and synced after such a pause", floor, "ms", note=note)


async def _singles(settings: Settings) -> Singles:
    count, warm_up = (QUICK_COUNT, QUICK_WARM_UP) if settings.quick else (COUNT, WARM_UP)
    async with Stage.of("whimbrel", settings.folder) as stage:
        return await stage.singles(count, pause_s=PAUSE_S, warm_up=warm_up)


def percentiles(values: list[float]) -> tuple[float, float]:
    """Give the 50th and the 99th."""
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def told(singles: Singles) -> str:
    """Put it in one line."""
    parts = (
        ("on disk", singles.on_disk_ms),
        ("delivered", singles.delivered_ms),
        ("received", singles.received_ms),
    )
    each = ((name, *percentiles(values)) for name, values in parts)
    return ", ".join(f"{name} {p50:.2f}/{p99:.2f} ms" for name, p50, p99 in each)
