"""Several clients on one store: one syncs it, the others work through it, and the role passes on."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.real_server import LIMIT_S, PASSWORD, RealServer
from whimbrel import (
    Client,
    Conflict,
    Credentials,
    DeliveryFailed,
    DeliveryPending,
    KeyReused,
    Message,
    MessageReceived,
    QueueFull,
    SendState,
    StoreInUse,
    StoreUnavailable,
    Unauthorized,
)
from whimbrel.client import doorway, relay
from whimbrel.client import guest as guest_module
from whimbrel.client.events import EventStream
from whimbrel.client.guest import Guest
from whimbrel.client.syncing import Syncing
from whimbrel.core.contract import Settings, Snapshot
from whimbrel.store.sqlite import SqliteStore

KEY = b"k" * 32
ANN = Credentials("ann", PASSWORD)
BOB = Credentials("bob", PASSWORD)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RealServer]:
    async with RealServer(tmp_path / "server", ("ann", "bob", "cat")) as server:
        yield server


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nobody listens, and that nobody else can get meanwhile."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ann.db"


def client(server: RealServer, path: Path, credentials: Credentials | None = ANN) -> Client:
    return Client(server.url, path, credentials, key=KEY)


def is_guest(client: Client) -> bool:
    assert client._session is not None
    return isinstance(client._session.role, Guest)


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Wait for what nobody tells of."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


async def arrived(events: EventStream, count: int) -> list[Message]:
    """The next messages that a stream tells."""
    found: list[Message] = []
    async with asyncio.timeout(LIMIT_S):
        async for event in events:
            if isinstance(event, MessageReceived) and event.message.kind == "message":
                found.append(event.message)
                if len(found) == count:
                    break
    return found


async def test_a_second_client_simply_works(server: RealServer, path: Path, tmp_path: Path) -> None:
    async with (
        client(server, path) as owner,
        client(server, path) as guest,
        client(server, tmp_path / "bob.db", BOB) as bob,
    ):
        assert not is_guest(owner)
        assert is_guest(guest)
        assert guest.device == owner.device
        mine, owners, bobs = guest.events(), owner.events(), bob.events()
        await guest.connected(LIMIT_S)
        await bob.connected(LIMIT_S)
        assert guest.user == "ann"
        talk = await guest.create_conversation("bob", title="Plans")
        sent = await talk.send("hello", key="first")
        assert (await sent.delivered(LIMIT_S)).content == "hello"
        assert [message.content for message in await arrived(bobs, 1)] == ["hello"]
        await bob.conversation(talk.id).send("hello, ann")
        for stream in (mine, owners):
            assert [message.content for message in await arrived(stream, 2)] == ["hello", "hello, ann"]
        for reader in (owner, guest):
            messages = await reader.conversation(talk.id).messages()
            assert [m.content for m in messages if m.kind == "message"] == ["hello", "hello, ann"]
        await guest.conversation(talk.id).mark_read()
        await bob.conversation(talk.id).mark_read()

        async def read() -> bool:
            return (await guest.status(sent.id)).state is SendState.READ

        await until(read)
        assert await guest.flush(LIMIT_S) == 0
        explanation = await guest.explain(sent.id)
        assert explanation.status.state is SendState.READ
        assert (await guest.close()).pending == 0


async def test_a_guest_sends_without_a_server_and_sees_where_it_stands(
    server: RealServer, path: Path
) -> None:
    async with client(server, path) as owner, client(server, path) as guest:
        await owner.connected(LIMIT_S)
        talk = (await owner.create_conversation("bob")).id
        await server.kill()
        first = await owner.send(talk, "1")
        second = await guest.send(talk, "2", key="two")
        assert [message.content for message in await guest.pending()] == ["1", "2"]

        async def taken() -> bool:
            return (await guest.explain(second.id)).ahead == 1

        await until(taken)
        third = await owner.send(talk, "3")
        for one in (owner, guest):
            assert [message.content for message in await one.pending()] == ["1", "2", "3"]
            page = [message.content for message in await one.conversation(talk).messages(limit=3)]
            assert page == ["1", "2", "3"]
        assert "connection" in (await guest.explain(second.id)).blocked_by
        assert not second.status.settled
        await guest.cancel(third.id)
        with pytest.raises(DeliveryFailed):
            await third.delivered(LIMIT_S)
        await server.start()
        async with asyncio.timeout(LIMIT_S):
            delivered = [await first.delivered(), await second.delivered()]
        assert [message.seq for message in delivered] == sorted(message.seq or 0 for message in delivered)
        assert (await (await guest.sent_message(second.id)).delivered()).content == "2"
        assert await guest.flush(LIMIT_S) == 0, "the last void is told too"
        assert await owner.flush(LIMIT_S) == 0


async def test_one_key_is_one_message_whoever_sends_it(server: RealServer, path: Path) -> None:
    async with client(server, path) as owner, client(server, path) as guest:
        await owner.connected(LIMIT_S)
        talk = (await owner.create_conversation("bob")).id
        first = await guest.send(talk, "same", key="k")
        assert (await guest.send(talk, "same", key="k")) is first
        assert (await owner.send(talk, "same", key="k")).id == first.id
        for other in (guest, owner):
            with pytest.raises(KeyReused):
                await other.send(talk, "other", key="k")
        results = await asyncio.gather(
            *(c.send(talk, f"{n % 2}", key=f"race {n // 4}") for n in range(80) for c in (owner, guest)),
            return_exceptions=True,
        )
        assert await guest.flush(LIMIT_S) == 0
        page = await owner.conversation(talk).messages(limit=1000)
        keys = [message.key for message in page if message.kind == "message"]
        assert sorted(str(key) for key in keys) == sorted(["k", *(f"race {n}" for n in range(20))])
        # Who was told that it is queued found it in the log with its own content.
        contents = {message.key: message.content for message in page}
        for n, result in zip([n for n in range(80) for _ in range(2)], results, strict=True):
            if not isinstance(result, BaseException):
                assert contents[f"race {n // 4}"] == f"{n % 2}"


async def test_a_full_outbox_refuses_guests_too(nowhere: str, path: Path) -> None:
    settings = Settings(outbox_messages_max=3)
    async with (
        Client(nowhere, path, ANN, key=KEY, settings=settings) as owner,
        Client(nowhere, path, ANN, key=KEY, settings=settings) as guest,
    ):
        await owner.send("c", "1")
        await guest.send("c", "2")
        await guest.send("c", "3")
        with pytest.raises(QueueFull):
            await guest.send("c", "4")
        assert [message.content for message in await guest.pending()] == ["1", "2", "3"]
        for one in (owner, guest):
            with pytest.raises(DeliveryPending):  # with no time to look, it must not say that all is well
                await one.flush(0)


async def test_the_role_passes_to_the_same_client_object(
    server: RealServer, path: Path, tmp_path: Path
) -> None:
    async with client(server, path) as guest_to_be, client(server, tmp_path / "bob.db", BOB) as bob:
        await guest_to_be.connected(LIMIT_S)
        talk = (await guest_to_be.create_conversation("bob")).id
    owner, first, second = (client(server, path) for _ in range(3))
    async with client(server, tmp_path / "bob.db", BOB) as bob:
        await bob.connected(LIMIT_S)
        await owner.open()
        await first.open()
        await second.open()
        try:
            streams = [first.events(), second.events()]
            await first.connected(LIMIT_S)
            await second.connected(LIMIT_S)
            await bob.send(talk, "0")
            await arrived(streams[0], 1)
            await server.kill()
            waiting = [await guest.send(talk, f"from {n}") for n, guest in enumerate((first, second))]
            deliveries = [asyncio.ensure_future(handle.delivered()) for handle in waiting]
            await owner.close()
            await until(lambda: [is_guest(first), is_guest(second)].count(True) == 1)
            late = await first.send(talk, "late")
            await server.start()
            async with asyncio.timeout(LIMIT_S):
                assert [message.content for message in await asyncio.gather(*deliveries)] == [
                    "from 0",
                    "from 1",
                ]
                await late.delivered()
                await bob.connected()
            await bob.send(talk, "last")
            expected = ["from 0", "from 1", "late", "last"]
            assert [message.content for message in await arrived(streams[0], 4)] == expected
            assert [message.content for message in await arrived(streams[1], 5)] == ["0", *expected]
        finally:
            for one in (owner, first, second):
                await one.close()


async def test_calls_go_on_with_the_next_owner(server: RealServer, path: Path) -> None:
    owner, guest = client(server, path), client(server, path)
    await owner.open()
    await guest.open()
    try:
        await guest.connected(LIMIT_S)
        await server.kill()
        making = asyncio.ensure_future(guest.create_conversation("bob", id="made"))
        connecting = asyncio.ensure_future(guest.connected(LIMIT_S))
        await asyncio.sleep(0)
        await owner.close()
        await server.start()
        assert (await making).id == "made"
        await connecting
    finally:
        await owner.close()
        await guest.close()


async def test_a_consumer_belongs_to_one_program_at_a_time(server: RealServer, path: Path) -> None:
    async with client(server, path) as owner, client(server, path) as guest:
        await owner.connected(LIMIT_S)
        talk = await owner.create_conversation("bob")
        await talk.send("1")
        await owner.flush(LIMIT_S)
        async with guest.events(consumer="bot") as consumer:
            async with asyncio.timeout(LIMIT_S):
                async for event in consumer:
                    await event.done()
                    if event.message.content == "1":
                        break
            with pytest.raises(StoreInUse, match="consumer bot"):
                await anext(owner.events(consumer="bot"))
            # It goes on after the role passed to its own client.
            await owner.close()
            await until(lambda: not is_guest(guest))
            await guest.conversation(talk.id).send("2")
            async with asyncio.timeout(LIMIT_S):
                event = await anext(consumer)
            assert event.message.content == "2"
            await event.done()
        async with client(server, path) as again:
            await again.connected(LIMIT_S)
            await again.conversation(talk.id).send("3")
            async with asyncio.timeout(LIMIT_S):
                assert (await anext(again.events(consumer="bot"))).message.content == "3"


async def test_without_a_socket_everything_works_all_the_same(
    server: RealServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorway, "address_of", lambda _: None)
    monkeypatch.setattr(guest_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("whimbrel.client.taking.LOOK_EVERY_S", 0.05)
    async with client(server, path) as owner, client(server, path) as guest:
        await owner.connected(LIMIT_S)
        talk = await owner.create_conversation("bob")
        events = guest.events()
        sent = await guest.send(talk.id, "1")
        await owner.send(talk.id, "2")  # a pass of its driver: it looks for what was handed over
        assert (await sent.delivered(LIMIT_S)).content == "1"
        assert sorted(str(message.content) for message in await arrived(events, 2)) == ["1", "2"]
        assert (await guest.explain(sent.id)).status.settled
        await owner.close()
        await until(lambda: not is_guest(guest))
        await guest.connected(LIMIT_S)


async def test_signing_in_and_out_through_the_owner(server: RealServer, path: Path) -> None:
    async with client(server, path, None) as owner, client(server, path, None) as guest:
        with pytest.raises(Unauthorized):
            await guest.connected(LIMIT_S)
        with pytest.raises(Unauthorized):
            await guest.sign_in(Credentials("ann", "a wrong password"))
        await guest.sign_in(ANN)
        await owner.connected(LIMIT_S)
        await guest.connected(LIMIT_S)
        with pytest.raises(Conflict, match="another user"):
            await guest.sign_in(BOB)
        await guest.sign_out()
        with pytest.raises(Unauthorized):
            await owner.connected(LIMIT_S)
    # A guest that has credentials helps an owner that has none.
    async with client(server, path, None) as owner, client(server, path):
        await until(lambda: owner.connection.state == "connected")
        assert owner.user == "ann"


async def test_who_cannot_read_the_store_is_not_let_in(nowhere: str, path: Path) -> None:
    async with Client(nowhere, path, ANN, key=KEY) as owner:
        address = doorway.address_of(path)
        assert address is not None
        await until(address.exists)
        assert address.stat().st_mode & 0o077 == 0
        line = await doorway.connect(address)
        assert line is not None
        assert not await relay.enter(line, "guessed")
        assert owner._session is not None
        role = owner._session.role
        assert isinstance(role, Syncing)
        assert "guests=0" in repr(role._host)
        await line.close()
    assert not address.exists()


async def test_an_idle_guest_sleeps(nowhere: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined to who syncs the store, it looks at nothing by itself."""
    async with Client(nowhere, path, None, key=KEY), Client(nowhere, path, None, key=KEY) as guest:
        await until(lambda: "joined" in repr(guest._session and guest._session.role))
        looks: list[str] = []
        for name in ("take_over", "data_version", "load", "get_secret"):
            original = getattr(SqliteStore, name)

            def looked(store: SqliteStore, *args: str, _name: str = name, _do: Any = original) -> Any:
                if store.guest:
                    looks.append(_name)
                return _do(store, *args)

            monkeypatch.setattr(SqliteStore, name, looked)
        await asyncio.sleep(1.5)
        assert len(looks) <= 1, "the end of joining at most"


async def test_a_guest_that_cannot_read_does_not_hurry(
    nowhere: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it is let in, its reading fails: it tries again, with pauses that grow."""
    loads: list[SqliteStore] = []
    load = SqliteStore.load

    def failing(store: SqliteStore) -> Snapshot:
        if store.guest and loads:
            loads.append(store)
            raise StoreUnavailable("the disk of a guest")
        return load(store)

    monkeypatch.setattr(SqliteStore, "load", failing)
    async with Client(nowhere, path, None, key=KEY), Client(nowhere, path, None, key=KEY) as guest:
        assert guest._session is not None
        assert isinstance(guest._session.store, SqliteStore)
        loads.append(guest._session.store)
        await asyncio.sleep(1.5)
        assert is_guest(guest)
        assert len(loads) < 15, "one more than pauses in a second and a half, from 10 ms, doubled"


async def test_many_guests_at_once(server: RealServer, path: Path) -> None:
    async with client(server, path) as owner:
        await owner.connected(LIMIT_S)
        talk = await owner.create_conversation("bob")
        guests = [client(server, path) for _ in range(4)]
        try:
            await asyncio.gather(*(guest.open() for guest in guests))

            async def talks(guest: Client, name: int) -> None:
                for number in range(50):
                    await guest.send(talk.id, f"{name} {number}")

            await asyncio.gather(*(talks(guest, name) for name, guest in enumerate([owner, *guests])))
            assert await guests[0].flush(LIMIT_S) == 0
            messages = await guests[1].conversation(talk.id).messages(limit=1000)
            texts = [str(message.content) for message in messages if message.kind == "message"]
            for name in range(5):
                mine = [text for text in texts if text.startswith(f"{name} ")]
                assert mine == [f"{name} {number}" for number in range(50)]
        finally:
            for guest in guests:
                await guest.close()


def test_the_address_of_a_deep_store_is_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 40) / "store.db"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    address = doorway.address_of(deep)
    if address is None:
        assert len(str(tmp_path)) > 40
        return
    assert len(str(address)) <= doorway.PATH_BYTES_MAX
    assert address == doorway.address_of(deep)
    assert address != doorway.address_of(deep.with_name("other.db"))
    assert address.parent.stat().st_mode & 0o077 == 0
    address.parent.chmod(0o755)  # others may look in: not good enough
    assert doorway.address_of(deep) is None
