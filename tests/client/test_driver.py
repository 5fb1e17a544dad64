"""The loop between a real engine and a store that fails, hangs or breaks; without a network."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from whimbrel.client import driver as driver_module
from whimbrel.client.address import Address, parse_address
from whimbrel.client.client import Client
from whimbrel.client.outgoing import outgoing
from whimbrel.client.session import Session
from whimbrel.core.contract import CallServer, Changes, SendMessage, Settings, SetTyping, Snapshot
from whimbrel.core.engine import Engine
from whimbrel.errors import ClientClosed, KeyReused, QueueFull, StoreError, StoreFull
from whimbrel.model import ConnectionState, Event, MessageChanged, SendState, message_id
from whimbrel.protocol import Call
from whimbrel.store.handoff import Limits
from whimbrel.store.memory import MemoryStore

LIMIT_S = 30


class UnrulyStore(MemoryStore):
    """Fails, hangs and breaks when it is told to; counts what it was asked."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        """Raised by the next commits, before anything is written."""
        self.load_errors: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.applied = 0
        self.loads = 0
        self.closes = 0

    def _commit(self, changes: Changes) -> None:
        self.entered.set()
        assert self.gate.wait(LIMIT_S)
        if self.errors:
            raise self.errors.pop(0)
        super()._commit(changes)
        self.applied += 1

    def load(self) -> Snapshot:
        self.loads += 1
        if self.load_errors:
            raise self.load_errors.pop(0)
        return super().load()

    def close(self) -> None:
        self.closes += 1
        self.gate.set()
        super().close()


@pytest.fixture
def nowhere() -> Iterator[Address]:
    """An address at which nobody listens, and that nobody else can get meanwhile."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield parse_address(f"http://127.0.0.1:{unused.getsockname()[1]}")


@asynccontextmanager
async def opened(
    store: MemoryStore, address: Address, settings: Settings | None = None
) -> AsyncIterator[Session]:
    client = Client(address.http)
    client._session = session = await Session.open(
        lambda: store,
        address=address,
        tls=None,
        settings=settings or Settings(),
        credentials=None,
        face=client,
    )
    try:
        yield session
    finally:
        await session.close(0.0)


def message(body: str, key: str | None = None) -> SendMessage:
    return outgoing(
        "c",
        body,
        key=key,
        metadata=None,
        reply_to=None,
        role="user",
        expires_in=None,
        on_reject="skip",
    )


async def in_thread(wait: Callable[[], object]) -> None:
    await asyncio.to_thread(wait)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - of the engine's state nobody tells
            await asyncio.sleep(0)


async def test_a_message_is_on_disk_when_send_returns(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        sent = await session.send(message("hello", "k"))
        row = store.copy().row(sent.id)
        assert row is not None
        assert (row.body, row.n, row.key) == ("hello", 1, "k")
        assert sent.id == message_id(store.device, "k")
        assert sent.status.state is SendState.OFFLINE
    assert store.closes == 1


async def test_what_comes_while_a_commit_hangs_goes_into_one_more(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        store.gate.clear()
        first = asyncio.ensure_future(session.send(message("0")))
        await in_thread(store.entered.wait)
        others = [asyncio.ensure_future(session.send(message(str(n)))) for n in range(1, 200)]
        await asyncio.sleep(0)
        assert not first.done()
        store.gate.set()
        handles = await asyncio.gather(first, *others)
        assert store.applied == 2
        rows = [store.row(handle.id) for handle in handles]
        assert [row.n for row in rows if row is not None] == list(range(1, 201))


async def test_more_than_may_wait_are_made_to_wait_and_all_come_through(nowhere: Address) -> None:
    store = UnrulyStore()
    count = 2 * driver_module.COMMANDS_MAX + 10
    async with opened(store, nowhere) as session:
        store.gate.clear()
        sends = [asyncio.ensure_future(session.send(message(str(n)))) for n in range(count)]
        await in_thread(store.entered.wait)
        for _ in range(5):
            await asyncio.sleep(0)
        assert session.engine.pending <= driver_module.COMMANDS_MAX
        store.gate.set()
        handles = await asyncio.gather(*sends)
        rows = [store.row(handle.id) for handle in handles]
        assert [row.body for row in rows if row is not None] == [str(n) for n in range(count)]
        assert [row.n for row in rows if row is not None] == list(range(1, count + 1))


async def test_what_may_be_lost_is_when_too_much_waits(nowhere: Address) -> None:
    async with opened(UnrulyStore(), nowhere) as session:
        for _ in range(5 * driver_module.COMMANDS_MAX):  # as a guest may tell, without a pause
            session.syncing.post(SetTyping(conversation="c", on=True))
        assert len(session.driver._commands) == driver_module.COMMANDS_MAX
        await session.send(message("and on"))


async def test_a_failed_commit_reaches_who_waits_and_nothing_of_it_is_kept(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        kept = await session.send(message("kept", "a"))
        store.errors = [StoreFull("the disk is full")]
        with pytest.raises(StoreFull):
            await session.send(message("lost", "b"))
        assert store.row(message_id(store.device, "b")) is None
        # The next one goes as soon as the store is back, and numbers have no hole.
        again = await until_kept(session, message("again", "b"))
        row = store.row(again)
        assert row is not None
        assert row.n == 2
        assert session.engine.pending == 2
        assert kept.status.state is SendState.OFFLINE


async def until_kept(session: Session, command: SendMessage) -> str:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return (await session.send(command)).id
            except StoreError:
                await asyncio.sleep(0.02)


async def test_what_was_submitted_while_the_commit_failed_fails_too(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        store.gate.clear()
        store.errors = [StoreFull()]
        first = asyncio.ensure_future(session.send(message("1")))
        await in_thread(store.entered.wait)
        second = asyncio.ensure_future(session.send(message("2")))
        await until(lambda: session.engine.pending == 2)
        store.gate.set()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(result) for result in results] == [StoreFull, StoreFull]
        assert store.pending() == []


async def test_a_store_that_stays_broken_is_tried_again_until_it_is_back(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        store.errors = [OSError("disk gone"), StoreFull()]
        store.load_errors = [StoreError(), OSError()]
        loads = store.loads
        with pytest.raises(StoreError):
            await session.send(message("1"))
        await until_kept(session, message("2", "k"))
        assert store.loads >= loads + 3
        assert not session.driver.stopped


async def test_a_bug_ends_everything_loudly(
    nowhere: Address, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, body = UnrulyStore(), "secret of a message"
    async with opened(store, nowhere) as session:
        stream = session.hub.stream()
        sent = await session.send(message("hello"))
        waiting = asyncio.ensure_future(sent.delivered())
        flushing = asyncio.ensure_future(session.drained(None, while_connected=False))
        calling = asyncio.ensure_future(session.driver.call(Call(id="1", op="list"), 60.0))
        # All three wait: the call was fed last.
        await until(lambda: session.engine.next_deadline(0.0) is not None)
        for _ in range(3):
            await asyncio.sleep(0)

        def broken(engine: Engine, now: float) -> None:
            raise ZeroDivisionError(body)

        monkeypatch.setattr(Engine, "handle_timer", broken)
        with pytest.raises(ClientClosed) as caught:
            await session.send(message("one more"))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        for future in (waiting, flushing, calling):
            with pytest.raises(ClientClosed):
                await asyncio.wait_for(future, LIMIT_S)
        assert isinstance(session.driver.failure, ZeroDivisionError)
        with pytest.raises(ClientClosed):
            async for _ in stream:
                pass
        assert session.connection.state is ConnectionState.STOPPED
    critical = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert len(critical) == 1
    assert "ZeroDivisionError" in critical[0].getMessage()
    assert "secret" not in caplog.text


async def test_closing_while_a_commit_hangs_gives_up_on_it_and_tells(
    nowhere: Address, caplog: pytest.LogCaptureFixture
) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        store.gate.clear()
        sending = asyncio.ensure_future(session.send(message("1")))
        await in_thread(store.entered.wait)
        await session.driver.stop(0.0)
        with pytest.raises(ClientClosed):
            await sending
        assert "the store does not answer" in caplog.text
        # When the disk answers after all, the store is closed behind the commit.
        store.gate.set()
        await until(lambda: store.closes == 1)


async def test_what_was_handed_over_waits_for_a_commit_that_hangs(
    nowhere: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command behind it does not make the loop turn in a circle, and closing counts all that is queued."""
    monkeypatch.setattr(driver_module, "UNCOMMITTED_ITEMS_MAX", 2)
    store = UnrulyStore()
    commands = [(message(str(n)), 1.0) for n in range(9)]
    assert store.hand_over(commands, Limits()) == [None] * 9
    store.gate.clear()
    passes = 0
    original = Engine.handle_timer

    def counted(engine: Engine, now: float) -> None:
        nonlocal passes
        passes += 1
        original(engine, now)

    async with opened(store, nowhere) as session:
        await in_thread(store.entered.wait)
        await until(lambda: session.engine.pending > 2)
        monkeypatch.setattr(Engine, "handle_timer", counted)
        sending = asyncio.ensure_future(session.send(message("behind it")))
        await asyncio.sleep(0.3)
        assert passes < 20
        assert session.driver.taking.waiting > 0
        assert await session.close(0.0) == 9
        with pytest.raises(ClientClosed):
            await sending


async def test_closing_lets_a_commit_under_way_finish(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        store.gate.clear()
        sending = asyncio.ensure_future(session.send(message("1", "k")))
        await in_thread(store.entered.wait)
        closing = asyncio.ensure_future(session.driver.stop(LIMIT_S))
        await asyncio.sleep(0)
        store.gate.set()
        await closing
        assert (await sending).key == "k"


async def test_an_idle_loop_sleeps(nowhere: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    store = UnrulyStore()
    passes = 0
    original = Engine.handle_timer

    def counted(engine: Engine, now: float) -> None:
        nonlocal passes
        passes += 1
        original(engine, now)

    async with opened(store, nowhere) as session:
        await session.send(message("1"))
        monkeypatch.setattr(Engine, "handle_timer", counted)
        await asyncio.sleep(0.5)
    # Without credentials there is nothing to try: a pass or two, and none in a circle.
    assert passes < 20


async def test_the_same_key_is_the_same_message(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        first = await session.send_once(message("hello", "order-1"))
        assert await session.send_once(message("hello", "order-1")) is first
        with pytest.raises(KeyReused):
            await session.send_once(message("other", "order-1"))
        assert session.engine.pending == 1
    async with opened(store.copy(), nowhere) as session:
        again = await session.send_once(message("hello", "order-1"))
        assert again.id == first.id
        with pytest.raises(KeyReused):
            await session.send_once(message("other", "order-1"))


async def test_two_at_once_with_one_key(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        results = await asyncio.gather(
            *(session.send_once(message(body, "k")) for body in ("a", "b", "a", "c")), return_exceptions=True
        )
        handles = [result for result in results if not isinstance(result, BaseException)]
        assert len(handles) == 2
        assert handles[0] is handles[1]
        assert sum(isinstance(result, KeyReused) for result in results) == 2
        assert len(store.pending()) == 1


async def test_a_cancelled_send_keeps_its_key_to_itself(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        store.gate.clear()
        sending = asyncio.ensure_future(session.send_once(message("a", "k")))
        await in_thread(store.entered.wait)
        sending.cancel()
        other = asyncio.ensure_future(session.send_once(message("b", "k")))
        same = asyncio.ensure_future(session.send_once(message("a", "k")))
        await asyncio.sleep(0)
        store.gate.set()
        with pytest.raises(KeyReused):
            await other
        assert (await same).key == "k"
        with pytest.raises(asyncio.CancelledError):
            await sending


async def test_a_command_cancelled_before_it_was_fed_is_taken_back(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere) as session:
        sending = asyncio.ensure_future(session.send(message("a", "k")))
        await asyncio.sleep(0)
        sending.cancel()
        await session.send(message("b"))
        assert [pending.content for pending in store.pending()] == ["b"]


async def test_the_engines_refusals_reach_the_caller(nowhere: Address) -> None:
    store = UnrulyStore()
    async with opened(store, nowhere, Settings(outbox_messages_max=2, calls_max=1)) as session:
        events: list[Event] = []
        stream = session.hub.stream()
        await session.send(message("1"))
        cancelled = await session.send(message("2"))
        with pytest.raises(QueueFull):
            await session.send(message("3"))
        call = asyncio.ensure_future(session.driver.call(Call(id="1", op="list"), 0.05))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await session.driver.submit(CallServer(call=Call(id="2", op="list"), timeout_s=1.0))
        assert await call is None, "a call nobody answers in time is answered with nothing"
        await stream.aclose()
        assert cancelled.status.state is SendState.OFFLINE
        assert not any(isinstance(event, MessageChanged) for event in events)
