"""The benchmarks themselves: that they measure, write what they should, and that a wrong run is no figure.

How fast anything is, no test says.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from benchmarks import figures, rate_texts, run
from benchmarks.rate_child import Receiving
from benchmarks.rate_ends import Order

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 110.0
"""Far more than it takes; below the limit of a test, so that children are reaped here."""


class Row(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    value: float | None
    unit: str
    target: str
    ok: bool | None


async def test_a_quick_run_writes_its_figures(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks", "latency", "--quick",
        "--folder", str(tmp_path / "data"), "--output", str(output),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT_S):
            shown, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    assert process.returncode == 0, shown
    rows = msgspec.json.decode(output.read_bytes(), type=list[Row])
    measured = {row.name: row for row in rows}
    assert len(measured) == len(rows)
    for what in ("on disk", "delivered", "received by the other app"):
        for percentile in ("p50", "p99"):
            row = measured[f"one at a time: {what}, {percentile}"]
            assert row.value is not None
            assert row.value > 0
            assert row.unit == "ms"
            assert row.ok is figures.meets(row.value, row.target)
            assert row.name in shown.decode()
    assert "time of the machine stolen by its host meanwhile" in measured
    assert not list((tmp_path / "data").iterdir()), "data was left behind"


def test_the_target_is_compared() -> None:
    assert figures.figure("rate", 10_000, "messages/s", ">= 10000").ok is True
    assert figures.figure("rate", 9_999, "messages/s", ">= 10000").ok is False
    assert figures.figure("delay", 0.6, "ms", "<= 0.6").ok is True
    assert figures.figure("delay", 0.61, "ms", "<= 0.6").ok is False
    assert figures.figure("other", 1, "s").ok is None
    with pytest.raises(ValueError, match="a target reads"):
        figures.figure("rate", 1, "s", "about 10")


def test_what_was_not_measured_fails_the_run() -> None:
    good = figures.figure("rate", 1, "messages/s", "<= 2")
    missed = figures.figure("rate", 3, "messages/s", "<= 2")
    wrong = figures.invalid("rate", "messages/s", ">= 2", why="a message was lost")
    assert wrong.ok is False
    assert run.verdict([good, missed], strict=False) == 0
    assert run.verdict([good, missed], strict=True) == 1
    assert run.verdict([good, wrong], strict=False) == 1


class Scripted:
    """A receiver that gets what it is told to get."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = iter(texts)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def receive(self, arrivals: rate_texts.Arrivals) -> None:
        while not arrivals.complete:
            text = next(self._texts, None)
            if text is None:
                await asyncio.Event().wait()
                return
            arrivals.take(text)


T = [rate_texts.text(number) for number in range(5)]


@pytest.mark.parametrize(
    ("ordered", "texts", "wrong"),
    [
        (True, T[:4], ""),
        (False, [T[1], T[0], T[3], T[2]], ""),
        (True, [T[1], T[0], T[3], T[2]], "place 0"),
        (True, [T[0], T[1], T[1], T[2]], "place 2"),
        (True, [T[0], T[2], T[3], T[4]], "place 1"),
        (False, [T[0], T[0], T[2], T[3]], "came twice"),
        (False, [T[0], T[2], T[3], T[4]], "was not sent now"),
        (True, [T[0], T[1][:-1] + "#", T[2], T[3]], "place 1"),
        (False, [T[0], T[1][:-1] + "#", T[2], T[3]], "was changed"),
        (False, [T[0], "what?", T[2], T[3]], "no number"),
        (True, T[:5], "more arrived"),
    ],
)
async def test_a_wrong_run_is_found(ordered: bool, texts: list[str], wrong: str) -> None:
    receiving = Receiving(Scripted(texts), ordered=ordered)
    await receiving(Order(count=2))
    await receiving(Order(count=2))
    found = (await receiving(Order(count=0))).wrong
    assert wrong in found if wrong else not found


def test_texts_have_their_size_and_differ() -> None:
    many = [rate_texts.text(number) for number in range(5_000)]
    assert {len(text.encode()) for text in many} == {rate_texts.TEXT_BYTES}
    assert len(set(many)) == len(many)
