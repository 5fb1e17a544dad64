"""The handle of one conversation: sending, reading, members.

It holds the id and the client, nothing else: making one asks nobody, and it works for a
conversation this store has not seen yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whimbrel import protocol as p
from whimbrel.client.handles import SentMessage
from whimbrel.core.contract import MarkRead, SetTyping
from whimbrel.errors import InvalidArgument, NotFound
from whimbrel.model import Content, Conversation, Message, Role

if TYPE_CHECKING:
    from whimbrel.client.client import Client

MESSAGES_MAX = 1_000
"""How many messages one call reads at most."""


class ConversationHandle:
    """One conversation of a client; made by ``Client.conversation`` and ``Client.create_conversation``."""

    def __init__(self, client: Client, id: str) -> None:
        self._client = client
        self._id = id

    def __repr__(self) -> str:
        return f"<ConversationHandle {self._id}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConversationHandle):
            return NotImplemented
        return self._id == other._id and self._client is other._client

    def __hash__(self) -> int:
        return hash((self._id, id(self._client)))

    @property
    def id(self) -> str:
        """The conversation's id."""
        return self._id

    async def send(
        self,
        content: Content,
        *,
        key: str | None = None,
        metadata: dict[str, Any] | None = None,
        reply_to: str | None = None,
        role: Role | str = Role.USER,
        expires_in: float | None = None,
        on_reject: str = "skip",
    ) -> SentMessage:
        """Queue a message. It is on disk when this returns, and will be delivered once and in order.

        ``key`` names it for ever: the same key with the same content gives the same message again,
        so a program that crashed may simply repeat itself; without one, it gets a random key.
        ``expires_in`` seconds from now an unsent message is given up. With ``on_reject="block"``,
        what is behind a refused message waits for the app; with ``"skip"`` it goes on.

        Raises ``InvalidArgument``, ``TooLarge`` (body over 256 KiB encoded, metadata over 16 KiB),
        ``KeyReused``, ``QueueFull``, ``NotFound`` (left), ``StoreError``: nothing was queued then.
        A call that is cancelled may have queued it: repeat it with the same key to be sure.
        """
        return await self._client.send(
            self._id,
            content,
            key=key,
            metadata=metadata,
            reply_to=reply_to,
            role=role,
            expires_in=expires_in,
            on_reject=on_reject,
        )

    async def messages(
        self, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> list[Message]:
        """A page of the local store, oldest first; works offline.

        Without bounds the newest ``limit``, own waiting messages last; ``before`` a seq: the newest
        below it; ``after`` a seq: the oldest above it. ``limit`` is 1 to 1,000.
        """
        if not 1 <= limit <= MESSAGES_MAX:
            raise InvalidArgument(f"limit must be 1 to {MESSAGES_MAX}")
        if before is not None and after is not None:
            raise InvalidArgument("give before or after, not both")
        return await self._client.read_messages(self._id, before=before, after=after, limit=limit)

    async def info(self) -> Conversation:
        """Title, members and positions as this store knows them. Raises ``NotFound`` if it does not."""
        for conversation in await self._client.conversations():
            if conversation.id == self._id:
                return conversation
        raise NotFound(f"conversation {self._id} is not in this store")

    async def mark_read(self, seq: int | None = None) -> None:
        """This user has read up to ``seq``; without one, everything that is here.

        Kept on disk and told to the others when there is a link; never goes back.
        """
        if seq is None:
            seq = (await self.info()).position
        elif seq < 0:
            raise InvalidArgument("seq must not be negative")
        if seq > 0:
            await self._client.submit(MarkRead(conversation=self._id, seq=seq))

    async def typing(self, on: bool = True) -> None:
        """Tell the others that this user types, or stopped; may be lost."""
        await self._client.submit(SetTyping(conversation=self._id, on=on))

    async def add_member(self, user: str) -> None:
        """Add a user, who sees what comes from now on. Repeated: no change.

        Needs the server: raises ``NotConnected`` without an answer in time, ``Forbidden``, ``NotFound``.
        """
        await self._client.call_server(op="add", conversation=self._id, user=_name(user))

    async def remove_member(self, user: str) -> None:
        """Remove a user, who sees nothing of what comes from now on. Errors as ``add_member``."""
        await self._client.call_server(op="remove", conversation=self._id, user=_name(user))

    async def leave(self) -> None:
        """Remove this user. What is here stays in the store."""
        user = self._client.user
        if user is None:
            raise NotFound("this store has never been signed in")
        await self.remove_member(user)


def _name(user: str) -> str:
    if not user or len(user) > p.ID_CHARS_MAX:
        raise InvalidArgument(f"a user name has 1 to {p.ID_CHARS_MAX} characters")
    return user
