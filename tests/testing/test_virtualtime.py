"""Time that jumps: exactly, repeatably, never past work that is still to be done."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from whimbrel.testing import NothingHappens, TimeRanOut, VirtualClock, VirtualLoop
from whimbrel.testing import virtualtime as module

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def wrapped() -> T:
        return await main()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(wrapped())


def clock() -> VirtualClock:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.clock


def test_a_year_takes_no_time() -> None:
    async def main() -> tuple[float, float]:
        clock().limit_s = 1e9
        began = time.time(), time.monotonic()
        await asyncio.sleep(365 * 24 * 3600)
        return time.time() - began[0], time.monotonic() - began[1]

    began = time.perf_counter()
    assert run(main) == (365 * 24 * 3600, 365 * 24 * 3600)
    assert time.perf_counter() - began < 60


def test_timers_come_in_their_order_at_their_time() -> None:
    async def main() -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def one(name: str, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            seen.append((name, round(clock().passed_s, 6)))

        await asyncio.gather(one("c", 3), one("a", 0.5), one("b", 0.5), one("d", 86_400.25))
        return seen

    assert run(main) == [("a", 0.5), ("b", 0.5), ("c", 3), ("d", 86_400.25)]


def test_timeouts_are_virtual_too() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await asyncio.Event().wait()
        return clock().passed_s

    assert run(main) == 600


def test_the_module_time_is_virtual_while_the_loop_runs_and_only_then() -> None:
    async def main() -> tuple[float, float, int, int]:
        await asyncio.sleep(5)
        in_thread = await asyncio.to_thread(time.time)
        return time.time(), in_thread, time.time_ns(), time.monotonic_ns()

    before = time.time, time.monotonic, time.time_ns, time.monotonic_ns
    now, in_thread, now_ns, monotonic_ns = run(main)
    assert now == in_thread == module.WALL_START_S + 5
    assert (now_ns, monotonic_ns) == (round(now * 1e9), round((module.MONOTONIC_START_S + 5) * 1e9))
    assert before == (time.time, time.monotonic, time.time_ns, time.monotonic_ns)


def test_time_waits_for_threads() -> None:
    async def main() -> float:
        release = threading.Event()
        job = asyncio.create_task(asyncio.to_thread(release.wait, 30))
        # In real time, a quarter of a second from now: the loop has to wait for it.
        threading.Timer(0.25, release.set).start()
        sleeping = asyncio.create_task(asyncio.sleep(3600))
        assert await job
        assert not sleeping.done()
        passed_s = clock().passed_s
        await sleeping
        return passed_s

    assert run(main) == 0


def test_results_of_threads_come_in_the_order_in_which_they_were_asked_for() -> None:
    async def main() -> list[int]:
        seen: list[int] = []
        barrier = threading.Barrier(2)
        gates = [threading.Event() for _ in range(2)]

        def slow() -> None:
            barrier.wait(30)
            assert gates[0].wait(30)

        def fast() -> None:
            barrier.wait(30)
            gates[1].set()

        async def one(number: int, work: Callable[[], None]) -> None:
            await asyncio.to_thread(work)
            seen.append(number)

        def let_go() -> None:
            assert gates[1].wait(30)  # the second is done before the first may end
            gates[0].set()

        threading.Thread(target=let_go).start()
        await asyncio.gather(one(1, slow), one(2, fast))
        return seen

    assert run(main) == [1, 2]


def test_a_thread_that_waits_for_a_later_one_is_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OVERTAKE_S", 0.05)

    async def main() -> str:
        release = threading.Event()
        first = asyncio.create_task(asyncio.to_thread(release.wait, 30))
        await asyncio.to_thread(lambda: None)
        release.set()
        return "done" if await first else "never"

    assert run(main) == "done"


def test_errors_and_cancellation_of_threads_arrive() -> None:
    async def main() -> None:
        def fails() -> None:
            raise LookupError("nothing there")

        with pytest.raises(LookupError, match="nothing there"):
            await asyncio.to_thread(fails)
        gate = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            loop = asyncio.get_running_loop()
            first = loop.run_in_executor(threads, gate.wait, 30)
            second = loop.run_in_executor(threads, gate.wait, 30)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            gate.set()
            assert await first

    run(main)


def test_leaving_waits_for_threads_that_nobody_awaits() -> None:
    done: list[int] = []
    release = threading.Event()

    def work() -> None:
        release.wait(30)
        done.append(1)

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, work)
        threading.Timer(0.1, release.set).start()

    run(main)
    assert done == [1]


def test_threads_may_call_into_the_loop() -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()

        async def answer() -> str:
            await asyncio.sleep(0)
            return "from the loop"

        def ask() -> str:
            return asyncio.run_coroutine_threadsafe(answer(), loop).result(30)

        return await asyncio.to_thread(ask)

    assert run(main) == "from the loop"


def test_a_thread_of_its_own_may_wake_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 60.0)

    async def main() -> str:
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        threading.Timer(0.1, lambda: loop.call_soon_threadsafe(future.set_result, "woken")).start()
        return str(await future)

    assert run(main) == "woken"


def test_nothing_happens_is_told_with_who_waits_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.01)

    async def forgotten() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(forgotten(), name="the forgotten one")
        await asyncio.sleep(7)
        await task

    with pytest.raises(NothingHappens) as told:
        run(main)
    assert "7.000 s into the test" in str(told.value)
    assert "the forgotten one waits at" in str(told.value)
    assert "test_virtualtime.py" in str(told.value)
    assert isinstance(told.value.__cause__, asyncio.CancelledError)


def test_who_does_not_let_itself_be_cancelled_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.01)

    async def main() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if isinstance(asyncio.get_running_loop(), VirtualLoop) and clock().limit_s < 1e9:
                    raise

    loop = VirtualLoop()
    try:
        with pytest.raises(NothingHappens):
            loop.run_until_complete(main())
        for task in asyncio.all_tasks(loop):
            loop.clock.limit_s = 1.0
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


def test_virtual_time_is_bounded() -> None:
    async def main() -> None:
        clock().limit_s = 1_000
        for _ in range(10_000):
            await asyncio.sleep(10)

    with pytest.raises(TimeRanOut, match="1000 s of virtual time"):
        run(main)


def test_a_thread_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOB_S_MAX", 0.2)
    monkeypatch.setattr(module, "OVERTAKE_S", 0.05)
    release = threading.Event()

    def stuck() -> None:
        release.wait(30)

    async def main() -> None:
        try:
            await asyncio.to_thread(stuck)
        finally:
            release.set()

    with pytest.raises(TimeRanOut, match="stuck"):
        run(main)


def test_until_waits_for_a_condition() -> None:
    async def main() -> float:
        done: list[int] = []
        asyncio.get_running_loop().call_later(42, done.append, 1)
        await clock().until(lambda: bool(done))
        with pytest.raises(TimeoutError):
            await clock().until(lambda: False, within_s=5)
        return clock().passed_s

    assert 47 <= run(main) < 47.2
