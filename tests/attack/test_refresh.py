"""Refresh tokens against lost answers, crashes, races, replays and thieves, over the real accounts.

A thousand interleavings of each at release. An honest client, however unlucky, is never signed out; once
thief and owner have both gone on from what was stolen, everyone is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.rounds import Rounds
from tests.server.app_rig import HASHER, PASSWORD, TLS, device_of, serving
from whimbrel.client.address import parse_address
from whimbrel.client.credentials import Credentials, TokenKeeper
from whimbrel.client.http import HttpApi, Tokens
from whimbrel.core.contract import SetToken, TokenFailed
from whimbrel.errors import ServerUnreachable, StoreFull, Unauthorized, WhimbrelError
from whimbrel.server.accounts import Accounts
from whimbrel.server.accounts import Tokens as ServerTokens
from whimbrel.server.service import HttpSettings
from whimbrel.store.memory import MemoryStore

pytestmark = pytest.mark.timeout(600)

KEY = bytes(range(32))
STEPS = 12


class Crash(BaseException):
    """The program ends here, whatever it was doing."""


class Server:
    """The accounts of a server that can be restarted; only the network before them is not real."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "accounts.db"
        self.accounts = Accounts(self._path, KEY, hasher=HASHER)
        self.accounts.add_user("ann", PASSWORD)
        self._devices = 0

    def restart(self) -> None:
        self.accounts.close()
        self.accounts = Accounts(self._path, KEY, hasher=HASHER)

    def close(self) -> None:
        self.accounts.close()

    def new_device(self) -> str:
        self._devices += 1
        return device_of("ann", self._devices)

    def families(self, device: str) -> int:
        """How many sessions of a device are alive."""
        with self.accounts._transaction(writes=False) as db:
            count: int = db.execute("SELECT count(*) FROM families WHERE device = ?", (device,)).get
            return count


class Way(HttpApi):
    """The calls of one client, carried to the accounts by a network that the test commands."""

    def __init__(self, server: Server) -> None:
        super().__init__(parse_address("http://127.0.0.1:1"))
        self._server = server
        self.next = "there and back"
        self.late: list[str] = []
        """Requests that are still under way; whoever sent them has given up."""
        self.running = self.running_max = 0
        self.crashed = False
        """The program that calls is no more."""

    async def login(self, username: str, password: str, device: str) -> Tokens:
        return given(self._server.accounts.login(username, password, device))

    async def logout(self, refresh_token: str) -> None:
        self._server.accounts.logout(refresh_token)

    async def refresh(self, refresh_token: str) -> Tokens:
        what, self.next = self.next, "there and back"
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            await asyncio.sleep(0)
            if self.crashed:
                raise Crash
            if what == "late":
                self.late.append(refresh_token)
            if what in ("late", "lost on the way there"):
                raise ServerUnreachable("no answer")
            if any(token != refresh_token for token in self.late):
                # Longer than until the next refresh (minutes) nothing is under way: see docs/threat-model.md.
                self.deliver()
            answer = given(self._server.accounts.refresh(refresh_token))
            if what == "twice":
                self._server.accounts.refresh(refresh_token)
            if what == "the server is killed behind it":
                self._server.restart()
            if what in ("lost on the way back", "the server is killed behind it"):
                raise ServerUnreachable("no answer")
            return answer
        finally:
            self.running -= 1

    def deliver(self) -> None:
        """What was under way arrives; nobody waits for the answers."""
        late, self.late = self.late, []
        for token in late:
            self._server.accounts.refresh(token)


def given(tokens: ServerTokens) -> Tokens:
    """What the server gave, as the client reads it."""
    return Tokens(
        user=tokens.user,
        device=tokens.device,
        access_token=tokens.access,
        expires_in=tokens.access_expires_in_s,
        refresh_token=tokens.refresh,
    )


class Phone:
    """A client's tokens: the real keeper over a store that survives crashes and whose disk may fail."""

    def __init__(self, server: Server, device: str, credentials: Credentials | None) -> None:
        self.way = Way(server)
        self.store = MemoryStore()
        self.device = device
        self.disk = "good"
        """What the next write meets."""
        self.keeper = self._started(credentials)

    def _started(self, credentials: Credentials | None) -> TokenKeeper:
        keeper = TokenKeeper(
            self.way,
            self.store,
            credentials=credentials,
            device=self.device,
            user="ann",
            on_disk=self._on_disk,
        )
        keeper.load()
        # The access token that was kept would save it a refresh, and this test its object.
        keeper._first = False
        return keeper

    async def _on_disk(self, write: Callable[[], None]) -> None:
        what, self.disk = self.disk, "good"
        await asyncio.sleep(0)
        if what == "full":
            raise StoreFull("the disk is full")
        self.way.crashed = self.way.crashed or what == "crash before"
        if self.way.crashed:
            raise Crash
        write()
        self.way.crashed = what == "crash behind"
        if self.way.crashed:
            raise Crash

    def restart(self) -> None:
        """The program ends and starts again, without a password."""
        self.keeper = self._started(None)

    async def refresh(self) -> str:
        """Ask for a token, and say how that went: `fresh`, `later`, `out` or `crashed`."""
        [outcome] = await self.rush(1)
        return outcome

    async def rush(self, count: int) -> list[str]:
        """Have many tasks ask at once. A crash ends them all, and the program is started again."""
        answers = await asyncio.gather(*(self._ask() for _ in range(count)))
        if "crashed" in answers:
            self.way.crashed = False
            self.restart()
        return answers

    async def _ask(self) -> str:
        try:
            answer = await self.keeper.fresh()
        except Crash:
            return "crashed"
        if isinstance(answer, SetToken):
            return "fresh"
        return "out" if answer.permanent else "later"

    def copied(self) -> str:
        """What a thief of the store and its key finds."""
        kept = self.keeper._kept
        assert kept is not None
        return kept.refresh_token


async def signed_in(server: Server) -> Phone:
    phone = Phone(server, server.new_device(), Credentials("ann", PASSWORD))
    assert await phone.refresh() == "fresh"
    phone.restart()
    return phone


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with contextlib.closing(Server(tmp_path)) as server:
        yield server


def mishap(random_: random.Random, phone: Phone) -> None:
    """Let something go wrong with the next refresh, or nothing."""
    phone.way.next = random_.choice(
        ["there and back"] * 3
        + ["lost on the way back"] * 3
        + ["lost on the way there", "late", "twice", "the server is killed behind it"]
    )
    phone.disk = random_.choice(["good"] * 4 + ["full", "full", "crash before", "crash behind"])


async def unlucky(server: Server, seed: int) -> None:
    """One honest client; whatever happens to it, it never has to sign in again."""
    random_ = random.Random(seed)
    phone = await signed_in(server)
    for _ in range(STEPS):
        mishap(random_, phone)
        assert await phone.refresh() in ("fresh", "later", "crashed"), f"signed out with seed {seed}"
        if random_.random() < 0.2:
            phone.restart()
        if random_.random() < 0.2:
            phone.way.deliver()
        if random_.random() < 0.1:
            server.restart()
    phone.way.next, phone.disk = "there and back", "good"
    assert await phone.refresh() == "fresh", f"signed out with seed {seed}"
    assert server.families(phone.device) == 1


async def crowded(server: Server, seed: int) -> None:
    """Many tasks of one client want a token at once, and the program is restarted between them."""
    random_ = random.Random(seed)
    phone = await signed_in(server)
    for _ in range(4):
        mishap(random_, phone)
        outcomes = await phone.rush(random_.randint(2, 5))
        assert "out" not in outcomes, f"signed out with seed {seed}"
        if random_.random() < 0.3:
            # The next process takes over while what the last one asked is still under way.
            phone.way.next = "late"
            await phone.refresh()
            phone.restart()
    phone.way.next, phone.disk = "there and back", "good"
    assert await phone.refresh() == "fresh", f"signed out with seed {seed}"
    assert phone.way.running_max == 1
    assert server.families(phone.device) == 1


async def replayed(server: Server, seed: int) -> None:
    """Whoever offers a token whose successor was used ends the session, at once and for everyone."""
    random_ = random.Random(seed)
    phone = await signed_in(server)
    former: list[str] = [phone.copied()]
    for _ in range(random_.randint(2, STEPS)):
        mishap(random_, phone)
        phone.disk = "good"
        if await phone.refresh() == "fresh":
            former.append(phone.copied())
    phone.way.late.clear()
    phone.way.next = "there and back"
    assert await phone.refresh() == "fresh"
    # The last of `former` was used just now, and may be offered again: its answer might have been lost.
    old = random_.choice(former[:-1]) if len(former) > 1 else None
    server.accounts.refresh(former[-1])
    if old is None:
        assert await phone.refresh() == "fresh"
        return
    with pytest.raises(Unauthorized):
        server.accounts.refresh(old)
    assert server.families(phone.device) == 0
    assert await phone.refresh() == "out"
    assert isinstance(phone.keeper.failure, Unauthorized)
    for token in former:
        with pytest.raises(Unauthorized):
            server.accounts.refresh(token)


class Thief:
    """Has a copy of a token and goes on from there."""

    def __init__(self, server: Server, token: str) -> None:
        self._server = server
        self._token = token
        self.went_on = False
        """Whether the server took a token that this party was given itself."""
        self._own = False

    def refresh(self, *, lost: bool) -> str:
        try:
            tokens = self._server.accounts.refresh(self._token)
        except Unauthorized:
            return "out"
        self.went_on = self.went_on or self._own
        if lost:
            return "later"
        self._token, self._own = tokens.refresh, True
        return "fresh"


async def robbed(server: Server, seed: int, *, password: bool = False) -> None:
    """Owner and thief go on from one token, in any order: the second to go on is found out."""
    random_ = random.Random(seed)
    phone = await signed_in(server)
    for _ in range(random_.randint(0, 3)):
        mishap(random_, phone)
        phone.disk = "good"
        await phone.refresh()
    phone.way.late.clear()
    if password:
        phone.keeper._credentials = Credentials("ann", PASSWORD)
    stolen = phone.copied()
    thief = Thief(server, stolen)
    owner_went_on = False
    for _ in range(200):
        if random_.random() < 0.5:
            outcome = thief.refresh(lost=random_.random() < 0.3)
        else:
            own = phone.copied() != stolen
            phone.way.next = random_.choice(["there and back", "there and back", "lost on the way back"])
            outcome = await phone.refresh()
            # With a password the owner signs in anew, which is no going on.
            owner_went_on = not password and (owner_went_on or (own and outcome != "out"))
        assert not (thief.went_on and owner_went_on), f"both went on with seed {seed}"
        assert server.families(phone.device) <= 1
        if outcome == "out":
            break
    else:
        pytest.fail(f"nobody was found out with seed {seed}")
    assert thief.refresh(lost=False) == "out"
    if password:
        assert await phone.refresh() == "fresh"
        assert server.families(phone.device) == 1
    else:
        assert server.families(phone.device) == 0
        assert await phone.refresh() == "out"


# --- interleavings -------------------------------------------------------------------------------


def seeds(rounds: Rounds) -> Iterator[int]:
    """As many as this run wants, from a fixed place and from one no run had before."""
    fixed, fresh = rounds.seeds(1_000)
    count = rounds.of(ci=80, soak=1_000)
    for first in (fixed, fresh):
        yield from range(first, first + count // 2)


@pytest.mark.soak
async def test_an_honest_client_is_never_signed_out(server: Server, rounds: Rounds) -> None:
    for seed in seeds(rounds):
        await unlucky(server, seed)
    # Reached only if none was found: each of them fails the test.
    rounds.figure("false log-outs in lost answers and crashes", 0, "log-outs", target=0)


@pytest.mark.soak
async def test_a_race_signs_nobody_out(server: Server, rounds: Rounds) -> None:
    for seed in seeds(rounds):
        await crowded(server, seed)
    rounds.figure("false log-outs in races", 0, "log-outs", target=0)


@pytest.mark.soak
async def test_a_replay_ends_the_session(server: Server, rounds: Rounds) -> None:
    for seed in seeds(rounds):
        await replayed(server, seed)
    rounds.figure("replays that were taken", 0, "replays", target=0)


@pytest.mark.soak
async def test_every_theft_is_found_once_both_have_gone_on(server: Server, rounds: Rounds) -> None:
    for seed in seeds(rounds):
        await robbed(server, seed)
    rounds.figure("thefts not found", 0, "thefts", target=0)


@pytest.mark.soak
async def test_an_owner_with_a_password_shuts_the_thief_out(server: Server, rounds: Rounds) -> None:
    for seed in seeds(rounds):
        await robbed(server, seed, password=True)


async def test_a_disk_that_fails_twice_costs_no_session(server: Server) -> None:
    """What the server gave last was never written; offered all the same, it would void what is on disk."""
    phone = await signed_in(server)
    for _ in range(3):
        phone.disk = "full"
        assert await phone.refresh() == "later"
    phone.restart()
    assert await phone.refresh() == "fresh"


async def test_a_late_request_behind_the_next_but_one_refresh_counts_as_a_replay(server: Server) -> None:
    """The limit of what can be told apart; minutes lie between two refreshes."""
    phone = await signed_in(server)
    token = phone.copied()
    for _ in range(2):
        assert await phone.refresh() == "fresh"
    with pytest.raises(Unauthorized):
        server.accounts.refresh(token)
    assert await phone.refresh() == "out"


def test_many_threads_with_one_token(server: Server) -> None:
    """All get a successor; one of these goes on, and any other is then a thief's."""
    device = server.new_device()
    token = server.accounts.login("ann", PASSWORD, device).refresh
    with ThreadPoolExecutor(8) as threads:
        successors = list(threads.map(lambda _: server.accounts.refresh(token).refresh, range(40)))
    assert len(set(successors)) == 40
    assert server.families(device) == 1

    def go_on(successor: str) -> bool:
        try:
            server.accounts.refresh(successor)
        except WhimbrelError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(go_on, successors)) == 1
    assert server.families(device) == 0


# --- over HTTP -----------------------------------------------------------------------------------


async def test_races_and_theft_over_http(tmp_path: Path) -> None:
    http = HttpSettings(login_burst=1_000)
    async with (
        serving(tmp_path / "data", "ann", http=http) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=60, verify=TLS) as client,
    ):

        async def refresh(token: str) -> tuple[int, str]:
            answer = await client.post("/api/auth/refresh", json={"refresh_token": token})
            return answer.status_code, answer.json().get("refresh_token", "")

        for number in range(5):
            body = {"username": "ann", "password": PASSWORD, "device": device_of("ann", number)}
            token = (await client.post("/api/auth/login", json=body)).json()["refresh_token"]
            # Ten at once with one token: an answer that got lost costs nothing, so all are answered.
            answers = await asyncio.gather(*(refresh(token) for _ in range(10)))
            assert {status for status, _ in answers} == {200}
            successors = [successor for _, successor in answers]
            assert len(set(successors)) == 10
            # One goes on; those who come with another are found out, and so is everyone.
            status, last = await refresh(successors[number])
            assert status == 200
            others = [one for one in successors if one != successors[number]]
            answers = await asyncio.gather(*(refresh(one) for one in others))
            assert {status for status, _ in answers} == {401}
            assert await refresh(last) == (401, "")


def test_a_family_is_a_digest_and_no_token(server: Server) -> None:
    """What is stolen with the accounts' file opens no session."""
    token = server.accounts.login("ann", PASSWORD, server.new_device()).refresh
    with server.accounts._transaction(writes=False) as db:
        rows = db.execute("SELECT digest FROM tokens").fetchall()
    assert [digest for (digest,) in rows] == [hashlib.sha256(token.encode()).digest()]


async def test_outcomes_are_what_the_engine_is_told(server: Server) -> None:
    """Or `out` above would mean nothing."""
    phone = await signed_in(server)
    server.accounts.logout(phone.copied())
    answer = await phone.keeper.fresh()
    assert isinstance(answer, TokenFailed)
    assert answer.permanent
