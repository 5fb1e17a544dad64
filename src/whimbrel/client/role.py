"""The two roles of an open client, and what both of them are asked.

One process syncs a store; its client drives an engine (``client.syncing``). Every other client on that
store, of this process or another, is a guest (``client.guest``): it reads the store by itself, hands
what is to be done over in it, and asks the one that syncs for what only an engine knows. When that one
ends, a guest takes its place; the app holds the same client all the while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from whimbrel import protocol as p
from whimbrel.client.credentials import Credentials
from whimbrel.core.contract import (
    CancelMessage,
    Command,
    MarkRead,
    MessageRow,
    RetryMessage,
    SendMessage,
    Snapshot,
    TakeHandoff,
)
from whimbrel.errors import ClientClosed, StoreCorrupt, WhimbrelError
from whimbrel.model import ConnectionChanged, Explanation, SendStatus
from whimbrel.store.handoff import TAKEN_AT_ONCE, Handoff
from whimbrel.store.port import Store
from whimbrel.store.secrets import Secrets

T = TypeVar("T")

DURABLE = (SendMessage, CancelMessage, RetryMessage, MarkRead)
"""Commands that are done when what they changed is on disk; a failed commit is their error."""
_BEGINNINGS_MAX = 3


class Claim(Protocol):
    """The right to read under a consumer's name."""

    def release(self) -> None:
        """Let others have it; may be called twice."""


class ClientStore(Store, Secrets, Handoff, Protocol):
    """What a client needs of its store: messages, secrets, and what is handed over."""

    @property
    def path(self) -> Path | None:
        """Where it is; None: nobody else can open it."""

    @property
    def blocking(self) -> bool:
        """Whether a commit may wait for a disk, and belongs on a thread of its own."""

    @property
    def guest(self) -> bool:
        """Whether another process syncs it."""

    def take_over(self) -> bool:
        """Become the one that syncs it if nobody else is; True once it is. Raises ``StoreError``."""

    def data_version(self) -> int:
        """A number that changes when somebody else writes."""

    def pending_count(self) -> int:
        """How many own messages are not settled."""

    def claim_consumer(self, name: str) -> Claim:
        """Be the only one that reads as this consumer, until released. Raises ``StoreInUse``."""


class RolePassed(Exception):
    """This client syncs the store itself now: ask its new role."""


class Role(Protocol):
    """How a client gets done what is more than reading the store."""

    @property
    def stopped(self) -> bool:
        """Whether it has ended, for whatever reason."""

    @property
    def failure(self) -> BaseException | None:
        """The bug that ended it, if one did."""

    @property
    def connection(self) -> ConnectionChanged:
        """The state of the link to the server."""

    @property
    def user(self) -> str | None:
        """Whose store it is; None until the first sign-in."""

    @property
    def sign_in_failure(self) -> WhimbrelError | None:
        """Why signing in failed for good."""

    @property
    def sign_in_possible(self) -> bool:
        """Whether there is anything to sign in with."""

    @property
    def last_sign_in_error(self) -> str:
        """Why there was no token the last time, in words."""

    def closed_error(self) -> ClientClosed:
        """What calls get once it has stopped."""

    def status(self, id: str) -> SendStatus | None:
        """The status of an own message that is not settled; None: the store knows."""

    def follow(self, id: str, status: SendStatus) -> None:
        """Somebody wants to hear what becomes of this own message."""

    async def explain(self, id: str) -> Explanation | None:
        """Why an own message that is not settled is where it is; None: the store knows."""

    async def pending(self) -> int:
        """How many own messages are not settled."""

    async def submit(self, command: Command) -> str | None:
        """Have a command done; durable on return where it is one of ``DURABLE``."""

    async def call(self, call: p.Call, timeout_s: float) -> p.Answer | None:
        """Ask the server; None when no answer came in time."""

    async def settled(self) -> None:
        """Wait until all that came from the server so far is in the store."""

    def watch(self) -> asyncio.Future[None]:
        """Done when something may have changed; begins now. Raises ``ClientClosed`` when it stops."""

    async def write(self, function: Callable[[], T]) -> T:
        """Run a blocking write on the store's writer thread."""

    async def sign_in(self, credentials: Credentials) -> None:
        """Use these credentials from now on. Raises what went wrong."""

    async def sign_out(self) -> None:
        """Forget the tokens."""

    async def stop(self, timeout_s: float) -> None:
        """End it, and close the store."""


def beginning(store: ClientStore) -> tuple[Snapshot, list[TakeHandoff]]:
    """What an engine starts from, and what was handed over until then, in order. Blocks."""
    for _ in range(_BEGINNINGS_MAX - 1):
        snapshot = store.load()
        try:
            return snapshot, _handed(store)
        except StoreCorrupt:
            if store.guest:
                raise
            # Its owner makes it anew when it loads it again.
    return store.load(), _handed(store)


def _handed(store: ClientStore) -> list[TakeHandoff]:
    handed: list[TakeHandoff] = []
    while page := store.handed_over(handed[-1].number if handed else 0):
        handed += page
        if len(page) < TAKEN_AT_ONCE:
            break
    return handed


def unexplained(row: MessageRow, status: SendStatus) -> Explanation:
    """What there is to say of an own message that no engine knows, or none that can be asked now."""
    blocked, unblocked = "", ""
    if not status.settled:
        blocked = "the program that syncs this store"
        unblocked = "that program taking it over, or another one its place"
    return Explanation(
        message_id=row.id,
        status=status,
        blocked_by=blocked,
        unblocked_by=unblocked,
        last_error=row.attempts[-1].text if row.attempts else "",
        attempts=row.attempts,
    )
