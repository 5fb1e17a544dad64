"""The one that syncs the store, for its guests: it tells them what happens and answers what they ask.

One connection per guest (``client.relay``). Whatever happens is told to all of them, in order. A guest
that goes away may have handed something over last, so that is looked for. Bounds: ``GUESTS_MAX``
connections, let in or not yet, ``ASKS_MAX`` questions of each under way; a guest that does not read is cut
off. Without a socket all this does not exist, and guests find what they need in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

from whimbrel import protocol as p
from whimbrel.client import doorway, relay
from whimbrel.client.credentials import Credentials
from whimbrel.core.contract import Connect, SetTyping
from whimbrel.errors import ClientClosed, QueueFull, WhimbrelError
from whimbrel.model import AuthChanged, ConnectionChanged, Event, Explanation

ASKS_MAX = 100

logger = logging.getLogger("whimbrel")


class Hosting(Protocol):
    """What guests may ask of the one that syncs."""

    def state(self) -> relay.State:
        """Where the link stands, and who is signed in."""

    def look(self) -> None:
        """Something was handed over."""

    def post(self, command: SetTyping | Connect) -> None:
        """Do this; nobody waits for it."""

    async def explain(self, id: str) -> Explanation | None:
        """Why a message is where it is; None: the store knows."""

    async def settled(self) -> None:
        """Wait until all that came is in the store."""

    async def call(self, call: p.Call, timeout_s: float) -> p.Answer | None:
        """Ask the server."""

    async def sign_in(self, credentials: Credentials) -> None:
        """Use these credentials."""

    async def sign_out(self) -> None:
        """Forget the tokens."""


class Host:
    """Lets guests in, from ``start`` to ``close``."""

    def __init__(self, hosting: Hosting, secret: str) -> None:
        self._hosting = hosting
        self._secret = secret
        self._address: Path | None = None
        self._server: asyncio.Server | None = None
        self._lines: set[relay.Line] = set()
        """All connections; who they are may not be known yet."""
        self._guests: set[relay.Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Host guests={len(self._guests)}>"

    async def start(self, store: Path) -> None:
        """Open the doorway of this store; without one, go on without guests."""
        address = doorway.address_of(store)
        if address is None:
            logger.info("no local socket can be made for %s; other programs will notice changes later", store)
            return
        try:
            listening = doorway.listen(address)
            self._server = await asyncio.start_unix_server(
                self._met, sock=listening, limit=relay.FRAME_BYTES_MAX
            )
        except OSError as error:
            logger.info(
                "no local socket at %s (%s); other programs will notice changes later", address, error
            )
            return
        self._address = address

    def close(self) -> None:
        """Let nobody in any more. Who is in stays until ``leave``: then the store can be theirs at once."""
        if self._address is not None:
            with contextlib.suppress(OSError):
                doorway.take_down(self._address)  # ours still: the lock is held
            self._address = None
        if self._server is not None:
            self._server.close()

    async def leave(self) -> None:
        """Send everybody away, once the store is closed."""
        for line in self._lines:
            line.cut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- telling -------------------------------------------------------------------------------

    @property
    def guests(self) -> int:
        """How many are here."""
        return len(self._guests)

    def publish(self, event: Event) -> None:
        """Tell everybody what happened."""
        if not self._guests:
            return
        lines = relay.encoded(relay.told(event))
        if isinstance(event, ConnectionChanged | AuthChanged):
            lines = relay.encoded(self._hosting.state()) + lines
        self._send(lines)

    def stir(self) -> None:
        """Tell everybody to look again."""
        if self._guests:
            self._send(relay.encoded(relay.Stirred()))

    def _send(self, lines: bytes) -> None:
        for guest in self._guests:
            guest.send_line(lines)

    # --- listening -----------------------------------------------------------------------------

    def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = relay.Line(reader, writer)
        if len(self._lines) >= doorway.GUESTS_MAX or self._address is None:
            line.cut()
            return
        self._lines.add(line)
        self._begin(self._serve(line), "whimbrel-guest-of-ours")

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, line: relay.Line) -> None:
        asks: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.timeout(relay.HANDSHAKE_S):
                if not await relay.admit(line, self._secret):
                    return
            line.send(self._hosting.state())
            self._guests.add(line)
            while (frame := await line.receive(relay.guest_frames)) is not None:
                self._heard(line, frame, asks)
        except TimeoutError:
            pass
        except Exception as error:  # noqa: BLE001 - one guest's bug is not the others'
            logger.error("a guest was sent away because of a bug: %s", type(error).__name__)
        finally:
            self._guests.discard(line)
            self._lines.discard(line)
            for task in asks:
                task.cancel()
            line.cut()
            self._hosting.look()

    def _heard(self, line: relay.Line, frame: relay.GuestFrame, asks: set[asyncio.Task[None]]) -> None:
        match frame:
            case relay.Handed():
                self._hosting.look()
            case relay.Typing(conversation=conversation, on=on):
                self._hosting.post(SetTyping(conversation=conversation, on=on))
            case relay.Hurry():
                self._hosting.post(Connect())
            case relay.Ask(number=number, question=question):
                if len(asks) >= ASKS_MAX:
                    full = relay.failure_of(QueueFull("too many questions wait for an answer"))
                    line.send(relay.Reply(number=number, failure=full))
                    return
                task = self._begin(self._answer(line, number, question), "whimbrel-answer")
                asks.add(task)
                task.add_done_callback(asks.discard)
            case relay.Enter():
                line.cut()  # it did that before

    async def _answer(self, line: relay.Line, number: int, question: relay.Question) -> None:
        hosting = self._hosting
        reply = relay.Reply(number=number)
        try:
            match question:
                case relay.Explain(message=id):
                    reply = relay.Reply(number=number, explanation=await hosting.explain(id))
                case relay.Settle():
                    await hosting.settled()
                case relay.AskServer(call=call, timeout_s=timeout_s):
                    reply = relay.Reply(number=number, answer=await hosting.call(call, timeout_s))
                case relay.SignIn(username=username, password=password):
                    await hosting.sign_in(Credentials(username, password))
                case relay.SignOut():
                    await hosting.sign_out()
        except ClientClosed:
            return  # the guest asks its next owner
        except WhimbrelError as error:
            reply = relay.Reply(number=number, failure=relay.failure_of(error))
        except Exception as error:  # noqa: BLE001 - the guest must not be left waiting
            logger.error("a guest's question failed because of a bug: %s", type(error).__name__)
            bug = WhimbrelError("the program that syncs this store failed because of a bug")
            reply = relay.Reply(number=number, failure=relay.failure_of(bug))
        line.send(reply)
