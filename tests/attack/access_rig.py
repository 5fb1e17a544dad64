"""A server with a conversation full of marked strings, and everyone who should not see them.

Whatever is secret about the room carries a *canary*, a string that is nowhere else: title, names of members,
bodies, metadata, keys, ids. What a bystander receives is kept as bytes and searched for them. Of the former
member two sets are told apart: what was said before it was removed, which it may go on seeing, and what came
after.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.server.app_rig import PASSWORD, Server, create, device_of, serving
from whimbrel import protocol as p
from whimbrel.core.contract import Fault
from whimbrel.server.auth import AccessTokens
from whimbrel.server.data import open_accounts
from whimbrel.server.hub import ServerSettings
from whimbrel.server.service import HttpSettings

LIMIT_S = 60.0
ROOM = "room-c4n4ry-a"
ABSENT = "room-nowhere1"
"""No conversation has this id, which is as long as that of the room."""
OWN = "own-room"
"""The conversation of those who are members there and not in the room."""
OWNER = "owner.c4n4ry"
MEMBER = "member.c4n4ry"
LATER = "later.c4n4ry"
"""Joined when the former member was gone."""
FORMER = "former"
STRANGER = "stranger"
OTHER = "other"
BEFORE = ("body-c4n4ry-before", "meta-c4n4ry-before", "title-c4n4ry", MEMBER, OWNER)
"""What the former member saw, and may see."""
AFTER = ("body-c4n4ry-after", "meta-c4n4ry-after", "live-c4n4ry-body", LATER)
NEVER = ("key-c4n4ry",)
"""Keys are shown to nobody, not even to members."""


def message(n: int, body: str, meta: str) -> dict[str, object]:
    return {"key": f"key-c4n4ry-{n}", "body": body, "stream": 1, "n": n, "metadata": {"m": meta}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
    """A token, and how it is called when a test fails."""

    name: str
    text: str
    scheme: str = "Bearer"


@dataclasses.dataclass(kw_only=True)
class Stage:
    """The server and what everyone has in hand."""

    server: Server
    data: Path
    tokens: dict[str, str]
    """Access tokens by user."""
    refresh: dict[str, str]
    former_sync: str = ""
    """A sync token the former member was given as a member."""
    secrets: tuple[str, ...] = ()
    """Ids, epoch and devices of the room, which bystanders have no business with."""
    left_seq: int = 0
    sent: int = 2
    stirred: int = 0

    def leaks(self, seen: bytes | str, *, former: bool = False, named: bool = True) -> list[str]:
        """The canaries in what somebody received; ``named``: the room's id was in the question."""
        text = seen.decode() if isinstance(seen, bytes) else seen
        marks = [*AFTER, *NEVER] if former else [*BEFORE, *AFTER, *NEVER, *self.secrets]
        if not named:
            marks.append(ROOM)
        return [mark for mark in marks if mark in text]

    async def say(self, body: str = "live-c4n4ry-body") -> None:
        """Have the owner send one more message in the room."""
        self.sent += 1
        async with self.server.http(self.tokens[OWNER]) as http:
            answer = await http.post(
                f"/api/conversations/{ROOM}/messages/buffered", json=message(self.sent, body, body)
            )
        assert answer.status_code == 200, answer.text

    async def stir(self) -> None:
        """Do everything that members are told of, in the room; then say something in the other one."""
        await self.say()
        room = f"/api/conversations/{ROOM}"
        async with self.server.http(self.tokens[OWNER]) as http:
            for answer in (
                await http.post(room + "/receipts", json={"read": 3 + self.sent}),
                await http.delete(f"{room}/members/{LATER}"),
                await http.post(room + "/members", json={"user": LATER}),
            ):
                assert answer.status_code == 200, answer.text
        async with Wire.of(self, OWNER) as wire:
            await wire.say(p.Typing(conversation=ROOM), p.Received(conversation=ROOM, seq=self.sent))
            await wire.settled()
        async with self.server.http(self.tokens[OTHER]) as http:
            n = self.stirred = self.stirred + 1
            answer = await http.post(
                f"/api/conversations/{OWN}/messages/buffered",
                json={"key": f"o{n}", "body": f"sentinel-{n}", "stream": 1, "n": n},
            )
            assert answer.status_code == 200, answer.text

    def bad_tokens(self) -> list[Token]:
        """Everything that is no access token of this server, however much it looks like one."""
        good = self.tokens[OWNER]
        head, claims, signature = good.split(".")
        with contextlib.closing(open_accounts(self.data)) as accounts:
            secret, sync_secret = accounts.secret("access"), accounts.secret("sync")
        long_ago = AccessTokens(secret, clock=lambda: time.time() - 3600.0)
        in_advance = AccessTokens(secret, clock=lambda: time.time() + 3600.0)
        device = device_of(OWNER)
        unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"
        return [
            Token(name="none", text="", scheme=""),
            Token(name="empty", text=""),
            Token(name="another scheme", text=good, scheme="Basic"),
            Token(name="two of them", text=f"{good} {good}"),
            Token(name="junk", text="x" * 40),
            Token(name="huge", text="x" * 6000),
            Token(name="no signature", text=f"{head}.{claims}."),
            Token(name="signature of nothing", text=f"{head}.{claims}.{'A' * len(signature)}"),
            Token(name="alg none", text=f"{unsigned}.{claims}."),
            Token(name="alg none, signed", text=f"{unsigned}.{claims}.{signature}"),
            Token(name="expired", text=long_ago.issue(OWNER, device)[0]),
            Token(name="of the future", text=in_advance.issue(OWNER, device)[0]),
            Token(name="another server", text=AccessTokens(b"\x07" * 32).issue(OWNER, device)[0]),
            Token(name="the sync secret", text=AccessTokens(sync_secret).issue(OWNER, device)[0]),
            Token(name="refresh token", text=self.refresh[OWNER]),
            Token(name="sync token", text=self.refresh["sync"]),
            Token(name="password", text=PASSWORD.replace(" ", "_")),
        ]


class Wire:
    """A WebSocket of somebody, of which every byte that came is kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._calls = 0
        self.seen: list[bytes] = []
        """The frames."""
        self.items: list[Any] = []
        """All that came but the answers to our own sentinels and pings."""
        self.close_code: int | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def of(
        cls, stage: Stage, user: str, number: int = 1, sync: str | None = None
    ) -> AsyncIterator[Wire]:
        """A greeted link; ``number``: which device of the user."""
        token = await stage.server.login(user, number)
        async with cls.opened(stage) as wire:
            await wire.say(p.Hello(token=token, sync=sync))
            await wire.settled()
            yield wire

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, stage: Stage) -> AsyncIterator[Wire]:
        """A link nobody greeted on yet."""
        async with connect(stage.server.url.replace("http", "ws", 1) + "/api/ws", compression=None) as socket:
            yield cls(socket)

    async def say(self, *items: p.ClientItem) -> None:
        for frame in p.frames(items):
            await self._socket.send(frame.decode())

    async def settled(self) -> None:
        """Wait until everything said before is answered: calls are answered in the order of the queue."""
        self._calls += 1
        name = f"sentinel {self._calls}"
        await self.say(p.Call(id=name, op="list"))
        async with asyncio.timeout(LIMIT_S):
            while True:
                data = await self._socket.recv()
                self.seen.append(data.encode() if isinstance(data, str) else data)
                items = p.decode_server(data)
                self.items += [item for item in items if getattr(item, "id", None) != name]
                if any(isinstance(item, p.Answer) and item.id == name for item in items):
                    return

    async def ended(self) -> None:
        """Read to the end of the link."""
        async with asyncio.timeout(LIMIT_S):
            try:
                while True:
                    data = await self._socket.recv()
                    self.seen.append(data.encode() if isinstance(data, str) else data)
                    self.items += p.decode_server(data)
            except ConnectionClosed:
                self.close_code = self._socket.close_code

    async def heard(self, text: str) -> None:
        """Read until something holds this text."""
        async with asyncio.timeout(LIMIT_S):
            while not any(text.encode() in frame for frame in self.seen):
                data = await self._socket.recv()
                self.seen.append(data.encode() if isinstance(data, str) else data)
                self.items += p.decode_server(data)


async def _fill(stage: Stage) -> None:
    """The room's story: two messages, then the former member goes, then what it may not see."""
    server, owner = stage.server, stage.tokens[OWNER]
    room = f"/api/conversations/{ROOM}"
    await create(server, stage.tokens[OTHER], OWN, STRANGER, FORMER)
    async with server.http(owner) as http:
        made = await http.post(
            "/api/conversations", json={"id": ROOM, "title": "title-c4n4ry", "members": [MEMBER, FORMER]}
        )
        assert made.status_code == 201, made.text
        sent = [
            await http.post(room + "/messages/buffered", json=message(1, "body-c4n4ry-before", BEFORE[1]))
        ]
        async with server.http(stage.tokens[FORMER]) as former:
            polled = await former.get("/api/poll", params={"timeout": 0})
            stage.former_sync = polled.json()["sync"]
        sent += [
            await http.delete(f"{room}/members/{FORMER}"),
            await http.post(room + "/messages/buffered", json=message(2, "body-c4n4ry-after", AFTER[1])),
            await http.post(room + "/members", json={"user": LATER}),
            await http.post(room + "/receipts", json={"received": 2, "read": 2}),
        ]
        assert [answer.status_code for answer in sent] == [200] * len(sent), [a.text for a in sent]
        stage.left_seq = sent[1].json()["seq"]
        stage.secrets = (
            made.json()["epoch"],
            sent[0].json()["id"],
            sent[2].json()["id"],
            *(device_of(user) for user in (OWNER, MEMBER, LATER)),
        )


@contextlib.asynccontextmanager
async def stage_on(folder: Path, **http: Any) -> AsyncIterator[Stage]:
    """The whole scene on a server of its own."""
    users = (OWNER, MEMBER, LATER, FORMER, STRANGER, OTHER)
    settings = ServerSettings(rate_limit=None, receipt_interval_s=0.05, links_per_user_max=200)
    options = HttpSettings(login_burst=10_000, **http)
    async with serving(folder / "data", *users, server=settings, http=options) as server:
        stage = Stage(server=server, data=folder / "data", tokens={}, refresh={})
        async with server.http() as call:
            for user in users:
                answer = await call.post(
                    "/api/auth/login",
                    json={"username": user, "password": PASSWORD, "device": device_of(user)},
                )
                assert answer.status_code == 200, answer.text
                stage.tokens[user] = answer.json()["access_token"]
                stage.refresh[user] = answer.json()["refresh_token"]
        async with server.http(stage.tokens[OWNER]) as call:
            polled = await call.get("/api/poll", params={"timeout": 0})
            stage.refresh["sync"] = polled.json()["sync"]
        await _fill(stage)
        yield stage


def anonymous(items: list[Any], conversation: str) -> list[bytes]:
    """What came, with the name of the conversation that was asked for blotted out."""
    blot = b"?" * len(conversation)
    return [msgspec.json.encode(item).replace(conversation.encode(), blot) for item in items]


class Ends:
    """Notes how a link ends."""

    def __init__(self) -> None:
        self.end: asyncio.Future[Fault] = asyncio.get_running_loop().create_future()

    def link_closed(self, link: int, fault: Fault) -> None:
        self.end.set_result(fault)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None
