"""Tokens: one request at a time, kept before they are used, and what is final. Against the real server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.client.real_server import PASSWORD, RealServer
from whimbrel.client.address import parse_address
from whimbrel.client.credentials import SECRET_NAME, Credentials, TokenKeeper
from whimbrel.client.http import HttpApi, Tokens
from whimbrel.core.contract import SetToken, TokenFailed
from whimbrel.errors import ProtocolError, ServerUnreachable, StoreFull, Unauthorized
from whimbrel.store.memory import MemoryStore


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RealServer]:
    async with RealServer(tmp_path / "server", ("ann", "bob")) as server:
        yield server


@pytest.fixture
async def api(server: RealServer) -> AsyncIterator[HttpApi]:
    api = HttpApi(parse_address(server.url))
    yield api
    await api.close()
    await api.close()


async def at_once(write: Callable[[], None]) -> None:
    write()


def keeper_of(
    api: HttpApi,
    store: MemoryStore,
    credentials: Credentials | None = None,
    *,
    user: str | None = None,
    on_disk: Callable[[Callable[[], None]], Awaitable[None]] = at_once,
) -> TokenKeeper:
    keeper = TokenKeeper(api, store, credentials=credentials, device=store.device, user=user, on_disk=on_disk)
    keeper.load()
    return keeper


def token_of(answer: SetToken | TokenFailed) -> str:
    assert isinstance(answer, SetToken)
    assert answer.token
    assert answer.expires_in_s > 0
    return answer.token


async def test_signs_in_then_lives_on_refresh_tokens(api: HttpApi) -> None:
    store = MemoryStore()
    keeper = keeper_of(api, store, Credentials("Ann", PASSWORD))
    tokens = {token_of(await keeper.fresh())}
    assert keeper.user == "ann"
    # A program started again has no password, and uses the token it still has, then refreshes.
    again = keeper_of(api, store)
    assert again.possible
    tokens.add(token_of(await again.fresh()))
    assert len(tokens) == 1
    for _ in range(3):
        tokens.add(token_of(await again.fresh()))
    assert len(tokens) == 4


async def test_a_token_is_kept_before_it_is_used(api: HttpApi) -> None:
    store = MemoryStore()
    order: list[str] = []

    async def on_disk(write: Callable[[], None]) -> None:
        order.append("writing")
        await asyncio.sleep(0)
        write()
        order.append("written")

    keeper = keeper_of(api, store, Credentials("ann", PASSWORD), on_disk=on_disk)
    token = token_of(await keeper.fresh())
    order.append("used")
    assert order == ["writing", "written", "used"]
    kept = store.get_secret(SECRET_NAME)
    assert kept is not None
    assert token in kept


async def test_a_disk_that_fails_holds_the_token_back_and_loses_no_session(api: HttpApi) -> None:
    store = MemoryStore()
    full = True

    async def on_disk(write: Callable[[], None]) -> None:
        if full:
            raise StoreFull
        write()

    keeper = keeper_of(api, store, Credentials("ann", PASSWORD), on_disk=on_disk)
    for _ in range(2):
        answer = await keeper.fresh()
        assert isinstance(answer, TokenFailed)
        assert not answer.permanent
    full = False
    token_of(await keeper.fresh())
    assert keeper.failure is None


async def test_a_crash_between_rotation_and_writing_leaves_a_store_that_signs_in(api: HttpApi) -> None:
    store = MemoryStore()
    token_of(await keeper_of(api, store, Credentials("ann", PASSWORD)).fresh())
    before = store.copy()
    keeper = keeper_of(api, store)
    await keeper.fresh()
    token_of(await keeper.fresh())
    # The crash: what the server gave last was never written.
    keeper = keeper_of(api, before)
    await keeper.fresh()
    token_of(await keeper.fresh())


async def test_wrong_password_is_final_and_unknown_user_too(api: HttpApi) -> None:
    for name, password in (("ann", "wrong password"), ("nobody", PASSWORD)):
        keeper = keeper_of(api, MemoryStore(), Credentials(name, password))
        answer = await keeper.fresh()
        assert isinstance(answer, TokenFailed)
        assert answer.permanent
        assert isinstance(keeper.failure, Unauthorized)
        assert password not in repr(answer) + repr(keeper) + str(keeper.failure) + answer.text


async def test_a_store_of_another_user_is_refused(api: HttpApi) -> None:
    keeper = keeper_of(api, MemoryStore(), Credentials("bob", PASSWORD), user="ann")
    answer = await keeper.fresh()
    assert isinstance(answer, TokenFailed)
    assert answer.permanent


@pytest.mark.parametrize("expired", [False, True])
async def test_a_session_that_is_over_falls_back_on_the_password_or_is_final(
    api: HttpApi, expired: bool
) -> None:
    store = MemoryStore()
    keeper = keeper_of(api, store, Credentials("ann", PASSWORD))
    await keeper.fresh()
    before = store.copy()
    if expired:
        # Signing out needs an access token: it gets one first.
        assert keeper._kept is not None
        keeper._kept.expires_at = 0.0
    await keeper.sign_out()
    assert store.get_secret(SECRET_NAME) is None
    assert not keeper.possible
    without = keeper_of(api, before.copy())
    await without.fresh()  # the access token it still has
    answer = await without.fresh()
    assert isinstance(answer, TokenFailed)
    assert answer.permanent
    with_password = keeper_of(api, before.copy(), Credentials("ann", PASSWORD))
    await with_password.fresh()
    token_of(await with_password.fresh())


async def test_without_a_server_it_fails_for_now(server: RealServer, api: HttpApi) -> None:
    await server.kill()
    keeper = keeper_of(api, MemoryStore(), Credentials("ann", PASSWORD))
    answer = await keeper.fresh()
    assert isinstance(answer, TokenFailed)
    assert not answer.permanent
    assert keeper.failure is None
    assert keeper.last_error
    with pytest.raises(ServerUnreachable):
        await api.login("ann", PASSWORD, "a" * 26)
    await server.start()
    token_of(await keeper.fresh())


async def test_many_at_once_ask_one_after_the_other(api: HttpApi) -> None:
    at_once_max = running = 0
    refresh = api.refresh

    async def counted(refresh_token: str) -> Tokens:
        nonlocal running, at_once_max
        running += 1
        at_once_max = max(at_once_max, running)
        try:
            return await refresh(refresh_token)
        finally:
            running -= 1

    api.refresh = counted  # type: ignore[method-assign] # it counts, and does the same
    keeper = keeper_of(api, MemoryStore(), Credentials("ann", PASSWORD))
    answers = await asyncio.gather(*(keeper.fresh() for _ in range(5)))
    assert len({token_of(answer) for answer in answers}) == 5
    assert at_once_max == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnope", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 2_000_000, ProtocolError),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", ServerUnreachable),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", Unauthorized),
        (b"SSH-2.0-OpenSSH_9\r\n", ServerUnreachable),
        (b"", ServerUnreachable),
    ],
)
async def test_what_is_no_whimbrel_server(answer: bytes, error: type[Exception]) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            writer.write(answer)
            await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    peer = await asyncio.start_server(handler, "127.0.0.1", 0)
    api = HttpApi(parse_address(f"http://127.0.0.1:{peer.sockets[0].getsockname()[1]}"))
    async with peer:
        with pytest.raises(error) as caught:
            await api.login("ann", PASSWORD, "a" * 26)
        assert PASSWORD not in str(caught.value)
        await api.close()
