"""What a client costs when nothing happens, and what a message costs on the wire.

An idle hour, in virtual time: the real client, with its store in memory, and the real server on a network in
memory with 30 ms each way; nothing is sent by anybody. Counted are, from the second minute on,

    packets    segments that carry bytes, both ways, the refresh of the access token over HTTP with them;
               bare acknowledgements of TCP, which a kernel sends or spares as it likes, are told in the note
    wake-ups   moments at which the client does anything after a second or more of doing nothing: a timer of
               its own that fired, or bytes that came; no finer, since no radio sleeps for less

Bytes on the wire, in real time over real sockets: Anna sends Ben messages of 100 bytes. Counted is everything
that passes between Anna's client and the server in both directions, WebSocket framing included, TCP and IP
not: the message, the answer that it is delivered, and the receipts that say that Ben has received and read
it, and whatever pings fall into that time. Divided by the number of messages. Ids are those the system makes.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.figures import Figure, Settings, figure, invalid
from benchmarks.stand import add_users, alone, credentials, own_folder, running_server
from benchmarks.stores import OTHER, USER
from whimbrel import Client, EventStream, MessageReceived, ReceiptChanged
from whimbrel.testing.memoryserver import MemoryServer
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.proxy_counters import WayName
from whimbrel.testing.proxy_faults import Latency
from whimbrel.testing.virtualtime import VirtualLoop

HOUR_S, HOUR_QUICK_S = 3600.0, 900.0
SETTLE_S = 120.0
ONE_WAY_S = 0.03
AWAKE_S = 1.0
CONNECT_WITHIN_S = 60.0
READ_WITHIN_S = 30.0
PACES: dict[str, tuple[int, float]] = {
    "one by one": (20, 1.5),
    "ten a second": (200, 0.1),
}
"""How many messages, and how far apart, in seconds."""
TEXT = "The ferry leaves at ten past six from the second pier; do not wait for me, I take the next one. Ann."
assert len(TEXT) == 100

_who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="")


def measure(settings: Settings) -> Iterable[Figure]:
    """The hour, then the bytes."""
    hour_s = HOUR_QUICK_S if settings.quick else HOUR_S
    idle = idle_hour(hour_s)
    per_hour = HOUR_S / hour_s
    acks = (
        f"with a bare acknowledgement for each that came {per_hour * (idle.packets + idle.packets_down):.0f}"
    )
    name = "idle client, one hour of virtual time"
    yield figure(f"{name}: packets", per_hour * idle.packets, "packets", "<= 360", note=acks)
    moments = (
        f"{per_hour * idle.moments:.0f} moments at which anything ran, answers to its own pings included"
    )
    yield figure(f"{name}: wake-ups", per_hour * idle.wake_ups, "wake-ups", "<= 400", note=moments)
    yield figure(f"{name}: bytes", per_hour * idle.size_bytes, "bytes")
    for pace, (count, apart_s) in PACES.items():
        name, target = f"bytes for a message of 100 with its receipts, {pace}", "<= 300"
        with own_folder(settings, "bytes") as folder:
            sizes = asyncio.run(_talk(folder, count if not settings.quick else count // 5, apart_s))
        if sizes is None:
            yield invalid(name, "bytes", target, why="not every message was delivered and read")
            continue
        up, down = sizes
        yield figure(name, up + down, "bytes", target, note=f"{up:.0f} up, {down:.0f} down")


# --- an idle hour --------------------------------------------------------------------------------


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """What the time cost."""

    packets: int
    packets_down: int
    wake_ups: int
    moments: int
    size_bytes: int


class _Arrivals(dict[WayName, int]):
    """The count of what passed, which notes when something came down."""

    def __init__(self, counts: dict[WayName, int], clock: Callable[[], float]) -> None:
        super().__init__(counts)
        self.at_s: list[float] = []
        self._clock = clock

    def __setitem__(self, way: WayName, count: int) -> None:
        super().__setitem__(way, count)
        if way == "down":
            self.at_s.append(self._clock())


class _WatchedLoop(VirtualLoop):
    """Notes when timers of the client fire: of whatever runs in its context."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.moments: list[float] = []

    # The stubs tie the arguments to the callback's own types; here they are only handed on.
    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        if (context or contextvars.copy_context()).get(_who, "") != "client":
            return super().call_at(when, callback, *args, context=context)

        def fire(*values: Any) -> None:
            self.moments.append(self.time())
            callback(*values)

        return super().call_at(when, fire, *args, context=context)


def idle_hour(hour_s: float) -> Idle:
    """Live through an hour in which nothing happens."""
    with asyncio.Runner(loop_factory=_WatchedLoop) as runner:
        return runner.run(_idle(hour_s))


async def _idle(hour_s: float) -> Idle:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _WatchedLoop)
    road = loop.network.road("client")
    async with MemoryServer() as server:
        with loop.network.on("client"), loop.network.during(Latency(latency_s=ONE_WAY_S)):
            _who.set("client")
            async with Client(server.url, None, server.user(USER)) as client:
                _who.set("")
                await client.connected(CONNECT_WITHIN_S)
                await asyncio.sleep(SETTLE_S)
                before, began_at_s = road.counters, loop.time()
                road.tally.chunks = arrivals = _Arrivals(road.tally.chunks, loop.time)
                await asyncio.sleep(hour_s)
                after, ended_at_s = road.counters, loop.time()
    own = [at_s for at_s in loop.moments if began_at_s <= at_s < ended_at_s]
    moments = sorted({round(at_s, 3) for at_s in (*own, *arrivals.at_s)})
    up, down = (getattr(after, f"chunks_{way}") - getattr(before, f"chunks_{way}") for way in ("up", "down"))
    size = sum(getattr(after, f"bytes_{way}") - getattr(before, f"bytes_{way}") for way in ("up", "down"))
    return Idle(
        packets=up + down,
        packets_down=down,
        wake_ups=sum(now - last >= AWAKE_S for last, now in zip([-AWAKE_S, *moments], moments, strict=False)),
        moments=len(moments),
        size_bytes=size,
    )


# --- bytes on the wire ---------------------------------------------------------------------------


async def _talk(folder: Path, count: int, apart_s: float) -> tuple[float, float] | None:
    """Bytes up and down for each message, or None if something did not arrive."""
    add_users(folder, [USER, OTHER])
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_server(folder))
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", server.port))
        anna = Client(f"http://127.0.0.1:{proxy.port}", None, credentials(USER))
        ben = Client(server.url, None, credentials(OTHER))
        for client in (anna, ben):
            await stack.enter_async_context(client)
            await client.connected(CONNECT_WITHIN_S)
        room = (await anna.create_conversation(OTHER, title="ferry")).id
        reading = asyncio.create_task(_read_all(ben))
        stack.callback(reading.cancel)
        told = anna.events()
        # The first one is not counted: with it, everything that happens once has happened.
        first = await anna.send(room, TEXT)
        await first.delivered(CONNECT_WITHIN_S)
        await asyncio.sleep(3.0)
        before = proxy.counters
        began_at_s = time.monotonic()
        sent = []
        for number in range(count):
            await asyncio.sleep(max(0.0, began_at_s + number * apart_s - time.monotonic()))
            sent.append(await anna.send(room, TEXT))
        for message in sent[:-1]:
            await message.delivered(CONNECT_WITHIN_S)
        last = await sent[-1].delivered(CONNECT_WITHIN_S)
        try:
            async with asyncio.timeout(READ_WITHIN_S):
                await _read_up_to(told, last.seq or 0)
        except TimeoutError:
            return None
        after = proxy.counters
        return (
            (after.bytes_up - before.bytes_up) / count,
            (after.bytes_down - before.bytes_down) / count,
        )


async def _read_up_to(told: EventStream, seq: int) -> None:
    """Wait until the other member has read so far."""
    async for event in told:
        if isinstance(event, ReceiptChanged) and event.receipt.user == OTHER and event.receipt.read >= seq:
            return


async def _read_all(client: Client) -> None:
    """Ben reads what comes as it comes."""
    async for event in client.events():
        if isinstance(event, MessageReceived):
            await client.conversation(event.message.conversation).mark_read()


if __name__ == "__main__":
    raise SystemExit(alone(measure))
