"""A rig for the engine: a virtual clock, a seeded source of chance, a store in memory, and no I/O."""

from __future__ import annotations

import random
from collections.abc import Iterable

from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.core.engine import Engine
from whimbrel.model import Event
from whimbrel.store.memory import MemoryStore

WALL = 1_700_000_000.0


class Rig:
    """One engine with its store; ``settle()`` does what a driver does, as often as there is something."""

    def __init__(self, settings: c.Settings | None = None, *, seed: int = 1) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.store = MemoryStore()
        self.settings = settings or c.Settings()
        self.sent: dict[int, list[p.ClientItem]] = {}
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.refreshes = 0
        self.events: list[Event] = []
        self.answers: list[c.CallAnswered] = []
        self.engine = self._engine()

    def _engine(self) -> Engine:
        sources = c.Sources(random=self.random.random, wall=lambda: WALL + self.now)
        return Engine(self.store.load(), self.settings, sources, device=self.store.device, now=self.now)

    def restart(self) -> None:
        """Kill the process and start it again from its store."""
        self.engine = self._engine()
        for known in (self.sent, self.opened, self.closed):
            known.clear()

    def act(self) -> None:
        """Carry out the actions, without committing anything."""
        for action in self.engine.actions(self.now):
            match action:
                case c.OpenLink(link=link):
                    self.opened.append(link)
                case c.CloseLink(link=link):
                    self.closed.append(link)
                case c.SendItems(link=link, items=items):
                    self.sent.setdefault(link, []).extend(items)
                case c.RefreshToken():
                    self.refreshes += 1
        self.events.extend(self.engine.events())
        self.answers.extend(self.engine.answers())

    def settle(self) -> None:
        """Commit and act until there is nothing left to do at this instant."""
        for _ in range(100):
            self.act()
            changes = self.engine.take_changes()
            if changes is None:
                return
            displaced = self.store.apply(changes)
            self.engine.committed(self.now, displaced)
        raise AssertionError("the engine does not come to rest")

    def run(self, until: float) -> None:
        """Let virtual time pass, waking the engine whenever it asked for it."""
        for _ in range(100_000):
            due = self.engine.next_deadline(self.now)
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.engine.handle_timer(self.now)
            self.settle()
        else:
            raise AssertionError("the engine spins")
        self.now = until

    def take(self, link: int) -> list[p.ClientItem]:
        """What was sent on a link since the last call."""
        return self.sent.pop(link, [])

    def receive(self, link: int, *items: p.ServerItem | p.Unknown) -> None:
        """Items of the server arrive."""
        for item in items:
            self.engine.receive(link, item, self.now)
        self.settle()

    def connect(self, *heads: p.Head, welcome: p.Welcome | None = None) -> int:
        """Sign in, open the next link and have it welcomed; gives the link."""
        if self.engine.tokens.token is None:
            self.engine.submit(c.SetToken(token="token", expires_in_s=900.0), self.now)
        self.engine.submit(c.Connect(), self.now)
        self.settle()
        for _ in range(1000):
            if self.engine.link.active is not None:
                return self.engine.link.active
            if self.opened:
                link = self.opened.pop(0)
                if link in self.closed:
                    continue
                self.engine.opened(link, self.now)
                self.settle()
                self.receive(link, welcome or self.welcome(*heads))
                self.take(link)
                continue
            self.run(self.now + 0.05)
        raise AssertionError("never connected")

    def welcome(self, *heads: p.Head) -> p.Welcome:
        return p.Welcome(
            user="anna", device=self.store.device, history="h1", sync="s1", heads=heads, time=WALL + self.now
        )

    def lose(self, link: int, kind: str = "network") -> None:
        """The connection breaks."""
        self.engine.closed(link, c.Fault(kind=kind, text="reset"), self.now)
        self.settle()

    def send(
        self,
        key: str,
        conversation: str = "c1",
        *,
        expires_in_s: float | None = None,
        on_reject: str = "skip",
    ) -> str:
        """The app sends a text and waits until it is on disk."""
        command = c.SendMessage(
            conversation=conversation,
            key=key,
            format="text",
            body=f"text of {key}",
            expires_in_s=expires_in_s,
            on_reject=on_reject,
        )
        id = self.engine.submit(command, self.now)
        assert id is not None
        self.settle()
        return id

    def state(self, id: str) -> str:
        """The state of an own message as an app sees it."""
        status = self.engine.status(id)
        if status is None:
            message = self.store.message(id)
            assert message is not None
            status = message.status
        assert status is not None
        return status.state.value


def head(seq: int = 0, *, conversation: str = "c1", epoch: str = "e1", floor: int = 0) -> p.Head:
    return p.Head(conversation=conversation, epoch=epoch, seq=seq, floor=floor, members=("anna", "ben"))


def event(seq: int, *, conversation: str = "c1", epoch: str = "e1", id: str = "") -> p.Event:
    return p.Event(
        conversation=conversation, epoch=epoch, seq=seq, id=id or f"m{seq}", sender="ben", body=f"text {seq}"
    )


def delivered(item: p.ClientItem, seq: int, id: str, *, epoch: str = "e1") -> p.Delivered:
    assert isinstance(item, p.Send)
    return p.Delivered(
        conversation=item.conversation, stream=item.stream, n=item.n, id=id, epoch=epoch, seq=seq, at=WALL
    )


def sends(items: Iterable[p.ClientItem]) -> list[p.Send]:
    return [item for item in items if isinstance(item, p.Send)]


def of_kind(items: Iterable[p.ClientItem], kind: type) -> list[p.ClientItem]:
    return [item for item in items if isinstance(item, kind)]
