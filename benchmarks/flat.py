"""Whether a message costs more the longer the conversation is: at 1,000, 100,000 and 1,000,000 messages.

Stores and ledgers are filled through their own `apply`; then 2,000 more messages are sent, received and
settled on each, one at a time, each made durable as in real life:

    sent       engine and encrypted store of a client: queued, on disk, handed to the link, answered, on disk
    received   the same engine and store: an entry comes, is put in its place, on disk, told to the app
    settled    the ledger of a server: numbered, appended, committed

There is no network in it, and no second process. The sizes take turns, a hundred messages each, so that
whatever else the machine does strikes all of them alike; the figure is the median over the turns, of
processor time (kernel included). What is compared is each size with the smallest; flat is within 20 %.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Settings, figure, show_progress
from benchmarks.stand import alone, own_folder
from benchmarks.stores import EPOCH, HISTORY, KEY, OTHER, USER, appends, fill_ledger, fill_store, text_of
from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.core.engine import Engine
from whimbrel.server.ledger import Committed
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.store.sqlite import SqliteStore

SIZES, SIZES_QUICK = (1_000, 100_000, 1_000_000), (1_000, 20_000)
MESSAGES, TURN = 2_000, 100
WALL = 1_700_000_000.0
STEP_S = 0.01
TARGET = "<= 1.2"
SETTLE_MAX = 20
WRITABLE_BYTES = 64 * 1024


def measure(settings: Settings) -> Iterable[Figure]:
    """All three, at all sizes."""
    sizes = SIZES_QUICK if settings.quick else SIZES
    with own_folder(settings, "flat") as folder:
        devices: dict[int, _Device] = {}
        ledgers: dict[int, _Server] = {}
        try:
            for size in sizes:
                show_progress(f"filling with {size:,} messages")
                devices[size] = _Device(folder / f"store-{size}.db", size)
                ledgers[size] = _Server(folder / f"ledger-{size}.db", size)
            yield from _compared("sent by a client", {size: devices[size].send for size in sizes})
            yield from _compared("received by a client", {size: devices[size].receive for size in sizes})
            yield from _compared("settled by a server", {size: ledgers[size].settle for size in sizes})
        finally:
            for device in devices.values():
                device.close()
            for ledger in ledgers.values():
                ledger.close()


def _compared(what: str, steps: dict[int, Callable[[], None]]) -> Iterable[Figure]:
    busy_us: dict[int, list[float]] = {size: [] for size in steps}
    lasted_us: dict[int, list[float]] = {size: [] for size in steps}
    for _ in range(MESSAGES // TURN):
        for size, step in steps.items():
            begin, busy = time.perf_counter(), time.process_time()
            for _ in range(TURN):
                step()
            busy_us[size].append((time.process_time() - busy) / TURN * 1e6)
            lasted_us[size].append((time.perf_counter() - begin) / TURN * 1e6)
    smallest = min(steps)
    for size in steps:
        cost = f"{median(busy_us[size]):.0f} µs of processor time, {median(lasted_us[size]):.0f} µs in all"
        name = f"a message {what}, conversation of {size:,}"
        if size == smallest:
            yield figure(f"{name}, processor time", median(busy_us[size]), "µs", note=cost)
            continue
        share = median(busy_us[size]) / median(busy_us[smallest])
        yield figure(f"{name} against {smallest:,}", share, "times", TARGET, note=cost)


class _Device:
    """A client without its network: its engine and its store, driven as its driver does."""

    def __init__(self, path: Path, size: int) -> None:
        (self._room,) = fill_store(path, size, 1)
        self._store = SqliteStore(path, KEY)
        self._now = 0.0
        self._seq = size
        self._link = 0
        self._sent: list[p.Send] = []
        sources = c.Sources(random=random.Random(size).random, wall=lambda: WALL + self._now)
        self._engine = Engine(
            self._store.load(), c.Settings(), sources, device=self._store.device, now=self._now
        )
        self._connect()

    def __repr__(self) -> str:
        return f"<_Device at {self._seq}>"

    def send(self) -> None:
        """Send one message and have it delivered."""
        self._pass_time()
        self._seq += 1
        command = c.SendMessage(
            conversation=self._room, key=f"new-{self._seq}", format="text", body=text_of(self._seq)
        )
        id = self._engine.submit(command, self._now)
        self._settle()
        (send,) = self._sent
        self._sent.clear()
        assert id is not None
        delivered = p.Delivered(
            conversation=self._room, stream=send.stream, n=send.n, id=id, epoch=EPOCH, seq=self._seq, at=WALL
        )
        self._receive(delivered)

    def receive(self) -> None:
        """Receive one message of another member."""
        self._pass_time()
        self._seq += 1
        event = p.Event(
            conversation=self._room,
            epoch=EPOCH,
            seq=self._seq,
            id=f"new-{self._seq}-of-the-other",
            sender=OTHER,
            body=text_of(self._seq),
            sent_at=WALL,
            at=WALL,
        )
        self._receive(event)

    def close(self) -> None:
        """Close its store."""
        self._store.close()

    def _connect(self) -> None:
        engine = self._engine
        engine.submit(c.SetToken(token="token", expires_in_s=1e9), self._now)  # noqa: S106 - nobody checks it
        engine.submit(c.Connect(), self._now)
        self._settle()
        engine.opened(self._link, self._now)
        self._settle()
        head = p.Head(conversation=self._room, epoch=EPOCH, seq=self._seq, members=(USER, OTHER))
        welcome = p.Welcome(
            user=USER, device=self._store.device, history=HISTORY, sync="1", heads=(head,), time=WALL
        )
        self._receive(welcome)
        assert engine.link.active == self._link, "it is not connected"

    def _pass_time(self) -> None:
        self._now += STEP_S
        self._engine.alive(self._link, self._now)
        self._engine.writable(self._link, WRITABLE_BYTES)
        self._engine.handle_timer(self._now)

    def _receive(self, item: p.ServerItem) -> None:
        self._engine.receive(self._link, item, self._now)
        self._settle()

    def _settle(self) -> None:
        engine = self._engine
        for _ in range(SETTLE_MAX):
            for action in engine.actions(self._now):
                match action:
                    case c.OpenLink(link=link):
                        self._link = link
                    case c.SendItems(items=items):
                        self._sent += [item for item in items if isinstance(item, p.Send)]
                    case _:
                        pass
            engine.events()
            changes = engine.take_changes()
            if changes is None:
                return
            engine.committed(self._now, self._store.apply(changes))
        raise RuntimeError("the engine does not come to rest")


class _Server:
    """A ledger with one long conversation."""

    def __init__(self, path: Path, size: int) -> None:
        self._ledger = SqliteLedger(path, KEY)
        self._n = size
        fill_ledger(self._ledger, "room", (USER, OTHER), size)

    def __repr__(self) -> str:
        return f"<_Server at {self._n}>"

    def settle(self) -> None:
        """Settle one more message."""
        self._n += 1
        (outcome,) = self._ledger.apply(list(appends("room", USER, range(self._n, self._n + 1))), WALL)
        if not isinstance(outcome, Committed) or outcome.repeated:
            raise RuntimeError("the ledger did not settle it")

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()


if __name__ == "__main__":
    raise SystemExit(alone(measure))
