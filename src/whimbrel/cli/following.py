"""Showing what arrives: ``tail``, and the reader that ``chat`` shows messages with too.

The reader goes by the log's own numbers, one position per conversation: live events only say that
there is something to read, what is read comes from the store. So nothing is missed when events
were lost, and nothing is shown twice. An entry beyond a gap waits until the gap is closed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from whimbrel import errors
from whimbrel.cli.access import DEFAULTS, Access, Json, Target, catch_up_if_possible, opened, unlock
from whimbrel.cli.exits import Exit, run
from whimbrel.cli.output import counted, emit, escaped, message_line, say, show, styled

if TYPE_CHECKING:
    from whimbrel.client.client import Client
    from whimbrel.client.events import EventStream
    from whimbrel.model import ConnectionChanged, Event, Message

PAGE = 100
SIGN_IN = "whimbrel login URL NAME"


class Reader:
    """Reads what is new, of one conversation or of all."""

    def __init__(self, client: Client, conversation: str | None) -> None:
        self._client = client
        self._only = conversation
        self._seen: dict[str, int] = {}

    async def start(self, since: int | None, last: int) -> list[Message]:
        """Begin behind ``since``, or at what is new from now on; gives the ``last`` messages before that."""
        for conversation in await self._client.conversations():
            if self._only in (None, conversation.id):
                self._seen[conversation.id] = conversation.position
        if since is not None and self._only is not None:
            self._seen[self._only] = since
            return []
        if not last:
            return []
        shown: list[Message] = []
        for id, position in self._seen.items():
            page = await self._client.conversation(id).messages(before=position + 1, limit=min(last, 1000))
            shown += page
        shown.sort(key=lambda message: message.position or 0)
        return shown[-last:]

    async def unread(self, conversation: str) -> AsyncIterator[Message]:
        """What is new in a conversation, in order, each once."""
        if self._only not in (None, conversation):
            return
        while True:
            seen = self._seen.get(conversation, 0)
            page = await self._client.conversation(conversation).messages(after=seen, limit=PAGE)
            if not page:
                return
            for message in page:
                if message.seq is None or message.position is None:
                    return
                self._seen[conversation] = message.seq
                yield message

    async def all_unread(self) -> AsyncIterator[Message]:
        """What is new anywhere, one conversation after the other."""
        known = [self._only] if self._only is not None else []
        known += [item.id for item in await self._client.conversations() if item.id != self._only]
        for id in known:
            async for message in self.unread(id):
                yield message

    async def follow(self, events: EventStream) -> AsyncIterator[Message | Event]:
        """What is new from now on, for ever, and all other events between. Raises ``Unauthorized``."""
        from whimbrel.errors import EventsLost
        from whimbrel.model import AuthChanged, MessageReceived

        async for message in self.all_unread():
            yield message
        while True:
            try:
                event = await anext(events, None)
            except EventsLost:
                events = self._client.events()
                async for message in self.all_unread():
                    yield message
                continue
            match event:
                case None:
                    raise errors.ClientClosed("the client stopped")
                case MessageReceived(message=received):
                    async for message in self.unread(received.conversation):
                        yield message
                case AuthChanged(ok=False):
                    raise errors.Unauthorized("the session on this device is over", hint=SIGN_IN)
                case _:
                    yield event


def connection_line(connection: ConnectionChanged, pending: int) -> str:
    """The state of the link in one line; empty for what is of no interest to a person."""
    if connection.state == "connected":
        latency = "" if connection.latency_ms is None else f" ({connection.latency_ms:.0f} ms)"
        return f"connected{latency}"
    if connection.state in ("offline", "reconnecting"):
        queued = (
            f" – {counted(pending, 'message')} queued. Messages will send when connected" if pending else ""
        )
        cause = f" ({connection.cause})" if connection.cause else ""
        return f"🔴 Offline{queued}{cause}"
    return ""


class ConnectionLine:
    """Says how the link stands, each time that changed for a person."""

    def __init__(self) -> None:
        self._was: str | None = None

    def note(self, connection: ConnectionChanged, pending: int) -> None:
        """The link has changed."""
        text = connection_line(connection, pending)
        kind = text.split(" ", 2)[1] if text.startswith("🔴") else text.partition(" ")[0]
        if text and kind != self._was:
            self._was = kind
            say(styled(f"— {escaped(text)}", "dim", stream=sys.stderr))


def tail(
    conversation: str | None = None,
    /,
    *,
    since: int | None = None,
    last: int = 10,
    limit: int | None = None,
    follow: Annotated[bool, Parameter(negative="--no-follow")] = True,
    timeout: float = 10.0,
    access: Access = DEFAULTS,
    json: Json = False,
) -> int:
    """Show the last messages, then each one that arrives, until interrupted.

    What waits on this device is sent meanwhile. With --json, one message per line.

    Parameters
    ----------
    conversation
        Of this conversation only.
    since
        Begin behind this number of the conversation's log (`seq`), instead of with the last messages.
    last
        How many messages to begin with.
    limit
        End after so many messages.
    follow
        Wait for more; without, catch up with the server, show, and end.
    timeout
        With --no-follow: how many seconds catching up may take.
    """
    if since is not None and (conversation is None or since < 0):
        raise errors.InvalidArgument("--since needs a conversation, and a number from 0 on")
    if last < 0 or (limit is not None and limit < 1):
        raise errors.InvalidArgument("--last must be 0 or more, --limit 1 or more")
    shown = Shown(limit, json=json, with_conversation=conversation is None)
    target = unlock(access)
    return run(
        _tail(target, conversation, shown, since=since, last=last, catch_up_s=None if follow else timeout)
    )


class Shown:
    """Prints messages, up to a number of them."""

    def __init__(self, limit: int | None, *, json: bool, with_conversation: bool) -> None:
        self._left = limit
        self._json = json
        self._with_conversation = with_conversation

    def show(self, message: Message) -> bool:
        """Print it; True when it was the last to print."""
        from whimbrel.cli.output import message_fields

        if self._json:
            emit(message_fields(message))
        else:
            show(message_line(message, conversation=self._with_conversation))
        if self._left is not None:
            self._left -= 1
        return self._left == 0


async def _tail(
    target: Target,
    conversation: str | None,
    shown: Shown,
    *,
    since: int | None,
    last: int,
    catch_up_s: float | None,
) -> int:
    from whimbrel.model import ConnectionChanged, Message

    async with opened(target) as client, client.events() as events:
        if catch_up_s is not None:
            await catch_up_if_possible(client, catch_up_s)
        reader = Reader(client, conversation)
        for message in await reader.start(since, last):
            if shown.show(message):
                return Exit.OK
        if catch_up_s is not None:
            async for message in reader.all_unread():
                if shown.show(message):
                    break
            return Exit.OK
        line = ConnectionLine()
        async for item in reader.follow(events):
            if isinstance(item, Message):
                if shown.show(item):
                    break
            elif isinstance(item, ConnectionChanged):
                line.note(client.connection, 0)
        return Exit.OK
