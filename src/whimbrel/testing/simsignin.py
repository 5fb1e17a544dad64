"""How a simulated device comes by its access tokens: by refreshing them, and by signing in again.

A refresh takes two round trips and fails with the path and the server; while `barred` it fails for good, as
when the family of tokens was revoked. Then the user signs in again, as soon as that is possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from whimbrel.core import contract as c
from whimbrel.core.engine import Engine

if TYPE_CHECKING:
    from whimbrel.testing.simclient import Client

__all__ = ["SignIn"]

SIGN_IN_EVERY_S: Final = 1.0


class SignIn:
    """The tokens of one device. What it holds is on the device's disk: a crash loses none of it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.failing = 0
        """How many reasons there are now for a refresh to fail, for now; `barred`: for good."""
        self.barred = 0
        self._token: tuple[str, float] | None = None

    def started(self, engine: Engine) -> None:
        """A new process: give it the token that is kept."""
        if self._token is not None:
            token, until_s = self._token
            left_s = until_s - self._client.clock.now_s
            engine.submit(c.SetToken(token=token, expires_in_s=left_s), self._client.clock.mono_s)

    def refresh(self) -> None:
        """Ask for a new token; the engine is told what came of it."""
        client = self._client
        client.clock.after(client.path.latency_s() * 4, self._refreshed, client.incarnation)

    def _refreshed(self, incarnation: int) -> None:
        client = self._client
        if client.engine is None or incarnation != client.incarnation:
            return
        if not self._reachable:
            self._give(c.TokenFailed(permanent=False, text="simulated"))
        elif self.failing:
            client.world.count("token_failed")
            self._give(c.TokenFailed(permanent=False, text="simulated"))
        elif self.barred:
            client.world.count("token_dead")
            self._token = None
            self._give(c.TokenFailed(permanent=True, text="simulated"))
            client.clock.after(SIGN_IN_EVERY_S, self._sign_in, client.incarnation)
        elif not self._renew():
            self._give(c.TokenFailed(permanent=False, text="simulated"))

    def _sign_in(self, incarnation: int) -> None:
        client = self._client
        if client.engine is None or incarnation != client.incarnation:
            return
        if self.barred or self.failing or not self._reachable or not self._renew():
            client.clock.after(SIGN_IN_EVERY_S, self._sign_in, incarnation)
        else:
            client.note("signed in again")

    @property
    def _reachable(self) -> bool:
        path = self._client.path
        return not (path.unreachable or path.refusing)

    def _renew(self) -> bool:
        client = self._client
        token = client.world.new_token(client.name)
        if token is None:
            return False
        self._token = (token[0], client.clock.now_s + token[1])
        self._give(c.SetToken(token=token[0], expires_in_s=token[1]))
        return True

    def _give(self, command: c.SetToken | c.TokenFailed) -> None:
        def feed(engine: Engine) -> None:
            engine.submit(command, self._client.clock.mono_s)

        self._client.feed(feed)
