"""``send``, and what looks after messages that wait: ``outbox``, ``explain``, ``sync-once``."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from whimbrel import errors
from whimbrel.cli.access import (
    DEFAULTS,
    Access,
    Json,
    Target,
    catch_up,
    opened,
    reason_of,
    signed_in,
    unlock,
    waiting,
)
from whimbrel.cli.exits import Exit, Unfinished, described, run
from whimbrel.cli.output import clock, content_text, counted, emit, escaped, say, seconds, show, table

if TYPE_CHECKING:
    from whimbrel.client.client import Client
    from whimbrel.client.handles import SentMessage
    from whimbrel.model import Content, Explanation, Message

SENT_BY = "`whimbrel sync-once`, `chat` or `tail` will send it"
_STDIN_BYTES_MAX = 1024 * 1024
_LOOK_S = 2.0
_TEXT_SHOWN_MAX = 60


def send(
    conversation: str,
    text: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    timeout: float = 10.0,
    key: str | None = None,
    parse_json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    reply_to: str | None = None,
    expires_in: float | None = None,
    access: Access = DEFAULTS,
    json: Json = False,
) -> int:
    """Send a message, and wait until it is delivered.

    Once it is queued, it survives everything: if the server cannot be reached in
    time, the exit code is 3 and the message waits on this device, until `whimbrel
    sync-once`, `chat` or `tail` sends it. With a --key of your own, the command may
    be repeated after any failure: the message is sent once.

    Parameters
    ----------
    conversation
        The conversation's id.
    text
        What to send; - reads it from standard input.
    timeout
        How many seconds to wait for delivery.
    key
        A name for this message, unique on this device, such as order-42.
    parse_json
        TEXT is JSON: send the value, not the text.
    reply_to
        The id of the message this is a reply to.
    expires_in
        Give it up after so many seconds if it could not be sent.
    """
    _check_seconds("--timeout", timeout)
    content = _content(text, as_json=parse_json)
    target = unlock(access)
    fields = {"key": key, "reply_to": reply_to, "expires_in": expires_in}
    return run(_send(target, conversation, content, fields, timeout_s=timeout, json=json))


def _check_seconds(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise errors.InvalidArgument(f"{name} must be a number of seconds, 0 or more")


def _content(text: str, *, as_json: bool) -> Content:
    if text == "-":
        data = sys.stdin.buffer.read(_STDIN_BYTES_MAX + 1)
        if len(data) > _STDIN_BYTES_MAX:
            raise errors.TooLarge("standard input is larger than a message can be")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise errors.InvalidArgument(
                "standard input is not UTF-8 text", hint="a message is text, or JSON with --parse-json"
            ) from None
        text = text.removesuffix("\n").removesuffix("\r")
    if not as_json:
        return text
    try:
        value: Content = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise errors.InvalidArgument(
            "the text is not JSON", hint="--parse-json sends a JSON value"
        ) from error
    return value


async def _send(
    target: Target,
    conversation: str,
    content: Content,
    fields: dict[str, Any],
    *,
    timeout_s: float,
    json: bool,
) -> int:
    async with opened(target) as client:
        message = await client.send(conversation, content, **fields)
        try:
            delivered = await _delivered(client, message, timeout_s)
        except errors.DeliveryPending:
            return _tell_queued(message, await message.explain(), json)
        except errors.DeliveryFailed as error:
            raise await _refusal(client, message, error) from error
        if json:
            emit(_outcome(message) | {"state": "delivered", "seq": delivered.seq})
        else:
            show(f"delivered {message.id}")
        return Exit.OK


async def _delivered(client: Client, message: SentMessage, timeout_s: float) -> Message:
    """Wait for delivery; not for the whole time if only logging in again would help."""
    delivered = asyncio.ensure_future(message.delivered(timeout_s))
    linked = asyncio.ensure_future(signed_in(client))
    try:
        await asyncio.wait((delivered, linked), return_when=asyncio.FIRST_COMPLETED)
        if not delivered.done() and linked.done() and isinstance(linked.exception(), errors.Unauthorized):
            raise errors.DeliveryPending("not delivered")
        return await delivered
    finally:
        for task in (delivered, linked):
            task.cancel()
        await asyncio.gather(delivered, linked, return_exceptions=True)


def _outcome(message: SentMessage) -> dict[str, Any]:
    return {"id": message.id, "key": message.key, "conversation": message.conversation}


def _tell_queued(message: SentMessage, explanation: Explanation, json: bool) -> int:
    if json:
        emit(_outcome(message) | {"state": "queued", "explanation": _explained(explanation)})
    else:
        show(f"queued {message.id}")
    say(f"whimbrel: queued on this device; {SENT_BY} ({escaped(reason_of(explanation))})")
    return Exit.QUEUED


async def _refusal(
    client: Client, message: SentMessage, error: errors.DeliveryFailed
) -> errors.DeliveryFailed:
    """The error with what the server said about it."""
    explanation = await client.explain(message.id)
    text, hint = f"message {message.id} was not sent: {error.reason}", ""
    if error.reason == "rejected":
        text = f"message {message.id} was refused: {explanation.last_error.removeprefix('rejected: ')}"
        hint = "check the conversation: whimbrel conversation list"
    return errors.DeliveryFailed(text, hint=hint, message_id=message.id, reason=error.reason)


# --- what waits --------------------------------------------------------------------------------


def outbox(*, access: Access = DEFAULTS, json: Json = False) -> int:
    """Show the messages that wait on this device: where each stands, and what it waits for."""
    found = run(_explained_all(unlock(access)))
    if json:
        emit([_entry(message, explanation) for message, explanation in found])
    elif not found:
        show("nothing waits: every message was delivered")
    else:
        columns = ("ID", "CONVERSATION", "STATE", "ATTEMPTS", "NEXT", "WAITS FOR", "TEXT")
        table(columns, [_row(message, explanation) for message, explanation in found])
    return Exit.OK


async def _explained_all(target: Target) -> list[tuple[Message, Explanation]]:
    async with opened(target) as client:
        found = []
        if await waiting(client):
            await _look_at_link(client)
        for message in await waiting(client):
            try:
                found.append((message, await client.explain(message.id)))
            except errors.NotFound:
                continue  # delivered and gone while we looked
        return [(message, why) for message, why in found if not why.status.settled]


def _entry(message: Message, explanation: Explanation) -> dict[str, Any]:
    return {
        "conversation": message.conversation,
        "key": message.key,
        "queued_at": message.sent_at,
    } | _explained(explanation)


def _explained(explanation: Explanation) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(explanation)
    return {"id": fields.pop("message_id")} | fields


def _row(message: Message, explanation: Explanation) -> tuple[str, ...]:
    text = content_text(message.content)
    shown = text if len(text) <= _TEXT_SHOWN_MAX else f"{text[:_TEXT_SHOWN_MAX]}…"
    return (
        message.id,
        message.conversation,
        f"{explanation.status.mark} {explanation.status.state}",
        str(len(explanation.attempts)),
        seconds(explanation.next_attempt_in_s),
        explanation.blocked_by,
        shown,
    )


def explain(id: str, /, *, access: Access = DEFAULTS, json: Json = False) -> int:
    """Explain why a message of yours is where it is, and what would move it on.

    Parameters
    ----------
    id
        The message's id, as `send` and `outbox` print it.
    """
    explanation = run(_explanation(unlock(access), id))
    if json:
        emit(_explained(explanation))
    else:
        for line in explanation_lines(explanation):
            show(line)
    return Exit.OK


async def _explanation(target: Target, id: str) -> Explanation:
    async with opened(target) as client:
        await client.explain(id)  # is there such a message at all?
        await _look_at_link(client)
        return await client.explain(id)


async def _look_at_link(client: Client) -> None:
    """Wait a moment: just opened, all that could be said is that there is no connection yet."""
    async with client.events() as events:
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(_LOOK_S):
                while not client.connection.cause and client.connection.state != "connected":
                    await anext(events)


def explanation_lines(explanation: Explanation) -> list[str]:
    """An explanation for people."""
    status = explanation.status
    state = f"{status.mark} {status.state}"
    if status.reason is not None:
        state += f": {status.reason.friendly}" if not status.settled else f": {status.reason}"
    lines = [f"message   {explanation.message_id}", f"state     {state}"]
    if explanation.blocked_by:
        lines.append(f"waits for {explanation.blocked_by}")
    if explanation.unblocked_by:
        lines.append(f"moved by  {explanation.unblocked_by}")
    if explanation.ahead:
        lines.append(f"ahead     {explanation.ahead} messages of this conversation")
    if explanation.next_attempt_in_s is not None:
        lines.append(f"next      {seconds(explanation.next_attempt_in_s)}")
    if explanation.last_error:
        lines.append(f"error     {explanation.last_error}")
    lines += [
        f"attempt   {clock(attempt.at)} {attempt.reason}: {attempt.text}" for attempt in explanation.attempts
    ]
    return [escaped(line) for line in lines]


# --- sync-once ---------------------------------------------------------------------------------


def sync_once(*, timeout: float = 30.0, access: Access = DEFAULTS, json: Json = False) -> int:
    """Send what waits, receive what is new, and end: for a timer, or a machine that is online at times.

    Exit code 0: nothing waits any more and this device is up to date. 3: messages
    still wait. 5: nothing waits, but the server could not be asked for news.

    Parameters
    ----------
    timeout
        How many seconds it may take in all.
    """
    _check_seconds("--timeout", timeout)
    return run(_sync_once(unlock(access), timeout, json))


async def _sync_once(target: Target, timeout_s: float, json: bool) -> int:
    until = time.monotonic() + timeout_s
    problem: errors.WhimbrelError | None = None
    async with opened(target) as client:
        before = await waiting(client)
        await client.retry_all()
        try:
            await catch_up(client, timeout_s)
        except (errors.LinkError, errors.Unauthorized) as error:
            problem = error
        if problem is None:
            try:
                await client.flush(max(0.0, until - time.monotonic()))
            except errors.DeliveryPending as error:
                problem = error
        pending = await waiting(client)
    left = {message.id for message in pending}
    sent = sum(message.id not in left for message in before)
    if json:
        emit({"sent": sent, "pending": len(pending), "caught_up": not isinstance(problem, errors.LinkError)})
    else:
        show(f"{sent} sent, {len(pending)} waiting" + ("" if problem else ", up to date"))
    if problem is None:
        return Exit.OK
    if isinstance(problem, errors.DeliveryPending):
        say(f"whimbrel: {counted(len(pending), 'message')} still queued (whimbrel outbox says why)")
        raise Unfinished(Exit.QUEUED)
    if pending:
        say(f"whimbrel: {counted(len(pending), 'message')} still queued: {described(problem)}")
        raise Unfinished(Exit.QUEUED)
    raise problem
