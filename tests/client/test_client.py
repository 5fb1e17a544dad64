"""The client against the real server in a process of its own, over real sockets, with faults between."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import whimbrel
from tests.client.real_server import LIMIT_S, PASSWORD, RealServer
from whimbrel import (
    AuthChanged,
    Client,
    ClientClosed,
    ConnectionChanged,
    ConnectionState,
    Credentials,
    DeliveryFailed,
    DeliveryPending,
    InvalidArgument,
    KeyReused,
    MessageReceived,
    NotConnected,
    NotFound,
    ReceiptChanged,
    SendState,
    TooLarge,
    TypingChanged,
    Unauthorized,
)
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.proxy_faults import HalfOpen, Refuse, Reset

KEY = b"k" * 32


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RealServer]:
    async with RealServer(tmp_path / "server", ("ann", "bob", "cat")) as server:
        yield server


def client_of(server: RealServer, user: str, store: Path | None = None, **options: Any) -> Client:
    if store is not None:
        options.setdefault("key", KEY)
    return Client(options.pop("url", server.url), store, Credentials(user, PASSWORD), **options)


async def test_from_first_send_to_blue_ticks(server: RealServer, tmp_path: Path) -> None:
    async with (
        client_of(server, "ann", tmp_path / "ann.db") as ann,
        client_of(server, "bob", tmp_path / "bob.db") as bob,
    ):
        news = bob.events()
        await ann.connected(LIMIT_S)
        await bob.connected(LIMIT_S)
        assert ann.user == "ann"
        conversation = await ann.create_conversation("bob", title="Plans")
        sent = await conversation.send({"n": [1, 2.5, None]}, key="order-42", metadata={"a": 1})
        delivered = await sent.delivered(LIMIT_S)
        assert delivered.content == {"n": [1, 2.5, None]}
        assert delivered.seq is not None
        assert sent.status.state in (SendState.DELIVERED, SendState.READ)

        got = await received(news, sent.id)
        assert (got.sender, got.content, got.metadata) == ("ann", {"n": [1, 2.5, None]}, {"a": 1})
        assert got.key is None, "a key is its device's own"
        theirs = bob.conversation(conversation.id)
        assert (await theirs.info()).title == "Plans"
        assert set((await theirs.info()).members) == {"ann", "bob"}
        assert [message.id for message in await theirs.messages() if message.kind == "message"] == [sent.id]

        receipts = ann.events()
        await theirs.mark_read()
        async with asyncio.timeout(LIMIT_S):
            async for event in receipts:
                if isinstance(event, ReceiptChanged) and event.receipt.read >= delivered.seq:
                    break
        assert (await ann.status(sent.id)).state is SendState.READ
        message = await ann.message(sent.id)
        assert message is not None
        assert message.read_at is not None

        assert await conversation.send({"n": [1, 2.5, None]}, key="order-42", metadata={"a": 1}) is sent
        with pytest.raises(KeyReused):
            await conversation.send("other", key="order-42")
        assert await ann.flush(LIMIT_S) == 0


async def received(news: Any, id: str) -> whimbrel.Message:
    async with asyncio.timeout(LIMIT_S):
        async for event in news:
            if isinstance(event, MessageReceived) and event.message.id == id:
                return event.message
    raise AssertionError("the stream ended")


async def test_many_each_way_once_and_in_order(server: RealServer) -> None:
    async with client_of(server, "ann") as ann, client_of(server, "bob") as bob:
        await asyncio.gather(ann.connected(LIMIT_S), bob.connected(LIMIT_S))
        here = await ann.create_conversation("bob")
        there = bob.conversation(here.id)
        count = 150
        mine = [await here.send(f"a{n}") for n in range(count)]
        async with asyncio.timeout(LIMIT_S):
            theirs = await asyncio.gather(*(there.send(f"b{n}") for n in range(count)))
            await asyncio.gather(*(sent.delivered() for sent in (*mine, *theirs)))
        logs = [await settled_log(handle, 2 * count) for handle in (here, there)]
        assert logs[0] == logs[1]
        for letter in "ab":
            assert [text for text in logs[0] if text[0] == letter] == [f"{letter}{n}" for n in range(count)]


async def settled_log(conversation: whimbrel.ConversationHandle, count: int) -> list[str]:
    """All messages of the log, once as many are here."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            entries = await conversation.messages(limit=1000)
            texts = [str(entry.content) for entry in entries if entry.kind == "message" and entry.seq]
            if len(texts) >= count:
                return texts
            await asyncio.sleep(0.05)


async def test_offline_first_then_everything_arrives(server: RealServer, tmp_path: Path) -> None:
    async with client_of(server, "ann", tmp_path / "ann.db") as ann:
        await ann.connected(LIMIT_S)
        conversation = await ann.create_conversation("bob", id="plans")
    await server.kill()
    async with client_of(server, "ann", tmp_path / "ann.db") as ann:
        conversation = ann.conversation("plans")
        sent = [await conversation.send(f"{n}") for n in range(10)]
        assert sent[0].status.state is SendState.OFFLINE
        assert len(await ann.pending()) == 10
        with pytest.raises(DeliveryPending) as caught:
            await ann.flush(0.1)
        assert caught.value.pending == 10
        with pytest.raises(DeliveryPending):
            await sent[0].delivered(0.1)
        with pytest.raises(NotConnected):
            await ann.connected(0.1)
        explanation = await sent[1].explain()
        assert explanation.blocked_by
        assert explanation.unblocked_by
        report = await ann.close()
        assert report.pending == 10
    await server.start()
    # The store alone is enough to sign in again, and to go on.
    async with Client(server.url, tmp_path / "ann.db", key=KEY) as ann:
        await ann.flush(LIMIT_S)
        handle = await ann.sent_message(sent[0].id)
        assert (await handle.delivered(LIMIT_S)).content == "0"
        entries = await ann.conversation("plans").messages(limit=100)
        assert [entry.content for entry in entries if entry.kind == "message"] == [str(n) for n in range(10)]


async def test_the_server_is_killed_again_and_again_while_sending(server: RealServer, tmp_path: Path) -> None:
    async with (
        client_of(server, "ann", tmp_path / "ann.db") as ann,
        client_of(server, "bob", tmp_path / "bob.db") as bob,
    ):
        await asyncio.gather(ann.connected(LIMIT_S), bob.connected(LIMIT_S))
        conversation = await ann.create_conversation("bob")
        sent = []
        for round_ in range(3):
            sent += [await conversation.send(f"{round_}.{n}") for n in range(20)]
            await server.kill()
            sent.append(await conversation.send(f"{round_}.down"))
            await server.start()
        async with asyncio.timeout(2 * LIMIT_S):
            await asyncio.gather(*(handle.delivered() for handle in sent))
        expected = [
            text for round_ in range(3) for text in [f"{round_}.{n}" for n in range(20)] + [f"{round_}.down"]
        ]
        assert await settled_log(conversation, len(expected)) == expected
        assert await settled_log(bob.conversation(conversation.id), len(expected)) == expected


async def test_cut_and_half_open_links(server: RealServer) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        async with client_of(server, "ann", url=url) as ann, client_of(server, "bob") as bob:
            await asyncio.gather(ann.connected(LIMIT_S), bob.connected(LIMIT_S))
            conversation = await ann.create_conversation("bob")
            expected = []
            for fault in (Reset(), HalfOpen(), Refuse()):
                with proxy.during(fault):
                    for n in range(5):
                        expected.append(f"{type(fault).__name__}{n}")
                        await conversation.send(expected[-1])
                    await asyncio.sleep(0.2)
                await ann.flush(LIMIT_S)
            assert await settled_log(bob.conversation(conversation.id), len(expected)) == expected


async def test_members_come_and_go(server: RealServer) -> None:
    async with (
        client_of(server, "ann") as ann,
        client_of(server, "bob") as bob,
        client_of(server, "cat") as cat,
    ):
        await asyncio.gather(*(client.connected(LIMIT_S) for client in (ann, bob, cat)))
        conversation = await ann.create_conversation("bob")
        await (await conversation.send("before")).delivered(LIMIT_S)
        news = cat.events()
        await conversation.add_member("cat")
        after = await conversation.send("after")
        await after.delivered(LIMIT_S)
        await received(news, after.id)
        theirs = await cat.conversation(conversation.id).messages()
        assert [entry.content for entry in theirs if entry.kind == "message"] == ["after"]
        await cat.conversation(conversation.id).leave()
        await conversation.remove_member("bob")
        assert set((await ann.call_server(op="list")).conversations[0].members) == {"ann"}
        with pytest.raises(NotFound):
            await conversation.add_member("nobody-of-this-name")
        with pytest.raises(NotFound):
            await bob.conversation(conversation.id).add_member("cat")


async def test_typing_reaches_the_others(server: RealServer) -> None:
    async with client_of(server, "ann") as ann, client_of(server, "bob") as bob:
        await asyncio.gather(ann.connected(LIMIT_S), bob.connected(LIMIT_S))
        conversation = await ann.create_conversation("bob")
        sent = await conversation.send("hello")
        news = bob.events()
        await sent.delivered(LIMIT_S)
        await conversation.typing()
        async with asyncio.timeout(LIMIT_S):
            async for event in news:
                if isinstance(event, TypingChanged):
                    assert (event.user, event.on) == ("ann", True)
                    break


async def test_a_wrong_password_is_told_and_a_right_one_helps(server: RealServer) -> None:
    async with Client(server.url, credentials=Credentials("ann", "wrong password")) as ann:
        news = ann.events()
        with pytest.raises(Unauthorized):
            await ann.connected(LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            async for event in news:
                if isinstance(event, AuthChanged):
                    assert not event.ok
                    break
        sent = await ann.conversation("c").send("kept")
        assert "sign" in (await sent.explain()).blocked_by
        with pytest.raises(Unauthorized):
            await ann.sign_in(Credentials("ann", "still wrong"))
        await ann.sign_in(Credentials("ann", PASSWORD))
        await ann.connected(LIMIT_S)
        with pytest.raises(DeliveryFailed) as caught:
            await sent.delivered(LIMIT_S)
        assert caught.value.reason == "rejected", "there is no such conversation"
        await ann.sign_out()
        with pytest.raises(Unauthorized):
            await ann.connected(LIMIT_S)


async def test_no_credentials_at_all(server: RealServer) -> None:
    async with Client(server.url) as nobody:
        with pytest.raises(Unauthorized):
            await nobody.connected(LIMIT_S)
        assert nobody.user is None


async def test_a_store_stays_its_users(server: RealServer, tmp_path: Path) -> None:
    async with client_of(server, "ann", tmp_path / "store.db") as ann:
        await ann.connected(LIMIT_S)
        with pytest.raises(InvalidArgument, match="another user"):
            async with client_of(server, "bob", tmp_path / "store.db"):
                pass
        await ann.sign_out()
    async with client_of(server, "bob", tmp_path / "store.db") as bob:
        with pytest.raises(Unauthorized):
            await bob.connected(LIMIT_S)


async def test_cancelled_before_it_left(server: RealServer) -> None:
    await server.kill()
    async with client_of(server, "ann") as ann:
        conversation = ann.conversation("c")
        sent = await conversation.send("never mind")
        waiting = asyncio.ensure_future(sent.delivered())
        await sent.cancel()
        await server.start()
        with pytest.raises(DeliveryFailed) as caught:
            await asyncio.wait_for(waiting, LIMIT_S)
        assert caught.value.message_id == sent.id
        assert caught.value.reason == "cancelled"
        assert sent.status.state is SendState.CANCELLED


async def test_a_durable_consumer_goes_on_after_a_restart(server: RealServer, tmp_path: Path) -> None:
    async with client_of(server, "ann") as ann:
        await ann.connected(LIMIT_S)
        async with client_of(server, "bob", tmp_path / "bob.db") as bob:
            await bob.connected(LIMIT_S)
            conversation = await ann.create_conversation("bob")
            sent = [await conversation.send(str(n)) for n in range(6)]
            seen = []
            async with asyncio.timeout(LIMIT_S):
                async for event in bob.events(consumer="bot"):
                    if event.message.kind == "message":
                        seen.append(event.id)
                    if len(seen) == 4:
                        break
                    await event.done()
            assert seen == [handle.id for handle in sent[:4]]
        sent.append(await conversation.send("while away"))
        await sent[-1].delivered(LIMIT_S)
        async with client_of(server, "bob", tmp_path / "bob.db") as bob:
            seen = []
            async with asyncio.timeout(LIMIT_S):
                async for event in bob.events(consumer="bot"):
                    seen.append(event.id)
                    await event.done()
                    if event.id == sent[-1].id:
                        break
            # The fourth was handed out and not done: it comes again, under its id.
            assert seen == [handle.id for handle in sent[3:]]


async def test_closing_ends_everything_that_waits(server: RealServer) -> None:
    await server.kill()
    ann = client_of(server, "ann")
    with pytest.raises(ClientClosed):
        await ann.flush()
    async with ann:
        sent = await ann.conversation("c").send("hello")
        stream, consumer = ann.events(), ann.events(consumer="bot")
        waits = [
            asyncio.ensure_future(wait)
            for wait in (sent.delivered(), ann.flush(), ann.connected(), ann.call_server(op="list"))
        ]
        ends = [asyncio.ensure_future(anext(stream_, None)) for stream_ in (consumer,)]
        await asyncio.sleep(0)
        assert (await ann.close()).pending == 1
        assert (await ann.close()).pending == 1
        for wait in waits:
            with pytest.raises(ClientClosed):
                await asyncio.wait_for(wait, LIMIT_S)
        assert await asyncio.gather(*ends) == [None]
        assert [event async for event in stream if not isinstance(event, ConnectionChanged)] == []
    assert ann.closed
    assert ann.failure is None
    assert ann.connection.state is ConnectionState.STOPPED
    assert sent.status.state in (SendState.OFFLINE, SendState.PENDING)
    with pytest.raises(ClientClosed):
        await ann.conversation("c").send("too late")


async def test_refused_before_anything_is_queued(server: RealServer) -> None:
    await server.kill()
    async with client_of(server, "ann") as ann:
        conversation = ann.conversation("c")
        with pytest.raises(TooLarge):
            await conversation.send("x" * (256 * 1024 + 1))
        with pytest.raises(InvalidArgument):
            await conversation.send("x", key="")
        with pytest.raises(InvalidArgument):
            await conversation.messages(limit=0)
        with pytest.raises(InvalidArgument):
            ann.conversation("")
        with pytest.raises(NotFound):
            await ann.status("nothing")
        with pytest.raises(NotFound):
            await ann.explain("nothing")
        assert await ann.pending() == []


async def test_nothing_secret_is_ever_shown(
    server: RealServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with client_of(server, "ann", tmp_path / "ann.db") as ann:
        await ann.connected(LIMIT_S)
        conversation = await ann.create_conversation("bob", id="c1")
        sent = await conversation.send("the very secret text", key="a-secret-key")
        message = await sent.delivered(LIMIT_S)
        shown = repr([ann, conversation, sent, message, ann._credentials, ann._session, ann.events()])
        shown += caplog.text
    for secret in ("very secret", PASSWORD, "eyJ"):
        assert secret not in shown


async def test_once_connected_the_store_knows_what_changed_meanwhile(server: RealServer) -> None:
    async with client_of(server, "ann") as ann:
        await ann.connected(LIMIT_S)
        ids = {(await ann.create_conversation("bob")).id for _ in range(5)}
        async with client_of(server, "bob") as bob:
            await bob.connected(LIMIT_S)
            assert {conversation.id for conversation in await bob.conversations()} == ids


async def test_a_consumer_that_is_reading_when_the_client_closes_just_ends(server: RealServer) -> None:
    await server.kill()
    for pauses in range(12):
        async with client_of(server, "ann") as ann:
            waiting = asyncio.ensure_future(anext(ann.events(consumer="bot"), None))
            for _ in range(pauses):  # the instant of closing is part of the test
                await asyncio.sleep(0)
            await ann.close()
            assert await asyncio.wait_for(waiting, LIMIT_S) is None


async def test_flush_hears_of_the_last_void(server: RealServer) -> None:
    async with client_of(server, "ann") as ann:
        await ann.connected(LIMIT_S)
        conversation = await ann.create_conversation("bob")
        await server.kill()
        message = await conversation.send("never mind")
        await message.cancel()
        await server.start()
        async with asyncio.timeout(LIMIT_S):
            assert await ann.flush() == 0
