"""A real server in this process, on a free port, and clients over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import argon2
import httpx2
from websockets.asyncio.client import ClientConnection, connect

from whimbrel import protocol as p
from whimbrel.server.data import open_accounts
from whimbrel.server.run import ServeSettings, serve

# As weak as can be: the parameters are kept with each hash, so signing in is fast as well.
HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PASSWORD = "correct horse"
# Trusts nobody: http is plain here, and loading the system's certificates for each client takes 60 ms.
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
Item = TypeVar("Item")


def device_of(user: str, number: int = 1) -> str:
    digest = hashlib.sha256(f"{user} {number}".encode()).hexdigest()
    return "".join("abcdefghijklmnop"[int(digit, 16)] for digit in digest[:26])


def add_users(data: Path, *names: str) -> None:
    with contextlib.closing(open_accounts(data, hasher=HASHER)) as accounts:
        for name in names:
            accounts.add_user(name, PASSWORD)


class Server:
    """A server that listens."""

    def __init__(self, url: str, task: asyncio.Task[None]) -> None:
        self.url = url
        self.task = task

    def http(self, token: str = "") -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=30, verify=TLS)

    async def login(self, user: str, number: int = 1) -> str:
        async with self.http() as http:
            answer = await http.post(
                "/api/auth/login",
                json={"username": user, "password": PASSWORD, "device": device_of(user, number)},
            )
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token

    @contextlib.asynccontextmanager
    async def link(self, token: str, sync: str | None = None) -> AsyncIterator[Link]:
        async with connect(self.url.replace("http", "ws", 1) + "/api/ws", compression=None) as socket:
            link = Link(socket)
            await link.say(p.Hello(token=token, sync=sync))
            yield link


class Link:
    """A WebSocket, read item by item."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.items: list[Any] = []

    async def say(self, *items: p.ClientItem) -> None:
        for frame in p.frames(items):
            await self.socket.send(frame.decode())

    async def next(self, kind: type[Item]) -> Item:
        """Wait for an item of a kind; those before it are dropped."""
        async with asyncio.timeout(30):
            while True:
                while self.items:
                    item = self.items.pop(0)
                    if isinstance(item, kind):
                        return item
                self.items += p.decode_server(await self.socket.recv())


@contextlib.asynccontextmanager
async def serving(data: Path, *users: str, **settings: Any) -> AsyncIterator[Server]:
    add_users(data, *users)
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(serve(ServeSettings(data=data, port=0, **settings), ready=url.set_result))
    try:
        await asyncio.wait((task, url), return_when=asyncio.FIRST_COMPLETED)
        if not url.done():
            url.cancel()
            await task
        yield Server(await url, task)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def create(server: Server, token: str, id: str, *members: str) -> None:
    async with server.http(token) as http:
        answer = await http.post("/api/conversations", json={"id": id, "title": "T", "members": members})
        assert answer.status_code == 201, answer.text
