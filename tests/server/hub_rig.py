"""A hub on a ledger in memory, with named clients and a clock that stands still until told otherwise.

An access token of the rig reads ``user/device/expiry``; time and wall clock are one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server.hub import Hub, Identity, ServerSettings
from whimbrel.server.ledger import CreateConversation, Ledger, LedgerUnavailable
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.server.records import Batch

USERS = {"ann", "bob", "cat", "dan"}
Item = TypeVar("Item")


class FailingLedger(MemoryLedger):
    """Fails as many commits as it is told to."""

    failures = 0

    def before_commit(self, batch: Batch) -> None:
        if self.failures:
            self.failures -= 1
            raise LedgerUnavailable("told to fail")


class PlainSyncTokens:
    """Sync tokens one can read."""

    def encode(self, history: str, commit: int, user: str) -> str:
        return f"{history}@{commit}"

    def decode(self, token: str, user: str) -> tuple[str, int] | None:
        history, at, commit = token.partition("@")
        return (history, int(commit)) if at and commit.isdecimal() else None


class Rig:
    def __init__(self, settings: ServerSettings | None = None, ledger: Ledger | None = None) -> None:
        self.now = 1_000.0
        self.ledger = ledger or MemoryLedger()
        self.hub = Hub(
            self.ledger,
            authenticate=self.authenticate,
            synctokens=PlainSyncTokens(),
            known_users=self.known_users,
            settings=settings or ServerSettings(rate_limit=None),
            wall=lambda: self.now,
        )
        self.links = 0

    def authenticate(self, token: str) -> Identity:
        user, _, rest = token.partition("/")
        device, _, text = rest.partition("/")
        try:
            expires_at = float(text)
        except ValueError:
            raise errors.Unauthorized from None
        if user not in USERS or not self.now < expires_at:
            raise errors.Unauthorized
        return Identity(user=user, device=device, expires_at=expires_at)

    def known_users(self, names: Collection[str]) -> set[str]:
        return USERS & set(names)

    def token(self, user: str, device: str = "", lasts_s: float = 900.0) -> str:
        return f"{user}/{device or user + '-1'}/{self.now + lasts_s}"

    def connect(self, user: str, device: str = "", sync: str | None = None) -> Client:
        self.links += 1
        client = Client(self, self.links)
        self.hub.open(client.link, self.now)
        client.say(p.Hello(token=self.token(user, device), sync=sync))
        return client

    def listen(self, user: str, sync: str | None = None, only: str | None = None) -> Client:
        self.links += 1
        identity = self.authenticate(self.token(user))
        self.hub.listen(self.links, identity, self.now, sync=sync, only=only)
        return Client(self, self.links)

    def create(self, conversation: str, *members: str) -> None:
        """Create it before anyone is there to be told."""
        self.ledger.apply(
            [CreateConversation(user=members[0], conversation=conversation, title="", members=members)],
            self.now,
        )
        self.hub = Hub(
            self.ledger,
            authenticate=self.authenticate,
            synctokens=PlainSyncTokens(),
            known_users=self.known_users,
            settings=self.hub._settings,
            wall=lambda: self.now,
        )

    def settle(self) -> int:
        """Run batches until nothing waits; gives how many."""
        count = 0
        while batch := self.hub.take_batch(self.now):
            count += 1
            try:
                outcomes = self.ledger.apply(batch, self.now)
            except LedgerUnavailable:
                self.hub.batch_failed(self.now)
            else:
                self.hub.settled(outcomes, self.now)
        return count

    def pass_time(self, seconds: float) -> None:
        """Let time pass, stopping at each deadline."""
        until = self.now + seconds
        while (due := self.hub.next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.hub.handle_timer(self.now)
            self.settle()
        self.now = until


class Client:
    """One link, by hand."""

    def __init__(self, rig: Rig, link: int) -> None:
        self.rig = rig
        self.link = link

    def say(self, *items: p.ClientItem | p.Unknown) -> None:
        for item in items:
            self.rig.hub.receive(self.link, item, self.rig.now)

    def send(self, conversation: str, body: str, n: int, stream: int = 1, on_reject: str = "skip") -> p.Send:
        key = f"{conversation} {n}"
        item = p.Send(conversation=conversation, stream=stream, n=n, key=key, body=body, on_reject=on_reject)
        self.say(item)
        return item

    def read(self) -> list[p.ServerItem]:
        return self.rig.hub.outgoing(self.link, self.rig.now)

    def take(self, kind: type[Item]) -> list[Item]:
        """Settle what waits, then give what came of one kind; the rest is gone."""
        self.rig.settle()
        return [item for item in self.read() if isinstance(item, kind)]

    @property
    def closing(self) -> str | None:
        return self.rig.hub.closing.get(self.link)
