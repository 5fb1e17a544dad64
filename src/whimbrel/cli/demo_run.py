"""The demo behind its picture: Anna and Ben talk through a storm, and a judge reads what they wrote down.

A server process and two client processes, the clients behind one fault proxy, and the timetable of
`testing.schedule.STORM`. Both go on talking all the time. When the storm is over, everything has a minute to
arrive; then the judge speaks.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from whimbrel.cli.demo_view import Scene, Screen, Span, View
from whimbrel.cli.demo_words import CONVERSATION, USERS, small_talk
from whimbrel.cli.judge import Verdict
from whimbrel.cli.storm_stage import Actor, Cast, Stage
from whimbrel.testing.schedule import STORM, FaultChange, Kill, ProcessAction, run_schedule

__all__ = ["DemoResult", "run_demo"]

READY_WITHIN_S = 60.0
ARRIVE_WITHIN_S = 60.0
_SHOW_EVERY_S = 0.2
_JUDGE_EVERY_S = 1.0
_POINT_S = 0.7
"""How wide something that happens at one moment is drawn."""


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended."""

    verdict: Verdict
    planned: int
    queued: int
    """Left in outboxes, as the clients say themselves."""
    drained_s: float
    """From the end of the storm until everything had arrived."""
    kills: int
    resets: int

    @property
    def passed(self) -> bool:
        """Whether all that was planned was sent, and every promise was kept."""
        return self.verdict.clean and not self.queued and self.verdict.sent == self.planned


async def run_demo(folder: Path, view: View, *, seconds: float, seed: int) -> DemoResult:
    """Play it once in an empty folder. Raises ``StormError`` if a process fails by itself."""
    cast = Cast(
        users=tuple((user,) for user in USERS),
        members={CONVERSATION: USERS},
        titles={CONVERSATION: "a walk in the storm"},
        plan=small_talk(seconds, seed),
    )
    stage = Stage(cast, folder, seed=seed, one_proxy=True, report_every_s=0.2, screen=CONVERSATION)
    async with stage:
        await stage.make_ready(READY_WITHIN_S)
        return await _Demo(stage, view, seconds).play()


class _Demo:
    def __init__(self, stage: Stage, view: View, seconds: float) -> None:
        self._stage = stage
        self._view = view
        self._seconds = seconds
        self._began_at_s = 0.0
        self._verdict = stage.judge().verdict(final=False)
        self._judged_at_s = 0.0
        scale = seconds / STORM.duration_s
        self._spans = tuple(
            Span(begin_s=fault.at_s * scale, end_s=end_s * scale, what=fault.describe())
            for fault in STORM.faults
            for end_s in [
                max(
                    fault.at_s + _POINT_S,
                    (fault.restart_at_s if isinstance(fault, Kill) else fault.until_s) or fault.at_s,
                )
            ]
        )

    async def play(self) -> DemoResult:
        stage = self._stage
        with self._view:
            self._began_at_s = await stage.go()
            self._view.tell(0.0, f"{' and '.join(USERS)} begin to talk, the storm is on its way")
            showing = asyncio.create_task(self._show(), name="showing")
            try:
                await self._storm(showing)
                ended_at_s = time.monotonic()
                self._view.tell(self._now_s, "the storm is over; waiting until everything has arrived")
                await self._until_arrived(showing)
                arrived_at_s = time.monotonic()
            finally:
                showing.cancel()
                await asyncio.wait([showing])
            left = sum(actor.report.to_send + actor.report.pending for actor in stage.actors)
            self._judged_at_s = 0.0  # the last picture stays: its counts are those of the end
            self._show_scene()
            queued = await stage.stop_actors()
        return DemoResult(
            verdict=stage.judge().verdict(final=True),
            planned=len(stage.cast.plan),
            queued=max(queued, left),
            drained_s=arrived_at_s - ended_at_s,
            kills=stage.server.kills + sum(actor.child.kills for actor in stage.actors),
            resets=int(stage.counters()["resets"]),
        )

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began_at_s

    async def _storm(self, showing: asyncio.Task[None]) -> None:
        storm = asyncio.create_task(
            run_schedule(
                STORM,
                self._stage.proxies[0],
                on_fault=self._on_fault,
                on_process_fault=self._on_process_fault,
                speed=STORM.duration_s / self._seconds,
            ),
            name="storm",
        )
        try:
            await asyncio.wait([storm, showing], return_when=asyncio.FIRST_COMPLETED)
            if showing.done():
                showing.result()
            storm.result()
        finally:
            storm.cancel()
            await asyncio.wait([storm])

    async def _until_arrived(self, showing: asyncio.Task[None]) -> None:
        stage = self._stage
        ends_at_s = time.monotonic() + ARRIVE_WITHIN_S
        while not (stage.drained and stage.received >= stage.expected):
            if showing.done():
                showing.result()
            stage.check()
            if time.monotonic() > ends_at_s:
                self._view.tell(self._now_s, f"not everything arrived within {ARRIVE_WITHIN_S:g} s")
                return
            await asyncio.sleep(0.05)

    # --- what happens --------------------------------------------------------------------------

    def _on_fault(self, change: FaultChange) -> None:
        if isinstance(change.fault, Kill):
            return
        self._view.tell(self._now_s, f"{change.fault.describe()} {'begins' if change.began else 'is over'}")

    async def _on_process_fault(self, fault: Kill, action: ProcessAction) -> None:
        stage = self._stage
        if fault.target == "server":
            if action == "kill":
                await stage.server.kill()
                self._view.tell(self._now_s, "kill -9 of the server")
            else:
                await stage.start_server()
                self._view.tell(self._now_s, "the server is back")
            return
        actor = stage.actors[int(fault.target.partition(":")[2]) % len(stage.actors)]
        if action == "kill":
            await actor.child.kill()
            self._view.tell(self._now_s, f"kill -9 of {actor.name}")
        else:
            await actor.start()
            self._view.tell(self._now_s, f"{actor.name} is started again")

    # --- what is seen --------------------------------------------------------------------------

    async def _show(self) -> None:
        while True:
            self._stage.check()
            self._show_scene()
            await asyncio.sleep(_SHOW_EVERY_S)

    def _fault(self) -> str:
        """What is wrong now, on the way and at its end."""
        fault = self._stage.proxies[0].present_fault
        if self._stage.serving:
            return fault
        return "the server is down" if fault == "calm" else f"{fault} + the server is down"

    def _show_scene(self) -> None:
        now = time.monotonic()
        if now - self._judged_at_s >= _JUDGE_EVERY_S:
            self._judged_at_s = now
            self._verdict = self._stage.judge().verdict(final=False)
        server = self._stage.server
        self._view.show(
            Scene(
                at_s=self._now_s,
                duration_s=self._seconds,
                fault=self._fault(),
                spans=self._spans,
                server=f"pid {server.pids[-1]}" if self._stage.serving else "down",
                screens=tuple(_screen(actor) for actor in self._stage.actors),
                verdict=self._verdict,
            )
        )


def _screen(actor: Actor) -> Screen:
    report = actor.report
    return Screen(
        user=actor.users[0],
        alive=actor.child.running,
        link=report.link or "starting",
        latency_ms=report.latency_ms,
        quality=report.quality,
        queued=report.pending,
        received=report.received,
        lines=report.lines,
    )
