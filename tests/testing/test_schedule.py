"""Schedules: as data, and played against a real proxy."""

import asyncio
from collections.abc import AsyncIterator
from math import inf, nan
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.testing.proxy_echo import LIMIT_S, Client, Echo, until
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.schedule import (
    STORM,
    AnyFault,
    ChunkLoss,
    DropAnswer,
    FaultChange,
    FaultError,
    HalfOpen,
    Kill,
    Latency,
    LimitCapacity,
    ProcessAction,
    Refuse,
    Reset,
    Schedule,
    ScheduleError,
    Stall,
    run_schedule,
)

EVERY_KIND: tuple[AnyFault, ...] = (
    Latency(at_s=1.0, until_s=2.0, latency_s=0.8, jitter_s=0.4, direction="down"),
    LimitCapacity(at_s=1.0, bytes_per_s=5000.0),
    LimitCapacity(at_s=1.0, trace="tmobile-umts-driving", offset_s=30.0, direction="up"),
    LimitCapacity(trace="some/link.csv"),
    Stall(at_s=2.0, until_s=3.0, direction="up"),
    HalfOpen(at_s=2.0, until_s=3.0),
    Reset(at_s=4.0),
    Reset(at_s=4.0, until_s=5.0, every_s=0.2, older_than_s=1.0),
    ChunkLoss(at_s=5.0, until_s=6.0, probability=0.2, older_than_s=1.0),
    Refuse(at_s=6.0, until_s=7.0),
    DropAnswer(at_s=7.0),
    DropAnswer(at_s=7.0, until_s=8.0, probability=0.3, times_max=None, older_than_s=2.0),
    Kill(at_s=8.0, target="server", restart_at_s=8.0),
    Kill(at_s=9.0, target="client:12"),
)


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with Echo() as echo, FaultProxy("127.0.0.1", echo.port, seed=1) as running:
        yield running


# -- as data


def test_every_kind_goes_to_json_and_back(tmp_path: Path) -> None:
    schedule = Schedule(name="everything", duration_s=10.0, faults=EVERY_KIND)
    assert {type(fault) for fault in EVERY_KIND} == set(AnyFault.__args__)
    assert Schedule.from_json(schedule.to_json()) == schedule
    schedule.save(tmp_path / "everything.json")
    assert Schedule.load(tmp_path / "everything.json") == schedule


def test_json_is_written_as_a_person_would() -> None:
    text = '{"name": "one", "duration_s": 3, "faults": [{"kind": "stall", "at_s": 1, "until_s": 2}]}'
    assert Schedule.from_json(text).faults == (Stall(at_s=1.0, until_s=2.0),)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"kind": "earthquake"}, "earthquake"),
        ({"at_s": 1}, "kind"),
        ({"kind": "stall", "at_s": -1}, "at_s"),
        ({"kind": "stall", "at_s": "soon"}, r"at_s"),
        ({"kind": "stall", "at_s": 3, "until_s": 2}, "until_s 2 is before at_s 3"),
        ({"kind": "stall", "until": 2}, "until"),
        ({"kind": "stall", "direction": "sideways"}, "sideways"),
        ({"kind": "stall", "until_s": 1e9}, "until_s"),
        ({"kind": "latency"}, "latency_s"),
        ({"kind": "latency", "latency_s": -0.1}, "latency_s"),
        ({"kind": "latency", "latency_s": 1, "jitter_s": -1}, "jitter_s"),
        ({"kind": "loss", "probability": 1.5}, "probability"),
        ({"kind": "loss", "probability": 0.5, "older_than_s": -1}, "older_than_s"),
        ({"kind": "drop_answer", "probability": -0.5}, "probability"),
        ({"kind": "drop_answer", "times_max": 0}, "times_max"),
        ({"kind": "reset", "every_s": 0}, "every_s"),
        ({"kind": "capacity"}, "either"),
        ({"kind": "capacity", "bytes_per_s": 5, "trace": "x.csv"}, "either"),
        ({"kind": "capacity", "bytes_per_s": 0}, "bytes_per_s"),
        ({"kind": "capacity", "trace": "no-such-link"}, "att-lte-driving-2016"),
        ({"kind": "kill", "target": "printer"}, "target"),
        ({"kind": "kill", "target": "client:"}, "target"),
        ({"kind": "kill", "target": "server:1"}, "target"),
        ({"kind": "kill", "target": "server", "at_s": 2, "restart_at_s": 1}, "restart_at_s"),
        ({"kind": "kill", "target": "server", "at_s": 2, "until_s": 3}, "until_s"),
        ({"kind": "stall", "at_s": 11}, "beyond"),
        ({"kind": "stall", "at_s": 1, "until_s": 11}, "beyond"),
        ({"kind": "kill", "target": "server", "at_s": 2, "restart_at_s": 11}, "beyond"),
    ],
)
def test_a_bad_fault_is_refused_and_named(fault: dict[str, Any], complaint: str) -> None:
    data = msgspec.json.encode({"name": "bad", "duration_s": 10, "faults": [{"kind": "stall"}, fault]})
    with pytest.raises(ScheduleError, match=complaint):
        Schedule.from_json(data)


def test_a_bad_fault_inside_says_which() -> None:
    faults = [{"kind": "stall"}, {"kind": "loss", "probability": 2}]
    data = msgspec.json.encode({"name": "bad", "duration_s": 10, "faults": faults})
    with pytest.raises(ScheduleError, match="fault 1: probability is 2, not in 0–1"):
        Schedule.from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"name": "x"}',
        b'{"name": "", "duration_s": 1}',
        b'{"name": "x", "duration_s": 0}',
        b'{"name": "x", "duration_s": 1, "color": "red"}',
    ],
)
def test_what_is_no_schedule_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ScheduleError):
        Schedule.from_json(data)
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(ScheduleError, match=r"bad\.json"):
        Schedule.load(tmp_path / "bad.json")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"gone\.json"):
        Schedule.load(tmp_path / "gone.json")
    with pytest.raises(ScheduleError, match=r"x\.json"):
        STORM.save(tmp_path / "no" / "folder" / "x.json")


@pytest.mark.parametrize("bad", [-1.0, inf, nan])
def test_faults_made_by_hand_are_checked_too(bad: float) -> None:
    with pytest.raises(FaultError, match="at_s"):
        Stall(at_s=bad)
    with pytest.raises(FaultError, match="probability"):
        ChunkLoss(probability=bad)
    with pytest.raises(ScheduleError, match="duration_s"):
        Schedule(name="x", duration_s=bad)


def test_faults_describe_themselves() -> None:
    assert [fault.describe() for fault in EVERY_KIND] == [
        "latency 800 ± 400 ms down",
        "capacity 5000 bytes/s each way",
        "capacity of tmobile-umts-driving up",
        "capacity of some/link.csv each way",
        "silence up",
        "half-open",
        "connections reset",
        "connections reset every 200 ms",
        "20 % of server→client chunks dropped with a reset",
        "connections refused",
        "next answer dropped after its request",
        "30 % of answers dropped after their request",
        "server killed",
        "client:12 killed",
    ]


def test_the_storm() -> None:
    assert STORM.duration_s == 60.0
    assert Schedule.from_json(STORM.to_json()) == STORM
    assert [(fault.at_s, fault.describe()) for fault in STORM.faults] == [
        (5.0, "silence"),
        (15.0, "connections reset every 200 ms"),
        (17.0, "latency 800 ± 400 ms each way"),
        (25.0, "server killed"),
        (35.0, "client:1 killed"),
        (36.0, "20 % of server→client chunks dropped with a reset"),
    ]
    assert max(fault.until_s or 0.0 for fault in STORM.faults) == 50.0  # then ten seconds of calm


# -- played


async def test_the_storm_is_played_in_its_order(proxy: FaultProxy) -> None:
    changes: list[FaultChange] = []
    actions: list[tuple[str, str]] = []

    async def carry_out(fault: Kill, action: ProcessAction) -> None:
        actions.append((action, fault.target))

    async with asyncio.timeout(LIMIT_S):
        report = await run_schedule(
            STORM, proxy, on_fault=changes.append, on_process_fault=carry_out, speed=100.0
        )
    assert [(change.at_s, change.began, change.present_fault) for change in changes] == [
        (5.0, True, "silence"),
        (10.0, False, "calm"),
        (15.0, True, "connections reset every 200 ms"),
        (17.0, True, "connections reset every 200 ms + latency 800 ± 400 ms each way"),
        (17.0, False, "latency 800 ± 400 ms each way"),
        (25.0, True, "latency 800 ± 400 ms each way + server killed"),
        (25.0, False, "server killed"),
        (25.0, False, "calm"),
        (35.0, True, "client:1 killed"),
        (36.0, True, "client:1 killed + 20 % of server→client chunks dropped with a reset"),
        (36.0, False, "20 % of server→client chunks dropped with a reset"),
        (50.0, False, "calm"),
    ]
    assert actions == [
        ("kill", "server"),
        ("restart", "server"),
        ("kill", "client:1"),
        ("restart", "client:1"),
    ]
    assert (report.faults_applied, report.process_actions_done, report.process_actions_ignored) == (4, 4, 0)
    assert proxy.counters.stalled_up_s > 0


async def test_faults_strike_while_they_are_on_and_not_after(proxy: FaultProxy) -> None:
    struck = asyncio.Event()
    schedule = Schedule(
        name="reset, silence, refusal",
        duration_s=0.3,
        faults=(
            Reset(at_s=0.05),
            Stall(at_s=0.1, until_s=0.2),
            Stall(at_s=0.2, until_s=0.25),
            Refuse(at_s=0.1, until_s=0.2),
        ),
    )
    async with Client(proxy.port) as client:
        await client.echoes(b"before")
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            running = group.create_task(run_schedule(schedule, proxy, on_fault=lambda change: struck.set()))
            assert await client.ending() == "reset"
            await struck.wait()
        assert running.result().faults_applied == 4
    async with Client(proxy.port) as client:
        await client.echoes(b"after")
    counters = proxy.counters
    assert (counters.resets, counters.refused_windows) == (1, 1)
    assert proxy.present_fault == "calm"


async def test_a_fault_without_an_end_is_lifted_at_the_schedules_end(proxy: FaultProxy) -> None:
    schedule = Schedule(name="x", duration_s=0.05, faults=(Stall(at_s=0.01), DropAnswer(at_s=0.01)))
    seen: list[str] = []
    await run_schedule(schedule, proxy, on_fault=lambda change: seen.append(change.present_fault))
    assert seen == ["silence", "silence + next answer dropped after its request"]
    assert proxy.present_fault == "calm"


async def test_process_faults_without_a_harness_are_counted(proxy: FaultProxy) -> None:
    schedule = Schedule(name="x", duration_s=0.01, faults=(Kill(target="server", restart_at_s=0.0),))
    report = await run_schedule(schedule, proxy)
    assert (report.faults_applied, report.process_actions_done, report.process_actions_ignored) == (0, 0, 2)


async def test_a_slow_restart_holds_up_only_its_own_process(proxy: FaultProxy) -> None:
    log: list[str] = []
    go_on = asyncio.Event()

    async def carry_out(fault: Kill, action: ProcessAction) -> None:
        if fault.target == "server" and action == "kill":
            await go_on.wait()
        log.append(f"{action} {fault.target}")
        if log[-1] == "restart client:1":
            go_on.set()

    schedule = Schedule(
        name="x",
        duration_s=0.05,
        faults=(
            Kill(at_s=0.0, target="server", restart_at_s=0.01),
            Kill(at_s=0.01, target="client:1", restart_at_s=0.02),
        ),
    )
    async with asyncio.timeout(LIMIT_S):
        report = await run_schedule(schedule, proxy, on_process_fault=carry_out)
    assert log == ["kill client:1", "restart client:1", "kill server", "restart server"]
    assert report.process_actions_done == 4


async def test_an_error_of_the_harness_ends_the_run_and_the_faults(proxy: FaultProxy) -> None:
    async def carry_out(fault: Kill, action: ProcessAction) -> None:
        raise LookupError(f"no process {fault.target}")

    schedule = Schedule(name="x", duration_s=3600.0, faults=(Stall(), Kill(target="client:3")))
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(LookupError, match="client:3"):
            await run_schedule(schedule, proxy, on_process_fault=carry_out)
    assert proxy.present_fault == "calm"


async def test_cancelling_the_run_ends_the_faults(proxy: FaultProxy) -> None:
    schedule = Schedule(name="x", duration_s=3600.0, faults=(Stall(), Refuse()))
    running = asyncio.create_task(run_schedule(schedule, proxy))
    await until(lambda: proxy.present_fault == "silence + connections refused")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert proxy.present_fault == "calm"
    async with Client(proxy.port) as client:
        await client.echoes(b"after")


@pytest.mark.parametrize("speed", [0.0, -1.0, inf, nan])
async def test_a_speed_out_of_range_is_refused(proxy: FaultProxy, speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        await run_schedule(STORM, proxy, speed=speed)
