"""One app of a measurement, in a process of its own: `python -m benchmarks.rate_child '<Role as JSON>'`.

Says `Report()` when it is ready, then takes orders from standard input, one line each, and answers each
with one line, until the input ends. At the end the receiver looks once more whether anything came that
nobody sent.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from benchmarks.rate_ends import Order, ReceivingEnd, Report, Role, SendingEnd, by_name
from benchmarks.rate_profile import profiled
from benchmarks.rate_texts import Arrivals

TOO_MANY_WITHIN_S = 0.3


async def _orders(answer: Callable[[Report], None], carry_out: Callable[[Order], Awaitable[Report]]) -> None:
    answer(Report())
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer(await carry_out(msgspec.json.decode(line, type=Order)))


class Sending:
    """Sends, and takes the times."""

    def __init__(self, end: SendingEnd) -> None:
        self._end = end
        self._next = 0

    async def __call__(self, order: Order) -> Report:
        """Send what is ordered."""
        first, self._next = self._next, self._next + order.count
        begun = time.monotonic()
        if order.pause_s is None:
            await self._end.burst(first, order.count, order.in_flight)
            return Report(first=begun, last=time.monotonic())
        singles = []
        for number in range(first, first + order.count):
            at = time.monotonic()
            on_disk, delivered = await self._end.one(number)
            singles.append((at, on_disk, delivered))
            await asyncio.sleep(order.pause_s)
        return Report(first=begun, last=singles[-1][2], singles=singles)


class Receiving:
    """Receives, and checks what it gets."""

    def __init__(self, end: ReceivingEnd, *, ordered: bool) -> None:
        self._end = end
        self._arrivals = Arrivals(ordered=ordered)

    async def __call__(self, order: Order) -> Report:
        """Receive what is ordered."""
        arrivals = self._arrivals
        arrivals.expect(order.count)
        if order.count:
            await self._end.receive(arrivals)
        else:
            await self._nothing()
        times = arrivals.times or [0.0]
        return Report(
            first=times[0],
            last=times[-1],
            wrong=arrivals.wrong,
            times=arrivals.times if order.pause_s is not None else [],
        )

    async def _nothing(self) -> None:
        """See that nothing more comes: an order of one that must not be fulfilled."""
        extra = Arrivals(ordered=False)
        extra.expect(1)
        try:
            async with asyncio.timeout(TOO_MANY_WITHIN_S):
                await self._end.receive(extra)
        except TimeoutError:
            return
        self._arrivals.wrong = self._arrivals.wrong or "more arrived than was sent"


async def _main(role: Role) -> None:
    system = by_name(role.system)

    def answer(report: Report) -> None:
        sys.stdout.write(f"{msgspec.json.encode(report).decode()}\n")
        sys.stdout.flush()

    if role.sends:
        sender = system.sender(role)
        await sender.open()
        try:
            await _orders(answer, Sending(sender))
        finally:
            await sender.close()
    else:
        receiver = system.receiver(role)
        await receiver.open()
        try:
            await _orders(answer, Receiving(receiver, ordered=system.keeps_order(role.system)))
        finally:
            await receiver.close()


def main() -> None:
    """Be the app that the argument says."""
    role = msgspec.json.decode(sys.argv[1], type=Role)
    loop_factory = None
    if role.uvloop:
        import uvloop  # noqa: PLC0415 - only where it is asked for

        loop_factory = uvloop.new_event_loop
    with (
        profiled(Path(role.profile) if role.profile else None, "sender" if role.sends else "receiver"),
        asyncio.Runner(loop_factory=loop_factory) as runner,
    ):
        runner.run(_main(role))


if __name__ == "__main__":
    main()
