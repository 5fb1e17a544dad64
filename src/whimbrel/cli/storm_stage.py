"""A stage for storms: a real server, real client processes, and a fault proxy between them.

Set up in a folder of its own: accounts, a server, a proxy for each client process (or one for all), the
processes with their users. What happens on it is up to the caller, who kills and starts the processes as it
pleases; `Stage` sees to it that they come back with their address and their plan, and that, however it all
ends, none of them is left behind. What happened is in the journals (`Stage.judge`).

Wherever it waits, a process that ended unasked ends the waiting with ``StormError``.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import argon2
import msgspec

from whimbrel.cli.judge import Judge
from whimbrel.cli.storm_journal import JournalReader
from whimbrel.cli.storm_process import Child, StormError, reap
from whimbrel.cli.storm_words import (
    CreateConversation,
    Go,
    Order,
    PlanLine,
    Report,
    Stop,
    WorkerConfig,
    WorkerUser,
)
from whimbrel.cli.worker import RECEIVED_FILE, SENT_FILE
from whimbrel.server.data import open_accounts
from whimbrel.testing.proxy import FaultProxy

__all__ = ["Actor", "Cast", "Stage"]

SERVER_WITHIN_S = 30.0
STOP_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.05
_MEMORY_EVERY_S = 0.5


class Cast(msgspec.Struct, frozen=True, kw_only=True):
    """Who plays: the users of each client process, the conversations, and what everybody says."""

    users: tuple[tuple[str, ...], ...]
    """One tuple for each process; every user in one of them."""
    members: Mapping[str, tuple[str, ...]]
    """Conversation → its members; the first of them creates it."""
    titles: Mapping[str, str] = {}
    plan: tuple[PlanLine, ...] = ()

    def __repr__(self) -> str:
        return f"<Cast of {sum(map(len, self.users))} users, {len(self.plan)} lines>"


class Actor:
    """One client process, and what is known of it."""

    def __init__(
        self, name: str, users: tuple[str, ...], folder: Path, proxy: FaultProxy, expected: int
    ) -> None:
        self.name = name
        self.users = users
        self.folder = folder
        self.proxy = proxy
        self.expected = expected
        """How many messages its users must receive together."""
        self.report = Report()
        self.went_at_s: float | None = None
        self.changing = asyncio.Lock()
        """Held by whoever kills or starts its process."""
        command = [sys.executable, "-m", "whimbrel.cli.worker", str(folder / "config.json")]
        self.child = Child(name, command, folder, on_line=self._on_line)

    def __repr__(self) -> str:
        return f"<Actor {self.name}>"

    @property
    def drained(self) -> bool:
        """Whether its users have sent all their lines, and its outboxes are empty."""
        report = self.report
        return self.child.running and not (report.to_send or report.pending)

    async def order(self, order: Order) -> None:
        await self.child.write(msgspec.json.encode(order))

    async def start(self) -> None:
        """Start its process, for the first time or again; then it goes on with its plan."""
        # Nothing it said in an earlier life counts.
        self.report = Report(to_send=self.report.to_send or 1, received=self.report.received)
        await self.child.start()
        if self.went_at_s is not None:
            await self.order(Go(at_s=self.went_at_s))

    def _on_line(self, line: bytes) -> None:
        self.report = msgspec.json.decode(line, type=Report)


class Stage:
    """The server, the proxies and the client processes; a context manager that leaves nothing behind."""

    def __init__(
        self,
        cast: Cast,
        folder: Path,
        *,
        seed: int = 0,
        one_proxy: bool = False,
        receipt_interval_s: float = 1.0,
        report_every_s: float = 0.5,
        screen: str = "",
    ) -> None:
        self.cast = cast
        self.folder = folder
        self.actors: list[Actor] = []
        self.proxies: list[FaultProxy] = []
        self.url = ""
        self._seed = seed
        self._one_proxy = one_proxy
        self._receipt_interval_s = receipt_interval_s
        self._report_every_s = report_every_s
        self._screen = screen
        # Short and random: it guards an account that lives for minutes, behind the loopback.
        self._password = secrets.token_urlsafe(12)
        self._port = 0
        self._address: asyncio.Future[str] | None = None
        self._exits = contextlib.AsyncExitStack()
        self._judge_readers: list[JournalReader] = []
        self._judge = Judge(cast.members)
        self._memory: asyncio.Task[None] | None = None
        self.server = Child("server", (), folder, on_line=self._on_server_line)

    def __repr__(self) -> str:
        return f"<Stage of {self.cast!r}>"

    async def __aenter__(self) -> Stage:
        try:
            await self._set_up()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every process, then the proxies. May be called twice."""
        if self._memory is not None:
            self._memory.cancel()
        try:
            await reap([*(actor.child for actor in self.actors), self.server])
        finally:
            await self._exits.aclose()

    # --- setting up ----------------------------------------------------------------------------

    async def _set_up(self) -> None:
        await asyncio.to_thread(self._add_accounts)
        await self.start_server()
        groups = self.cast.users
        for number in range(1 if self._one_proxy else len(groups)):
            proxy = FaultProxy("127.0.0.1", self._port, seed=self._seed * 1000 + number, links_max=4096)
            self.proxies.append(await self._exits.enter_async_context(proxy))
        plan = self.folder / "plan.jsonl"
        plan.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in self.cast.plan))
        plan.chmod(0o600)
        for number, users in enumerate(groups):
            self.actors.append(self._actor(number, users, plan))
        self._memory = asyncio.create_task(self._watch_memory(), name="memory")
        await asyncio.gather(*(actor.start() for actor in self.actors))

    def _add_accounts(self) -> None:
        # Hashing hundreds of passwords the slow way would take longer than the storm; a hash carries its
        # own cost, so checking them is quick too.
        hasher = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
        accounts = open_accounts(self.folder / "server", hasher=hasher)
        try:
            for users in self.cast.users:
                for user in users:
                    accounts.add_user(user, self._password)
        finally:
            accounts.close()

    def _actor(self, number: int, users: tuple[str, ...], plan: Path) -> Actor:
        proxy = self.proxies[0 if self._one_proxy else number]
        name = users[0] if len(users) == 1 else f"client-{number}"
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        config = WorkerConfig(
            name=name,
            url=f"http://127.0.0.1:{proxy.port}",
            folder=str(folder),
            plan=str(plan),
            users=tuple(WorkerUser(name=user, password=self._password) for user in users),
            conversations={
                user: sum(user in members for members in self.cast.members.values()) for user in users
            },
            receipt_interval_s=self._receipt_interval_s,
            report_every_s=self._report_every_s,
            screen=self._screen,
        )
        file = folder / "config.json"
        file.touch(0o600)
        file.write_bytes(msgspec.json.encode(config))
        said = [line.conversation for line in self.cast.plan]
        expected = sum(said.count(id) * len(set(users) & set(who)) for id, who in self.cast.members.items())
        for file_name in (SENT_FILE, RECEIVED_FILE):
            self._judge_readers.append(JournalReader(folder / file_name))
        return Actor(name, users, folder, proxy, expected)

    async def _watch_memory(self) -> None:
        while True:
            for child in (self.server, *(actor.child for actor in self.actors)):
                child.sample_memory()
            await asyncio.sleep(_MEMORY_EVERY_S)

    # --- the server ----------------------------------------------------------------------------

    async def start_server(self) -> None:
        """Start the server, for the first time or again on the same port, and wait until it listens."""
        module = "whimbrel.cli.storm_server"
        self.server.command = [sys.executable, "-m", module, str(self.folder / "server"), str(self._port)]
        self._address = asyncio.get_running_loop().create_future()
        await self.server.start()
        await self.until(self._address.done, SERVER_WITHIN_S, "the server to listen")
        self.url = self._address.result()
        self._port = int(self.url.rpartition(":")[2])

    @property
    def serving(self) -> bool:
        """Whether the server listens."""
        return self.server.running and self._address is not None and self._address.done()

    def _on_server_line(self, line: bytes) -> None:
        if self._address is not None and not self._address.done():
            self._address.set_result(line.decode().strip())

    # --- the play ------------------------------------------------------------------------------

    async def make_ready(self, within_s: float) -> None:
        """Connect everybody, create the conversations, and wait until each user knows all of its own."""
        for conversation, members in self.cast.members.items():
            actor = next(actor for actor in self.actors if members[0] in actor.users)
            title = self.cast.titles.get(conversation, conversation)
            await actor.order(
                CreateConversation(user=members[0], conversation=conversation, title=title, members=members)
            )
        await self.until(
            lambda: all(actor.report.ready == len(actor.users) for actor in self.actors),
            within_s,
            "all users to know their conversations",
        )

    async def go(self) -> float:
        """Begin the plan, now; gives when, on the monotonic clock."""
        began_at_s = time.monotonic()
        for actor in self.actors:
            actor.went_at_s = began_at_s
            await actor.order(Go(at_s=began_at_s))
        return began_at_s

    async def until(self, holds: Callable[[], bool], within_s: float, what: str) -> None:
        """Wait until it holds. Raises ``StormError`` after ``within_s`` seconds, or if a process failed."""
        ends_at_s = time.monotonic() + within_s
        while not holds():
            self.check()
            if time.monotonic() > ends_at_s:
                raise StormError(f"waited {within_s:g} s for {what}")
            await asyncio.sleep(_LOOK_EVERY_S)

    def check(self) -> None:
        """Raise ``StormError`` if a process ended unasked."""
        self.server.check()
        for actor in self.actors:
            actor.child.check()

    @property
    def drained(self) -> bool:
        """Whether everything was sent and every outbox is empty."""
        return all(actor.drained for actor in self.actors)

    @property
    def received(self) -> int:
        """How many messages were written down as received, by all members together."""
        return sum(actor.report.received for actor in self.actors)

    @property
    def expected(self) -> int:
        """How many must be, when all is over."""
        return sum(actor.expected for actor in self.actors)

    async def stop_actors(self) -> int:
        """Let every client close in order; gives how many messages they say are still queued."""
        for actor in self.actors:
            if actor.child.running:
                await actor.order(Stop())
        for actor in self.actors:
            if actor.child.running:
                try:
                    async with asyncio.timeout(STOP_WITHIN_S):
                        code = await actor.child.wait()
                except TimeoutError:
                    raise StormError(f"{actor.name} did not end") from None
                if code or not actor.report.closed:
                    raise StormError(f"{actor.name} ended with code {code}:\n{actor.child.last_words()}")
        return sum(actor.report.pending for actor in self.actors)

    def judge(self) -> Judge:
        """The judge, who has heard all that is in the journals now."""
        for reader in self._judge_readers:
            self._judge.hear(reader.read())
        return self._judge

    @property
    def password(self) -> str:
        """The password of every account on this stage."""
        return self._password

    def counters(self) -> dict[str, float]:
        """What the proxies have done, added up."""
        total: dict[str, float] = {}
        for proxy in self.proxies:
            for name, count in msgspec.structs.asdict(proxy.counters).items():
                total[name] = total.get(name, 0) + count
        return total
