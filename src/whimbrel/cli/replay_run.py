"""A replay: the users of chat logs live through their day again, on bad links, in processes that are killed.

Every nick is a user with a store of its own, every log a conversation with all its nicks as members. Users
are dealt to the client processes, each process behind a proxy of its own, which enters the recorded trace at
an offset drawn from the seed. Client processes are killed with ``kill -9`` and started again on the way.

The seed decides who is where, when who is killed and where traces begin; the processes' own timing it cannot
decide.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx2
import msgspec

from whimbrel.cli.chatlog import ChatLog, user_name
from whimbrel.cli.replay_report import (
    LogReport,
    Outage,
    ProcessReport,
    ReplayReport,
    delays,
    recoveries,
)
from whimbrel.cli.storm_process import Child
from whimbrel.cli.storm_stage import Actor, Cast, Stage
from whimbrel.cli.storm_words import PlanLine
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.proxy_faults import HalfOpen, Kill, LimitCapacity, Refuse, Stall
from whimbrel.testing.schedule import FaultChange, ProcessAction, Schedule, run_schedule
from whimbrel.testing.traces import Trace

__all__ = ["Replay", "deal", "plan_of"]

KILLS_MIN = 4
OUTAGE_S_MIN = 1.0
"""Shorter holes in a trace are part of its capacity."""
OUTAGE_GAP_S = 2.0
"""Two outages nearer than this are one: in between nothing can come back."""
READY_WITHIN_S = 300.0
PROGRESS_WITHIN_S = 120.0
"""When nothing at all arrives anywhere for so long after the log's end, the replay is over."""
_AWAY_AFTER_START_S = 5.0
_STORED_PAGE = 100


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be replayed, and how."""

    logs: tuple[ChatLog, ...]
    speed: float
    seed: int = 0
    processes: int = 4
    kills: bool = True
    trace: tuple[Trace, Trace] | None = None
    trace_names: tuple[str, str] = ("", "")
    schedule: Schedule | None = None
    receipt_interval_s: float = 1.0

    def __repr__(self) -> str:
        return f"<Replay of {', '.join(log.name for log in self.logs)}>"

    @property
    def duration_s(self) -> float:
        """How long the logs take at this speed."""
        return max(log.duration_s for log in self.logs) / self.speed

    async def run(self, folder: Path, say: Callable[[str], None]) -> ReplayReport:
        """Replay it in an empty folder. Raises ``StormError`` if the stage itself fails."""
        return await _Run(self, folder, say).run()


def plan_of(logs: Sequence[ChatLog], speed: float) -> tuple[PlanLine, ...]:
    """What everybody says, and when; lines are numbered through, so a label never repeats."""
    plan: list[PlanLine] = []
    for conversation, log in conversations_of(logs).items():
        for line in log.lines:
            plan.append(
                PlanLine(
                    user=user_name(line.nick),
                    conversation=conversation,
                    line=len(plan),
                    at_s=line.at_s / speed,
                    text=line.text,
                    action=line.action,
                )
            )
    return tuple(sorted(plan, key=lambda line: (line.at_s, line.line)))


def conversations_of(logs: Sequence[ChatLog]) -> dict[str, ChatLog]:
    """Conversation → its log. Names of files may repeat; those of conversations do not."""
    return {f"log-{number}": log for number, log in enumerate(logs)}


def deal(users: Mapping[str, int], processes: int, rng: random.Random) -> tuple[tuple[str, ...], ...]:
    """Deal users, given with how much they say, so that every process has about as much to do."""
    order = sorted(users)
    rng.shuffle(order)
    order.sort(key=lambda user: -users[user])
    return tuple(tuple(order[number::processes]) for number in range(min(processes, len(order))))


class _Run:
    def __init__(self, replay: Replay, folder: Path, say: Callable[[str], None]) -> None:
        self._replay = replay
        self._say = say
        self._rng = random.Random(replay.seed)
        logs = conversations_of(replay.logs)
        plan = plan_of(replay.logs, replay.speed)
        said: dict[str, int] = {}
        for line in plan:
            said[line.user] = said.get(line.user, 0) + 1
        self.cast = Cast(
            users=deal(said, replay.processes, self._rng),
            members={id: tuple(sorted(log.users)) for id, log in logs.items()},
            titles={id: log.name[:200] for id, log in logs.items()},
            plan=plan,
        )
        self._stage = Stage(self.cast, folder, seed=replay.seed, receipt_interval_s=replay.receipt_interval_s)
        self._outages: list[Outage] = []
        self._away: dict[str, list[tuple[float, float]]] = {}
        self._note = ""

    async def run(self) -> ReplayReport:
        replay = self._replay
        users = sum(map(len, self.cast.users))
        self._say(f"setting up {users} users in {len(self.cast.users)} processes")
        async with self._stage as stage:
            await stage.make_ready(READY_WITHIN_S)
            self._say(f"{len(self.cast.plan)} messages in {replay.duration_s:.0f} s: off they go")
            began_at_s = await stage.go()
            async with asyncio.TaskGroup() as group:
                faults = group.create_task(self._faults(began_at_s))
                telling = group.create_task(self._tell(began_at_s))
                if replay.kills:
                    await self._kill_clients(began_at_s)
                await self._sleep_until(began_at_s + replay.duration_s)
                await faults
                ended_at_s = time.monotonic()
                await self._until_arrived()
                arrived_at_s = time.monotonic()
                telling.cancel()
            queued = await stage.stop_actors() if stage.drained else self._count_queued()
            stored = await self._count_stored()
            return self._report(
                took_s=arrived_at_s - began_at_s,
                drained_s=arrived_at_s - ended_at_s,
                queued=queued,
                stored=stored,
            )

    # --- what goes wrong -----------------------------------------------------------------------

    async def _faults(self, began_at_s: float) -> None:
        """Put every proxy into its place in the trace, and play the schedule on all of them."""
        replay, stage = self._replay, self._stage
        for proxy, actor in zip(stage.proxies, stage.actors, strict=True):
            self._enter_trace(proxy, actor)
        if replay.schedule is None:
            return
        async with asyncio.TaskGroup() as group:
            for number, (proxy, actor) in enumerate(zip(stage.proxies, stage.actors, strict=True)):
                group.create_task(
                    run_schedule(
                        replay.schedule,
                        proxy,
                        on_fault=_OutageWatch(actor, self._outages).on_fault,
                        # One of them carries out what concerns processes.
                        on_process_fault=self._on_process_fault if number == 0 else None,
                    )
                )

    def _enter_trace(self, proxy: FaultProxy, actor: Actor) -> None:
        if self._replay.trace is None:
            return
        up, down = self._replay.trace
        up_name, down_name = self._replay.trace_names
        offset_s = self._rng.uniform(0.0, min(up.duration_s, down.duration_s))
        proxy.apply(LimitCapacity(trace=up_name, direction="up", offset_s=offset_s))
        proxy.apply(LimitCapacity(trace=down_name, direction="down", offset_s=offset_s))
        until_s = self._replay.duration_s + PROGRESS_WITHIN_S
        self._outages += [
            Outage(users=frozenset(actor.users), began_at_s=begin_s, ended_at_s=end_s)
            for begin_s, end_s in _outages_of((up, down), offset_s, time.monotonic(), until_s)
        ]

    async def _on_process_fault(self, fault: Kill, action: ProcessAction) -> None:
        role, _, number = fault.target.partition(":")
        if role == "server":
            if action == "kill":
                await self._stage.server.kill()
            else:
                await self._stage.start_server()
            return
        actor = self._stage.actors[int(number) % len(self._stage.actors)]
        if action == "kill":
            await self._kill(actor)
        else:
            await self._start(actor)

    async def _kill_clients(self, began_at_s: float) -> None:
        """Kill every client process at least once, at moments spread over the log, and start it again."""
        stage, rng = self._stage, self._rng
        order = [*stage.actors]
        rng.shuffle(order)
        count = max(KILLS_MIN, len(order))
        for number in range(count):
            part = (number + rng.uniform(0.3, 0.7)) / count
            await self._sleep_until(began_at_s + self._replay.duration_s * part)
            actor = order[number % len(order)]
            await self._kill(actor)
            await asyncio.sleep(rng.uniform(0.3, 1.5))
            await self._start(actor)

    async def _kill(self, actor: Actor) -> None:
        async with actor.changing:
            killed_at_s = time.monotonic()
            if not actor.child.running:
                return  # someone else was faster
            await actor.child.kill()
            for user in actor.users:
                self._away.setdefault(user, []).append((killed_at_s, float("inf")))

    async def _start(self, actor: Actor) -> None:
        async with actor.changing:
            if actor.child.running:
                return
            await actor.start()
        up_at_s = time.monotonic() + _AWAY_AFTER_START_S
        for user in actor.users:
            killed_at_s, _ = self._away[user][-1]
            self._away[user][-1] = (killed_at_s, up_at_s)

    # --- waiting -------------------------------------------------------------------------------

    async def _sleep_until(self, at_s: float) -> None:
        while (left_s := at_s - time.monotonic()) > 0:
            self._stage.check()
            await asyncio.sleep(min(left_s, 0.5))

    async def _until_arrived(self) -> None:
        """Wait until everything arrived everywhere, as long as anything still does."""
        stage = self._stage
        seen, moved_at_s = -1, time.monotonic()
        while not (stage.drained and stage.received >= stage.expected):
            stage.check()
            state = stage.received - sum(a.report.pending + a.report.to_send for a in stage.actors)
            if state != seen:
                seen, moved_at_s = state, time.monotonic()
            elif time.monotonic() - moved_at_s > PROGRESS_WITHIN_S:
                self._note = f"nothing moved for {PROGRESS_WITHIN_S:g} s"
                return
            await asyncio.sleep(0.1)

    async def _tell(self, began_at_s: float) -> None:
        stage = self._stage
        while True:
            await asyncio.sleep(10.0)
            to_send = sum(actor.report.to_send for actor in stage.actors)
            pending = sum(actor.report.pending for actor in stage.actors)
            self._say(
                f"{time.monotonic() - began_at_s:5.0f} s: to send {to_send}, queued {pending},"
                f" received {stage.received} of {stage.expected},"
                f" connected {sum(actor.report.connected for actor in stage.actors)}"
            )

    # --- the end -------------------------------------------------------------------------------

    def _count_queued(self) -> int:
        return sum(actor.report.to_send + actor.report.pending for actor in self._stage.actors)

    async def _count_stored(self) -> dict[str, int]:
        """Count the messages of each conversation as a member reads them from the server."""
        stage = self._stage
        async with httpx2.AsyncClient(base_url=stage.url, trust_env=False, timeout=30.0) as http:
            counts: dict[str, int] = {}
            for conversation, members in self.cast.members.items():
                body = {
                    "username": members[-1],
                    "password": stage.password,
                    "device": "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(26)),
                }
                login = await http.post("/api/auth/login", json=body)
                login.raise_for_status()
                headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
                counts[conversation] = since = 0
                while True:
                    page = await http.get(
                        f"/api/conversations/{conversation}/messages",
                        params={"since": str(since), "limit": str(_STORED_PAGE)},
                        headers=headers,
                    )
                    page.raise_for_status()
                    answer = page.json()
                    entries = answer["messages"]
                    counts[conversation] += sum(entry["kind"] == "message" for entry in entries)
                    since = answer["cursor"]
                    if not entries:
                        break
            return counts

    def _report(
        self, *, took_s: float, drained_s: float, queued: int, stored: dict[str, int]
    ) -> ReplayReport:
        replay, stage = self._replay, self._stage
        judge = stage.judge()
        verdict = judge.verdict(final=True)
        told, handed = delays(judge)
        back = recoveries(judge, self._outages, self._away)
        everybody = sorted({user for users in self.cast.users for user in users})
        per_user = dict.fromkeys(everybody, 0)
        for (user, _), records in judge.received.items():
            per_user[user] += len({record.label for record in records})
        numbers = sorted(per_user.values())
        logs = tuple(
            LogReport(
                name=log.name,
                lines=len(log.lines),
                users=len(log.users),
                skipped=log.skipped,
                unreadable=log.unreadable,
                duration_s=round(log.duration_s, 1),
                stored=stored[id],
            )
            for id, log in conversations_of(replay.logs).items()
        )
        kills = sum(actor.child.kills for actor in stage.actors)
        passed = (
            verdict.clean
            and not queued
            and not self._note
            and verdict.sent == len(self.cast.plan) == verdict.delivered == sum(stored.values())
            and (not replay.kills or kills >= KILLS_MIN)
        )
        return ReplayReport(
            passed=passed,
            note=self._note,
            seed=replay.seed,
            speed=replay.speed,
            took_s=round(took_s, 2),
            drained_s=round(drained_s, 2),
            logs=logs,
            processes=tuple(_process(actor.child, len(actor.users)) for actor in stage.actors),
            server=_process(stage.server, 0),
            users=len(everybody),
            verdict=verdict,
            stored=sum(stored.values()),
            queued=queued,
            received_per_member_min=numbers[0],
            received_per_member_median=int(statistics.median(numbers)),
            received_per_member_max=numbers[-1],
            send_to_delivered=told,
            send_to_received=handed,
            network_back_to_delivering=back,
            faults={name: round(count, 1) for name, count in stage.counters().items() if count},
            kills=kills,
        )


class _OutageWatch:
    """Notes when a schedule took the network from the users of a process, and when it gave it back."""

    def __init__(self, actor: Actor, outages: list[Outage]) -> None:
        self._users = frozenset(actor.users)
        self._outages = outages
        self._began_at_s: dict[int, float] = {}

    def on_fault(self, change: FaultChange) -> None:
        if not isinstance(change.fault, Stall | Refuse | HalfOpen):
            return
        now = time.monotonic()
        if change.began:
            self._began_at_s[id(change.fault)] = now
        else:
            began_at_s = self._began_at_s.pop(id(change.fault))
            self._outages.append(Outage(users=self._users, began_at_s=began_at_s, ended_at_s=now))


def _process(child: Child, users: int) -> ProcessReport:
    return ProcessReport(
        name=child.name,
        pids=tuple(child.pids),
        kills=child.kills,
        users=users,
        memory_bytes_max=child.memory_bytes_max,
    )


def _outages_of(
    traces: Sequence[Trace], offset_s: float, began_at_s: float, duration_s: float
) -> list[tuple[float, float]]:
    """When one direction or the other carries nothing, as begin and end on the monotonic clock."""
    found: list[tuple[float, float]] = []
    for trace in traces:
        for outage in trace.outages(min_s=OUTAGE_S_MIN):
            at_s = outage.start_s - offset_s
            while at_s < duration_s:
                if at_s + outage.duration_s > 0:
                    found.append((began_at_s + at_s, began_at_s + at_s + outage.duration_s))
                at_s += trace.duration_s
    merged: list[tuple[float, float]] = []
    for begin_s, end_s in sorted(found):
        if merged and begin_s <= merged[-1][1] + OUTAGE_GAP_S:
            merged[-1] = (merged[-1][0], max(end_s, merged[-1][1]))
        else:
            merged.append((begin_s, end_s))
    return merged
