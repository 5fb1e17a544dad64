"""What a test can have the server in memory do wrong: at its commits, on its links, before its interface.

The server's own rules stay as they are; these are the places where reality goes wrong around them. Each is
counted, so that a test can see that it struck.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from whimbrel import protocol as p
from whimbrel.core.classify import Consequence, classify
from whimbrel.server.gateway import Gateway, Link
from whimbrel.server.ledger import (
    Append,
    AppendVoid,
    LedgerUnavailable,
    Operation,
    Outcome,
    Refused,
    WasVoided,
)
from whimbrel.server.ledger_memory import MemoryLedger, MemoryState
from whimbrel.server.problem import problem
from whimbrel.server.records import Batch

__all__ = ["Gate", "ScriptedGateway", "ScriptedLedger"]


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """How the next message is refused."""

    code: str
    text: str
    user: str | None
    """Only a message of this user."""


class Script:
    """What is to go wrong at the next commits; it outlives restarts of the server."""

    def __init__(self) -> None:
        self.refusals: deque[Refusal] = deque()
        self.failing_commits = 0
        self.losing_answers = 0
        self.crash: Callable[[], None] | None = None
        """Called from the writer's thread when a commit was done that nobody is told of."""
        self.refused = 0
        self.commits_failed = 0
        self.answers_lost = 0


class ScriptedLedger(MemoryLedger):
    """The ledger in memory; refuses, fails and crashes as the script says."""

    def __init__(self, script: Script, state: MemoryState | None = None) -> None:
        super().__init__(state)
        self._script = script
        self._reading = threading.Lock()

    def apply(self, operations: Sequence[Operation], now: float) -> list[Outcome]:
        """See ``Ledger``; messages that are to be refused never reach it, or (for good) as voids."""
        answers: dict[int, Outcome] = {}
        kept: list[Operation] = []
        places: list[int] = []
        for place, operation in enumerate(operations):
            refusal = self._refusal_of(operation)
            if refusal is None:
                kept.append(operation)
                places.append(place)
                continue
            assert isinstance(operation, Append)
            self._script.refused += 1
            for_good = classify(refusal.code).consequence is Consequence.REJECT
            if for_good and operation.send.on_reject == "skip":
                kept.append(_void_of(operation))
                places.append(place)
                answers[place] = WasVoided(reason="rejected", code=refusal.code, text=refusal.text)
            else:
                answers[place] = Refused(code=refusal.code, text=refusal.text)
        for place, outcome in zip(places, super().apply(kept, now), strict=True):
            answers.setdefault(place, outcome)
        return [answers[place] for place in range(len(operations))]

    def before_commit(self, batch: Batch) -> None:
        """Fail, if the script says so: nothing is written. Receipts alone are left in peace."""
        if self._script.failing_commits > 0 and batch.entries:
            self._script.failing_commits -= 1
            self._script.commits_failed += 1
            raise LedgerUnavailable("this commit was to fail")

    def after_commit(self, batch: Batch) -> None:
        """Crash or fail, if the script says so: all is written, and nobody is told."""
        script = self._script
        if script.losing_answers > 0 and batch.entries:
            script.losing_answers -= 1
            script.answers_lost += 1
            if script.crash is not None:
                script.crash()
            raise LedgerUnavailable("the answer to this commit was to be lost")

    def events(self, conversation: str) -> list[p.Event]:
        """The whole log of a conversation."""
        return [entry.event for entry in [*self.state.entries.get(conversation, ())]]

    def _refusal_of(self, operation: Operation) -> Refusal | None:
        if isinstance(operation, Append):
            for refusal in self._script.refusals:
                if refusal.user is None or refusal.user == operation.user:
                    self._script.refusals.remove(refusal)
                    return refusal
        return None


def _void_of(operation: Append) -> AppendVoid:
    send = operation.send
    void = p.Void(
        conversation=send.conversation, stream=send.stream, n=send.n, key=send.key, reason="rejected"
    )
    return AppendVoid(user=operation.user, device=operation.device, void=void)


class ScriptedGateway(Gateway):
    """The gateway; can keep its answers to itself for a while, and be dropped as a killed process is."""

    holding = False
    _halted = False

    def outgoing(self, link: Link) -> list[p.ServerItem]:
        """Take what waits for a link; nothing while answers are held."""
        return [] if self.holding else super().outgoing(link)

    def hold(self, on: bool) -> None:
        """Keep answers, pushes and pongs; or let them go."""
        self.holding = on
        if not on:
            for link in self._links.values():
                link.wake.set()

    def turn(self) -> None:
        """See ``Gateway``; nothing once it is dropped."""
        if not self._halted:
            super().turn()

    def halt(self) -> None:
        """Do nothing from now on: no timer, no batch, no answer."""
        self._halted = True
        for timer in (self._timer, *self._ending.values()):
            if timer is not None:
                timer.cancel()
        self._timer = None
        self._ending.clear()
        for link in [*self._links.values()]:
            link.abort()


class Gate:
    """Stands before the HTTP interface and the WebSocket, and may answer for them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.unavailable_s: float | None = None
        """Answer 503 to everything, with this Retry-After."""
        self.auth_rejected = False
        """Answer 401 to every attempt to sign in or refresh."""
        self.turned_away = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if self.unavailable_s is not None:
            self.turned_away += 1
            answer = problem("unavailable", "not now", retry_after_s=self.unavailable_s)
        elif self.auth_rejected and scope["type"] == "http" and scope["path"].startswith("/api/auth/"):
            self.turned_away += 1
            answer = problem("unauthorized", "signing in is refused")
        else:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http":
            await answer(scope, receive, send)
            return
        await receive()
        await send(
            {
                "type": "websocket.http.response.start",
                "status": answer.status_code,
                "headers": answer.raw_headers,
            }
        )
        await send({"type": "websocket.http.response.body", "body": bytes(answer.body)})


async def until_idle(busy: Callable[[], bool], within_s: float) -> None:
    """Wait until ``busy()`` is false. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while busy():  # noqa: ASYNC110 - there is nothing to wait on but looking
            await asyncio.sleep(0.01)
