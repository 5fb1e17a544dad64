"""An event loop on virtual time: when nothing is ready, its clock jumps to the next timer.

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())  # asyncio.sleep(3600) takes no time

While the loop runs, ``time.time``, ``time.monotonic`` and their ``_ns`` twins show virtual time too, in all
threads; ``time.perf_counter`` and ``datetime`` go on showing the real one. Time never passes while a job
runs on an executor (a store's commit, ``asyncio.to_thread``): the loop waits for it, in real time.

Invariants, which make a run repeatable: time moves only when no callback is ready and no job runs; the
results of jobs reach the loop one by one, in the order in which the jobs were submitted, whichever thread
was faster. (A job that has been running for ``OVERTAKE_S`` real seconds may be overtaken: another may be
what it waits for.)

There is no real network here: connections go over ``VirtualNetwork``. Nothing hangs in silence: when nothing
is ready, nothing is scheduled and no job runs, the main task is cancelled and ``NothingHappens`` says who
waits where; ``TimeRanOut`` does after ``limit_s`` of virtual time, and after ``JOB_S_MAX`` of one job.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import select
import selectors
import socket
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from whimbrel.testing.virtualnet import VirtualNetwork

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["NothingHappens", "TimeRanOut", "VirtualClock", "VirtualLoop"]

T = TypeVar("T")

WALL_START_S: Final = 1_767_225_600.0
"""2026-01-01T00:00:00Z: where the wall clock begins, in every run."""
MONOTONIC_START_S: Final = 1_000.0
LIMIT_S_DEFAULT: Final = 30 * 24 * 3600.0
OVERTAKE_S: Final = 5.0
JOB_S_MAX: Final = 60.0
"""Real seconds for which the loop waits for one job before it says that something is wrong."""
GRACE_S: Final = 3.0
"""Real seconds for which it waits for threads that are not its own, before nothing can happen any more."""
POLL_EVERY: Final = 64
"""Passes without a look at real events while there is always something to do."""
TASKS_TOLD_MAX: Final = 12

_REAL_TIME: Final = {name: getattr(time, name) for name in ("time", "time_ns", "monotonic", "monotonic_ns")}
_real_monotonic: Final = time.monotonic


class NothingHappens(Exception):
    """Everyone waits for someone else: no callback is ready, no timer is set, no job runs."""


class TimeRanOut(Exception):
    """Virtual time reached its limit, or a job on a thread its own, while the test still waited."""


class VirtualClock:
    """What time it is on a virtual loop. Only the loop moves it."""

    def __init__(self) -> None:
        self.limit_s = LIMIT_S_DEFAULT
        """How much virtual time may pass in all before ``TimeRanOut``."""
        self._now_s = MONOTONIC_START_S

    def __repr__(self) -> str:
        return f"<VirtualClock {self.passed_s:.3f} s>"

    @property
    def passed_s(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s - MONOTONIC_START_S

    def now(self) -> float:
        """The wall clock, seconds since 1970: what ``time.time()`` gives on this loop."""
        return WALL_START_S + self.passed_s

    def monotonic(self) -> float:
        """What ``time.monotonic()`` and ``loop.time()`` give on this loop."""
        return self._now_s

    async def advance(self, seconds: float) -> None:
        """Let this much time pass, and everything happen that is due meanwhile."""
        await asyncio.sleep(seconds)

    async def until(self, condition: Callable[[], bool], *, within_s: float = 3600.0) -> None:
        """Let time pass until ``condition()`` is true. Raises ``TimeoutError`` after ``within_s``."""
        async with asyncio.timeout(within_s):
            delay_s = 0.001
            while not condition():
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, 0.1)

    def move(self, seconds: float) -> None:
        """Let time jump; for the loop."""
        # However little it is, it must be seen: the loop asks again until its timer is due.
        self._now_s = max(self._now_s + seconds, math.nextafter(self._now_s, math.inf))
        if self.passed_s > self.limit_s:
            raise TimeRanOut(f"{self.limit_s:g} s of virtual time passed")


class _JumpingSelector(selectors.BaseSelector):
    """What the loop asks how long to wait; the answer is always: not at all."""

    def __init__(self) -> None:
        self.loop: VirtualLoop | None = None
        self._real = selectors.DefaultSelector()
        self._busy_passes = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Give real events if there are any; else let the loop deliver a job, or time jump."""
        if timeout is not None and timeout <= 0:
            self._busy_passes += 1
            if self._busy_passes % POLL_EVERY:
                return []
            return self._real.select(0)
        events = self._real.select(0)
        if not events and self.loop is not None:
            self.loop.idle(timeout)
        return events

    def wait(self, timeout: float) -> bool:
        """Wait for real events, in real time; says whether there are any. They stay to be selected."""
        if hasattr(select, "epoll") and isinstance(self._real, selectors.EpollSelector):
            readable, _, _ = select.select([self._real.fileno()], [], [], timeout)
            return bool(readable)
        return bool(self._real.select(timeout))

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        """See ``BaseSelector``."""
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """See ``BaseSelector``."""
        return self._real.unregister(fileobj)

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        """See ``BaseSelector``."""
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        """See ``BaseSelector``."""
        return self._real.get_map()

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """See ``BaseSelector``."""
        return self._real.get_key(fileobj)

    def close(self) -> None:
        """See ``BaseSelector``."""
        self.loop = None
        self._real.close()


class _Job:
    """Something that runs on a thread, and who on the loop waits for it."""

    __slots__ = ("inner", "name", "outer", "waited_since")

    def __init__(self, inner: concurrent.futures.Future[Any], outer: asyncio.Future[Any], name: str) -> None:
        self.inner = inner
        self.outer = outer
        self.name = name
        self.waited_since: float | None = None


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module. ``clock`` is its clock, ``network`` all there is to connect to."""

    def __init__(self, *, seed: int = 0) -> None:
        self.clock = VirtualClock()
        selector = _JumpingSelector()
        super().__init__(selector)
        selector.loop = self
        # The system's is too fine: after 100 virtual days a float does not hold it, and no timer is due.
        self._clock_resolution = 1e-6
        self._jumping = selector
        self._jobs: deque[_Job] = deque()
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._main: asyncio.Future[Any] | None = None
        self._stuck: Exception | None = None
        self.network = VirtualNetwork(self, seed=seed)

    def __repr__(self) -> str:
        return f"<VirtualLoop at {self.clock.passed_s:.3f} s>"

    def time(self) -> float:
        """Virtual monotonic time."""
        return self.clock.monotonic()

    def run_forever(self) -> None:
        """Run; meanwhile the module ``time`` shows virtual time."""
        clock = self.clock
        shown: dict[str, Callable[[], float]] = {
            "time": clock.now,
            "time_ns": lambda: round(clock.now() * 1e9),
            "monotonic": clock.monotonic,
            "monotonic_ns": lambda: round(clock.monotonic() * 1e9),
        }
        before = {name: getattr(time, name) for name in shown}
        for name, function in shown.items():
            setattr(time, name, function)
        try:
            super().run_forever()
        finally:
            for name, function in before.items():
                setattr(time, name, function)

    def run_until_complete(self, future: Awaitable[T]) -> T:  # type: ignore[override]  # less than a real loop takes
        """Run until it is done. Raises ``NothingHappens`` or ``TimeRanOut`` if it never would be."""
        __tracebackhide__ = True
        main: asyncio.Future[T] = asyncio.ensure_future(future, loop=self)
        self._main, self._stuck = main, None
        try:
            return super().run_until_complete(main)
        except asyncio.CancelledError as error:
            if self._stuck is not None:
                # Its cause shows the line at which the test waited.
                raise self._stuck from error
            raise
        finally:
            self._main = None

    def close(self) -> None:
        """End it, with its network and its threads."""
        if not self.is_closed():
            self.network.close()
        super().close()

    # --- threads -------------------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]  # less than a real loop takes
        self, executor: concurrent.futures.Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run it on a thread; time stands still until it is done."""
        self._check_open()
        if executor is None:
            if self._threads is None:
                self._threads = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="virtual")
                self.set_default_executor(self._threads)
            executor = self._threads
        inner = executor.submit(func, *args)
        outer: asyncio.Future[T] = self.create_future()
        self._jobs.append(_Job(inner, outer, getattr(func, "__qualname__", repr(func))))
        outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
        inner.add_done_callback(self._job_done)
        return outer

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the threads of the default executor, in real time."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True)

    def _check_open(self) -> None:
        if self.is_closed():
            raise RuntimeError("the event loop is closed")

    def _job_done(self, _: concurrent.futures.Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # closed meanwhile: nobody waits
            self.call_soon_threadsafe(_nothing)

    def _deliver(self, job: _Job) -> None:
        self._jobs.remove(job)
        inner, outer = job.inner, job.outer
        if outer.done():
            return
        if inner.cancelled():
            outer.cancel()
        elif (error := inner.exception()) is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    # --- nothing is ready ----------------------------------------------------------------------

    def idle(self, timeout: float | None) -> None:
        """Nothing is ready: deliver a job, or let time jump by ``timeout``, or give up. For the selector."""
        try:
            if self._jobs:
                self._wait_for_job()
            elif timeout is not None:
                self.clock.move(timeout)
            elif self._main is not None and not self._jumping.wait(GRACE_S):
                raise NothingHappens("nothing is ready, nothing is scheduled, and no job runs on a thread")
        except (NothingHappens, TimeRanOut) as error:
            self._give_up(error)

    def _wait_for_job(self) -> None:
        first = self._jobs[0]
        now = _real_monotonic()
        if first.waited_since is None:
            first.waited_since = now
        if not first.inner.done():
            waited_s = now - first.waited_since
            if waited_s < JOB_S_MAX:
                others = [job for job in self._jobs if job.inner.done()]
                if others and waited_s > OVERTAKE_S:
                    self._deliver(others[0])
                else:
                    self._jumping.wait(OVERTAKE_S)
                return
            raise TimeRanOut(f"{first.name} has been running on a thread for {JOB_S_MAX:g} real seconds")
        self._deliver(first)

    def _give_up(self, error: Exception) -> None:
        if self._main is None or self._main.done():
            raise error
        if self._stuck is not None:
            raise self._stuck  # it was cancelled once, and waits again
        told = self._who_waits()
        self._stuck = type(error)(f"{error}, {self.clock.passed_s:.3f} s into the test\n{told}")
        self.clock.limit_s = math.inf  # what is cancelled may need time to end
        self._main.cancel()

    def _who_waits(self) -> str:
        lines = []
        for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name()):
            place = _place_of(task.get_coro())
            mark = "  <- the test" if task is self._main else ""
            lines.append(f"  {task.get_name()} waits {place}{mark}")
        if len(lines) > TASKS_TOLD_MAX:
            lines = [*lines[:TASKS_TOLD_MAX], f"  and {len(lines) - TASKS_TOLD_MAX} more"]
        return "\n".join(lines)

    # --- the network ---------------------------------------------------------------------------

    async def create_connection(  # type: ignore[override]  # less than a real loop takes
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: Any = None,
        sock: socket.socket | None = None,
        **_: Any,
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect over the virtual network. Raises OSError as the real one does."""
        if sock is not None or ssl or host is None or port is None:
            raise RuntimeError("in virtual time there are no real sockets and no TLS: mark it real_time")
        return await self.network.connect(protocol_factory, host, port)

    async def create_server(  # type: ignore[override]  # less than a real loop takes
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: int | None = None,
        *,
        ssl: Any = None,
        sock: socket.socket | None = None,
        **_: Any,
    ) -> asyncio.AbstractServer:
        """Listen on the virtual network; port 0 takes any free one."""
        if sock is not None or ssl:
            raise RuntimeError("in virtual time there are no real sockets and no TLS: mark it real_time")
        return self.network.listen(protocol_factory, host or "127.0.0.1", port or 0)

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        """Names stand for themselves on the virtual network."""
        name = host.decode() if isinstance(host, bytes) else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name or "127.0.0.1", int(port or 0)))]

    async def subprocess_exec(self, *_: Any, **__: Any) -> Any:
        """Raise RuntimeError: another process knows nothing of virtual time."""
        raise RuntimeError("in virtual time there are no other processes: mark it real_time")

    async def subprocess_shell(self, *_: Any, **__: Any) -> Any:
        """Raise RuntimeError: another process knows nothing of virtual time."""
        raise RuntimeError("in virtual time there are no other processes: mark it real_time")


def _nothing() -> None:
    """Wake the loop."""


def _place_of(coroutine: Coroutine[Any, Any, Any] | Any) -> str:
    """Where a suspended coroutine stands: its own line, and the innermost one if that is elsewhere."""
    frames: list[traceback.FrameSummary] = []
    while coroutine is not None and len(frames) < 100:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is None:
            break
        frames.append(traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    if not frames:
        return "somewhere"
    place = f"at {frames[0].filename}:{frames[0].lineno} ({frames[0].name})"
    return place if len(frames) == 1 else f"{place}, in {frames[-1].name}"
