"""Replays with real processes: a small log, and a recorded day where one lies beside the checkout."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rounds import Rounds
from whimbrel.cli.chatlog import ChatLog, user_name
from whimbrel.cli.judge import Judge
from whimbrel.cli.replay_report import Outage, Percentiles, recoveries
from whimbrel.cli.replay_run import deal, plan_of
from whimbrel.cli.storm_journal import Delivered, Received, Sent
from whimbrel.testing.schedule import Kill, Schedule, Stall

ROOT = Path(__file__).resolve().parent.parent.parent
HARBOUR = ROOT / "tests" / "data" / "harbour.log"
DAYS = ROOT.parent / "shared" / "data" / "irc"
LINKS = ROOT.parent / "shared" / "data" / "traces"
REPLAY_WITHIN_S = 600


def replayed(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run the command in a process of its own, and give its report and what it said."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "whimbrel.cli", "replay", *arguments, "--report", str(report)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=REPLAY_WITHIN_S)
    finally:
        # Its children end with their standard input, whatever happens to it.
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    result: dict[str, Any] = json.loads(report.read_bytes())
    result["output"] = output
    return result


def assert_kept(result: dict[str, Any], *, messages: int, users: int, kills: int = 4) -> None:
    verdict = result["verdict"]
    assert result["passed"]
    assert [verdict[name] for name in ("lost", "doubled", "out_of_order", "changed", "unsent")] == [0] * 5
    assert verdict["sent"] == verdict["delivered"] == result["stored"] == messages
    assert verdict["received"] == verdict["expected"]
    assert result["received_per_member_min"] == messages
    assert result["received_per_member_max"] == messages
    assert result["queued"] == 0
    assert result["users"] == users
    assert result["kills"] >= kills
    # Every kill made a new process, and every process was killed.
    assert all(len(process["pids"]) == process["kills"] + 1 for process in result["processes"])
    assert len({pid for process in result["processes"] for pid in process["pids"]}) >= 4 + kills


@pytest.mark.soak
@pytest.mark.timeout(REPLAY_WITHIN_S + 30)
@pytest.mark.parametrize("which", ["fixed", "fresh"])
def test_an_evening_at_the_harbour_survives_a_bad_link_and_kills(
    which: str, rounds: Rounds, tmp_path: Path
) -> None:
    seed = 5 if which == "fixed" else rounds.fresh_seed()
    log = ChatLog.load(HARBOUR)
    trace = "att-lte-driving-2016"
    schedule = tmp_path / "schedule.json"
    Schedule(
        name="a bad evening",
        duration_s=12.0,
        faults=(Stall(at_s=3.0, until_s=5.0), Kill(at_s=8.0, target="server", restart_at_s=8.0)),
    ).save(schedule)
    result = replayed(
        tmp_path,
        str(HARBOUR),
        *("--speed", "900", "--seed", str(seed)),
        *("--trace", trace, trace, "--schedule", str(schedule)),
    )
    assert_kept(result, messages=len(log.lines), users=len(log.users))
    assert all(process["kills"] for process in result["processes"])
    assert len(result["server"]["pids"]) == 2
    assert result["faults"]["chunks_delayed_down"] > 0
    assert result["faults"]["stalled_down_s"] > 0
    assert result["network_back_to_delivering"]["count"] > 0
    assert result["server"]["memory_bytes_max"] > 0
    assert result["send_to_delivered"]["count"] == len(log.lines)
    assert result["send_to_received"]["count"] == len(log.lines) * (len(log.users) - 1)
    assert result["verdict"]["expected"] == len(log.lines) * len(log.users)
    # What was said stays in the stores.
    assert log.lines[0].text not in result["output"]
    assert re.search(r"verdict +passed", result["output"])


@pytest.mark.soak
@pytest.mark.skipif(
    not DAYS.is_dir(), reason="the recorded days of a help channel are not beside the checkout"
)
@pytest.mark.timeout(REPLAY_WITHIN_S + 30)
@pytest.mark.parametrize("which", ["fixed", "fresh"])
def test_two_recorded_days_survive_drives_through_the_country(
    which: str, rounds: Rounds, tmp_path: Path
) -> None:
    """Two channels at once, on a recorded link, with kills: excerpts of two days, or the whole of them."""
    seed = 3 if which == "fixed" else rounds.fresh_seed()
    lines = rounds.of(ci=60, soak=100_000)
    logs = []
    for day in sorted(DAYS.glob("*.log"))[-2:]:
        whole = day.read_text(encoding="utf-8", errors="replace")
        logs.append(tmp_path / day.name)
        logs[-1].write_text("\n".join(whole.split("\n")[:lines]) + "\n", encoding="utf-8")
    read = [ChatLog.load(log) for log in logs]
    up, down = (str(LINKS / f"TMobile-UMTS-driving.{way}.csv") for way in ("up", "down"))
    duration_s = max(log.duration_s for log in read)
    result = replayed(
        tmp_path,
        *map(str, logs),
        *("--speed", f"{duration_s / (240 if rounds.soak else 12):.3f}", "--trace", up, down),
        *("--seed", str(seed)),
    )
    assert_kept_of_each(result, read)
    name = f"replay of two logs, {which} seed"
    rounds.figure(f"{name}: messages, none lost or doubled", result["stored"], "messages")
    rounds.figure(f"{name}: processes killed", result["kills"], "kills")
    for what in ("send_to_delivered", "send_to_received", "network_back_to_delivering"):
        if result[what]["count"]:
            rounds.figure(f"{name}: {what.replace('_', ' ')}, median", result[what]["p50_s"], "s")
            rounds.figure(f"{name}: {what.replace('_', ' ')}, 99 of 100", result[what]["p99_s"], "s")


def assert_kept_of_each(result: dict[str, Any], logs: list[ChatLog]) -> None:
    """As ``assert_kept``, where not everybody is in every conversation."""
    verdict = result["verdict"]
    messages = sum(len(log.lines) for log in logs)
    assert result["passed"]
    assert [verdict[name] for name in ("lost", "doubled", "out_of_order", "changed", "unsent")] == [0] * 5
    assert verdict["sent"] == verdict["delivered"] == result["stored"] == messages
    assert verdict["received"] == verdict["expected"]
    assert [part["stored"] for part in result["logs"]] == [len(log.lines) for log in logs]
    assert result["queued"] == 0
    assert result["users"] == len({user for log in logs for user in log.users})
    assert result["kills"] >= 4


def test_a_log_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    for arguments in (
        [],
        [str(tmp_path / "none.log")],
        [str(HARBOUR), "--speed", "0"],
        [str(HARBOUR), "--processes", "0"],
        [str(HARBOUR), "--trace", "nowhere", "nowhere"],
        [str(HARBOUR), "--schedule", str(tmp_path / "none.json")],
    ):
        command = [sys.executable, "-m", "whimbrel.cli", "replay", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stderr.startswith("whimbrel: ")


# --- how it is dealt out -----------------------------------------------------------------------


def test_the_plan_keeps_the_order_of_the_log_and_every_line() -> None:
    log = ChatLog.load(HARBOUR)
    plan = plan_of([log, log], 60.0)
    assert len(plan) == 2 * len(log.lines)
    assert len({line.label for line in plan}) == len(plan)
    for conversation in ("log-0", "log-1"):
        lines = [line for line in plan if line.conversation == conversation]
        assert [line.text for line in lines] == [line.text for line in log.lines]
        assert [line.at_s for line in lines] == [line.at_s / 60.0 for line in log.lines]
        assert [line.user for line in lines] == [user_name(line.nick) for line in log.lines]


@pytest.mark.parametrize("processes", [1, 4, 7, 100])
def test_users_are_dealt_evenly_and_by_the_seed(processes: int) -> None:
    users = {f"u{n}": n % 5 for n in range(30)}
    dealt = deal(users, processes, random.Random(1))
    assert sorted(user for group in dealt for user in group) == sorted(users)
    assert len(dealt) == min(processes, 30)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert deal(users, processes, random.Random(1)) == dealt
    assert deal(users, processes, random.Random(2)) != dealt


# --- what is measured --------------------------------------------------------------------------


def test_percentiles_are_numbers_that_were_measured() -> None:
    found = Percentiles.of([float(n) for n in range(1, 101)])
    assert (found.count, found.p50_s, found.p90_s, found.p99_s, found.max_s) == (
        100,
        51.0,
        91.0,
        100.0,
        100.0,
    )
    assert Percentiles.of([]) == Percentiles(count=0)
    assert Percentiles.of([2.0]).max_s == Percentiles.of([2.0]).p50_s == 2.0


def talk(called_s: float, delivered_s: float, received_s: float, n: int) -> list[Sent | Delivered | Received]:
    label = f"anna/{n}"
    return [
        Sent(
            user="anna",
            conversation="quay",
            label=label,
            id=label,
            digest="",
            called_at_s=called_s,
            returned_at_s=called_s,
        ),
        Delivered(user="anna", label=label, id=label, at_s=delivered_s),
        Received(
            user="ben",
            conversation="quay",
            label=label,
            id=label,
            sender="anna",
            seq=n,
            digest="",
            at_s=received_s,
        ),
    ]


def back(*records: list[Sent | Delivered | Received], users: str, away: bool = False) -> list[float | None]:
    judge = Judge({"quay": ("anna", "ben")})
    for some in records:
        judge.hear(some)
    outage = Outage(users=frozenset(users.split()), began_at_s=5.0, ended_at_s=10.0)
    found = recoveries(judge, [outage], {"ben": [(8.0, 12.0)]} if away else {})
    return [found.max_s] if found.count else []


def test_recovery_is_measured_where_something_was_waiting() -> None:
    # Ben's network was away; the server had it since 6.
    assert back(talk(5.5, 6.0, 10.25, 1), users="ben") == [0.25]
    # Anna's network was away.
    assert back(talk(6.0, 10.5, 11.0, 1), users="anna") == [0.5]
    # It came to the server only later, or was there long before: that says nothing.
    assert back(talk(9.0, 10.5, 11.0, 1), users="ben") == []
    assert back(talk(1.0, 2.0, 3.0, 1), users="anna ben") == []
    # The first that was waiting counts, not what was said later.
    assert back(talk(5.5, 6.0, 10.75, 1), talk(10.1, 10.2, 10.3, 2), users="ben") == [0.75]
    # Ben was dead when it came back.
    assert back(talk(5.5, 6.0, 10.25, 1), users="ben", away=True) == []
