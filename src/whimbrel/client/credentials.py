"""Who this client is: a name and password, or the tokens a store already has, and how they are kept fresh.

The store keeps one secret, encrypted with everything else: the refresh token, and the access token
with its end, so that a program started again connects without a round trip more. A refresh token
is replaced at every use. **Its successor is durable before the access token that came with it is
used, and before the successor itself is**: a crash in between then leaves a store that can still sign
in, since the server takes the old one until the new one was first used. A disk that fails twice must
not lead further away from what is on it.

One request at a time, whoever asks; the answers to the engine are ``SetToken`` and ``TokenFailed``.
When to refresh is the engine's decision.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from whimbrel.client.http import HttpApi, Tokens
from whimbrel.core.contract import SetToken, TokenFailed
from whimbrel.errors import (
    Conflict,
    Forbidden,
    InvalidArgument,
    InvalidRequest,
    RemoteError,
    StoreError,
    Unauthorized,
    WhimbrelError,
)
from whimbrel.store.secrets import Secrets

SECRET_NAME = "tokens"  # noqa: S105 - the name of the secret, not the secret
_FRESH_FOR_S = 60.0
_RETRY_AFTER_MAX_S = 60.0

logger = logging.getLogger("whimbrel")


class Credentials(msgspec.Struct, frozen=True):
    """A name and a password; neither is ever shown."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "<Credentials>"


class _Kept(msgspec.Struct, kw_only=True):
    user: str
    refresh_token: str
    access_token: str = ""
    expires_at: float = 0.0
    """Wall clock."""

    def __repr__(self) -> str:
        return f"<tokens of {self.user}>"


class TokenKeeper:
    """Gets access tokens, one request at a time, and keeps the refresh token."""

    def __init__(
        self,
        api: HttpApi,
        secrets: Secrets,
        *,
        credentials: Credentials | None,
        device: str,
        user: str | None,
        on_disk: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        """``on_disk`` runs a blocking write on the store's writer thread; ``user``: whose store it is."""
        self._api = api
        self._secrets = secrets
        self._credentials = credentials
        self._device = device
        self._on_disk = on_disk
        self._one_at_a_time = asyncio.Lock()
        self._kept: _Kept | None = None
        self._unwritten = ""
        """What the store should have and does not yet, since the disk failed."""
        self._first = True
        self._not_before = 0.0
        self.user = user
        """The user these tokens, and the store, belong to."""
        self.failure: WhimbrelError | None = None
        """Why signing in failed for good; ``None`` while it may still work."""

        self.last_error = ""
        """Why there was no token the last time, in words; empty after success."""

    def __repr__(self) -> str:
        return "<TokenKeeper>"

    def load(self) -> None:
        """Read what the store has. Blocks."""
        text = self._secrets.get_secret(SECRET_NAME)
        if text is None:
            return
        try:
            self._kept = msgspec.json.decode(text, type=_Kept)
        except msgspec.DecodeError:
            logger.warning("the stored tokens cannot be read; signing in is needed")
            return
        self.user = self.user or self._kept.user

    @property
    def possible(self) -> bool:
        """Whether there is anything to sign in with."""
        return self._credentials is not None or self._kept is not None

    async def fresh(self) -> SetToken | TokenFailed:
        """Get an access token; the answer to the engine's ``RefreshToken``. Never raises but for a bug."""
        async with self._one_at_a_time:
            first, self._first = self._first, False
            kept = self._kept
            if first and kept is not None and kept.access_token:
                left_s = kept.expires_at - time.time()
                if left_s > _FRESH_FOR_S:
                    return SetToken(token=kept.access_token, expires_in_s=left_s)
            # The server said when to come back, and the engine cannot be told.
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            try:
                if self._unwritten:
                    # Offered before it is on disk it would make what is on disk a replay.
                    await self._write()
                tokens = await self._request()
                await self._keep(tokens)
            except (WhimbrelError, OSError) as error:
                return self._failed(error)
            self.failure, self.last_error = None, ""
            return SetToken(token=tokens.access_token, expires_in_s=tokens.expires_in)

    async def sign_in(self, credentials: Credentials) -> SetToken:
        """Sign in with these credentials, and use them from now on. Raises what went wrong."""
        async with self._one_at_a_time:
            tokens = await self._api.login(credentials.username, credentials.password, self._device)
            await self._keep(tokens)
            self._credentials, self.failure, self._first = credentials, None, False
            return SetToken(token=tokens.access_token, expires_in_s=tokens.expires_in)

    async def sign_out(self) -> None:
        """Forget the tokens, durably, and tell the server if it can be reached."""
        async with self._one_at_a_time:
            kept, self._kept, self._credentials = self._kept, None, None
            self.failure = Unauthorized("signed out")
            self._unwritten = ""
            await self._on_disk(lambda: self._secrets.set_secret(SECRET_NAME, None))
            if kept is not None:
                try:
                    await self._api.logout(kept.refresh_token)
                except WhimbrelError as error:
                    logger.warning("signed out here, but the server was not told (%s)", error.code)

    async def _request(self) -> Tokens:
        if self._kept is not None:
            try:
                return await self._api.refresh(self._kept.refresh_token)
            except (Unauthorized, Forbidden, InvalidRequest):
                # Revoked or expired: only a password helps now.
                if self._credentials is None:
                    raise
        if self._credentials is None:
            raise Unauthorized("there are no credentials", hint="sign in: give credentials")
        return await self._api.login(self._credentials.username, self._credentials.password, self._device)

    async def _keep(self, tokens: Tokens) -> None:
        if tokens.device != self._device:
            raise Unauthorized("the server gave the token of another device")
        if self.user is not None and tokens.user != self.user:
            raise InvalidArgument(
                "this store belongs to another user", hint="give every user a store of their own"
            )
        kept = _Kept(
            user=tokens.user,
            refresh_token=tokens.refresh_token,
            access_token=tokens.access_token,
            expires_at=time.time() + tokens.expires_in,
        )
        # In memory first: if the disk fails now, the old token may be void, and this one still works.
        self._kept, self.user = kept, tokens.user
        self._unwritten = msgspec.json.encode(kept).decode()
        await self._write()

    async def _write(self) -> None:
        text = self._unwritten
        await self._on_disk(lambda: self._secrets.set_secret(SECRET_NAME, text))
        self._unwritten = ""

    def _failed(self, error: Exception) -> TokenFailed:
        if isinstance(error, RemoteError) and error.retry_after_s is not None:
            self._not_before = time.monotonic() + min(error.retry_after_s, _RETRY_AFTER_MAX_S)
        permanent = isinstance(error, Unauthorized | Forbidden | Conflict | InvalidRequest | InvalidArgument)
        if permanent:
            assert isinstance(error, WhimbrelError)
            self.failure = error
        self.last_error = str(error)
        kind = error.code if isinstance(error, WhimbrelError) else type(error).__name__
        level = logging.WARNING if permanent or isinstance(error, StoreError) else logging.INFO
        logger.log(level, "no access token: %s", kind)
        return TokenFailed(permanent=permanent, text=str(error))
