"""Every code of every error, raised: by what an app, a client or a server of ours does, not by hand.

The lists are those of the code (see ``tests/docs/test_errors.py``): a new error without a scenario fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import apsw
import httpx2
import msgspec
import pytest
from starlette.requests import Request

from tests.attack.access_rig import Wire
from tests.docs.test_errors import tree, wire_codes
from tests.server.app_rig import HASHER, PASSWORD, Server, create, device_of, serving
from whimbrel import Client, Credentials, Settings, errors
from whimbrel import protocol as p
from whimbrel.client.address import parse_address
from whimbrel.client.events import EventHub
from whimbrel.client.http import HttpApi
from whimbrel.core.contract import SendMessage
from whimbrel.model import TypingChanged, message_id
from whimbrel.server.accounts import Accounts
from whimbrel.server.data import open_data
from whimbrel.server.http import Call, Route, endpoint
from whimbrel.server.hub import ServerSettings
from whimbrel.server.problem import STATUS_OF_CODE, Problem
from whimbrel.server.service import HttpSettings
from whimbrel.store import schema
from whimbrel.store.handoff import KeyRaced, Limits
from whimbrel.store.memory import MemoryStore
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.store_rows import changes, queued

KEY = bytes(range(32))
ANN = Credentials("ann", PASSWORD)
LIMIT_S = 60.0
NOWHERE = "http://127.0.0.1:1"


class Place:
    """What scenarios need: a folder, a server when they ask for one, clients of it, or what is no server."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack

    async def server(self, *, burst: int = 100) -> Server:
        # What is used up stays used up, however slow the machine.
        http = HttpSettings(login_burst=burst, login_per_s=0.0)
        limits = ServerSettings(rate_burst=5, rate_limit=0.001)
        return await self._stack.enter_async_context(
            serving(self.folder / "data", "ann", "bob", server=limits, http=http, shutdown_within_s=1.0)
        )

    async def client(self, url: str = NOWHERE, settings: Settings | None = None) -> Client:
        return await self._stack.enter_async_context(Client(url, None, ANN, settings=settings))

    async def signed_in(self) -> Client:
        client = await self.client((await self.server()).url)
        await client.connected(LIMIT_S)
        return client

    async def api(self, status: int | None = None, body: bytes = b"", *, burst: int = 100) -> HttpApi:
        """The calls to a server of ours, or to something that answers all with this."""
        url = (await self.server(burst=burst)).url if status is None else await self._answering(status, body)
        api = HttpApi(parse_address(url))
        self._stack.push_async_callback(api.close)
        return api

    async def _answering(self, status: int, body: bytes) -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            writer.close()

        server = await self._stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def store(self, name: str = "store.db") -> SqliteStore:
        return self._stack.enter_context(contextlib.closing(SqliteStore(self.folder / name, KEY)))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with contextlib.AsyncExitStack() as stack:
        yield Place(tmp_path, stack)


Scenario: TypeAlias = Callable[[Place], Awaitable[Any]]
RAISED: dict[str, Scenario] = {}
RESERVED = {"breaker_open": errors.BreakerOpen}
"""Codes that no line of the code raises yet."""
BRANCHES = {"error": errors.WhimbrelError, "link": errors.LinkError}
"""Roots of branches, which are caught and never raised themselves."""


def raised(code: str) -> Callable[[Scenario], Scenario]:
    """Note the scenario that ends with this code."""

    def note(scenario: Scenario) -> Scenario:
        assert code not in RAISED
        RAISED[code] = scenario
        return scenario

    return note


# --- the caller ----------------------------------------------------------------------------------


@raised("usage")
async def opened_twice(place: Place) -> None:
    await (await place.client()).open()


@raised("invalid_argument")
async def expires_before_it_is_sent(place: Place) -> None:
    await (await place.client()).send("team", "x", expires_in=-1)


@raised("invalid_url")
async def no_address(place: Place) -> None:
    Client("ftp://127.0.0.1", None)


@raised("insecure_url")
async def plain_and_far_away(place: Place) -> None:
    Client("http://192.0.2.1", None)


@raised("client_closed")
async def used_after_its_end(place: Place) -> None:
    client = await place.client()
    await client.close()
    await client.send("team", "x")


@raised("key_reused")
async def one_key_two_contents(place: Place) -> None:
    client = await place.client()
    await client.send("team", "x", key="k")
    await client.send("team", "y", key="k")


@raised("queue_full")
async def more_than_the_outbox_takes(place: Place) -> None:
    client = await place.client(settings=Settings(outbox_messages_max=1))
    for _ in range(2):
        await client.send("team", "x")


@raised("events_lost")
async def read_too_slowly(place: Place) -> None:
    hub = EventHub()
    stream = hub.stream(1)
    for _ in range(3):
        hub.publish(TypingChanged(conversation="team", user="bob", on=True))
    async for _ in stream:
        pass


# --- this machine --------------------------------------------------------------------------------


@raised("store")
async def a_value_no_row_takes(place: Place) -> None:
    store = place.store()
    assert store._db is not None
    store._db.execute("DROP TABLE secrets")
    store.set_secret("tokens", "x")


@raised("store_unavailable")
async def a_file_in_the_way(place: Place) -> None:
    (place.folder / "file").write_text("")
    place.store("file/store.db")


@raised("store_in_use")
async def two_servers_one_folder(place: Place) -> None:
    with open_data(place.folder / "data"), open_data(place.folder / "data"):
        pass


@raised("store_key")
async def another_key(place: Place) -> None:
    place.store().close()
    SqliteStore(place.folder / "store.db", KEY[::-1])


@raised("store_full")
async def no_room(place: Place) -> None:
    store = place.store()
    db = store._db
    assert db is not None
    db.pragma("max_page_count", db.pragma("page_count"))
    store.set_secret("tokens", "x" * 100_000)


@raised("store_corrupt")
async def a_bit_turned_on_each_page(place: Place) -> None:
    path = place.folder / "accounts.db"
    with contextlib.closing(Accounts(path, KEY, hasher=HASHER)) as accounts:
        accounts.add_user("ann", PASSWORD)
    content = bytearray(path.read_bytes())
    for at in range(2048 + 100, len(content), 2048):
        content[at] ^= 1
    path.write_bytes(content)
    with contextlib.closing(Accounts(path, KEY, hasher=HASHER)) as accounts:
        accounts.users_exist({"ann"})


@raised("not_a_store")
async def somebody_elses_database(place: Place) -> None:
    with contextlib.closing(apsw.Connection(str(place.folder / "store.db"))) as other:
        other.execute("CREATE TABLE holidays (day)")
    place.store()


@raised("store_too_new")
async def from_the_future(place: Place) -> None:
    store = place.store()
    assert store._db is not None
    store._db.pragma("user_version", len(schema.migrations()) + 1)
    store.close()
    place.store()


@raised("key_raced")
async def one_key_two_processes(place: Place) -> None:
    store = MemoryStore()
    row = queued(1)
    assert row.key is not None
    other = SendMessage(conversation=row.conversation, key=row.key, format="text", body="other")
    store.hand_over([(other, 1.0)], Limits())
    store.apply(changes(msgspec.structs.replace(row, id=message_id(store.device, row.key))))


# --- the network ---------------------------------------------------------------------------------


@raised("not_connected")
async def nobody_there_in_time(place: Place) -> None:
    await (await place.client()).connected(0.01)


@raised("server_unreachable")
async def nobody_there(place: Place) -> None:
    await HttpApi(parse_address(NOWHERE)).login("ann", PASSWORD, device_of("ann"))


@raised("protocol")
async def no_server_of_ours(place: Place) -> None:
    await (await place.api(200, b"hello")).login("ann", PASSWORD, device_of("ann"))


# --- the server ----------------------------------------------------------------------------------


@raised("remote")
async def a_reason_of_the_future(place: Place) -> None:
    await (await place.api(418, b'{"code": "teapot"}')).refresh("x")


@raised("unauthorized")
async def wrong_password(place: Place) -> None:
    await (await place.api()).login("ann", "not the password", device_of("ann"))


@raised("not_found")
async def not_a_member(place: Place) -> None:
    await (await place.signed_in()).conversation("elsewhere").add_member("bob")


@raised("forbidden")
async def a_proxy_in_the_way(place: Place) -> None:
    await (await place.api(403, b"<html>")).login("ann", PASSWORD, device_of("ann"))


@raised("conflict")
async def the_device_of_another(place: Place) -> None:
    api = await place.api()
    await api.login("bob", PASSWORD, device_of("bob"))
    await api.login("ann", PASSWORD, device_of("bob"))


@raised("rate_limited")
async def too_many_logins(place: Place) -> None:
    api = await place.api(burst=1)
    for _ in range(2):
        await api.login("ann", PASSWORD, device_of("ann"))


@raised("too_large")
async def a_large_message(place: Place) -> None:
    await (await place.client()).send("team", "x" * 300_000)


@raised("invalid")
async def no_device(place: Place) -> None:
    await (await place.api()).login("ann", PASSWORD, "device")


@raised("unavailable")
async def a_server_that_fails(place: Place) -> None:
    await (await place.api(502, b"<html>")).login("ann", PASSWORD, device_of("ann"))


@raised("delivery_failed")
async def where_one_may_not_write(place: Place) -> None:
    sent = await (await place.signed_in()).send("elsewhere", "x")
    await sent.delivered(LIMIT_S)


@raised("delivery_pending")
async def not_yet(place: Place) -> None:
    client = await place.client()
    await client.send("team", "x")
    await client.flush(0.01)


def kinds() -> dict[str, list[type[errors.WhimbrelError]]]:
    known: dict[str, type[errors.WhimbrelError]] = {**vars(errors), "KeyRaced": KeyRaced}
    return {code: [known[name] for name in names] for code, names in tree().items()}


def test_every_error_has_a_scenario() -> None:
    assert set(RAISED) | set(RESERVED) | set(BRANCHES) == set(tree())
    assert not set(RAISED) & (set(RESERVED) | set(BRANCHES))


@pytest.mark.parametrize("code", sorted(RAISED))
async def test_every_error_is_raised(place: Place, code: str) -> None:
    [kind] = kinds()[code]
    with pytest.raises(kind) as caught:
        await RAISED[code](place)
    assert caught.value.code == code
    assert str(caught.value)
    assert PASSWORD not in f"{caught.value} {caught.value!r} {caught.value.hint}"


# --- on the wire ---------------------------------------------------------------------------------


async def boom(call: Call) -> Any:
    """Fail, as only a bug does."""
    raise RuntimeError("body-c4n4ry")


async def failed() -> httpx2.Response:
    """What a handler with a bug answers."""
    service: Any = None
    serve = endpoint(Route(method="GET", path="/", name="boom", handler=boom, public=True), service)
    response = await serve(Request({"type": "http", "method": "GET", "headers": []}))
    return httpx2.Response(response.status_code, content=bytes(response.body))


@contextlib.asynccontextmanager
async def wire_to(server: Server) -> AsyncIterator[Wire]:
    stage: Any = type("Stage", (), {"server": server})
    async with Wire.opened(stage) as wire:
        yield wire


async def too_fast(http: httpx2.AsyncClient, path: str) -> httpx2.Response:
    for number in range(1, 21):
        body = {"key": f"k{number}", "body": "x", "stream": 1, "n": number}
        answer = await http.post(path, json=body)
        if answer.status_code != 200:
            break
    return answer


async def asked(place: Place, code: str) -> httpx2.Response:
    """Do what the server answers with this code."""
    if code == "internal":
        return await failed()
    server = await place.server(burst=2)
    token = await server.login("ann")
    await create(server, token, "team", "bob")
    send = {"key": "k", "body": "x", "stream": 1, "n": 1}
    path = "/api/conversations/team/messages/buffered"
    if code == "voided":
        async with wire_to(server) as wire:
            await wire.say(p.Hello(token=token))
            await wire.say(p.Void(conversation="team", stream=1, n=1, key="k"))
            await wire.settled()
    async with server.http(token) as http:
        calls: dict[str, Callable[[], Awaitable[httpx2.Response]]] = {
            "invalid": lambda: http.post(path, content=b"{"),
            "unauthorized": lambda: http.get(path[:18], headers={"Authorization": "Bearer x"}),
            "not_found": lambda: http.get("/api/conversations/elsewhere"),
            "method_not_allowed": lambda: http.put("/api/conversations"),
            "conflict": lambda: http.post("/api/conversations", json={"id": "team", "title": "another"}),
            "out_of_order": lambda: http.post(path, json={**send, "n": 7}),
            "too_large": lambda: http.post(path, content=b"x" * (p.FRAME_BYTES_MAX + 1)),
            "rate_limited": lambda: too_fast(http, path),
            "voided": lambda: http.post(path, json=send),
        }
        assert code in calls, f"no scenario for {code}"
        return await calls[code]()


NEVER_SAID = {"forbidden"}
"""Of what stands before a server; known to clients."""


@pytest.mark.parametrize("code", sorted(wire_codes() - NEVER_SAID - {"protocol", "unavailable"}))
async def test_every_code_of_the_wire_is_said(place: Place, code: str) -> None:
    answer = await asked(place, code)
    assert answer.status_code == STATUS_OF_CODE[code]
    found = msgspec.json.decode(answer.content, type=Problem)
    assert (found.code, found.status) == (code, answer.status_code)
    assert found.detail
    assert "c4n4ry" not in answer.text
    assert (found.retry_after_s is not None) == (code == "rate_limited")


async def test_a_link_that_says_nonsense_is_told_protocol(place: Place) -> None:
    async with wire_to(await place.server()) as wire:
        await wire._socket.send("{")
        await wire.ended()
    assert [item.code for item in wire.items] == ["protocol"]
    assert wire.close_code == 1002


async def test_a_server_with_too_much_to_do_says_unavailable(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await place.server()
    monkeypatch.setattr("whimbrel.server.service.ACCOUNT_CALLS_MAX", 0)
    async with server.http() as http:
        answer = await http.post("/api/auth/refresh", json={"refresh_token": "wr_" + "x" * 43})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def test_no_code_is_said_that_is_never_said() -> None:
    assert wire_codes() > NEVER_SAID
