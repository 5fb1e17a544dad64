"""Speaking to a server without a client: a device that signs in, asks over HTTP, and talks on a WebSocket.

It decides nothing and repeats nothing, so a conformance suite sees what the server does, not what a client
makes of it. It runs on any event loop, the virtual one included.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol, TypeVar

import httpx2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from whimbrel import protocol as p
from whimbrel.client.credentials import Credentials

__all__ = ["Line", "ServerStage", "Speaker"]

LIMIT_S: Final = 30.0
"""Far more than any server needs to answer."""

Item = TypeVar("Item")
# Plain http needs no certificates, and loading the system's takes long: trust nobody.
_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class ServerStage(Protocol):
    """A server to be tested, and what its operator can do."""

    @property
    def url(self) -> str:
        """Where it is; the same over restarts."""

    def user(self, name: str) -> Credentials:
        """Give a user's credentials; makes the user when first asked for."""

    def crash(self) -> None:
        """Be gone at once, without a farewell."""

    async def start(self) -> None:
        """Come back, with all that was delivered."""


class Line:
    """A WebSocket to the server, read item by item."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._items: list[Any] = []

    async def say(self, *items: p.ClientItem) -> None:
        """Send items, in one frame where they fit."""
        for frame in p.frames(items):
            await self._socket.send(frame.decode())

    async def say_raw(self, text: str) -> None:
        """Send a frame of any text."""
        await self._socket.send(text)

    async def next(self, *kinds: type[Item]) -> Item:
        """Wait for an item of one of these kinds; those before it are dropped."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                while self._items:
                    item = self._items.pop(0)
                    if isinstance(item, kinds):
                        return item
                self._items += p.decode_server(await self._socket.recv())

    async def until_pong(self, id: int) -> list[Any]:
        """Ask for a pong and give everything that came before it, and for what was asked before."""
        await self.say(p.Ping(id=id))
        seen: list[Any] = []
        async with asyncio.timeout(LIMIT_S):
            while True:
                while self._items:
                    item = self._items.pop(0)
                    if isinstance(item, p.Pong) and item.id == id:
                        return seen
                    seen.append(item)
                self._items += p.decode_server(await self._socket.recv())

    async def closed(self) -> int:
        """Read until the server closes, and give the code."""
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    self._items += p.decode_server(await self._socket.recv())
        assert self._socket.close_code is not None, "it is closed"
        return self._socket.close_code


class Speaker:
    """One device of one user, signed in."""

    def __init__(self, stage: ServerStage, name: str, number: int = 1) -> None:
        self.stage = stage
        self.name = name
        digest = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
        self.device = "".join("abcdefghijklmnop"[int(digit, 16)] for digit in digest[:26])
        self.token = ""
        self.refresh_token = ""

    def __repr__(self) -> str:
        return f"<Speaker {self.name}>"

    async def sign_in(self) -> Speaker:
        """Get tokens. Raises ``AssertionError`` if they are refused."""
        credentials = self.stage.user(self.name)
        answer = await self.post(
            "/api/auth/login",
            {"username": credentials.username, "password": credentials.password, "device": self.device},
        )
        assert answer.status_code == 200, answer.text
        self.keep(answer)
        return self

    def keep(self, answer: httpx2.Response) -> None:
        """Use the tokens of this answer from now on."""
        tokens = answer.json()
        self.token, self.refresh_token = tokens["access_token"], tokens["refresh_token"]

    @contextlib.asynccontextmanager
    async def line(self, sync: str | None = None) -> AsyncIterator[Line]:
        """A link that has said hello."""
        async with self.silent_line() as line:
            await line.say(p.Hello(token=self.token, sync=sync))
            yield line

    @contextlib.asynccontextmanager
    async def silent_line(self) -> AsyncIterator[Line]:
        """A link on which nothing was said yet."""
        address = self.stage.url.replace("http", "ws", 1) + "/api/ws"
        async with connect(
            address, compression=None, ping_interval=None, close_timeout=5, proxy=None
        ) as socket:
            yield Line(socket)

    async def get(self, path: str, **query: Any) -> httpx2.Response:
        """Ask over HTTP."""
        async with self._http() as http:
            return await http.get(path, params=query)

    async def post(self, path: str, body: Any) -> httpx2.Response:
        """Send JSON over HTTP."""
        async with self._http() as http:
            return await http.post(path, json=body)

    async def delete(self, path: str) -> httpx2.Response:
        """Delete over HTTP."""
        async with self._http() as http:
            return await http.delete(path)

    def _http(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx2.AsyncClient(
            base_url=self.stage.url, headers=headers, timeout=LIMIT_S, verify=_TLS, trust_env=False
        )
