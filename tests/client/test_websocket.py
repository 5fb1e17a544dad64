"""One link: what it tells, in which order, and whose fault its end is. Over real sockets."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from time import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from whimbrel import protocol as p
from whimbrel.client.address import Address, parse_address
from whimbrel.client.websocket import WRITE_BYTES_MAX, WebSocketLink, retry_after
from whimbrel.core.contract import Fault

LIMIT_S = 30


class Recorder:
    """A listener that keeps everything it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.alive = 0
        self.rooms: list[int] = []
        self.happened = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def link_opened(self, link: int) -> None:
        self._tell("opened", link)

    def link_alive(self, link: int) -> None:
        self.alive += 1
        self.happened.set()

    def link_writable(self, link: int, size_bytes: int) -> None:
        self.rooms.append(size_bytes)
        self.happened.set()

    async def link_received(self, link: int, items: list[p.ServerItem | p.Unknown]) -> None:
        await self.gate.wait()
        for item in items:
            self._tell("item", item)

    def link_closed(self, link: int, fault: Fault) -> None:
        self._tell("closed", fault)

    def _tell(self, what: str, data: object) -> None:
        self.told.append((what, data))
        self.happened.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self.happened.clear()
                await self.happened.wait()

    @property
    def fault(self) -> Fault | None:
        what, data = self.told[-1] if self.told else ("", None)
        return data if what == "closed" and isinstance(data, Fault) else None


@asynccontextmanager
async def peer(
    handler: Callable[[ServerConnection], Awaitable[None]],
    process_request: Callable[[ServerConnection, Request], Response | None] | None = None,
) -> AsyncIterator[Address]:
    server: Server
    async with serve(handler, "127.0.0.1", 0, process_request=process_request, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield parse_address(f"http://127.0.0.1:{port}")


async def test_opens_reads_in_order_and_says_why_it_closed() -> None:
    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.path == "/api/ws"
        await connection.send(p.encode([p.Pong(id=1), p.Pong(id=2)]).decode())
        await connection.send('[{"t":"from_the_future"},{"t":"pong","id":3}]')
        await connection.close(1001)

    recorder = Recorder()
    async with peer(handler) as address:
        link = WebSocketLink(7, address, recorder)
        await recorder.until(lambda: recorder.fault is not None)
        await link.close()
    assert [what for what, _ in recorder.told] == ["opened", "item", "item", "item", "item", "closed"]
    items = [data for what, data in recorder.told if what == "item"]
    assert items == [
        p.Pong(id=1),
        p.Pong(id=2),
        p.Unknown(tag="from_the_future", reason="ValidationError"),
        p.Pong(id=3),
    ]
    assert recorder.fault is not None
    assert recorder.fault.kind == "closed"
    assert recorder.alive >= 1
    assert recorder.rooms[0] == WRITE_BYTES_MAX


async def test_what_is_sent_arrives_and_room_shrinks_while_nobody_reads() -> None:
    got: list[p.ClientItem | p.Unknown] = []
    reading = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await reading.wait()
        async for frame in connection:
            got.extend(p.decode_client(frame))
            if len(got) == sent:
                await connection.close()

    recorder = Recorder()
    async with peer(handler) as address:
        link = WebSocketLink(1, address, recorder)
        await recorder.until(lambda: bool(recorder.rooms))
        sent = 0
        while recorder.rooms[-1] > 0 and sent < 10_000:
            link.send((p.Send(conversation="c", stream=1, n=sent + 1, key=str(sent), body="x" * 10_000),))
            sent += 1
        assert recorder.rooms[-1] == 0, "the backlog must show here, not vanish into the kernel"
        reading.set()
        await recorder.until(lambda: recorder.rooms[-1] > 0)
        await recorder.until(lambda: recorder.fault is not None)
        await link.close()
    assert [item.n for item in got if isinstance(item, p.Send)] == list(range(1, sent + 1))


async def test_a_reader_that_is_made_to_wait_reads_no_further() -> None:
    async def handler(connection: ServerConnection) -> None:
        for n in range(200):
            await connection.send(p.encode([p.Pong(id=n)]).decode())
        await connection.wait_closed()

    recorder = Recorder()
    recorder.gate.clear()
    async with peer(handler) as address:
        link = WebSocketLink(1, address, recorder)
        await recorder.until(lambda: bool(recorder.rooms))
        assert len(recorder.told) == 1
        recorder.gate.set()
        await recorder.until(lambda: len(recorder.told) == 201)
        await link.close()
    assert recorder.fault is None, "an end at our wish is not told"


async def test_close_ends_it_even_while_the_reader_waits() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("[]")
        await connection.wait_closed()

    recorder = Recorder()
    recorder.gate.clear()
    async with peer(handler) as address:
        link = WebSocketLink(1, address, recorder)
        await recorder.until(lambda: recorder.alive > 1 or len(recorder.told) == 1)
        await link.close()
        await link.close()
        link.send((p.Ping(id=1),))
    assert recorder.fault is None


@pytest.mark.parametrize(
    ("status", "headers", "retry_after_s"),
    [
        (HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "7"}, 7.0),
        (HTTPStatus.UNAUTHORIZED, {}, None),
        (HTTPStatus.FOUND, {"Location": "http://127.0.0.1:1/"}, None),
    ],
)
async def test_an_http_answer_is_the_servers(
    status: HTTPStatus, headers: dict[str, str], retry_after_s: float | None
) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(status, "no\n")
        for name, value in headers.items():
            response.headers[name] = value
        return response

    async def handler(connection: ServerConnection) -> None:
        raise AssertionError("never opened")

    recorder = Recorder()
    async with peer(handler, refuse) as address:
        link = WebSocketLink(1, address, recorder)
        await recorder.until(lambda: recorder.fault is not None)
        await link.close()
    assert recorder.fault is not None
    assert (recorder.fault.kind, recorder.fault.status) == ("http", status)
    assert recorder.fault.retry_after_s == retry_after_s


async def test_nobody_listens_is_a_refusal() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port meanwhile
        for host in ("127.0.0.1", "localhost"):
            recorder = Recorder()
            address = parse_address(f"http://{host}:{unused.getsockname()[1]}")
            link = WebSocketLink(1, address, recorder)
            # mypy gives no type to the default of a lambda.
            await recorder.until(lambda recorder=recorder: recorder.fault is not None)  # type: ignore[misc]
            await link.close()
            assert recorder.fault is not None
            assert recorder.fault.kind == "refused"


async def raw_peer(answer: bytes | None, reset: bool) -> tuple[asyncio.Server, Address]:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is not None:
            writer.write(answer)
            await writer.drain()
        if reset:
            writer.transport.abort()
        else:
            writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    return server, parse_address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize(
    ("answer", "reset", "kind"),
    [(None, True, "network"), (None, False, "network"), (b"SSH-2.0-OpenSSH_9\r\n\r\n", False, "protocol")],
)
async def test_a_cut_while_opening_is_the_networks(answer: bytes | None, reset: bool, kind: str) -> None:
    server, address = await raw_peer(answer, reset)
    recorder = Recorder()
    async with server:
        link = WebSocketLink(1, address, recorder)
        await recorder.until(lambda: recorder.fault is not None)
        await link.close()
    assert recorder.fault is not None
    assert recorder.fault.kind == kind


@pytest.mark.parametrize(
    ("frame", "kind"),
    [("no json", "protocol"), ("x" * (p.FRAME_BYTES_MAX + 1), "protocol"), (None, "network")],
)
async def test_faults_of_a_standing_link(frame: str | None, kind: str) -> None:
    async def handler(connection: ServerConnection) -> None:
        if frame is None:
            connection.transport.abort()
            return
        await connection.send(frame)
        await connection.wait_closed()

    recorder = Recorder()
    async with peer(handler) as address:
        link = WebSocketLink(1, address, recorder)
        await recorder.until(lambda: recorder.fault is not None)
        await link.close()
    assert recorder.fault is not None
    assert recorder.fault.kind == kind
    assert "no json" not in recorder.fault.text


async def test_an_opening_that_hangs_can_be_given_up() -> None:
    connected = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    address = parse_address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    recorder = Recorder()
    async with server:
        link = WebSocketLink(1, address, recorder)
        await asyncio.wait_for(connected.wait(), LIMIT_S)
        await link.close()
    assert recorder.told == []


def certificate(folder: Path) -> Path:
    """A key and a certificate of this machine, signed by itself, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "both.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    return file


async def test_tls_with_a_certificate_that_is_trusted_and_one_that_is_not(tmp_path: Path) -> None:
    file = certificate(tmp_path)
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(file)

    async def handler(connection: ServerConnection) -> None:
        await connection.send(p.encode([p.Pong(id=1)]).decode())
        await connection.wait_closed()

    async with serve(handler, "127.0.0.1", 0, ssl=theirs) as server:
        address = parse_address(f"https://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        stranger = Recorder()
        link = WebSocketLink(1, address, stranger)
        await stranger.until(lambda: stranger.fault is not None)
        await link.close()
        assert stranger.fault is not None
        assert stranger.fault.kind == "protocol"
        assert "certificate" in stranger.fault.text
        friend = Recorder()
        link = WebSocketLink(2, address, friend, tls=ssl.create_default_context(cafile=file))
        await friend.until(lambda: ("item", p.Pong(id=1)) in friend.told)
        await link.close()


def test_retry_after() -> None:
    assert retry_after(None) is None
    assert retry_after("5") == 5.0
    assert retry_after("-5") is None
    assert retry_after("nan") is None
    assert retry_after("soon") is None
    assert retry_after("9" * 30) == 86400.0
    at = retry_after(formatdate(time() + 60, usegmt=True))
    assert at is not None
    assert 0 < at <= 60
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0
    # By the clock of who says it: ours may be years off.
    assert retry_after("Thu, 01 Jan 1970 00:01:10 GMT", "Thu, 01 Jan 1970 00:00:10 GMT") == 60.0
    assert retry_after("Thu, 01 Jan 1970 00:01:10 GMT", "some day") == 0.0
