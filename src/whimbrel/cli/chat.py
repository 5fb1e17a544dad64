"""``chat``: talking in one conversation, line by line, without taking over the terminal.

Every own message has a number, under which the lines below it tell how it goes on: ``#1 ✓✓
delivered``. Lines come from standard input, so it works in a pipe too: at the end of the input it
waits for what was sent, then leaves.

Standard input is read by a thread of its own that hands over one line at a time; it holds nothing
that would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from whimbrel import errors
from whimbrel.cli.access import DEFAULTS, Access, Target, opened, unlock, waiting
from whimbrel.cli.exits import Exit, described, run
from whimbrel.cli.following import ConnectionLine, Reader
from whimbrel.cli.output import coloured, counted, escaped, message_line, say, show, styled
from whimbrel.cli.sending import SENT_BY, explanation_lines

if TYPE_CHECKING:
    from whimbrel.client.client import Client
    from whimbrel.client.handles import SentMessage
    from whimbrel.model import Message, SendStatus

_LINE_BYTES_MAX = 256 * 1024
_READ_BYTES = 64 * 1024
_NUMBERED_MAX = 1_000
_LAST_WAIT_S = 10.0
_COMMANDS = (
    "/explain [N]  /retry [N]  /cancel N  /quit   (N: the number of a message; // begins a text with /)"
)


def chat(conversation: str, /, *, last: int = 20, access: Access = DEFAULTS) -> int:
    """Talk in a conversation: what you type is sent, what others write is shown.

    Own messages have a number and a mark: ⏰ waits, ✓ with the server, ✓✓ delivered,
    ⚠ failed. They may be typed without a connection, and go out when it is back.
    Leave with /quit, Ctrl-D or Ctrl-C; /help lists the other commands.

    Parameters
    ----------
    conversation
        Its id.
    last
        How many messages to begin with.
    """
    if not 0 <= last <= 1000:
        raise errors.InvalidArgument("--last must be 0 to 1000")
    return run(_chat(unlock(access), conversation, last))


async def _chat(target: Target, conversation: str, last: int) -> int:
    async with opened(target) as client:
        return await Chat(client, conversation).run(last)


class Chat:
    """One conversation on a terminal."""

    def __init__(self, client: Client, conversation: str) -> None:
        self._client = client
        self._handle = client.conversation(conversation)
        self._reader = Reader(client, conversation)
        self._line = ConnectionLine()
        self._numbers: OrderedDict[str, int] = OrderedDict()
        """Own messages of this sitting, by id."""
        self._sent: OrderedDict[int, SentMessage] = OrderedDict()
        self._said: dict[str, str] = {}
        self._count = 0

    async def run(self, last: int) -> int:
        """Talk until the end of the input; 0 if all was delivered, else 3."""
        async with self._client.events() as self._events:
            for message in await self._reader.start(None, last):
                show(message_line(message))
                if message.seq is not None:
                    await self._handle.mark_read(message.seq)
            for queued in await waiting(self._client):
                if queued.conversation == self._handle.id:
                    self._number(await self._client.sent_message(queued.id))
                    show(f"{message_line(queued)} #{self._count}")
            talking = asyncio.create_task(self._talk())
            following = asyncio.create_task(self._follow())
            try:
                await asyncio.wait((talking, following), return_when=asyncio.FIRST_COMPLETED)
                for task in (following, talking):
                    if task.done():
                        task.result()
                return await self._leave()
            finally:
                for task in (talking, following):
                    task.cancel()
                await asyncio.gather(talking, following, return_exceptions=True)

    async def _leave(self) -> int:
        """Wait a moment for what was sent last."""
        try:
            async with asyncio.timeout(_LAST_WAIT_S):
                left = 0
                for message in list(self._sent.values()):
                    try:
                        await message.delivered()
                    except errors.DeliveryFailed:
                        continue
        except TimeoutError:
            left = len(await waiting(self._client))
        for message in self._sent.values():  # the last news may be still on its way here
            self._show_status(message.id, message.status)
        if left:
            say(f"whimbrel: {counted(left, 'message')} queued on this device; {SENT_BY}")
            return Exit.QUEUED
        return Exit.OK

    # --- what happens --------------------------------------------------------------------------

    async def _follow(self) -> None:
        from whimbrel.model import (
            ConnectionChanged,
            Message,
            MessageChanged,
            PermanentFailure,
            ReceiptChanged,
        )

        async for item in self._reader.follow(self._events):
            match item:
                case Message():
                    await self._show(item)
                case ConnectionChanged():
                    self._line.note(self._client.connection, len(await waiting(self._client)))
                case MessageChanged(id=id, status=status):
                    self._show_status(id, status)
                case PermanentFailure(id=id, text=text) if id in self._numbers:
                    say(styled(escaped(f"  #{self._numbers[id]} ⚠ {text}"), "red", stream=sys.stderr))
                case ReceiptChanged(conversation=conversation) if conversation == self._handle.id:
                    await self._show_read()
                case _:
                    pass

    async def _show(self, message: Message) -> None:
        if message.id not in self._numbers:
            show(message_line(message))
        elif message.status is not None:
            self._show_status(message.id, message.status)
        if message.seq is not None:
            await self._handle.mark_read(message.seq)

    async def _show_read(self) -> None:
        for id in list(self._numbers):
            message = await self._client.message(id)
            if message is not None and message.status is not None and message.status.state == "read":
                self._show_status(id, message.status)

    def _show_status(self, id: str, status: SendStatus) -> None:
        """How an own message goes on, if that is news."""
        number = self._numbers.get(id)
        if number is None or status.state in ("pending", "sending"):
            return
        text = f"{status.mark} {status.state}"
        if status.reason is not None and not status.settled:
            text += f": {status.reason.friendly}"
        if self._said.get(id) != text:
            self._said[id] = text
            show(styled(f"  #{number} {text}", "dim"))

    def _number(self, message: SentMessage) -> int:
        self._count += 1
        self._numbers[message.id] = self._count
        self._sent[self._count] = message
        if len(self._sent) > _NUMBERED_MAX:
            oldest, forgotten = self._sent.popitem(last=False)
            self._numbers.pop(forgotten.id, None)
            self._said.pop(forgotten.id, None)
            del oldest
        return self._count

    # --- what is typed -------------------------------------------------------------------------

    async def _talk(self) -> None:
        terminal = sys.stdin.isatty()
        if terminal:
            say(styled(f"{_COMMANDS}", "dim", stream=sys.stderr))
        lines = StandardInput()
        while (line := await lines.read()) is not None:
            text = line.rstrip("\r\n")
            if not text.strip():
                continue
            try:
                if text.startswith("/") and not text.startswith("//"):
                    if await self._obey(text):
                        return
                else:
                    await self._send(text.removeprefix("/") if text.startswith("//") else text, terminal)
            except errors.WhimbrelError as error:
                say(f"whimbrel: {described(error)}")

    async def _send(self, text: str, terminal: bool) -> None:
        message = await self._client.send(self._handle.id, text)
        number = self._number(message)
        mark = message.status.mark
        if terminal and coloured(sys.stdout):
            show(styled(f"  #{number} {mark}", "dim"))
        else:
            show(f"  #{number} {mark} {escaped(text)}")
        self._show_status(message.id, message.status)

    async def _obey(self, text: str) -> bool:
        """Carry out a command; True: leave."""
        word, _, rest = text.partition(" ")
        match word:
            case "/quit" | "/exit" | "/q":
                return True
            case "/help":
                say(_COMMANDS)
            case "/explain":
                for line in explanation_lines(await self._chosen(rest).explain()):
                    show(f"  {line}")
            case "/retry" if not rest.strip():
                await self._client.retry_all()
            case "/retry":
                await self._chosen(rest).retry()
            case "/cancel" if rest.strip():
                await self._chosen(rest).cancel()
            case _:
                raise errors.InvalidArgument(f"there is no command {word}", hint=_COMMANDS)
        return False

    def _chosen(self, rest: str) -> SentMessage:
        """The message of this number; without one, the first that waits, else the last."""
        given = rest.strip().removeprefix("#")
        if given:
            try:
                return self._sent[int(given)]
            except (ValueError, KeyError):
                raise errors.InvalidArgument(f"there is no message #{given} here") from None
        for message in self._sent.values():
            if not message.status.settled:
                return message
        if not self._sent:
            raise errors.InvalidArgument("nothing was sent here yet")
        return self._sent[next(reversed(self._sent))]


class StandardInput:
    """Lines of standard input, one at a time, without holding up the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked = threading.Semaphore(0)
        self._answer: asyncio.Future[bytes | None]
        # Reads the descriptor itself: a thread that waits in sys.stdin would hold its lock at exit.
        self._descriptor = sys.stdin.fileno()
        threading.Thread(target=self._work, name="whimbrel-stdin", daemon=True).start()

    async def read(self) -> str | None:
        """The next line; None at the end."""
        self._answer = self._loop.create_future()
        self._asked.release()
        line = await self._answer
        return None if line is None else line.decode(errors="replace")

    def _work(self) -> None:
        left = b""
        ended = False
        while True:
            self._asked.acquire()
            while b"\n" not in left and not ended and len(left) < _LINE_BYTES_MAX:
                try:
                    part = os.read(self._descriptor, _READ_BYTES)
                except OSError:
                    part = b""
                ended = not part
                left += part
            line, _, left = left.partition(b"\n")
            try:
                self._loop.call_soon_threadsafe(self._tell, line if line or left or not ended else None)
            except RuntimeError:
                return  # the loop has ended

    def _tell(self, line: bytes | None) -> None:
        if not self._answer.done():
            self._answer.set_result(line)
