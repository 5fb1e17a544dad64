"""whimbrel as a system under measurement: `whimbrel serve`, and two apps that use its client as any app does.

The sender's window is by events: a message is in flight from the call of `send()` until the app is handed
the event that says it is delivered. The receiver is a live stream of events, which come once they are in
its store. Both stores are encrypted files, or, in the variant `whimbrel-memory`, in memory. The server's
disk is real in both, and it is the program that users run, its rate limit taken off by its option.
"""

import asyncio
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from benchmarks.rate_ends import Role, Served
from benchmarks.rate_texts import Arrivals, text
from whimbrel import Client, Credentials, EventStream, MessageChanged, MessageReceived, SentMessage
from whimbrel.model import SendState

CONVERSATION = "bench"
START_WITHIN_S = 60.0
STOP_WITHIN_S = 20.0
_KEY_BYTES = 32
_SETTLED_BADLY = (SendState.FAILED, SendState.CANCELLED)


def lacks(name: str) -> str:
    """Only the variant in memory lacks something."""
    return "no durable outbox, no durable receiver" if name == "whimbrel-memory" else ""


def keeps_order(name: str) -> bool:
    """Always."""
    return True


# --- the server ---------------------------------------------------------------------------------


@asynccontextmanager
async def serve(name: str, folder: Path, profile: Path | None) -> AsyncIterator[Served]:
    """Run `whimbrel serve` with two users; stopped as users stop it."""
    password = secrets.token_urlsafe(12)
    for user in ("anna", "ben"):
        await _add_user(folder, user, password)
    program = ["-m", "whimbrel.cli"]
    if profile is not None:
        program = ["-m", "benchmarks.rate_profile", str(profile), "server", "whimbrel.cli"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, "serve",
        "--data", str(folder), "--port", "0", "--no-rate-limit", "--json",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_WITHIN_S):
            line = await process.stdout.readline()
        url = msgspec.json.decode(line)["url"]
        yield Served(pid=process.pid, address=f"{url} {password}")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_WITHIN_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _add_user(folder: Path, user: str, password: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "whimbrel.cli", "user", "add", user, "--password-stdin", "--data",
        str(folder), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_WITHIN_S):
            await process.communicate(f"{password}\n".encode())
        if process.returncode:
            raise RuntimeError(f"`whimbrel user add` ended with {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


# --- the apps -----------------------------------------------------------------------------------


def _client(role: Role, user: str) -> Client:
    url, password = role.address.split()
    if role.system == "whimbrel-memory":
        return Client(url, None, Credentials(user, password))
    return Client(
        url, Path(role.folder, f"{user}.db"), Credentials(user, password), key=os.urandom(_KEY_BYTES)
    )


class Sender:
    """The app that sends, as anna."""

    def __init__(self, role: Role) -> None:
        self._client = _client(role, "anna")

    async def open(self) -> None:
        """Connect and create the conversation."""
        await self._client.open()
        await self._client.connected(START_WITHIN_S)
        await self._client.create_conversation("ben", id=CONVERSATION)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()

    async def burst(self, first: int, count: int, in_flight: int) -> None:
        """Send, topping up what is in flight as messages are delivered."""
        async with self._client.events() as events:
            await self._burst(events, first, count, in_flight)

    async def _burst(self, events: EventStream, first: int, count: int, in_flight: int) -> None:
        conversation = self._client.conversation(CONVERSATION)
        loop = asyncio.get_running_loop()
        # Their sends return in this order, and so do the events; each is looked at, lest an error is lost.
        sending: deque[asyncio.Task[SentMessage]] = deque()
        unsent = iter(range(first, first + count))
        for number in unsent:
            sending.append(loop.create_task(conversation.send(text(number))))
            if len(sending) == in_flight:
                break
        async for event in events:
            if not isinstance(event, MessageChanged):
                continue
            state = event.status.state
            if state is SendState.DELIVERED:
                sent = sending.popleft().result()
                if sent.id != event.id:
                    raise AssertionError("the sender was told of another message")
                for number in unsent:
                    sending.append(loop.create_task(conversation.send(text(number))))
                    break
                if not sending:
                    return
            elif state in _SETTLED_BADLY:
                raise AssertionError(f"a message is {state}")

    async def one(self, number: int) -> tuple[float, float]:
        """Send one and wait for it, as an app with one thing to say does."""
        message = await self._client.send(CONVERSATION, text(number))
        on_disk = time.monotonic()
        await message.delivered()
        return on_disk, time.monotonic()


class Receiver:
    """The app that receives, as ben."""

    def __init__(self, role: Role) -> None:
        self._client = _client(role, "ben")
        self._events: EventStream

    async def open(self) -> None:
        """Connect."""
        await self._client.open()
        await self._client.connected(START_WITHIN_S)
        self._events = self._client.events()

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()

    async def receive(self, arrivals: Arrivals) -> None:
        """Hand over the messages among the events."""
        async for event in self._events:
            if isinstance(event, MessageReceived) and event.message.kind == "message":
                arrivals.take(str(event.message.content))
                if arrivals.complete:
                    return


def sender(role: Role) -> Sender:
    """Make the sending app."""
    return Sender(role)


def receiver(role: Role) -> Receiver:
    """Make the receiving app."""
    return Receiver(role)
