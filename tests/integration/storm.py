"""Two talkers and a server, killed one by one and all at once, and the judgement on what is left.

A storm is drawn from its seed: who dies when, with which fault on the network, and in which order they come
back. It ends well if all that ``send()`` returned for was heard by both, once in the log, in order, and each
consumer was handed everything, in order, under ids that stay.
"""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tests.client.real_server import LIMIT_S, PASSWORD, RealServer
from tests.integration.programs import Book, Program
from tests.integration.rig import history, until
from tests.integration.talker import Talk, heard
from whimbrel import Client, Credentials
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.proxy_faults import AnyFault, DropAnswer, Latency, Reset, Stall

USERS = ("anna", "ben")
PLACES = ("opening", "open", "closing", "closed")
AFTER_S_MAX = 0.12
"""So long after a talker said where it is it may die: opening, signing in and syncing take less."""
SERVER_START_S = 1.2
"""Longer than a server takes to listen: it may die anywhere in between."""
MOVED_ON = 5
"""So many messages each must have sent since the last kill before the next."""
FAULTS: tuple[AnyFault | None, ...] = (
    None,
    Stall(),
    Stall(direction="down"),
    DropAnswer(times_max=3),
    Reset(every_s=0.1),
    Latency(latency_s=0.05, jitter_s=0.04),
)


class Storm:
    """The processes of one run; its context starts the talkers and leaves none behind."""

    def __init__(
        self,
        folder: Path,
        server: RealServer,
        conversation: str,
        seed: int,
        *,
        proxy: FaultProxy | None = None,
        port: int = 0,
        session_max: int = 40,
        pause_s: float = 0.01,
    ) -> None:
        """The talkers reach the server through ``proxy``, or at ``port``.

        They open their clients anew after at most ``session_max`` messages, ``pause_s`` apart.
        """
        self.folder = folder
        self.server = server
        self.proxy = proxy
        self.conversation = conversation
        self.rng = random.Random(seed)
        self.talks = {
            user: Talk(
                url=f"http://127.0.0.1:{port if proxy is None else proxy.port}",
                user=user,
                password=PASSWORD,
                conversation=conversation,
                folder=str(folder),
                seed=seed,
                session_max=session_max,
                pause_s=pause_s,
            )
            for user in USERS
        }
        self.talkers = {
            user: Program("integration/talker.py", [msgspec.json.encode(talk).decode()], Book(talk.places))
            for user, talk in self.talks.items()
        }
        self.server_kills = 0

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        return self.server_kills + sum(talker.kills for talker in self.talkers.values())

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for talker in self.talkers.values():
                await stack.enter_async_context(talker)
                await talker.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def kill_in_rounds(self, rounds: int) -> None:
        """Kill this one and that, so many times."""
        # The very first opening makes the store: it dies in that too.
        await self._kill_talker("anna", "opening")
        await self._back({"anna"})
        for number in range(rounds):
            await self._round(number)

    def sent(self, user: str) -> int:
        """How many messages ``send()`` returned for."""
        return len(Book(self.talks[user].sent).lines())

    def heard(self, user: str) -> str:
        """What this one's consumer was handed last."""
        return Book(self.talks[user].heard).last()

    async def finish(self) -> None:
        """Say no more, send what is queued, hear all, end."""
        (self.folder / "enough").touch()
        for talker in self.talkers.values():
            await talker.until("flushed")
        part = self.folder / "total.part"
        part.write_text(str(sum(map(self.sent, USERS))))
        part.rename(self.folder / "total")
        for talker in self.talkers.values():
            await talker.ended()

    # --- a round of kills ----------------------------------------------------------------------

    async def _round(self, number: int) -> None:
        rng = self.rng
        one = rng.choice(USERS)
        victims = ({one}, {"server"}, {"server", *rng.choice((USERS, (one,)))})[number % 3]
        fault = rng.choice(FAULTS)
        assert self.proxy is not None
        with nullcontext() if fault is None else self.proxy.during(fault):
            await asyncio.sleep(rng.random() * 0.1)  # the instant is part of the test
            async with asyncio.TaskGroup() as group:
                for victim in sorted(victims):
                    group.create_task(self._kill(victim))
        await self._back(victims)
        await self.moved_on()

    async def _kill(self, victim: str) -> None:
        if victim == "server":
            await self._kill_server()
        else:
            await self._kill_talker(victim, self.rng.choice(PLACES))

    async def _kill_talker(self, user: str, place: str) -> None:
        talker = self.talkers[user]
        # The place may be long in coming while the network is ill; that is an instant too.
        with_luck = asyncio.ensure_future(talker.until(place, talker.times(place) + 1))
        await asyncio.wait([with_luck], timeout=3.0)
        with_luck.cancel()
        await asyncio.wait([with_luck])
        await asyncio.sleep(self.rng.random() * AFTER_S_MAX)
        await talker.kill()

    async def _kill_server(self) -> None:
        rng = self.rng
        await asyncio.sleep(rng.random() * 0.1)
        if rng.random() < 0.3:  # while it says goodbye
            self.server.signal(signal.SIGTERM)
            await asyncio.sleep(rng.random() * 0.2)
        await self.server.kill()
        self.server_kills += 1
        if rng.random() < 0.5:  # and again while it starts
            await self.server.spawn()
            await asyncio.sleep(rng.random() * SERVER_START_S)
            await self.server.kill()
            self.server_kills += 1

    async def _back(self, victims: set[str]) -> None:
        rng = self.rng
        for victim in rng.sample(sorted(victims), len(victims)):
            await asyncio.sleep(rng.random() * 0.1)
            if victim == "server":
                await self.server.start()
                continue
            talker = self.talkers[victim]
            await talker.start()
            if rng.random() < 0.3:  # and again while it starts
                await asyncio.sleep(rng.random() * SERVER_START_S)
                await talker.kill()
                await talker.start()

    async def moved_on(self) -> None:
        """Wait until both have sent and heard something new."""
        aims = {user: self.sent(user) + MOVED_ON for user in USERS}
        await until(lambda: all(self.sent(user) >= aim for user, aim in aims.items()))
        heard = {user: self.heard(user) for user in USERS}
        await until(lambda: all(self.heard(user) != last for user, last in heard.items()))

    # --- the judgement -------------------------------------------------------------------------

    async def judge(self) -> int:
        """Assert all promises; gives how many messages there were."""
        sent = {user: self.sent(user) for user in USERS}
        total = sum(sent.values())
        seen = []
        for user in USERS:
            async with Client(self.server.url, None, Credentials(user, PASSWORD)) as client:
                await client.connected(LIMIT_S)
                seen.append(await history(client, self.conversation, total))
        assert [message.id for message in seen[0]] == [message.id for message in seen[1]]
        for user in USERS:
            texts = [message.content for message in seen[0] if message.sender == user]
            assert texts == [f"{user} {number}" for number in range(sent[user])]
            ids = check_heard(self.talks[user].heard)
            assert ids == [message.id for message in seen[0]]
            assert [int(line) for line in Book(self.talks[user].sent).lines()] == list(range(sent[user]))
        return total


def check_heard(path: Path) -> list[str]:
    """Assert that a consumer was handed all, in order, under ids that stay; gives the messages' ids."""
    lines = heard(path)
    place: dict[int, tuple[int, str, str, str]] = {}
    life_before, position_before, highest = -1, 0, 0
    for life, position, seq, id, kind, text in lines:
        if life == life_before and position > position_before:
            # Nothing between two entries is left out.
            assert position == position_before + 1, "an entry was skipped"
        else:
            # It begins again with something already handed out, or right behind.
            assert position <= highest + 1, "an entry was skipped after a restart"
        assert place.setdefault(position, (seq, id, kind, text)) == (seq, id, kind, text)
        life_before, position_before, highest = life, position, max(highest, position)
    assert sorted(place) == list(range(1, highest + 1))
    seqs = [place[position][0] for position in sorted(place)]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    return [id for _, (_, id, kind, _) in sorted(place.items()) if kind == "message"]
