"""What every HTTP endpoint works with: the gateway, the ledger, the accounts, and who may call.

Reads go to the ledger on the event loop's thread: they take microseconds. Passwords take tens of
milliseconds on purpose and are checked on threads of their own; attempts are limited by name and by
address, so that neither guessing nor the hashing itself can be used up by one caller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from whimbrel import errors
from whimbrel.server.accounts import Accounts, Tokens
from whimbrel.server.auth import AccessTokens
from whimbrel.server.credits import Buckets
from whimbrel.server.gateway import Gateway
from whimbrel.server.hub import Identity, ServerSettings
from whimbrel.server.ledger import Ledger

T = TypeVar("T")

ACCOUNT_THREADS = 3
"""One more than passwords may be hashed at once: a refresh need not wait behind logins."""
ACCOUNT_CALLS_MAX = 100
"""So many may wait for a thread; beyond, callers are told to come back."""


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the HTTP interface."""

    body_within_s: float = 10.0
    keep_alive_s: float = 15.0
    """How often a silent event stream gets a comment, so that no proxy takes it for dead."""
    poll_s: float = 25.0
    poll_s_max: float = 60.0
    login_per_s: float = 0.2
    login_burst: int = 10
    """Per user name and per address."""
    login_names_max: int = 10_000


class Service:
    """The server behind the endpoints."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        ledger: Ledger,
        accounts: Accounts,
        access_tokens: AccessTokens,
        settings: ServerSettings,
        http: HttpSettings,
    ) -> None:
        self.gateway = gateway
        self.ledger = ledger
        self.settings = settings
        self.http = http
        self._accounts = accounts
        self._access_tokens = access_tokens
        self._threads = ThreadPoolExecutor(ACCOUNT_THREADS, thread_name_prefix="accounts")
        self._calls = 0
        # Tables of their own: names made up by one address do not push out what is known of addresses.
        self._by_address = Buckets(http.login_per_s, http.login_burst, http.login_names_max)
        self._by_name = Buckets(http.login_per_s, http.login_burst, http.login_names_max)

    def authenticate(self, token: str) -> Identity:
        """Give whom an access token speaks for. Raises ``Unauthorized``."""
        access = self._access_tokens.verify(token)
        return Identity(user=access.user, device=access.device, expires_at=access.expires_at)

    async def login(self, name: str, password: str, device: str, address: str) -> Tokens:
        """Sign a device in. Raises ``RateLimited``, ``Unauthorized``, ``Conflict``, ``InvalidArgument``."""
        now = time.monotonic()
        # Folded as the accounts fold it, or capitals would give more attempts.
        key = name.strip().casefold()[:64]
        # The address first: one that is over its rate must not use up the attempts of others' names.
        wait_s = self._by_address.take(address, now) or self._by_name.take(key, now)
        if wait_s:
            raise errors.RateLimited("too many attempts to sign in", hint="wait", retry_after_s=wait_s)
        return await self._blocking(lambda: self._accounts.login(name, password, device))

    async def refresh(self, refresh_token: str) -> Tokens:
        """Give fresh tokens. Raises ``Unauthorized``."""
        return await self._blocking(lambda: self._accounts.refresh(refresh_token))

    async def logout(self, refresh_token: str) -> None:
        """End the session of a refresh token."""
        await self._blocking(lambda: self._accounts.logout(refresh_token))

    async def known_users(self, names: set[str]) -> set[str]:
        """Give those of the names that are users."""
        return await self._blocking(lambda: self._accounts.users_exist(names))

    def close(self) -> None:
        """Wait for the calls on the threads."""
        self._threads.shutdown()

    async def _blocking(self, work: Callable[[], T]) -> T:
        if self._calls >= ACCOUNT_CALLS_MAX:
            raise errors.ServerFailed("too many at once", retry_after_s=1.0)
        self._calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._calls -= 1
