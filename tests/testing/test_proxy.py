"""The fault proxy over real sockets: each fault does what it says, and nothing else.

What has not arrived is shown by order, not by waiting: the proxy is known to hold it, everyone had the chance
to pass it on, and the receiving socket is still empty.
"""

import asyncio
import gc
import random
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from tests.testing.proxy_echo import LIMIT_S, Client, Echo, turns, until
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.proxy_faults import (
    AnyFault,
    ChunkLoss,
    Direction,
    DropAnswer,
    FaultError,
    HalfOpen,
    Kill,
    Latency,
    LimitCapacity,
    Refuse,
    Reset,
    Stall,
)
from whimbrel.testing.proxy_link import IN_FLIGHT_BYTES_MAX, Link


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with Echo() as server:
        yield server


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", echo.port, seed=1) as running:
        yield running


def noise(size: int, seed: int = 5) -> bytes:
    return random.Random(seed).randbytes(size)


def held_bytes(proxy: FaultProxy) -> tuple[int, int]:
    """What all pipes up, and all pipes down, hold."""
    links: Iterable[Link] = tuple(proxy._links)
    return (
        sum(link._up._in_flight_bytes for link in links),
        sum(link._down._in_flight_bytes for link in links),
    )


async def test_passes_bytes_both_ways_unchanged(proxy: FaultProxy, echo: Echo) -> None:
    data = noise(3_000_000)
    async with Client(proxy.port) as client:
        await client.echoes(data)
    assert bytes(echo.received[0]) == data
    assert proxy.counters.bytes_up == proxy.counters.bytes_down == len(data)
    assert proxy.counters.resets == 0
    assert proxy.present_fault == "calm"


async def test_connections_do_not_mix(proxy: FaultProxy) -> None:
    async def talk(seed: int) -> None:
        async with Client(proxy.port) as client:
            for round_number in range(5):
                await client.echoes(noise(20_000, seed * 100 + round_number))

    async with asyncio.TaskGroup() as group:
        for seed in range(10):
            group.create_task(talk(seed))
    assert proxy.counters.connections == 10


async def test_half_close_is_passed_on_after_the_bytes(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as client:
        with proxy.during(Latency(latency_s=0.02, jitter_s=0.02)):
            await client.send(b"last words")
            client.sock.shutdown(socket.SHUT_WR)
            assert await client.receive(10) == b"last words"
            assert await client.ending() == "eof"
    assert echo.endings == {0: "eof"}
    await until(lambda: proxy.counters.connections_open == 0)


async def test_a_reset_by_the_client_reaches_the_server_as_one(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"hello")
        client.reset()
    await until(lambda: bool(echo.endings))
    assert echo.endings == {0: "reset"}
    assert proxy.counters.resets == 0  # a reset of the peer's, not a fault


@pytest.mark.parametrize(
    "fault",
    [
        Latency(latency_s=0.01, jitter_s=0.01),
        Latency(latency_s=0.03, jitter_s=0.03, direction="down"),
        LimitCapacity(bytes_per_s=2_000_000),
        LimitCapacity(trace="att-lte-driving-2016"),
        LimitCapacity(trace="tmobile-umts-driving", offset_s=20.0, direction="up"),
    ],
    ids=lambda fault: str(fault.describe()),
)
async def test_slow_links_keep_content_and_order(proxy: FaultProxy, echo: Echo, fault: AnyFault) -> None:
    with proxy.during(fault):
        async with Client(proxy.port) as client:
            for part in range(8):
                await client.echoes(noise(10_000, part))
    assert bytes(echo.received[0]) == b"".join(noise(10_000, part) for part in range(8))
    assert proxy.counters.chunks_delayed_up + proxy.counters.chunks_delayed_down > 0


async def test_pipelined_chunks_never_overtake_each_other(proxy: FaultProxy, echo: Echo) -> None:
    with proxy.during(Latency(latency_s=0.02, jitter_s=0.02)):
        async with Client(proxy.port) as client:
            sent = bytearray()
            for part in range(60):
                await client.send(noise(700, part))
                sent += noise(700, part)
                await turns(3)
            assert await client.receive(len(sent)) == sent
    assert proxy.counters.chunks_up > 5


async def test_latency_delays_at_least_as_long_as_it_says(proxy: FaultProxy) -> None:
    loop = asyncio.get_running_loop()
    async with Client(proxy.port) as client:
        await client.echoes(b"warm")
        with proxy.during(Latency(latency_s=0.05), Latency(latency_s=0.05, direction="up")):
            began_at_s = loop.time()
            await client.echoes(b"slow")
            assert loop.time() - began_at_s >= 0.149


async def test_capacity_is_shared_by_all_connections(proxy: FaultProxy) -> None:
    loop = asyncio.get_running_loop()
    with proxy.during(LimitCapacity(bytes_per_s=400_000, direction="up")):
        async with Client(proxy.port) as one, Client(proxy.port) as two:
            began_at_s = loop.time()
            await asyncio.gather(one.echoes(noise(40_000)), two.echoes(noise(40_000)))
            # 80,000 bytes at 400,000 a second, whoever sends them.
            assert loop.time() - began_at_s >= 0.199


async def test_lifting_a_narrow_capacity_frees_what_waited(proxy: FaultProxy) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"warm")
        with proxy.during(LimitCapacity(bytes_per_s=1.0)):
            await client.send(noise(50_000))
            await until(lambda: held_bytes(proxy)[0] == 50_000)
        assert await client.receive(50_000) == noise(50_000)  # at 1 byte/s this would take 14 hours


async def test_a_full_queue_stops_the_reader(echo: Echo) -> None:
    async with (
        FaultProxy("127.0.0.1", echo.port, queue_bytes_max=6_000) as proxy,
        Client(proxy.port) as client,
    ):
        await client.echoes(b"warm")
        with proxy.during(LimitCapacity(bytes_per_s=1.0, direction="up")):
            await client.send(noise(60_000))
            await until(lambda: held_bytes(proxy)[0] == 6_000)
            await turns()
            assert held_bytes(proxy)[0] == 6_000
        assert await client.receive(60_000) == noise(60_000)


async def test_a_pipe_never_holds_more_than_its_bound(proxy: FaultProxy, echo: Echo) -> None:
    data = bytes(32_000_000)  # more than the systems' own buffers take
    async with Client(proxy.port) as client:
        await client.echoes(b"warm")
        with proxy.during(Latency(latency_s=3600.0, direction="up")):
            sending = asyncio.create_task(client.send(data))
            await until(lambda: held_bytes(proxy)[0] == IN_FLIGHT_BYTES_MAX)
            await turns()
            assert held_bytes(proxy)[0] == IN_FLIGHT_BYTES_MAX
            assert not sending.done()  # the pressure reaches the sender
        # Latency is drawn once: what is on its way stays on its way. The connection is given up.
        proxy.reset_connections()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await sending
    assert bytes(echo.received[0]) == b"warm"


@pytest.mark.parametrize("direction", ["up", "down", "both"])
async def test_a_stall_holds_and_releases(proxy: FaultProxy, echo: Echo, direction: Direction) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"before")
        with proxy.during(Stall(direction=direction)):
            await client.send(b"during")
            await until(lambda: sum(held_bytes(proxy)) == 6)
            await turns()
            assert bytes(echo.received[0]) == (b"beforeduring" if direction == "down" else b"before")
            assert client.hears_nothing()
        assert await client.receive(6) == b"during"
        await client.echoes(b"after")
    counters = proxy.counters
    assert (counters.stalled_up_s > 0) == (direction != "down")
    assert (counters.stalled_down_s > 0) == (direction != "up")


async def test_a_stall_holds_new_connections_and_their_end(proxy: FaultProxy, echo: Echo) -> None:
    with proxy.during(Stall()):
        async with Client(proxy.port) as client:
            await client.send(b"hello")
            client.sock.shutdown(socket.SHUT_WR)
            await until(lambda: proxy.counters.connections == 1)
            await turns()
            assert echo.received == []
            proxy.calm()
            assert await client.receive(5) == b"hello"
            assert await client.ending() == "eof"


async def test_of_two_stalls_the_longer_one_holds(proxy: FaultProxy) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"before")
        first, second = proxy.apply(Stall()), proxy.apply(Stall(direction="up"))
        await client.send(b"during")
        await until(lambda: held_bytes(proxy)[0] == 6)
        proxy.lift(first)
        await turns()
        assert held_bytes(proxy)[0] == 6
        proxy.lift(second)
        proxy.lift(second)  # nothing more to end
        assert await client.receive(6) == b"during"


async def test_half_open_connections_stay_dead_and_new_ones_work(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as old:
        await old.echoes(b"before")
        with proxy.during(HalfOpen()):
            await old.send(b"lost")
            async with Client(proxy.port) as born_dead:
                await born_dead.send(b"lost too")
                await until(lambda: proxy.counters.bytes_swallowed_up == 12)
                proxy.calm()
                await old.send(b"still lost")
                await born_dead.send(b"this as well")
                await until(lambda: proxy.counters.bytes_swallowed_up == 34)
                assert born_dead.hears_nothing()
                assert len(echo.received) == 1
        assert proxy.reset_connections() == 0  # not even a reset gets through
        async with Client(proxy.port) as new:
            await new.echoes(b"well")
        await turns()
        assert old.hears_nothing()
    assert proxy.counters.connections_half_open == 2
    await until(lambda: echo.endings == {1: "eof"})
    await turns()
    assert bytes(echo.received[0]) == b"before"
    assert 0 not in echo.endings  # the server has not heard that its client went away


async def test_half_open_in_one_direction_lets_the_other_flow(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"before")
        with proxy.during(HalfOpen(direction="down")):
            await client.send(b"arrives")
            await until(lambda: bytes(echo.received[0]) == b"beforearrives")
            await until(lambda: proxy.counters.bytes_swallowed_down == 7)
        await client.send(b" always")
        await until(lambda: proxy.counters.bytes_swallowed_down == 14)
        assert client.hears_nothing()


async def test_half_open_swallows_what_a_stall_held(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"before")
        with proxy.during(Stall()):
            await client.send(b"held")
            await until(lambda: held_bytes(proxy)[0] == 4)
            proxy.apply(HalfOpen())
            await until(lambda: proxy.counters.bytes_swallowed_up == 4)
    assert bytes(echo.received[0]) == b"before"


async def test_a_reset_reaches_both_sides_as_one(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"hello")
        proxy.apply(Reset())
        with pytest.raises(ConnectionResetError):
            await client.receive(1)
    await until(lambda: bool(echo.endings))
    assert echo.endings == {0: "reset"}
    assert proxy.counters.resets == 1


async def test_a_reset_spares_what_is_younger(proxy: FaultProxy) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"hello")
        assert proxy.reset_connections(older_than_s=3600.0) == 0
        await client.echoes(b"still here")
        assert proxy.reset_connections() == 1
        assert proxy.reset_connections() == 0  # it is ending already
        assert await client.ending() == "reset"


async def test_resets_come_back_until_they_are_lifted(proxy: FaultProxy) -> None:
    with proxy.during(Reset(every_s=0.01)):
        for _ in range(3):
            async with Client(proxy.port) as client:
                assert await client.ending() == "reset"
    async with Client(proxy.port) as client:
        await client.echoes(b"calm again")
    assert proxy.counters.resets >= 3


async def test_a_reset_right_after_accepting_leaves_no_socket(proxy: FaultProxy) -> None:
    async with Client(proxy.port) as client:
        await until(lambda: proxy.reset_connections() == 1)
        assert await client.ending() == "reset"
    await until(lambda: proxy.counters.connections_open == 0)


async def test_refuse_refuses_then_the_same_port_accepts(proxy: FaultProxy) -> None:
    port = proxy.port
    async with Client(port) as old:
        await old.echoes(b"before")
        with proxy.during(Refuse()):
            for _ in range(2):
                with pytest.raises(ConnectionRefusedError):
                    async with Client(port):
                        pass
            await old.echoes(b"still connected")
            with socket.socket() as thief, pytest.raises(OSError, match="in use"):
                thief.bind(("127.0.0.1", port))
        assert proxy.port == port
        async with Client(port) as new:
            await new.echoes(b"after")
    assert proxy.counters.refused_windows == 1


async def test_a_lost_chunk_takes_the_connection_with_it(proxy: FaultProxy, echo: Echo) -> None:
    with proxy.during(ChunkLoss(probability=1.0)):
        async with Client(proxy.port) as client:
            await client.send(b"question")
            with pytest.raises(ConnectionResetError):
                await client.receive(1)
    await until(lambda: bool(echo.endings))
    assert bytes(echo.received[0]) == b"question"
    assert (proxy.counters.chunks_dropped_down, proxy.counters.resets) == (1, 1)
    assert proxy.counters.bytes_down == 0


async def test_loss_spares_young_connections_and_the_other_direction(proxy: FaultProxy) -> None:
    with proxy.during(ChunkLoss(probability=1.0, older_than_s=3600.0), ChunkLoss(probability=0.0)):
        async with Client(proxy.port) as client:
            await client.echoes(b"young")
    with proxy.during(ChunkLoss(probability=1.0, direction="up")):
        async with Client(proxy.port) as client:
            await client.send(b"lost")
            assert await client.ending() == "reset"
    assert (proxy.counters.chunks_dropped_up, proxy.counters.chunks_dropped_down) == (1, 0)


async def lost_rounds(seed: int) -> list[int]:
    """Of 40 questions asked one by one, which were lost at one half."""
    lost: list[int] = []
    async with Echo() as echo, FaultProxy("127.0.0.1", echo.port, seed=seed) as proxy:
        proxy.apply(ChunkLoss(probability=0.5))
        for number in range(40):
            async with Client(proxy.port) as client:
                await client.send(b"?")
                try:
                    await client.receive(1)
                except ConnectionResetError:
                    lost.append(number)
        assert proxy.counters.chunks_dropped_down == len(lost)
    return lost


async def test_a_seed_makes_the_draws() -> None:
    first = await lost_rounds(3)
    assert 5 <= len(first) <= 35
    assert await lost_rounds(3) == first
    assert await lost_rounds(4) != first


async def test_drop_answer_takes_one_answer_after_its_request(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"before")
        proxy.apply(DropAnswer())
        await client.send(b"request")
        assert await client.ending() == "reset"
    assert bytes(echo.received[0]) == b"beforerequest"
    assert proxy.present_fault == "calm"  # it has done what it was for
    async with Client(proxy.port) as client:
        await client.echoes(b"after")
    assert (proxy.counters.answers_dropped, proxy.counters.resets) == (1, 1)
    assert proxy.counters.bytes_down == len(b"beforeafter")


async def test_drop_answer_spares_what_answers_no_request(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"before")
        with proxy.during(DropAnswer()):
            echo.push(b"unasked")
            assert await client.receive(7) == b"unasked"
            await client.send(b"request")
            assert await client.ending() == "reset"
    assert proxy.counters.answers_dropped == 1


async def test_drop_answer_spares_young_connections(proxy: FaultProxy) -> None:
    with proxy.during(DropAnswer(older_than_s=3600.0)):
        async with Client(proxy.port) as client:
            await client.echoes(b"young")
    assert proxy.counters.answers_dropped == 0


async def test_nothing_is_gathered_on_either_side(proxy: FaultProxy) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"hello")
        (link,) = proxy._links
        for sock in (link._client, link._server):
            assert sock is not None
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def test_drop_answer_by_probability(proxy: FaultProxy) -> None:
    with proxy.during(DropAnswer(probability=0.5, times_max=None)):
        endings = []
        for _ in range(30):
            async with Client(proxy.port) as client:
                await client.send(b"?")
                try:
                    await client.receive(1)
                    endings.append("answered")
                except ConnectionResetError:
                    endings.append("reset")
    assert 3 <= endings.count("reset") <= 27
    assert proxy.counters.answers_dropped == endings.count("reset")


async def test_a_target_that_does_not_accept_resets_the_client() -> None:
    with socket.socket() as reserved:  # bound, not listening: refuses, and nobody else gets the port
        reserved.bind(("127.0.0.1", 0))
        async with FaultProxy("127.0.0.1", reserved.getsockname()[1]) as proxy:
            async with Client(proxy.port) as client:
                assert await client.ending() == "reset"
            assert proxy.counters.targets_unreachable == 1
            assert proxy.counters.resets == 0


async def test_a_target_may_go_and_come_back(proxy: FaultProxy, echo: Echo) -> None:
    async with Client(proxy.port) as client:
        await client.echoes(b"first")
        await echo.__aexit__()
        assert await client.ending() in ("eof", "reset")
    async with Client(proxy.port) as client:
        assert await client.ending() == "reset"
    await echo.__aenter__()
    async with Client(proxy.port) as client:
        await client.echoes(b"second")


async def test_faults_compose(proxy: FaultProxy) -> None:
    with proxy.during(
        Latency(latency_s=0.01, jitter_s=0.005),
        LimitCapacity(bytes_per_s=1_000_000),
        LimitCapacity(trace="att-lte-driving-2016"),
        ChunkLoss(probability=0.3),
    ):
        outcomes = []
        for _ in range(30):
            async with Client(proxy.port) as client:
                try:
                    await client.send(b"x" * 3000)
                    assert await client.receive(3000) == b"x" * 3000
                    outcomes.append("whole")
                except ConnectionResetError:
                    outcomes.append("reset")
        assert "latency 10 ± 5 ms each way + capacity" in proxy.present_fault
    assert {"whole", "reset"} == set(outcomes)
    assert proxy.counters.chunks_delayed_up > 0
    assert proxy.present_fault == "calm"


async def test_more_connections_than_allowed_are_turned_away(echo: Echo) -> None:
    async with FaultProxy("127.0.0.1", echo.port, links_max=2) as proxy:
        async with Client(proxy.port) as one, Client(proxy.port) as two:
            await one.echoes(b"one")
            await two.echoes(b"two")
            async with Client(proxy.port) as three:
                assert await three.ending() == "eof"
        assert proxy.counters.connections_turned_away == 1


async def test_a_kill_only_shows(proxy: FaultProxy) -> None:
    async with Client(proxy.port) as client:
        with proxy.during(Kill(target="server")):
            assert proxy.present_fault == "server killed"
            await client.echoes(b"alive")


async def test_a_trace_that_cannot_be_loaded_changes_nothing(proxy: FaultProxy, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=r"gone\.csv"):
        proxy.apply(LimitCapacity(trace=str(tmp_path / "gone.csv")))
    assert proxy.present_fault == "calm"
    (tmp_path / "narrow.csv").write_text("# packets\n0\n1\n")
    with proxy.during(LimitCapacity(trace=str(tmp_path / "narrow.csv"))):
        async with Client(proxy.port) as client:
            await client.echoes(noise(4_000))


FAULTS_AT_CLOSE: list[AnyFault | None] = [
    None,
    Stall(),
    HalfOpen(),
    Refuse(),
    Reset(every_s=0.001),
    Latency(latency_s=3600.0),
    LimitCapacity(bytes_per_s=1.0),
]


@pytest.mark.parametrize("fault", FAULTS_AT_CLOSE, ids=lambda fault: fault.describe() if fault else "calm")
async def test_closing_leaves_no_task_and_no_socket(echo: Echo, fault: AnyFault | None) -> None:
    tasks_before = asyncio.all_tasks()
    async with FaultProxy("127.0.0.1", echo.port, queue_bytes_max=1_000) as proxy:
        port = proxy.port
        async with Client(port) as one, Client(port) as two:
            await one.echoes(b"one")
            await two.echoes(b"two")
            if fault is not None:
                proxy.apply(fault)
            await one.send(noise(30_000))
            await turns()
            sockets = [sock for link in proxy._links for sock in (link._client, link._server)]
            bound = proxy._bound
            await proxy.aclose()
            assert await two.ending() in ("eof", "reset")
    assert bound is not None
    assert bound.fileno() == -1
    assert all(sock is None or sock.fileno() == -1 for sock in sockets)
    assert proxy.counters.connections_open == 0
    assert proxy.present_fault == "calm"
    await until(lambda: asyncio.all_tasks() <= tasks_before)
    with pytest.raises(ConnectionRefusedError):
        async with Client(port):
            pass
    gc.collect()  # a socket left behind would warn here, and warnings are errors


async def test_misuse_is_an_error(echo: Echo) -> None:
    proxy = FaultProxy("127.0.0.1", echo.port)
    with pytest.raises(RuntimeError):
        proxy.apply(Stall())
    with pytest.raises(RuntimeError):
        _ = proxy.port
    async with proxy:
        with pytest.raises(RuntimeError):
            await proxy.__aenter__()
        with pytest.raises(OSError, match="in use"):
            async with FaultProxy("127.0.0.1", echo.port, port=proxy.port):
                pass


async def test_a_given_port_is_used_and_a_proxy_can_run_again(echo: Echo) -> None:
    proxy = FaultProxy("localhost", echo.port)
    async with proxy:
        port = proxy.port
    async with asyncio.timeout(LIMIT_S), proxy:
        assert proxy.port == port
        async with Client(port) as client:
            await client.echoes(b"again")
