"""A middlebox that repeats, drops and reorders items on living links, between real engines and a real hub.

TCP never does that; what stands in between may. In virtual time: while it misbehaves apps go on writing, then
it behaves, and everything must arrive: once, in order, the same for all, every outbox empty.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.core.rig import Rig as Engine
from tests.rounds import Rounds
from tests.server.hub_rig import Rig as Server
from whimbrel import model
from whimbrel import protocol as p
from whimbrel.core import contract as c

STEP_S = 0.1
STORM_S = 40.0
CALM_S = 240.0
MESSAGES = 40
SHARE = 0.15
"""Of the items, those it does something to."""


class Middlebox:
    """Carries the items of one direction of one link."""

    def __init__(self, rng: random.Random, deeds: tuple[str, ...]) -> None:
        self._rng = rng
        self._deeds = deeds
        self._held: list[tuple[int, Any]] = []
        self.behaves = False
        self.done = 0

    def carry(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            deed = self._rng.choice(self._deeds) if self._rng.random() < SHARE else ""
            if self.behaves or not deed:
                yield item
            else:
                self.done += 1
                if deed == "repeat":
                    yield item
                    self._held.append((self._rng.randrange(6), item))
                    if self._rng.random() < 0.5:
                        yield item
                elif deed == "reorder":
                    self._held.append((self._rng.randrange(6), item))
        yield from self._released()

    def _released(self) -> Iterator[Any]:
        self._held = [(turns - 1, item) for turns, item in self._held]
        due = [item for turns, item in self._held if turns < 0 or self.behaves]
        self._held = [(turns, item) for turns, item in self._held if turns >= 0 and not self.behaves]
        self._rng.shuffle(due)
        yield from due


class Member:
    """A device: a real engine on a store in memory, and its links through middleboxes."""

    def __init__(self, world: World, user: str, seed: int) -> None:
        self.world = world
        self.user = user
        self.engine = Engine(seed=seed)
        self.links: dict[int, tuple[int, Middlebox, Middlebox]] = {}
        self.engine.engine.submit(c.SetToken(token=world.token(self), expires_in_s=9e5), 0.0)
        self.engine.engine.submit(c.Connect(), 0.0)
        self.engine.settle()

    def turn(self, now: float) -> None:
        rig, world = self.engine, self.world
        rig.run(now)
        for link in rig.opened:
            world.links += 1
            self.links[link] = (world.links, world.middlebox(), world.middlebox())
            world.server.hub.open(world.links, world.server.now)
            rig.engine.opened(link, now)
        rig.opened.clear()
        rig.settle()
        for link, sent in list(rig.sent.items()):
            del rig.sent[link]
            if link in self.links:
                number, up, _ = self.links[link]
                for said in up.carry(sent):
                    world.server.hub.receive(number, said, world.server.now)
        for link in rig.closed:
            if link in self.links:
                world.server.hub.close(self.links.pop(link)[0], world.server.now)
        rig.closed.clear()
        world.server.settle()
        for link, (number, _, down) in list(self.links.items()):
            hub = world.server.hub
            items: list[p.ServerItem] = [*down.carry(hub.outgoing(number, world.server.now))]
            rig.receive(link, *items)
            if number in hub.closing:
                hub.close(number, world.server.now)
                self.links.pop(link, None)
                rig.engine.closed(link, c.Fault(kind="closed"), now)
                rig.settle()

    @property
    def seen(self) -> list[tuple[str, int | None]]:
        """What its app was told of, in the order in which it was told."""
        received = [event.message for event in self.engine.events if isinstance(event, model.MessageReceived)]
        return [(message.id, message.seq) for message in received]


class World:
    """Three members of one conversation, and what is between them and the hub."""

    def __init__(self, seed: int, deeds: tuple[str, ...]) -> None:
        self.rng = random.Random(seed)
        self.deeds = deeds
        self.boxes: list[Middlebox] = []
        self.behaves = False
        self.links = 0
        self.server = Server()
        self.server.create("c1", "ann", "bob", "cat")
        self.began_s = self.server.now
        self.members = [Member(self, user, seed + n) for n, user in enumerate(("ann", "bob", "cat"))]
        self.now = 0.0

    def token(self, member: Member) -> str:
        return self.server.token(member.user, member.engine.store.device, lasts_s=1e6)

    def middlebox(self) -> Middlebox:
        box = Middlebox(self.rng, self.deeds)
        box.behaves = self.behaves
        self.boxes.append(box)
        return box

    def turn(self) -> None:
        self.now += STEP_S
        self.server.pass_time(self.began_s + self.now - self.server.now)
        for member in self.members:
            member.turn(self.now)

    def calm(self) -> None:
        self.behaves = True
        for box in self.boxes:
            box.behaves = True

    def log(self) -> list[tuple[str, int]]:
        page = self.server.ledger.page("ann", "c1", since=0, limit=100)
        assert page is not None
        return [(event.id, event.seq) for event in page.events]

    def until_at_rest(self, within_s: float) -> None:
        until_s = self.now + within_s
        while self.now < until_s and not self.at_rest():
            self.turn()

    def at_rest(self) -> bool:
        log = self.log()
        return all(
            member.engine.engine.pending == 0 and len(member.seen) == len(log) for member in self.members
        )


def live(seed: int, deeds: tuple[str, ...]) -> World:
    """A storm in which everybody writes, then calm until all is there or it is too late."""
    world = World(seed, deeds)
    ids: dict[str, list[str]] = {member.user: [] for member in world.members}
    writes = {world.rng.uniform(0.0, STORM_S): n for n in range(MESSAGES)}
    while world.now < STORM_S:
        world.turn()
        for at_s in sorted(at_s for at_s in writes if at_s <= world.now):
            n = writes.pop(at_s)
            member = world.members[n % 3]
            ids[member.user].append(member.engine.send(f"k{n}", "c1"))
    assert sum(box.done for box in world.boxes) > MESSAGES // 2, "it hardly did anything"
    world.calm()
    world.until_at_rest(CALM_S)
    log = world.log()
    count = sum(map(len, ids.values()))
    assert [seq for _, seq in log] == list(range(1, count + 2)), "each message is in the log once"
    for member in world.members:
        mine = [id for id, _ in log if id in ids[member.user]]
        assert mine == ids[member.user], "in the order in which they were written"
        assert member.engine.engine.pending == 0, f"{member.user}'s outbox is not empty"
    return world


DEEDS = {
    "repeated": ("repeat",),
    "reordered": ("reorder",),
    "dropped": ("drop",),
    "all at once": ("repeat", "reorder", "drop"),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", DEEDS)
def test_nothing_is_lost_doubled_or_reordered(name: str, rounds: Rounds) -> None:
    fixed, fresh = rounds.seeds(1)
    slowest_s = 0.0
    for seed in [*range(fixed, fixed + rounds.of(ci=4, soak=200)), fresh]:
        world = live(seed, DEEDS[name])
        for member in world.members:
            assert member.seen == world.log(), f"what {member.user} saw (seed {seed})"
        slowest_s = max(slowest_s, world.now - STORM_S)
    rounds.figure(f"until all was there, items {name}", round(slowest_s, 1), "s")
