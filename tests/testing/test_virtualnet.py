"""The network in memory, by itself: asyncio's own streams over it, and every fault."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from whimbrel.testing import (
    ChunkLoss,
    DropAnswer,
    HalfOpen,
    Latency,
    LimitCapacity,
    Refuse,
    Reset,
    Stall,
    VirtualClock,
    VirtualNetwork,
)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PORT = 7


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@pytest.fixture
async def server(whimbrel_network: VirtualNetwork) -> AsyncIterator[asyncio.Server]:
    async with await asyncio.start_server(echo, "127.0.0.1", PORT) as server:
        yield server
        while _writers:
            _writers.pop().close()


_writers: list[asyncio.StreamWriter] = []


async def connected() -> Streams:
    """A connection that is closed after the test."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    _writers.append(writer)
    return reader, writer


async def said(streams: Streams, text: bytes) -> bytes:
    reader, writer = streams
    writer.write(text)
    return await reader.readexactly(len(text))


@pytest.mark.usefixtures("server")
class TestCalm:
    async def test_bytes_come_through_unchanged(self) -> None:
        reader, writer = await connected()
        sent = bytes(range(256)) * 4_096
        writing = asyncio.create_task(asyncio.wait_for(_all(writer, sent), 10))
        assert await reader.readexactly(len(sent)) == sent
        await writing
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async def test_who_does_not_read_holds_up_who_writes(self, virtual_clock: VirtualClock) -> None:
        _, writer = await connected()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_all(writer, b"x" * 8_000_000), 60)
        assert writer.transport.get_write_buffer_size() < 500_000

    async def test_nobody_listens_elsewhere(self) -> None:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", PORT + 1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("example.org", PORT)

    async def test_a_port_is_taken_once(self) -> None:
        with pytest.raises(OSError, match="in use"):
            await asyncio.start_server(echo, "localhost", PORT)

    async def test_a_server_that_closed_refuses_and_may_come_back(self, server: asyncio.Server) -> None:
        streams = await connected()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await connected()
        assert await said(streams, b"who is there stays") == b"who is there stays"
        async with await asyncio.start_server(echo, "127.0.0.1", PORT):
            await connected()


async def _all(writer: asyncio.StreamWriter, data: bytes) -> None:
    for begin in range(0, len(data), 10_000):
        writer.write(data[begin : begin + 10_000])
        await writer.drain()


@pytest.mark.usefixtures("server")
class TestFaults:
    async def test_latency(self, whimbrel_network: VirtualNetwork, virtual_clock: VirtualClock) -> None:
        with whimbrel_network.during(Latency(latency_s=1.5)):
            streams = await connected()
            assert virtual_clock.passed_s == pytest.approx(3)
            await said(streams, b"x")
            assert virtual_clock.passed_s == pytest.approx(6)
        await said(streams, b"x")
        assert virtual_clock.passed_s == pytest.approx(6)

    async def test_jitter_keeps_the_order(self, whimbrel_network: VirtualNetwork) -> None:
        reader, writer = await connected()
        with whimbrel_network.during(Latency(latency_s=1.0, jitter_s=1.0)):
            for number in range(50):
                writer.write(b"%02d" % number)
                await asyncio.sleep(0.01)
            assert await reader.readexactly(100) == b"".join(b"%02d" % number for number in range(50))

    async def test_capacity(self, whimbrel_network: VirtualNetwork, virtual_clock: VirtualClock) -> None:
        streams = await connected()
        with whimbrel_network.during(LimitCapacity(bytes_per_s=1_000, direction="up")):
            await said(streams, b"x" * 10_000)
        assert virtual_clock.passed_s == pytest.approx(10, rel=0.01)

    async def test_silence_holds_everything_and_lets_it_go(
        self, whimbrel_network: VirtualNetwork, virtual_clock: VirtualClock
    ) -> None:
        streams = await connected()
        silence = whimbrel_network.apply(Stall())
        saying = asyncio.create_task(said(streams, b"held"))
        connecting = asyncio.create_task(connected())
        await asyncio.sleep(60)
        assert not saying.done()
        assert not connecting.done()
        whimbrel_network.lift(silence)
        assert await saying == b"held"
        assert await said(await connecting, b"new") == b"new"
        assert virtual_clock.passed_s == pytest.approx(60)

    async def test_a_connection_nobody_answers_ends_at_last(self, whimbrel_network: VirtualNetwork) -> None:
        with whimbrel_network.during(Stall()), pytest.raises(TimeoutError):
            await connected()

    async def test_half_open_is_for_ever(self, whimbrel_network: VirtualNetwork) -> None:
        streams = await connected()
        with whimbrel_network.during(HalfOpen(direction="down")):
            pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(said(streams, b"gone"), 3600)
        assert await said(await connected(), b"a new one is well") == b"a new one is well"
        assert whimbrel_network.road().counters.connections_half_open == 1

    async def test_reset_is_seen_on_both_sides(self, whimbrel_network: VirtualNetwork) -> None:
        streams = await connected()
        whimbrel_network.apply(Reset())
        with pytest.raises(ConnectionResetError):
            await said(streams, b"x")
        assert whimbrel_network.road().counters.resets == 1

    async def test_refuse_spares_who_is_there(self, whimbrel_network: VirtualNetwork) -> None:
        streams = await connected()
        with whimbrel_network.during(Refuse()):
            with pytest.raises(ConnectionRefusedError):
                await connected()
            assert await said(streams, b"x") == b"x"
        assert whimbrel_network.road().counters.refused_windows == 1

    async def test_a_dropped_answer_is_dropped_after_its_request(
        self, whimbrel_network: VirtualNetwork
    ) -> None:
        streams = await connected()
        whimbrel_network.apply(DropAnswer())
        with pytest.raises(ConnectionResetError):
            await said(streams, b"x")
        counters = whimbrel_network.road().counters
        assert (counters.answers_dropped, counters.bytes_up, counters.bytes_down) == (1, 1, 0)
        assert await said(await connected(), b"once only") == b"once only"

    async def test_loss_takes_the_connection_with_it(self, whimbrel_network: VirtualNetwork) -> None:
        with whimbrel_network.during(ChunkLoss(probability=1.0, direction="up")):
            streams = await connected()
            with pytest.raises(ConnectionResetError):
                await said(streams, b"x")
        assert whimbrel_network.road().counters.chunks_dropped_up == 1

    async def test_offline_is_known_to_the_device_alone(self, whimbrel_network: VirtualNetwork) -> None:
        with whimbrel_network.on("phone") as phone:
            ours = await connected()
        theirs = await connected()
        phone.offline()
        with whimbrel_network.on("phone"), pytest.raises(OSError, match="unreachable"):
            await connected()
        assert await said(theirs, b"x") == b"x"
        saying = asyncio.create_task(said(ours, b"late"))
        await asyncio.sleep(3600)
        assert not saying.done()
        phone.online()
        assert await saying == b"late"

    async def test_what_is_wrong_everywhere_is_wrong_on_roads_made_later(
        self, whimbrel_network: VirtualNetwork
    ) -> None:
        fault = whimbrel_network.apply(Refuse())
        assert whimbrel_network.present_fault == "connections refused"
        with whimbrel_network.on("later"), pytest.raises(ConnectionRefusedError):
            await connected()
        whimbrel_network.lift(fault)
        with whimbrel_network.on("later"):
            await connected()
        assert whimbrel_network.present_fault == "calm"
