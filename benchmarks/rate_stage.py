"""Runs one system's three processes, and measures how fast, at what cost, how soon one at a time.

    async with Stage.of("whimbrel", folder) as stage:
        burst = await stage.burst(in_flight=100, seconds=4)

Every burst is behind a warm-up of its own, which also says how many messages take about so many seconds.
CPU is the time the kernel counted for the whole process, all threads, user and system, from before the
first message is sent until both apps are done. A measurement in which a message was lost, doubled, changed
or out of order raises `Invalid`. All processes are ended and reaped when the stage is left, whatever
happened.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import msgspec

from benchmarks.rate_ends import Order, Report, Role, Served, by_name

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120.0
"""For any one order; far more than it takes."""
STOP_WITHIN_S = 20.0
LINE_BYTES_MAX = 64 * 1024 * 1024
COUNT_MIN, COUNT_MAX = 200, 500_000


class Invalid(Exception):
    """What was measured does not count, and why."""


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """CPU of each process, in µs a message."""

    sender_us: float
    server_us: float
    receiver_us: float

    @property
    def total_us(self) -> float:
        """All three."""
        return self.sender_us + self.server_us + self.receiver_us


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Many messages, as fast as they go."""

    count: int
    duration_s: float
    """From the first send to the last that the receiving app got."""
    cpu: Cpu

    @property
    def rate(self) -> float:
        """Messages/s."""
        return self.count / self.duration_s


class Singles(msgspec.Struct, frozen=True, kw_only=True):
    """Messages one at a time; each list is in their order, in ms from the call of send."""

    on_disk_ms: list[float]
    delivered_ms: list[float]
    received_ms: list[float]


class _Child:
    """A process that takes orders."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def order(self, order: Order) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")

    async def report(self) -> Report:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Invalid(f"not done within {LIMIT_S:.0f} s: a message was lost?") from None
        if not line:
            raise Invalid("a process ended before it was done; its own output says why")
        report = msgspec.json.decode(line, type=Report)
        if report.wrong:
            raise Invalid(report.wrong)
        return report

    async def end(self) -> None:
        """End of input is its end; a profile is written then."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(STOP_WITHIN_S):
            await self._process.wait()

    async def reap(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Stage:
    """A system's three processes, ready."""

    def __init__(self, served: Served, sender: _Child, receiver: _Child) -> None:
        self._served = served
        self._sender = sender
        self._receiver = receiver

    @classmethod
    @asynccontextmanager
    async def of(
        cls, name: str, folder: Path, *, profile: Path | None = None, uvloop: bool = False
    ) -> AsyncIterator[Self]:
        """Start all three, below a new folder in this one, which is removed at the end."""
        system = by_name(name)
        below = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=folder))
        async with AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, below, ignore_errors=True)
            for part in ("server", "sender", "receiver"):
                (below / part).mkdir()
            served = await stack.enter_async_context(system.serve(name, below / "server", profile))
            children = []
            for part in ("receiver", "sender"):
                role = Role(
                    system=name,
                    sends=part == "sender",
                    address=served.address,
                    folder=str(below / part),
                    profile=str(profile or ""),
                    uvloop=uvloop,
                )
                child = await _start(role)
                stack.push_async_callback(child.reap)
                await child.report()
                children.append(child)
            receiver, sender = children
            stage = cls(served, sender, receiver)
            yield stage
            receiver.order(Order(count=0))
            await receiver.report()
            await sender.end()
            await receiver.end()

    async def burst(
        self, *, in_flight: int, seconds: float, warm_up: int = 3_000, count: int | None = None
    ) -> Burst:
        """Measure a burst of about so many seconds, or of `count` messages. Raises `Invalid`."""
        warm = await self._burst(warm_up, in_flight)
        if count is None:
            count = min(max(round(warm.rate * seconds), COUNT_MIN), COUNT_MAX)
        return await self._burst(count, in_flight)

    async def _burst(self, count: int, in_flight: int) -> Burst:
        pids = (self._sender.pid, self._served.pid, self._receiver.pid)
        before = [cpu_s(pid) for pid in pids]
        sent, received = await self._carry_out(Order(count=count, in_flight=in_flight))
        after = [cpu_s(pid) for pid in pids]
        each = [(end - begin) * 1e6 / count for begin, end in zip(before, after, strict=True)]
        return Burst(
            count=count,
            duration_s=received.last - sent.first,
            cpu=Cpu(sender_us=each[0], server_us=each[1], receiver_us=each[2]),
        )

    async def singles(self, count: int, *, pause_s: float, warm_up: int) -> Singles:
        """Send one at a time. Raises `Invalid`."""
        await self._carry_out(Order(count=warm_up, pause_s=pause_s))
        sent, received = await self._carry_out(Order(count=count, pause_s=pause_s))
        arrived = [(at - begun) * 1e3 for (begun, _, _), at in zip(sent.singles, received.times, strict=True)]
        return Singles(
            on_disk_ms=[(on_disk - begun) * 1e3 for begun, on_disk, _ in sent.singles],
            delivered_ms=[(delivered - begun) * 1e3 for begun, _, delivered in sent.singles],
            received_ms=arrived,
        )

    async def _carry_out(self, order: Order) -> tuple[Report, Report]:
        # The receiver first: it is waiting when the first message comes.
        self._receiver.order(order)
        self._sender.order(order)
        sent, received = await asyncio.gather(self._sender.report(), self._receiver.report())
        return sent, received


async def _start(role: Role) -> _Child:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.rate_child", msgspec.json.encode(role).decode(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        cwd=ROOT,
    )  # fmt: skip
    return _Child(process)


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, user and system, of all its threads; in ticks of 10 ms."""
    # The name of the program, in parentheses, may hold anything; numbers begin behind the last one.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
