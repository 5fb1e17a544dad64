"""A process full of users that send by a plan and write down what they send and get; made to be killed.

    python -m whimbrel.cli.worker CONFIG.json

Each user has a client and an encrypted store of its own. Everything here survives ``kill -9`` at any instant:

* a line of the plan is sent under its number as the app's key, so after a restart it may be sent again;
  it is written down as sent **after** ``send()`` returned, and never promised before;
* what a durable consumer hands out is written down first and said ``done()`` to second, so after a crash it
  may be handed out again: what the journal has from an earlier life is passed over, once. The same message
  twice within one life is a fault of the system, and is written down twice.

The judge (`judge`) reads the journals. Whoever starts a worker gives it orders and reads its reports
(`storm_words`); a worker ends with its standard input.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections import deque
from pathlib import Path

import msgspec

from whimbrel.cli.storm_journal import Delivered, Journal, JournalReader, Received, Sent, digest_of
from whimbrel.cli.storm_words import (
    SCREEN_LINES_MAX,
    CreateConversation,
    Go,
    Line,
    Order,
    PlanLine,
    Report,
    Stop,
    WorkerConfig,
    WorkerUser,
)
from whimbrel.client.client import Client
from whimbrel.client.consumer import ConsumedEvent
from whimbrel.client.credentials import Credentials
from whimbrel.client.handles import SentMessage
from whimbrel.core.contract import Settings
from whimbrel.errors import DeliveryFailed, LinkError, QueueFull
from whimbrel.model import ConnectionChanged, ConnectionState, Message

__all__ = ["main"]

CONSUMER = "journal"
SENT_FILE, RECEIVED_FILE = "sent.jsonl", "received.jsonl"
ORDER_BYTES_MAX = 1024 * 1024
_OPENING_AT_ONCE = 4
_QUEUE_FULL_WAIT_S = 0.2
_CALL_AGAIN_S = 0.5


class _Past(msgspec.Struct):
    """What the journals tell a user of its earlier lives."""

    sent: set[str] = msgspec.field(default_factory=set)
    delivered: set[str] = msgspec.field(default_factory=set)
    received: set[str] = msgspec.field(default_factory=set)


class Player:
    """One user: sends its lines of the plan, writes down what it gets."""

    def __init__(
        self, user: WorkerUser, config: WorkerConfig, plan: list[PlanLine], past: _Past, journals: _Journals
    ) -> None:
        self.name = user.name
        self.rejected = 0
        self.received = len(past.received)
        self._plan = deque(plan)
        self._past = past
        self._journals = journals
        self._config = config
        self._on_way: deque[tuple[str, SentMessage]] = deque()
        self._something_on_way = asyncio.Event()
        self._undone: list[ConsumedEvent] = []
        self._something_undone = asyncio.Event()
        self.client = Client(
            config.url,
            Path(config.folder) / f"{user.name}.db",
            Credentials(user.name, user.password),
            key="file",
            settings=Settings(receipt_interval_s=config.receipt_interval_s),
        )

    def __repr__(self) -> str:
        return f"<Player {self.name}>"

    @property
    def pending(self) -> int:
        """Messages handed over of which it is not written down that they are delivered."""
        return len(self._on_way)

    @property
    def to_send(self) -> int:
        """Lines of the plan that were not handed over."""
        return len(self._plan)

    async def send_plan(self, began_at_s: float) -> None:
        """Send every line at its time, or as soon as possible after it."""
        while self._plan:
            line = self._plan[0]
            if line.label not in self._past.sent:
                delay_s = began_at_s + line.at_s - time.monotonic()
                if delay_s > 0:
                    await asyncio.sleep(delay_s)
                await self._send(line)
            elif line.label not in self._past.delivered:
                # Sent in an earlier life; the same key gives the same message.
                self._watch(line.label, await self._hand_over(line))
            self._plan.popleft()

    async def _send(self, line: PlanLine) -> None:
        called_at_s = time.monotonic()
        message = await self._hand_over(line)
        self._journals.sent.write(
            Sent(
                user=self.name,
                conversation=line.conversation,
                label=line.label,
                id=message.id,
                digest=digest_of(line.text),
                called_at_s=called_at_s,
                returned_at_s=time.monotonic(),
            )
        )
        self._watch(line.label, message)

    async def _hand_over(self, line: PlanLine) -> SentMessage:
        metadata: dict[str, str | bool] = {"label": line.label}
        if line.action:
            metadata["action"] = True
        while True:
            try:
                return await self.client.send(
                    line.conversation, line.text, key=str(line.line), metadata=metadata
                )
            except QueueFull:
                await asyncio.sleep(_QUEUE_FULL_WAIT_S)

    def _watch(self, label: str, message: SentMessage) -> None:
        self._on_way.append((label, message))
        self._something_on_way.set()

    async def watch_deliveries(self) -> None:
        """Write down when each message is delivered, in the order they were sent."""
        while True:
            while self._on_way:
                label, message = self._on_way[0]
                try:
                    await message.delivered()
                except DeliveryFailed:
                    self.rejected += 1
                else:
                    self._journals.sent.write(
                        Delivered(user=self.name, label=label, id=message.id, at_s=time.monotonic())
                    )
                self._on_way.popleft()
            self._something_on_way.clear()
            await self._something_on_way.wait()

    async def receive(self) -> None:
        """Write down every message that the durable consumer hands out, then say that it is done."""
        async for event in self.client.events(consumer=CONSUMER):
            if event.message.kind == "message":
                self._note(event.message)
            self._undone.append(event)
            self._something_undone.set()

    def _note(self, message: Message) -> None:
        label = (message.metadata or {}).get("label", "")
        if label in self._past.received:
            # Of an earlier life that ended between writing it down and saying so.
            self._past.received.remove(label)
            return
        content = message.content
        self._journals.received.write(
            Received(
                user=self.name,
                conversation=message.conversation,
                label=label,
                id=message.id,
                sender=message.sender,
                seq=message.seq or 0,
                digest=digest_of(content) if isinstance(content, str) else "",
                at_s=time.monotonic(),
            )
        )
        self.received += 1

    async def say_done(self) -> None:
        """Say that what was written down is done, as many at once as there are."""
        while True:
            await self._something_undone.wait()
            self._something_undone.clear()
            events, self._undone = self._undone, []
            # All are noted before the first is saved: one transaction for the lot.
            await asyncio.gather(*(event.done() for event in events))
            if self._config.screen and events:
                await self.client.conversation(events[-1].message.conversation).mark_read()

    async def create(self, order: CreateConversation) -> None:
        """Create a conversation; asked again until the server answers, which it may be."""
        while True:
            try:
                await self.client.create_conversation(
                    *order.members, title=order.title, id=order.conversation
                )
            except LinkError:
                await asyncio.sleep(_CALL_AGAIN_S)
            else:
                return

    async def knows_all(self) -> bool:
        """Whether this store knows all conversations it is to know."""
        return len(await self.client.conversations()) >= self._config.conversations[self.name]


class _Journals:
    """What this process writes down: one journal of what was sent, one of what was received."""

    def __init__(self, folder: Path) -> None:
        self.sent = Journal(folder / SENT_FILE)
        self.received = Journal(folder / RECEIVED_FILE)

    def close(self) -> None:
        self.sent.close()
        self.received.close()


class Worker:
    """The users of this process, their tasks, and the reports about them."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        folder = Path(config.folder)
        self._journals = _Journals(folder)
        pasts = _read_pasts(folder)
        plans = _read_plans(config)
        self._players = {
            user.name: Player(
                user, config, plans[user.name], pasts.setdefault(user.name, _Past()), self._journals
            )
            for user in config.users
        }
        self._opened = asyncio.Event()
        self._ready: set[str] = set()
        self._shown: tuple[Line, ...] = ()
        self._last = Report()

    def __repr__(self) -> str:
        return f"<Worker {self._config.name}>"

    async def run(self) -> None:
        """Play until told to stop. Raises what went wrong with any of the users."""
        opening = asyncio.Semaphore(_OPENING_AT_ONCE)
        players = self._players.values()

        async def open_client(player: Player) -> None:
            async with opening:
                await player.client.open()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take_orders(group))
                await asyncio.gather(*(open_client(player) for player in players))
                for player in players:
                    group.create_task(player.receive())
                    group.create_task(player.say_done())
                    group.create_task(player.watch_deliveries())
                self._opened.set()
                group.create_task(self._report())
        except* _Stopped:
            pass
        finally:
            left = await asyncio.gather(*(player.client.close(timeout=0.0) for player in players))
            self._journals.close()
        # What the clients themselves say is left, not what the journals would have it.
        pending = sum(report.pending for report in left)
        self._write(msgspec.structs.replace(self._last, connected=0, pending=pending, closed=True))

    async def _take_orders(self, group: asyncio.TaskGroup) -> None:
        reader = asyncio.StreamReader(limit=ORDER_BYTES_MAX)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while data := await reader.readline():
            order = _order_decoder.decode(data)
            await self._opened.wait()
            match order:
                case CreateConversation():
                    group.create_task(self._players[order.user].create(order))
                case Go():
                    for player in self._players.values():
                        group.create_task(player.send_plan(order.at_s))
                case Stop():
                    break
        raise _Stopped

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._config.report_every_s)
            self._write(await self._look())

    def _write(self, report: Report) -> None:
        self._last = report
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()

    async def _look(self) -> Report:
        players = list(self._players.values())
        for player in players:
            if player.name not in self._ready and await player.knows_all():
                self._ready.add(player.name)
            failure = player.client.failure
            if failure is not None:
                raise RuntimeError(f"the client of {player.name} stopped") from failure
        if self._config.screen:
            self._shown = await _newest_lines(players[0].client, self._config.screen)
        links = [player.client.connection for player in players]
        return Report(
            connected=sum(link.state is ConnectionState.CONNECTED for link in links),
            ready=len(self._ready),
            to_send=sum(player.to_send for player in players),
            pending=sum(player.pending for player in players),
            received=sum(player.received for player in players),
            rejected=sum(player.rejected for player in players),
            link=_in_words(links[0]),
            latency_ms=links[0].latency_ms,
            quality=str(links[0].quality),
            lines=self._shown,
        )


class _Stopped(Exception):
    """The worker was told to stop, or whoever started it is gone."""


_order_decoder: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


def _in_words(link: ConnectionChanged) -> str:
    if link.state is ConnectionState.RECONNECTING and link.attempt:
        return f"{link.state} (attempt {link.attempt})"
    return str(link.state)


async def _newest_lines(client: Client, conversation: str) -> tuple[Line, ...]:
    messages = await client.conversation(conversation).messages(limit=SCREEN_LINES_MAX)
    lines: list[Line] = []
    for message in messages:
        if message.kind != "message":
            continue
        status = message.status
        if status is not None and not status.settled:
            # What an attempt is about is known to the engine before the disk.
            status = await client.status(message.id)
        lines.append(
            Line(
                sender=message.sender,
                text=str(message.content),
                mark=status.mark if status is not None else "",
                state=str(status.state) if status is not None else "",
            )
        )
    return tuple(lines)


def _read_pasts(folder: Path) -> dict[str, _Past]:
    pasts: dict[str, _Past] = {}
    for name in (SENT_FILE, RECEIVED_FILE):
        for record in JournalReader(folder / name).read():
            past = pasts.setdefault(record.user, _Past())
            match record:
                case Sent():
                    past.sent.add(record.label)
                case Delivered():
                    past.delivered.add(record.label)
                case Received():
                    past.received.add(record.label)
    return pasts


def _read_plans(config: WorkerConfig) -> dict[str, list[PlanLine]]:
    plans: dict[str, list[PlanLine]] = {user.name: [] for user in config.users}
    decode = msgspec.json.Decoder(PlanLine).decode
    with Path(config.plan).open("rb") as file:
        for data in file:
            line = decode(data)
            if line.user in plans:
                plans[line.user].append(line)
    return plans


def main() -> int:
    """Run the worker whose config's path is the only argument."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=WorkerConfig)
    # A terminal's Ctrl-C reaches the whole group; ending in order is the business of who started this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_run(config))
    return 0


async def _run(config: WorkerConfig) -> None:
    await Worker(config).run()


if __name__ == "__main__":
    sys.exit(main())
