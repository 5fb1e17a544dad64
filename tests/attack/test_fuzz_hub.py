"""Bent frames given to a real hub and a real ledger: whoever sends them, others' logs stay whole.

In this process for speed, on both ledgers; and a while over a real link to a real server.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.attack.mutations import CLIENT_FRAMES, mutants
from tests.attack.rig import Attacked, frame, handshaken, served
from tests.rounds import Rounds
from tests.server.app_rig import create
from tests.server.hub_rig import Client, Rig
from whimbrel import protocol as p
from whimbrel.errors import ProtocolError
from whimbrel.model import message_id
from whimbrel.server.ledger import Ahead, Committed, Ledger, WasVoided
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.server.ledger_sqlite import SqliteLedger

LINK_FRAMES = 40
"""A link takes so many bent frames, if it lives; then the next one owns the device."""
LEDGERS: dict[str, tuple[Callable[[Path], Ledger], int, int]] = {
    "memory": (lambda _: MemoryLedger(), 10_000, 500_000),
    "sqlite": (lambda folder: SqliteLedger(folder / "ledger.db", b"k" * 32), 3_000, 100_000),
}


def _good_frames(token: str) -> tuple[bytes, ...]:
    """Frames of one who knows what there is: real names, numbers that are next, or were, or will be."""
    numbers = [
        p.encode(
            [
                p.Send(
                    conversation="c", stream=stream, n=n, key=f"{stream} {n}", body="b", metadata={"a": [n]}
                ),
                p.Send(conversation="c", stream=stream, n=n + 1, key=f"{stream} {n + 1}", body="b"),
                p.Void(conversation="c", stream=stream, n=n + 2, key=f"{stream} {n + 2}"),
                p.Status(conversation="c", stream=stream, numbers=(n, n + 5)),
            ]
        )
        for stream in (1, 2)
        for n in range(1, 40, 3)
    ]
    calls = [
        p.Call(id="1", op="create", conversation="own", title="T", members=("cat", "dan")),
        p.Call(id="2", op="add", conversation="own", user="bob"),
        p.Call(id="3", op="remove", conversation="own", user="bob"),
        p.Call(id="4", op="list"),
        p.Auth(token=token),
        p.Received(conversation="c", seq=5),
        p.Read(conversation="own", seq=2),
    ]
    return (*CLIENT_FRAMES, *numbers, p.encode(calls), p.encode(calls[:3]))


class _Fuzzer:
    """Cat, who sends what nobody should, on one link after the other."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.inputs = mutants(random.Random(seed), _good_frames(rig.token("cat", lasts_s=1e6)))
        self.client: Client | None = None
        self.sent = 0
        self.answers = 0

    def once(self) -> None:
        client = self.client
        if client is None or client.closing is not None or self.sent % LINK_FRAMES == 0:
            if client is not None:
                self.rig.hub.close(client.link, self.rig.now)
            client = self.client = self.rig.connect("cat")
        self.sent += 1
        data = next(self.inputs)
        try:
            items = p.decode_client(data)
        except ProtocolError:
            self.rig.hub.broken(client.link, self.rig.now)
        else:
            client.say(*items)
        if self.sent % 3 == 0:
            self.rig.settle()
            answers = client.read()
            self.answers += len(answers)
            # What the hub wants to say can be said, within what a receiver takes.
            assert all(len(said) <= p.FRAME_BYTES_MAX for said in p.frames(answers))


def _check(ledger: Ledger, users: tuple[str, ...]) -> dict[str, list[p.Event]]:
    """Every log is whole: entries from 1 on without a hole, each id once, the same for all who see it."""
    logs: dict[str, list[p.Event]] = {}
    places: dict[str, tuple[str, int]] = {}
    for user in users:
        for info in ledger.conversations(user):
            events: list[p.Event] = []
            since = info.floor
            while (page := ledger.page(user, info.id, since=since, limit=100)) and page.events:
                events += page.events
                since = page.events[-1].seq
            assert [event.seq for event in events] == list(range(info.floor + 1, info.seq + 1))
            for event in events:
                assert places.setdefault(event.id, (info.id, event.seq)) == (info.id, event.seq)
            logs.setdefault(info.id, events)
    return logs


def _check_numbers(ledger: Ledger, devices: tuple[str, ...], log: list[p.Event]) -> None:
    """Numbers are settled from 1 on without a hole, each as its own entry or as void."""
    here = {event.id: event.seq for event in log}
    for device in devices:
        for stream in (1, 2, 3):
            outcomes = [ledger.settled(device, "c", stream, n) for n in range(1, 200)]
            last_n = next(index for index, outcome in enumerate(outcomes) if isinstance(outcome, Ahead))
            assert all(isinstance(outcome, Ahead) for outcome in outcomes[last_n:])
            committed = [o.event for o in outcomes[:last_n] if isinstance(o, Committed)]
            assert all(isinstance(o, Committed | WasVoided) for o in outcomes[:last_n])
            assert all(here[event.id] == event.seq for event in committed)
            seqs = [event.seq for event in committed]
            assert len(set(seqs)) == len(seqs) or stream != 1


@pytest.mark.soak
@pytest.mark.parametrize("name", LEDGERS)
def test_whatever_one_sends_the_logs_stay_whole(
    name: str, tmp_path: Path, rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    make, ci, soak = LEDGERS[name]
    count = rounds.of(ci=ci, soak=soak)
    fresh = rounds.seeds(1)[1]
    with closing(make(tmp_path)) as ledger, caplog.at_level(logging.WARNING):
        rig = Rig(ledger=ledger)
        rig.create("c", "ann", "bob", "cat")
        rig.create("private", "ann", "bob")
        ann, bob = rig.connect("ann"), rig.connect("bob")
        fuzzer = _Fuzzer(rig, fresh)
        told: list[p.Event] = []
        for number in range(1, count + 1):
            fuzzer.once()
            if number % 100 == 0:
                n = number // 100
                key = f"ann {n}"
                ann.say(p.Send(conversation="private", stream=1, n=n, key=key, body="b"), p.Ping())
                bob.say(p.Ping())
                assert [item.n for item in ann.take(p.Delivered)] == [n]
                news = bob.read()
                told += [e for e in news if isinstance(e, p.Event) and e.conversation == "private"]
                rig.pass_time(0.2)
        rig.settle()
        logs = _check(ledger, ("ann", "bob", "cat", "dan"))
        _check_numbers(ledger, ("cat-1",), logs["c"])
        expected = [message_id("ann-1", f"ann {n}") for n in range(1, count // 100 + 1)]
        assert [event.id for event in logs["private"] if event.kind == "message"] == expected
        assert [event.id for event in told] == expected, "bob was told of each, once and in order"
        assert {event.sender for event in logs["private"] if event.kind == "message"} == {"ann"}
        assert any(event.sender == "cat" for event in logs["c"]), "the fuzzer got nothing through at all"
        assert fuzzer.answers > count / 10
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.soak
async def test_bent_frames_on_real_links(attacked: Attacked, rounds: Rounds) -> None:
    token = await attacked.server.login("mallory")
    await create(attacked.server, token, "c")
    inputs = mutants(random.Random(rounds.fresh_seed()), _good_frames(token))
    links = 0
    async with served(attacked) as others, attacked.bounded():
        for _ in range(rounds.of(ci=15, soak=1_000)):
            async with handshaken(attacked, token) as link:
                for _ in range(LINK_FRAMES):
                    if not await link.write(frame(next(inputs), random.choice((1, 1, 2)))):
                        break
                links += 1
                await link.write(frame(b'[{"t":"bye"}]'))
                assert await link.closed() in (0, 1000, 1002, 1007, 1008, 1009)
        await others.once_more(3)
    assert links
