"""The handle of an own message: where it stands, how to wait for it, retry it, or withdraw it.

A handle is a view, it owns nothing: the message is in the store and goes its way whether or not
anybody holds one. There is one per message and client at a time, so what one place learns all see.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Protocol

from whimbrel.errors import DeliveryFailed, DeliveryPending, NotFound, StoreCorrupt
from whimbrel.model import (
    Event,
    Explanation,
    FailureReason,
    Message,
    MessageChanged,
    MessageReceived,
    SendState,
    SendStatus,
    StoreRebuilt,
)

_WORDS = {
    SendState.CANCELLED: "cancelled",
    SendState.FAILED: "failed",
}


class MessageAccess(Protocol):
    """What a handle asks of the client."""

    def known_status(self, id: str) -> SendStatus | None:
        """The status of a message that is not settled; None: the store knows."""

    async def message(self, id: str) -> Message | None:
        """The message as the store has it."""

    async def explain(self, id: str) -> Explanation:
        """Why it is where it is."""

    async def retry(self, id: str) -> None:
        """Take it up again now."""

    async def cancel(self, id: str) -> None:
        """Withdraw it."""


class SentMessage:
    """An own message that is on disk. Made by ``send()``; never by the app."""

    def __init__(
        self, client: MessageAccess, *, id: str, key: str, conversation: str, status: SendStatus
    ) -> None:
        self._client = client
        self._id = id
        self._key = key
        self._conversation = conversation
        self._status = status
        self._changed: list[asyncio.Future[None]] = []
        self._delivered: Message | None = None
        """As it was told when it took its place; for those who were waiting for that."""

    def __repr__(self) -> str:
        return f"<SentMessage {self._id} in {self._conversation} {self.status.state}>"

    @property
    def id(self) -> str:
        """The message's id, the same on every machine."""
        return self._id

    @property
    def key(self) -> str:
        """The key it was sent under."""
        return self._key

    @property
    def conversation(self) -> str:
        """The id of its conversation."""
        return self._conversation

    @property
    def status(self) -> SendStatus:
        """Where it stands now."""
        status = self._client.known_status(self._id)
        if status is not None:
            self._status = status
        return self._status

    async def delivered(self, timeout: float | None = None) -> Message:
        """Wait until it is committed in the server's permanent store, and give it back with its ``seq``.

        Raises ``DeliveryPending`` after ``timeout`` seconds: it stays queued and goes out by itself.
        Raises ``DeliveryFailed`` if it was cancelled, expired or refused for good, ``ClientClosed``
        if the client is closed meanwhile.
        """
        if timeout is None:
            return await self._wait()
        try:
            async with asyncio.timeout(timeout):
                return await self._wait()
        except TimeoutError:
            raise DeliveryPending(f"message {self._id} is not delivered yet") from None

    async def explain(self) -> Explanation:
        """What it waits for, what went wrong, and what would move it on."""
        return await self._client.explain(self._id)

    async def retry(self) -> None:
        """Take it up again now if it failed and can be retried; nothing otherwise."""
        await self._client.retry(self._id)

    async def cancel(self) -> None:
        """Withdraw it: final at once if it never left, else when the server has answered.

        Watch ``status``: it may be delivered all the same if it was on its way.
        """
        await self._client.cancel(self._id)

    async def _wait(self) -> Message:
        while True:
            changed = self._watch()
            try:
                message = await self._settled()
                if message is not None:
                    return message
                await changed
                if self._delivered is not None:
                    return self._delivered
            finally:
                self._unwatch(changed)

    async def _settled(self) -> Message | None:
        """The delivered message, None while it is on its way. Raises if it will never be."""
        status = self._client.known_status(self._id)
        if status is not None and not status.settled:
            return None
        message = await self._client.message(self._id)
        if message is None or message.status is None:
            raise NotFound(f"message {self._id} is not in the store")
        self._status = status = message.status
        if not status.settled:
            return None
        if status.state in (SendState.DELIVERED, SendState.READ):
            return message
        reason = status.reason or (FailureReason.UNKNOWN if status.state is SendState.FAILED else None)
        raise DeliveryFailed(
            f"message {self._id} {_WORDS[status.state]}" + (f": {reason}" if reason else ""),
            message_id=self._id,
            reason=str(reason or status.state),
        )

    # --- for the client ------------------------------------------------------------------------

    def note(self, status: SendStatus) -> None:
        """Its status changed."""
        self._status = status
        for future in self._changed:
            if not future.done():
                future.set_result(None)

    def placed(self, message: Message) -> None:
        """It has its place in the log, durably; called after ``note``."""
        if self._changed and message.status is not None and message.status.state is SendState.DELIVERED:
            self._delivered = message

    def fail(self, error: BaseException) -> None:
        """Who waits for it gets this error."""
        for future in self._changed:
            if not future.done():
                future.set_exception(error)

    def _watch(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(future)
        return future

    def _unwatch(self, future: asyncio.Future[None]) -> None:
        self._changed.remove(future)
        if not self._changed:
            self._delivered = None  # whoever asks later may learn more from the store
        if future.done() and not future.cancelled():
            future.exception()


class Handles:
    """The handles that somebody holds, by message; what happens is noted in them."""

    def __init__(self, client: MessageAccess) -> None:
        self._client = client
        self._handles: weakref.WeakValueDictionary[str, SentMessage] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Handles of {len(self._handles)} messages>"

    def find(self, id: str) -> SentMessage | None:
        """The handle of a message, if there is one."""
        return self._handles.get(id)

    def make(self, id: str, key: str, conversation: str, status: SendStatus) -> SentMessage:
        """A handle for a message that has none."""
        handle = SentMessage(self._client, id=id, key=key, conversation=conversation, status=status)
        self._handles[id] = handle
        return handle

    def note(self, event: Event) -> None:
        """Something happened."""
        match event:
            case MessageReceived(message=message) if message.status is not None:
                handle = self._handles.get(message.id)
                if handle is not None:
                    handle.placed(message)
            case MessageChanged(id=id, status=status):
                handle = self._handles.get(id)
                if handle is not None:
                    handle.note(status)
            case StoreRebuilt(lost=lost):
                for id in set(self._handles) & {one.id for one in lost}:
                    self._handles[id].fail(StoreCorrupt("the message was lost with a damaged store"))
            case _:
                pass

    def fail(self, error: BaseException) -> None:
        """Who waits for any of them gets this error."""
        for handle in list(self._handles.values()):
            handle.fail(error)
