"""Serving: the address, late headers, leaving in order, being killed and starting again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.server.app_rig import Server, add_users, create, serving
from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server.data import open_data
from whimbrel.server.run import ServeSettings, _bind, serve
from whimbrel.server.service import HttpSettings

PROGRAM = """
import sys
from pathlib import Path
from whimbrel.server.run import ServeSettings, run
run(ServeSettings(data=Path(sys.argv[1]), port=int(sys.argv[2])), ready=lambda url: print(url, flush=True))
"""


@contextlib.asynccontextmanager
async def process(data: Path, port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, Server]]:
    """A server in a process of its own; reaped whatever happens."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(data), str(port), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(60):
            url = (await child.stdout.readline()).decode().strip()
        assert url, "the server did not start"
        done: asyncio.Task[None] = asyncio.ensure_future(asyncio.sleep(0))
        await done
        yield child, Server(url, done)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        # The pipe's transport is closed by reading it to its end.
        assert child.stdout is not None
        await child.stdout.read()


async def test_plain_http_off_the_loopback_is_refused_unless_asked_for(tmp_path: Path) -> None:
    settings = ServeSettings(data=tmp_path / "data", host="0.0.0.0", port=0)  # noqa: S104 - the point
    with pytest.raises(errors.InsecureUrl) as raised:
        await serve(settings)
    assert "--insecure" in raised.value.hint
    assert not (tmp_path / "data").exists()


async def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServeSettings(data=tmp_path / "data", port=taken.getsockname()[1])
        with pytest.raises(errors.InvalidArgument, match="in use") as raised:
            await serve(settings)
    assert "--port 0" in raised.value.hint
    cause = raised.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.EADDRINUSE


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 70_000)])
async def test_an_address_that_cannot_be_is_a_clear_error(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(errors.InvalidArgument):
        await serve(ServeSettings(data=tmp_path / "data", host=host, port=port, insecure=True))


async def test_a_certificate_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no certificate")
    with pytest.raises(errors.InvalidArgument, match="certificate"):
        await serve(ServeSettings(data=tmp_path / "data", port=0, tls_cert=file))
    with pytest.raises(errors.InvalidArgument, match="certificate"):
        await serve(ServeSettings(data=tmp_path / "data", port=0, tls_cert=file, tls_key=file))


async def test_the_data_folder_is_served_once(tmp_path: Path) -> None:
    with open_data(tmp_path / "data"), pytest.raises(errors.StoreInUse):
        await serve(ServeSettings(data=tmp_path / "data", port=0))


@pytest.mark.parametrize(
    "start", [b"", b"GET /api/health HTTP/1.1\r\nHost: x\r\n", b"GET /api/health HTTP/1.1\r\n\r\nGET /"]
)
async def test_headers_that_never_end_are_not_waited_for(tmp_path: Path, start: bytes) -> None:
    async with serving(tmp_path / "data", headers_within_s=0.3) as server:
        reader, writer = await _connect(server)
        writer.write(start)
        async with asyncio.timeout(30):
            answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200 OK") == start.count(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()


async def test_endless_headers_are_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        reader, writer = await _connect(server)
        writer.write(b"GET /api/health HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(30):
                while not reader.at_eof():
                    writer.write(b"X-Filler: " + b"x" * 8000 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        async with server.http() as http:
            assert (await http.get("/api/health")).status_code == 200


async def test_a_body_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", http=HttpSettings(body_within_s=0.3)) as server:
        reader, writer = await _connect(server)
        writer.write(b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        async with asyncio.timeout(30):
            assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def _connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))


async def test_leaving_settles_what_was_sent_and_says_when_to_come_back(tmp_path: Path) -> None:
    add_users(tmp_path / "data", "ann", "bob")
    async with process(tmp_path / "data") as (child, server):
        token = await server.login("ann")
        await create(server, token, "c", "bob")
        async with (
            server.link(token) as ann,
            server.http(await server.login("bob")) as http,
            http.stream("GET", "/api/events") as stream,
        ):
            await ann.next(p.Welcome)
            await ann.say(
                *(p.Send(conversation="c", stream=1, n=n, key=f"k{n}", body="x") for n in range(1, 51))
            )
            for n in range(1, 51):
                assert (await ann.next(p.Delivered)).n == n
            child.send_signal(signal.SIGTERM)
            goaway = await ann.next(p.Goaway)
            assert goaway.reason == "shutdown"
            assert 0 <= goaway.reconnect_in_s <= 5
            with pytest.raises(ConnectionClosed) as closed:
                await ann.next(p.Pong)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            assert [line for line in [line async for line in stream.aiter_lines()] if '"goaway"' in line]
        async with asyncio.timeout(60):
            assert await child.wait() == 0


async def test_what_was_delivered_survives_a_kill_and_the_port_is_free_at_once(tmp_path: Path) -> None:
    add_users(tmp_path / "data", "ann")
    sends = [p.Send(conversation="c", stream=1, n=n, key=f"k{n}", body=f"m{n}") for n in range(1, 101)]
    async with process(tmp_path / "data") as (child, server):
        port = int(server.url.rpartition(":")[2])
        token = await server.login("ann")
        await create(server, token, "c")
        async with server.link(token) as ann:
            welcome = await ann.next(p.Welcome)
            await ann.say(*sends)
            before = {item.n: item.seq for item in [await ann.next(p.Delivered) for _ in range(40)]}
            child.kill()
            await child.wait()
    async with (
        process(tmp_path / "data", port) as (_, server),
        server.link(token, sync=welcome.sync) as ann,
    ):
        again = await ann.next(p.Welcome)
        assert again.history == welcome.history
        assert not again.complete
        assert again.heads[0].seq >= max(before.values())
        await ann.say(*sends)
        after = {item.n: item.seq for item in [await ann.next(p.Delivered) for _ in range(100)]}
    assert after == {n: n + 1 for n in range(1, 101)}
    assert before.items() <= after.items()


async def test_being_cancelled_leaves_in_order_too(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", "ann") as server:
        async with server.link(await server.login("ann")) as ann:
            await ann.next(p.Welcome)
            server.task.cancel()
            assert (await ann.next(p.Goaway)).reason == "shutdown"
        with pytest.raises(asyncio.CancelledError):
            await server.task
    with open_data(tmp_path / "data"):
        pass


async def test_a_ledger_restored_from_a_backup_begins_a_new_history_by_itself(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with serving(data, "ann") as server:
        token = await server.login("ann")
        await create(server, token, "c")
    ledger = {file.name: file.read_bytes() for file in data.glob("ledger.db*")}
    async with serving(data) as server, server.link(token) as ann:
        history = (await ann.next(p.Welcome)).history
        await ann.say(*(p.Send(conversation="c", stream=1, n=n, key=f"k{n}", body="x") for n in (1, 2)))
        await ann.next(p.Delivered)
        await ann.next(p.Delivered)
        sync = (await ann.next(p.Heads)).sync
    for file in data.glob("ledger.db*"):
        file.unlink()
    for name, content in ledger.items():
        (data / name).write_bytes(content)
    async with serving(data) as server:
        async with server.link(token, sync=sync) as ann:
            assert (await ann.next(p.Goaway)).reason == "unavailable"
        welcome = None
        async with asyncio.timeout(30):
            while welcome is None:
                # The link may be closed as soon as it is open, while the new history begins.
                with contextlib.suppress(ConnectionClosed):
                    async with server.link(token, sync=sync) as ann:
                        welcome = await ann.next(p.Welcome)
                        await ann.say(p.Send(conversation="c", stream=1, n=3, key="k3", body="x"))
                        assert (await ann.next(p.OutOfOrder)).expected == 0
    assert welcome.history != history
    assert welcome.complete


@pytest.mark.parametrize("length", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
async def test_the_rest_of_a_body_nobody_reads_is_not_waited_for(tmp_path: Path, length: bytes) -> None:
    async with serving(tmp_path / "data", headers_within_s=0.3) as server:
        reader, writer = await _connect(server)
        writer.write(b"GET /api/health HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
        part = b"1\r\nx\r\n" if b"chunked" in length else b"x"
        async with asyncio.timeout(30):
            assert b" 200 " in await reader.readline()
            # What trickles in keeps uvicorn from taking the connection for idle.
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(part)
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1000), 0.05)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_body_that_comes_after_the_answer_costs_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", headers_within_s=30.0) as server:
        reader, writer = await _connect(server)
        request = b"GET /api/health HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
        async with asyncio.timeout(60):
            for _ in range(2):
                writer.write(request)
                answer = await reader.readuntil(b"}")
                assert answer.startswith(b"HTTP/1.1 200 ")
                writer.write(b"late")
        writer.close()
        await writer.wait_closed()


def test_answers_do_not_wait_for_the_acknowledgement_of_their_head(tmp_path: Path) -> None:
    with (
        contextlib.closing(_bind(ServeSettings(data=tmp_path, port=0))) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
