"""Traces: reading them, and the arithmetic of what they carry."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.testing.traces import Outage, Trace, TraceError


def test_capacity_total_and_outages() -> None:
    trace = Trace([2, 0, 0, 1, 0], name="small")
    assert trace.duration_s == 0.5
    assert trace.total_bytes == 4500
    assert [trace.capacity_at(t) for t in (0.0, 0.099, 0.1, 0.3, 0.49, 0.5, 1.3)] == [
        30_000.0, 30_000.0, 0.0, 15_000.0, 0.0, 30_000.0, 15_000.0,
    ]  # fmt: skip
    assert trace.outages() == (Outage(start_s=0.1, end_s=0.3), Outage(start_s=0.4, end_s=0.5))
    assert trace.outages(min_s=0.2) == (Outage(start_s=0.1, end_s=0.3),)
    assert trace.outages()[0].duration_s == pytest.approx(0.2)
    assert repr(trace) == "<Trace small 0.5 s, 4500 bytes>"


def test_every_edge_of_a_window_belongs_to_the_window_it_begins() -> None:
    trace = Trace(range(1, 51))
    assert [trace.capacity_at(index * 0.1) for index in range(50)] == [n * 15_000.0 for n in range(1, 51)]


def test_bytes_and_times_are_inverse() -> None:
    trace = Trace([2, 0, 0, 1, 0])
    assert trace.bytes_before(0.05) == pytest.approx(1500)
    assert trace.bytes_before(0.2) == pytest.approx(3000)
    assert trace.bytes_before(1.05) == pytest.approx(9000 + 1500)
    assert trace.time_of(0) == 0.0
    assert trace.time_of(3000) == pytest.approx(0.1)  # not after the outage that follows
    assert trace.time_of(3001) > 0.3
    assert trace.time_of(4500) == pytest.approx(0.4)  # the end of the loop, not of its outage
    assert trace.time_of(4501) > 0.5
    assert trace.time_of(9000 + 1500) == pytest.approx(1.05)


def test_finish() -> None:
    trace = Trace([2, 0, 0, 1, 0])
    assert trace.finish(0.15, 0) == 0.15
    assert trace.finish(0.05, 1500) == pytest.approx(0.1)
    assert trace.finish(0.05, 1501) == pytest.approx(0.3, abs=1e-3)
    assert trace.finish(0.2, 1500) == pytest.approx(0.4)
    assert trace.finish(0.45, 750) == pytest.approx(0.525)
    assert trace.finish(1000.05, 4500) == pytest.approx(1000.55)


@given(
    packets=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any),
    start_ms=st.integers(0, 5_000),
    sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=20),
)
def test_no_byte_is_carried_twice_or_lost(packets: list[int], start_ms: int, sizes: list[int]) -> None:
    trace = Trace(packets)
    start_s = now_s = start_ms / 1000
    for size in sizes:
        later_s = trace.finish(now_s, size)
        assert later_s > now_s
        now_s = later_s
    assert trace.bytes_before(now_s) - trace.bytes_before(start_s) == pytest.approx(sum(sizes), abs=1.0)


def test_reading_comments_columns_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "link.csv"
    path.write_text("# recorded\n\n 3 \n0 # outage\n7, 120, x\n12 4\n", encoding="utf-8")
    trace = Trace.load(path)
    assert trace.packets == (3, 0, 7, 12)
    assert trace.name == "link"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1\n-2\n", "line 2"),
        ("1\n2.5\n", "line 2"),
        ("many\n", "line 1"),
        ("1\n²\n", "line 2"),
        ("9999999\n", "window 0"),
        ("9" * 5000, "line 1"),
        ("# nothing\n", "no windows"),
        ("0\n0\n", "nothing at all"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=complaint):
        Trace.load(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"gone\.csv"):
        Trace.load(tmp_path / "gone.csv")
    (tmp_path / "raw.csv").write_bytes(b"\xff\xfe1\n")
    with pytest.raises(TraceError, match=r"raw\.csv"):
        Trace.load(tmp_path / "raw.csv")


def test_positions_before_the_beginning_are_refused() -> None:
    for question in (Trace([1]).capacity_at, Trace([1]).bytes_before, Trace([1]).time_of):
        with pytest.raises(ValueError, match="not negative"):
            question(-0.1)


def test_the_recorded_traces() -> None:
    assert Trace.builtin_names() == ("att-lte-driving-2016", "tmobile-umts-driving")
    up, down = (Trace.builtin("att-lte-driving-2016", way) for way in ("up", "down"))
    assert up.duration_s == down.duration_s == 120.1
    assert up.packets[:4] == (55, 120, 118, 44)
    assert down.packets[:4] == (209, 223, 221, 268)
    assert up.outages()[0] == Outage(start_s=0.5, end_s=1.5)
    for way in ("up", "down"):
        assert 900 < Trace.builtin("tmobile-umts-driving", way).duration_s < 1000
    with pytest.raises(TraceError, match="att-lte-driving-2016"):
        Trace.builtin("no-such-link", "up")
    with pytest.raises(TraceError):
        Trace.builtin("../data/att-lte-driving-2016", "up")
