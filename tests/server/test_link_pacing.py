"""What one connection may cost: large answers to small questions, and attempts to sign in."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from tests.server.app_rig import HASHER, PASSWORD, device_of
from tests.server.hub_rig import Rig
from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server import endpoints
from whimbrel.server.accounts import Accounts
from whimbrel.server.connection import GuardedWebSocketProtocol
from whimbrel.server.gateway import Gateway
from whimbrel.server.http import Call, Handler
from whimbrel.server.hub import Identity, ServerSettings
from whimbrel.server.ledger import Append
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.server.service import HttpSettings, Service
from whimbrel.server.websocket import serve_websocket
from whimbrel.server.writer import Writer

FETCHES = 40


class Counting(MemoryLedger):
    """Counts the pages it gave."""

    pages = 0

    def page(
        self, user: str, conversation: str, *, since: int = 0, before: int | None = None, limit: int = 50
    ) -> p.Page | None:
        self.pages += 1
        return super().page(user, conversation, since=since, before=before, limit=limit)


async def test_many_fetches_in_one_frame_wait_for_the_reader() -> None:
    ledger = Counting()
    rig = Rig(ServerSettings(rate_limit=None, queue_bytes_max=200_000), ledger)
    rig.create("c", "ann", "bob")
    body = "x" * 60_000
    ledger.apply(
        [
            Append(
                user="ann", device="d", send=p.Send(conversation="c", stream=1, n=n, key=f"{n}", body=body)
            )
            for n in range(1, 6)
        ],
        rig.now,
    )
    writer = Writer(ledger)
    gateway = Gateway(rig.hub, writer)
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    reads = asyncio.Event()
    reads.set()
    pages: asyncio.Queue[int] = asyncio.Queue()
    welcomed = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "websocket.send":
            items = p.decode_server(message["text"])
            if any(isinstance(item, p.Welcome) for item in items):
                welcomed.set()
            for item in items:
                if isinstance(item, p.Page):
                    pages.put_nowait(len(item.events))
        await reads.wait()

    inbox.put_nowait({"type": "websocket.connect"})
    serving = asyncio.ensure_future(serve_websocket(gateway, inbox.get, send))
    try:
        async with asyncio.timeout(60):
            frame = p.encode([p.Hello(token=rig.token("ann"))]).decode()
            inbox.put_nowait({"type": "websocket.receive", "text": frame})
            await welcomed.wait()
            reads.clear()
            frame = p.encode([p.Fetch(conversation="c")] * FETCHES).decode()
            inbox.put_nowait({"type": "websocket.receive", "text": frame})
            # One page is being written to a reader that does not read, one more waits, and no other is made.
            await pages.get()
            while not gateway._paused:  # noqa: ASYNC110 - it waits, nobody tells
                await asyncio.sleep(0)
            assert ledger.pages <= 3
            reads.set()
            for _ in range(FETCHES - 1):
                assert await pages.get() == 6
            assert ledger.pages == FETCHES
            inbox.put_nowait({"type": "websocket.disconnect"})
            await serving
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await gateway.shutdown(spread_s=0.0, within_s=10.0)
        writer.close()


async def test_an_address_over_its_rate_does_not_use_up_the_attempts_of_a_name(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    rig = Rig(ledger=ledger)
    writer = Writer(ledger)
    accounts = Accounts(tmp_path / "accounts.db", b"k" * 32, hasher=HASHER)
    accounts.add_user("ann", PASSWORD)
    service = Service(
        gateway=Gateway(rig.hub, writer),
        ledger=rig.ledger,
        accounts=accounts,
        access_tokens=accounts.access_tokens,
        settings=ServerSettings(),
        http=HttpSettings(login_burst=2, login_per_s=0.0),
    )
    try:
        for number in range(2):
            with pytest.raises(errors.Unauthorized):
                await service.login(f"nobody{number}", "wrong", device_of("ann"), "10.0.0.1")
        for _ in range(5):
            with pytest.raises(errors.RateLimited):
                await service.login("ann", "wrong", device_of("ann"), "10.0.0.1")
        tokens = await service.login("ann", PASSWORD, device_of("ann"), "10.0.0.2")
        assert tokens.user == "ann"
    finally:
        service.close()
        accounts.close()
        writer.close()


class Looking(MemoryLedger):
    """Counts what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def head(self, user: str, conversation: str, since_commit: int) -> p.Head | None:
        self.asked["head"] += 1
        return super().head(user, conversation, since_commit)

    def conversations(self, user: str) -> list[p.ConversationInfo]:
        self.asked["conversations"] += 1
        return super().conversations(user)

    def members(self, conversation: str) -> tuple[str, ...]:
        self.asked["members"] += 1
        return super().members(conversation)


@pytest.mark.parametrize("handler", [endpoints.get_conversation, endpoints.list_members])
async def test_one_conversation_is_one_lookup_for_members_and_strangers_alike(
    tmp_path: Path, handler: Handler
) -> None:
    ledger = Looking()
    rig = Rig(ledger=ledger)
    rig.create("c", "ann", "bob")
    writer = Writer(ledger)
    accounts = Accounts(tmp_path / "accounts.db", b"k" * 32, hasher=HASHER)
    service = Service(
        gateway=Gateway(rig.hub, writer),
        ledger=ledger,
        accounts=accounts,
        access_tokens=accounts.access_tokens,
        settings=ServerSettings(),
        http=HttpSettings(),
    )

    async def ask(user: str, conversation: str) -> Counter[str]:
        ledger.asked.clear()
        request = Request({"type": "http", "path_params": {"conversation": conversation}, "headers": []})
        identity = Identity(user=user, device=device_of(user), expires_at=0.0)
        call = Call(request=request, service=service, identity=identity, body=None)
        try:
            assert (await handler(call)).status_code == 200
            assert (user, conversation) == ("ann", "c")
        except errors.NotFound:
            assert (user, conversation) != ("ann", "c")
        return +ledger.asked

    try:
        # Neither all that ann has, nor all members of what is not eve's.
        for user, conversation in (("ann", "c"), ("eve", "c"), ("eve", "none")):
            assert await ask(user, conversation) == {"head": 1}
    finally:
        service.close()
        accounts.close()
        writer.close()


class Peer(asyncio.Transport):
    """What a protocol writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


async def test_pings_of_a_peer_that_does_not_read_are_not_answered() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        accepted.set()
        await receive()
        ended.set()

    accepted = asyncio.Event()
    config = uvicorn.Config(app, ws=GuardedWebSocketProtocol, lifespan="off", log_config=None)
    config.load()
    peer = Peer()
    protocol = GuardedWebSocketProtocol(config, ServerState(), {})
    protocol.connection_made(peer)
    protocol.data_received(
        b"GET /api/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with asyncio.timeout(30):
        await accepted.wait()
        peer.written = b""
        ping, pong = b"\x89\x81\0\0\0\0", b"\x8a\x01"
        protocol.pause_writing()
        for _ in range(100):
            protocol.data_received(ping + b"a")
        assert peer.written == b""
        protocol.resume_writing()
        assert peer.written == b""
        protocol.data_received(ping + b"b")
        assert peer.written == pong + b"b"
        protocol.connection_lost(None)
        await ended.wait()
