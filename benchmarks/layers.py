"""Where the processor time of a message goes: the layers it passes, one after the other, in one process.

A sender, a server and a receiver as they are, with their engines, encrypted stores, hub and ledger on disk,
but without sockets, event loops and threads: what one gives is handed to the next by hand, in lots of 32
messages of 200 bytes, about as many as go together at a hundred in flight. Each step is timed by itself
(kernel included); the median over the lots is shown. What `rate` measures beyond their sum is the network,
the threads and the waiting.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks.figures import Figure, Settings, figure
from benchmarks.stand import own_folder
from benchmarks.stores import KEY
from whimbrel import protocol as p
from whimbrel.client.outgoing import outgoing
from whimbrel.core import contract as c
from whimbrel.core.engine import Engine
from whimbrel.model import Role
from whimbrel.server.hub import Hub, Identity, ServerSettings
from whimbrel.server.ledger import CreateConversation
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.store.sqlite import SqliteStore

LOT, LOTS, LOTS_QUICK, WARM_UP = 32, 300, 10, 10
TEXT = "x" * 200
ROOM = "room"
WALL = 1_700_000_000.0
WRITABLE_BYTES = 1024 * 1024
SETTLE_MAX = 20
T = TypeVar("T")


class _Clock:
    """What each step took, by name, in the order in which they came first."""

    def __init__(self) -> None:
        self.took_us: dict[str, list[float]] = {}

    def __repr__(self) -> str:
        return f"<_Clock of {len(self.took_us)} steps>"

    def time(self, name: str, step: Callable[[], T]) -> T:
        begin = time.process_time()
        result = step()
        self.took_us.setdefault(name, []).append((time.process_time() - begin) / LOT * 1e6)
        return result


class _Tokens:
    """Sync tokens, and access tokens that are the user's name: nobody attacks here."""

    def encode(self, history: str, commit: int, user: str) -> str:
        return f"{history}@{commit}"

    def decode(self, token: str, user: str) -> tuple[str, int] | None:
        history, _, commit = token.partition("@")
        return (history, int(commit)) if commit else None

    def authenticate(self, token: str) -> Identity:
        user, _, device = token.partition("/")
        return Identity(user=user, device=device, expires_at=WALL + 1e6)


class _Client:
    """A client without its network: engine and store, driven as the driver does."""

    def __init__(self, user: str, path: Path, clock: _Clock) -> None:
        self.user = user
        self._clock = clock
        self.store = SqliteStore(path, KEY)
        sources = c.Sources(random=random.Random(1).random, wall=lambda: WALL)
        self.engine = Engine(self.store.load(), c.Settings(), sources, device=self.store.device, now=0.0)
        self.link = 0
        self.now = 0.0

    def __repr__(self) -> str:
        return f"<_Client of {self.user}>"

    def greet(self) -> list[p.ClientItem]:
        """Connect; gives the hello."""
        token = f"{self.user}/{self.store.device}"
        self.engine.submit(c.SetToken(token=token, expires_in_s=1e6), self.now)
        self.engine.submit(c.Connect(), self.now)
        for action in self.engine.actions(self.now):
            if isinstance(action, c.OpenLink):
                self.link = action.link
        self.engine.opened(self.link, self.now)
        return self.leaving()

    def leaving(self) -> list[p.ClientItem]:
        """What it wants to send."""
        self.engine.writable(self.link, WRITABLE_BYTES)
        actions = self.engine.actions(self.now)
        return [item for action in actions if isinstance(action, c.SendItems) for item in action.items]

    def take_in(self, items: Iterable[p.ServerItem | p.Unknown]) -> None:
        """Give the engine what came."""
        self.engine.alive(self.link, self.now)
        for item in items:
            self.engine.receive(self.link, item, self.now)

    def settle(self) -> None:
        """Write and tell whatever there is, untimed."""
        for _ in range(SETTLE_MAX):
            changes = self.engine.take_changes()
            if changes is None:
                return
            self.engine.committed(self.now, self.store.apply(changes))
            self.engine.events()

    def commit(self, who: str) -> None:
        """Write what changed, and hand out what the app is told."""
        changes = self.engine.take_changes()
        assert changes is not None, "there is something to write"
        displaced = self._clock.time(f"{who}: store", lambda: self.store.apply(changes))
        self._clock.time(f"{who}: told", lambda: self._told(displaced))

    def _told(self, displaced: list[c.MessageRow]) -> None:
        self.engine.committed(self.now, displaced)
        self.engine.events()


class _Stage:
    """All three, and the way between them."""

    def __init__(self, folder: Path) -> None:
        self.clock = _Clock()
        self.ledger = SqliteLedger(folder / "ledger.db", KEY)
        tokens = _Tokens()
        self.hub = Hub(
            self.ledger,
            authenticate=tokens.authenticate,
            synctokens=tokens,
            known_users=self._known,
            settings=ServerSettings(rate_limit=None),
            wall=lambda: WALL,
        )
        create = CreateConversation(conversation=ROOM, user="ann", title="", members=("ann", "bob"))
        self.ledger.apply([create], WALL)
        self.now = 0.0
        self.ann = _Client("ann", folder / "ann.db", self.clock)
        self.bob = _Client("bob", folder / "bob.db", self.clock)
        for number, client in enumerate((self.ann, self.bob), 1):
            self.hub.open(number, 0.0)
            self._hear(number, client.greet())
            client.take_in(self.hub.outgoing(number, 0.0))
            client.settle()
        self.bring_up_to_date()

    def __repr__(self) -> str:
        return f"<_Stage at {self.ledger.commit}>"

    @staticmethod
    def _known(names: Collection[str]) -> set[str]:
        return {"ann", "bob"} & set(names)

    def close(self) -> None:
        """Close all files."""
        self.ledger.close()
        self.ann.store.close()
        self.bob.store.close()

    def bring_up_to_date(self) -> None:
        """Let pages and receipts pass, untimed, until there are none."""
        for _ in range(SETTLE_MAX):
            moved = False
            for number, client in enumerate((self.ann, self.bob), 1):
                moved |= self._hear(number, client.leaving())
            if batch := self.hub.take_batch(self.now):
                self.hub.settled(self.ledger.apply(batch, WALL), self.now)
                moved = True
            self.hub.handle_timer(self.now)
            for number, client in enumerate((self.ann, self.bob), 1):
                if items := self.hub.outgoing(number, self.now):
                    client.take_in(items)
                    moved = True
                client.settle()
            if not moved:
                return

    def _hear(self, number: int, items: Sequence[p.ClientItem | p.Unknown]) -> bool:
        for item in items:
            self.hub.receive(number, item, self.now)
        return bool(items)

    def lot(self) -> None:
        """Let one lot of messages go all the way."""
        self.now += 0.01
        self.ann.now = self.bob.now = self.now
        timed, ann, bob = self.clock.time, self.ann, self.bob
        commands = timed("sender: checked, named", lambda: [_command() for _ in range(LOT)])
        timed("sender: queued", lambda: [ann.engine.submit(command, self.now) for command in commands])
        changes = ann.engine.take_changes()
        assert changes is not None, "there is something to write"
        displaced = timed("sender: store, queued", lambda: ann.store.apply(changes))
        ann.engine.committed(self.now, displaced)
        items = timed("sender: leaves", ann.leaving)
        frames = timed("sender: frames written", lambda: p.frames(items))
        sends = timed("server: frames read", lambda: [x for frame in frames for x in p.decode_client(frame)])
        timed("server: hub takes", lambda: self._hear(1, sends))
        batch = timed("server: batch", lambda: self.hub.take_batch(self.now))
        outcomes = timed("server: ledger", lambda: self.ledger.apply(batch, WALL))
        timed("server: hub tells", lambda: self.hub.settled(outcomes, self.now))
        both = timed("server: hub gives", lambda: [self.hub.outgoing(number, self.now) for number in (1, 2)])
        written = timed("server: frames written", lambda: [p.frames(items) for items in both])
        for who, client, mine in zip(("sender", "receiver"), (ann, bob), written, strict=True):
            told = timed(f"{who}: frames read", partial(_read, mine))
            timed(f"{who}: engine", partial(client.take_in, told))
            client.commit(who)


def _read(frames: list[bytes]) -> list[p.ServerItem | p.Unknown]:
    return [item for frame in frames for item in p.decode_server(frame)]


def _command() -> c.SendMessage:
    return outgoing(
        ROOM,
        TEXT,
        key=None,
        metadata=None,
        reply_to=None,
        role=Role.USER,
        expires_in=None,
        on_reject="skip",
    )


def measure(settings: Settings) -> Iterable[Figure]:
    """The steps, and their sum."""
    with own_folder(settings, "layers") as folder:
        stage = _Stage(folder)
        try:
            for _ in range(WARM_UP):
                stage.lot()
                stage.bring_up_to_date()
            stage.clock.took_us.clear()
            for _ in range(LOTS_QUICK if settings.quick else LOTS):
                stage.lot()
                stage.bring_up_to_date()
        finally:
            stage.close()
    medians = {name: median(took) for name, took in stage.clock.took_us.items()}
    for name, took_us in medians.items():
        yield figure(f"layer, {name}", took_us, "µs")
    yield figure("layers, all", sum(medians.values()), "µs")
