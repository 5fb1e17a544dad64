"""A storm: faults from a seed, while an app is at work; then a judge that looks whether all promises held.

    async with storm:                 # the faults begin
        for order in orders:
            await bot.take(order)     # the app is at work
    # the storm has passed, every outbox is empty, nothing was lost, doubled, changed or reordered

Apps that the storm may kill and start again are given to it as coroutine functions::

    storm.app("bot", lambda: run_bot(server.url, folder / "bot.db"))

A kill cancels the app's task where it stands and cuts its connections; what it had in memory is gone, what
it had stored is there when it is started again. (In one process no more can be done: its ``finally`` blocks
still run.)

States: calm → blowing → over. The same seed gives the same storm; on a virtual loop, the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from whimbrel.testing.memoryserver import MemoryServer
from whimbrel.testing.proxy_faults import HalfOpen, Kill, Refuse
from whimbrel.testing.schedule import FaultChange, ProcessAction, Schedule, Weather, run_schedule
from whimbrel.testing.stormplan import FAULT_KINDS, storm_plan
from whimbrel.testing.virtualnet import PatchyNetwork, VirtualNetwork
from whimbrel.testing.witness import Witness, judge, settled

__all__ = ["App", "Storm", "StormBroke"]

APPS_MAX: Final = 100
STORY_LINES_MAX: Final = 400
KILLED_WITHIN_S: Final = 60.0
LOOK_EVERY_S: Final = 0.1


class StormBroke(AssertionError):
    """A promise was broken. Its text says which, and how to repeat the storm."""


class App:
    """Something the storm may kill: a coroutine function that works until it is cancelled, or is done."""

    def __init__(self, name: str, run: Callable[[], Awaitable[Any]], network: VirtualNetwork | None) -> None:
        self.name = name
        self.starts = 0
        """How often it was started."""
        self._run = run
        self._network = network
        self._task: asyncio.Future[Any] | None = None
        self._killed = False
        """However its function took the cancellation."""

    def __repr__(self) -> str:
        return f"<App {self.name} {'running' if self.running else 'down'} starts={self.starts}>"

    @property
    def running(self) -> bool:
        """Whether it is at work."""
        return self._task is not None and not self._task.done()

    @property
    def failure(self) -> BaseException | None:
        """What it failed with, if it did so by itself."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    def start(self) -> None:
        """Start it, or start it again. Nothing if it runs, or ended by itself."""
        if self._task is not None and not self._killed:
            return
        if self.failure is not None:
            return
        self._killed = False
        self.starts += 1
        with self._network.on(self.name) if self._network is not None else contextlib.nullcontext():
            self._task = asyncio.ensure_future(self._run())

    async def kill(self) -> None:
        """Cut its connections, cancel it where it stands, and wait until it is gone."""
        task = self._task
        if task is None or task.done():
            return
        self._killed = True
        with contextlib.ExitStack() as silence:
            if self._network is not None:
                road = self._network.road(self.name)
                road.reset_connections()
                silence.enter_context(road.during(HalfOpen()))  # the dead send no farewell
            task.cancel()
            await asyncio.wait([task], timeout=KILLED_WITHIN_S)
        if not task.done():
            raise StormBroke(f"app {self.name} does not end when it is cancelled")


class Storm:
    """See the module. Made by the fixture ``storm``, or by ``World``."""

    def __init__(
        self,
        seed: int,
        server: MemoryServer,
        weather: Weather,
        *,
        duration_s: float = 300.0,
        faults: Sequence[str] = FAULT_KINDS,
        quiet_within_s: float = 900.0,
    ) -> None:
        """``quiet_within_s``: how long after the storm all outboxes must be empty."""
        self.seed = seed
        self.random = random.Random(seed)
        """Chance of the same seed, for the test's own choices."""
        self.duration_s = duration_s
        self.faults = tuple(faults)
        self.schedule: Schedule | None = None
        """The timetable; set before the storm begins, it is used instead of one made from the seed."""
        self.quiet_within_s = quiet_within_s
        self.story: list[str] = []
        """What happened when, for a person."""
        self.witness = Witness()
        self._server = server
        self._network = weather if isinstance(weather, VirtualNetwork) else None
        self._weather = PatchyNetwork(weather, seed) if isinstance(weather, VirtualNetwork) else weather
        self._apps: list[App] = []
        self._blowing: asyncio.Future[Any] | None = None
        self._began_at_s = 0.0
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Storm {self.seed}: {self._weather.present_fault}>"

    def app(self, name: str, run: Callable[[], Awaitable[Any]]) -> App:
        """Start an app which the storm may kill and start again; its connections take a road of its name."""
        if len(self._apps) >= APPS_MAX:
            raise ValueError(f"a storm has at most {APPS_MAX} apps")
        app = App(name, run, self._network)
        self._apps.append(app)
        app.start()
        return app

    async def __aenter__(self) -> Storm:
        self.begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            await self._stop()
            return
        await self.passed()
        await self.over()

    def begin(self) -> None:
        """Let the faults begin; they go on beside the test."""
        if self._blowing is not None:
            raise RuntimeError("a storm blows once")
        if self.schedule is None:
            self.schedule = storm_plan(
                self.seed, duration_s=self.duration_s, faults=self.faults, apps=len(self._apps)
            )
        self._began_at_s = asyncio.get_running_loop().time()
        self._tell(f"{self.schedule.name} begins, for {self.schedule.duration_s:g} s")
        self._blowing = asyncio.ensure_future(
            run_schedule(
                self.schedule, self._weather, on_fault=self._told, on_process_fault=self._process_fault
            )
        )

    async def passed(self) -> None:
        """Wait until the last fault has ended."""
        if self._blowing is not None:
            await self._blowing

    async def over(self) -> None:
        """End the storm, wait until all is quiet, and judge. Raises ``StormBroke``.

        Quiet is: the server and all apps are up, every outbox is empty, and every open client has what
        the server has. Apps are still running when this returns.
        """
        await self._stop()
        await self._server.start()
        for app in self._apps:
            app.start()
        self._tell("the storm is over")
        await self._quiet()
        self._is_over = True
        findings = [f"app {app.name} failed: {app.failure!r}" for app in self._apps if app.failure]
        findings += await judge(self._server, self.witness)
        for finding in findings:
            self._tell(f"BROKEN: {finding}")
        if findings:
            raise StormBroke("\n".join([f"storm {self.seed} broke a promise:", *findings]))

    async def until(self, condition: Callable[[], bool], *, within_s: float = 600.0) -> None:
        """Wait until ``condition()`` is true: for what the app still has to do. Raises ``StormBroke``."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while not condition():
            failures = [f"app {app.name} failed: {app.failure!r}" for app in self._apps if app.failure]
            if failures or loop.time() > until:
                waited = f"{within_s:g} s after storm {self.seed}, what was awaited is not there"
                raise StormBroke("\n".join(failures or [waited]))
            await asyncio.sleep(LOOK_EVERY_S)

    async def aclose(self) -> None:
        """End faults and apps, without a judgement. May be called twice."""
        await self._stop()
        for app in self._apps:
            await app.kill()

    def report(self, lines_max: int = 60) -> str:
        """The seed and the story, for a person."""
        told = self.story[-lines_max:]
        left_out = len(self.story) - len(told)
        head = [f"seed {self.seed}"] + ([f"({left_out} lines before)"] if left_out else [])
        return "\n".join(head + told)

    # --- within --------------------------------------------------------------------------------

    async def _stop(self) -> None:
        blowing = self._blowing
        if blowing is not None and not blowing.done():
            blowing.cancel()
            await asyncio.wait([blowing])
        self._weather.calm()

    async def _quiet(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.quiet_within_s
        while True:
            await self._server.settled()
            if any(app.failure for app in self._apps):
                return
            waits_for = await settled(self._server, self.witness.clients)
            if not waits_for:
                self._tell("all is quiet")
                return
            if loop.time() > until:
                raise StormBroke(f"{self.quiet_within_s:g} s after storm {self.seed}, {waits_for}")
            await asyncio.sleep(LOOK_EVERY_S)

    def _told(self, change: FaultChange) -> None:
        if isinstance(change.fault, Kill):
            return  # told when it was carried out
        if change.began and isinstance(change.fault, Refuse):
            self._weather.reset_connections()  # whoever is connected would not notice
        what = "begins" if change.began else "ends"
        where = f" {self._weather.struck}" if isinstance(self._weather, PatchyNetwork) else ""
        self._tell(f"{change.fault.describe()} {what}{where}")

    async def _process_fault(self, fault: Kill, action: ProcessAction) -> None:
        role, _, number = fault.target.partition(":")
        if role == "server":
            if action == "kill":
                self._server.crash()
            else:
                await self._server.start()
        elif 0 < int(number) <= len(self._apps):
            app = self._apps[int(number) - 1]
            await app.kill() if action == "kill" else app.start()
        self._tell(f"{fault.target} {'killed' if action == 'kill' else 'started again'}")

    def _tell(self, text: str) -> None:
        if len(self.story) < STORY_LINES_MAX:
            at_s = asyncio.get_running_loop().time() - self._began_at_s
            self.story.append(f"{at_s:10.3f}  {text}")
