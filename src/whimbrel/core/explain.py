"""Where the link stands, and why a message is where it is and what would move it: for people."""

from __future__ import annotations

from typing import Protocol

from whimbrel.core.life import Entry
from whimbrel.core.link import LinkMachine
from whimbrel.core.linkstate import LinkState
from whimbrel.core.outbox import Outbox
from whimbrel.core.tokens import Tokens
from whimbrel.model import ConnectionChanged, ConnectionState, Explanation, SendState, SendStatus

_Why = tuple[str, str, float | None]
"""What it waits for, what would move it, and when that is due (monotonic)."""


def connection_of(link: LinkMachine, now: float) -> ConnectionChanged:
    """Where the link stands."""
    searching = link.public_state is ConnectionState.RECONNECTING
    return ConnectionChanged(
        state=link.public_state,
        attempt=link.attempt,
        next_in_s=max(0.0, link.next_probe_at - now) if searching else None,
        latency_ms=None if link.rtt.srtt is None else link.rtt.srtt * 1000,
        quality=link.quality,
        cause=link.cause,
    )


class Parts(Protocol):
    """The machines an explanation looks at."""

    link: LinkMachine
    outbox: Outbox
    tokens: Tokens


def explain(parts: Parts, entry: Entry, status: SendStatus, now: float) -> Explanation:
    """Explain an unsettled message."""
    row = entry.row
    queue = parts.outbox.queues[row.conversation]
    ahead = sum(1 for n, other in queue.entries.items() if n < row.n and other.row.void is None)
    if not entry.durable:
        why: _Why = ("the disk", "it is being written to the local store", None)
    elif parts.link.active is None:
        why = _no_link(parts.link, parts.tokens)
    else:
        why = _queued(parts.outbox, entry, now) or _leaving(parts.outbox, entry, now)
    blocked, unblocked, due = why
    last = row.attempts[-1] if row.attempts else None
    return Explanation(
        message_id=row.id,
        status=status,
        blocked_by=blocked,
        unblocked_by=unblocked,
        ahead=ahead,
        last_error=f"{last.reason.value}: {last.text}" if last else parts.link.cause,
        attempts=row.attempts,
        next_attempt_in_s=None if due is None else max(0.0, due - now),
    )


def _no_link(link: LinkMachine, tokens: Tokens) -> _Why:
    if link.state is LinkState.STOPPED:
        return "the client is not started", "connecting the client", None
    if tokens.signed_out:
        return "you are signed out", "signing in again", None
    if tokens.token is None:
        return "no connection: not signed in yet", "the network coming back; it signs in by itself", None
    return "no connection to the server", "the network coming back; it is tried by itself", link.next_probe_at


def _queued(outbox: Outbox, entry: Entry, now: float) -> _Why | None:
    """What holds it back in its own queue."""
    row = entry.row
    queue = outbox.queues[row.conversation]
    if queue.displaced:
        return "the server's history was replaced: it is being read", "what it lacks goes out again", None
    head = queue.head()
    if (
        head is not None
        and head is not entry
        and head.row.state is SendState.FAILED
        and head.row.void is None
    ):
        return (
            f"message {head.row.id} before it, which failed",
            "retrying or cancelling that one",
            head.resume_at,
        )
    if row.state is SendState.FAILED and row.void is None:
        if row.can_retry:
            return "its retries are used up for now", "a reconnection, retry(), or waiting", entry.resume_at
        return "the server refused it", "cancel() it, or retry()", None
    if queue.hold_until > now:
        return f"waiting for {queue.hold_reason}", "waiting, or retry()", queue.hold_until
    return None


def _leaving(outbox: Outbox, entry: Entry, now: float) -> _Why:
    """What holds it back on its way out."""
    if outbox.pacing.pause_until > now:
        return f"waiting for {outbox.pacing.pause_reason}", "waiting", outbox.pacing.pause_until
    if entry.wired:
        return "the server's answer", "the answer; it is asked for by itself", None
    wait_s = outbox.pacing.wait_s(now)
    if wait_s > 0:
        return "the server's rate limit", "waiting", now + wait_s
    return "its turn on the link", "the messages before it getting through", None
