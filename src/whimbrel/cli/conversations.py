"""``conversation``: making conversations, listing them, and who is in them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from whimbrel import errors
from whimbrel.cli.access import (
    DEFAULTS,
    Access,
    Json,
    Target,
    catch_up_if_possible,
    opened,
    signed_in,
    unlock,
)
from whimbrel.cli.exits import Exit, run
from whimbrel.cli.output import emit, escaped, show, table

if TYPE_CHECKING:
    from whimbrel.client.client import Client
    from whimbrel.client.conversation import ConversationHandle
    from whimbrel.model import Conversation

_ANSWER_WITHIN_S = 10.0


def create(
    *members: str,
    title: str = "",
    id: str | None = None,
    access: Access = DEFAULTS,
    json: Json = False,
) -> int:
    """Create a conversation of these users and you, and print its id.

    Parameters
    ----------
    members
        The other users.
    title
        What it is called.
    id
        An id of your own choice: the same command may then be repeated. Else a random one.
    """

    async def work(client: Client) -> str:
        users = map(_folded, members)
        return (await client.create_conversation(*users, title=title, id=id)).id

    made = run(_ask(unlock(access), work))
    if json:
        emit({"id": made, "title": title, "members": members})
    else:
        show(escaped(made))
    return Exit.OK


def show_all(
    *,
    offline: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    timeout: float = 5.0,
    access: Access = DEFAULTS,
    json: Json = False,
) -> int:
    """List the conversations of this device, after catching up with the server if it can be reached.

    Parameters
    ----------
    offline
        Do not ask the server: what this device has.
    timeout
        How many seconds catching up may take.
    """
    found = run(_listed(unlock(access), None if offline else timeout))
    if json:
        emit([_fields(conversation) for conversation in found])
    elif not found:
        show("no conversations (whimbrel conversation create USER ... makes one)")
    else:
        table(("ID", "TITLE", "MEMBERS", "NEW", "WAITING"), [_row(conversation) for conversation in found])
    return Exit.OK


def add(conversation: str, user: str, /, *, access: Access = DEFAULTS, json: Json = False) -> int:
    """Add a user, who sees what comes from now on.

    Parameters
    ----------
    conversation
        Its id.
    user
        Whom to add.
    """
    return _members(
        access, conversation, user, "added", json=json, change=lambda handle: handle.add_member(_folded(user))
    )


def remove(conversation: str, user: str, /, *, access: Access = DEFAULTS, json: Json = False) -> int:
    """Remove a user, who sees nothing of what comes from now on.

    Parameters
    ----------
    conversation
        Its id.
    user
        Whom to remove.
    """
    return _members(
        access,
        conversation,
        user,
        "removed",
        json=json,
        change=lambda handle: handle.remove_member(_folded(user)),
    )


def leave(conversation: str, /, *, access: Access = DEFAULTS, json: Json = False) -> int:
    """Leave a conversation; what is here stays on this device.

    Parameters
    ----------
    conversation
        Its id.
    """
    return _members(access, conversation, "", "left", json=json, change=lambda handle: handle.leave())


def _members(
    access: Access,
    conversation: str,
    user: str,
    done: str,
    *,
    json: bool,
    change: Callable[[ConversationHandle], Awaitable[None]],
) -> int:
    async def work(client: Client) -> None:
        await change(client.conversation(conversation))

    run(_ask(unlock(access), work))
    if json:
        emit({"id": conversation, "user": user or None, "done": done})
    else:
        show(escaped(" ".join(word for word in (done, user) if word)))
    return Exit.OK


def _folded(user: str) -> str:
    """The one form of a user's name, as the server keeps it."""
    return user.strip().casefold()


async def _ask(target: Target, work: Callable[[Client], Awaitable[Any]]) -> Any:
    """Do something that needs the server's answer."""
    async with opened(target) as client:
        await _linked(client)
        try:
            return await work(client)
        except errors.NotFound as error:
            hint = "check the names of users, and the conversation's id"
            raise errors.NotFound(error.text, hint=hint) from error


async def _linked(client: Client) -> None:
    """Wait for the link, with the reason why there is none as the error."""
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            await signed_in(client)
    except TimeoutError:
        cause = client.connection.cause or "no answer in time"
        raise errors.NotConnected(
            f"not connected: {cause}", hint="this needs the server; try again when it can be reached"
        ) from None


async def _listed(target: Target, timeout_s: float | None) -> list[Conversation]:
    async with opened(target) as client:
        if timeout_s is not None:
            await catch_up_if_possible(client, timeout_s)
        return await client.conversations()


def _fields(conversation: Conversation) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(conversation)
    return fields | {"unread": max(0, conversation.position - conversation.read)}


def _row(conversation: Conversation) -> tuple[str, ...]:
    unread = max(0, conversation.position - conversation.read)
    return (
        conversation.id,
        conversation.title if conversation.status == "active" else f"{conversation.title} (left)",
        ", ".join(conversation.members),
        str(unread or ""),
        str(conversation.pending or ""),
    )
