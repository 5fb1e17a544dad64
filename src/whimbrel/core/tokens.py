"""The access token: when to refresh it, once for everyone, and when to give up.

The engine never sees a refresh token or a password: it asks (``due``) and is told the result.
"""

from __future__ import annotations

from whimbrel.core.backoff import backoff_s
from whimbrel.core.contract import Settings, Sources

_RETRY_CAP_S = 5.0


class Tokens:
    """What is known of the access token."""

    __slots__ = (
        "_failures",
        "_next_try",
        "_refresh_at",
        "_settings",
        "_sources",
        "refreshing",
        "signed_out",
        "token",
    )

    def __init__(self, settings: Settings, sources: Sources) -> None:
        self._settings = settings
        self._sources = sources
        self.token: str | None = None
        self.refreshing = False
        self.signed_out = False
        """The refresh failed for good: only signing in again helps."""
        self._refresh_at: float | None = None
        self._failures = 0
        self._next_try = 0.0

    def __repr__(self) -> str:
        return f"<Tokens present={self.token is not None} refreshing={self.refreshing}>"

    def renewed(self, token: str | None, expires_in_s: float, now: float) -> None:
        """There is a new token, or (None) none at all and none to be had."""
        self.token = token
        self.refreshing = False
        self.signed_out = token is None
        self._failures = 0
        self._refresh_at = None
        if expires_in_s > 0:
            early_s = min(self._settings.refresh_before_s, expires_in_s / 3)
            self._refresh_at = now + expires_in_s - early_s

    def expired(self) -> None:
        """The server does not take the token any more."""
        self.token = None

    def failed(self, permanent: bool, now: float) -> None:
        """A refresh failed, for good or for now."""
        self.refreshing = False
        if permanent:
            self.token = None
            self.signed_out = True
            return
        self._failures += 1
        self._next_try = now + backoff_s(
            self._failures,
            base_s=self._settings.probe_fast_s,
            factor=2.0,
            cap_s=_RETRY_CAP_S,
            spread=(0.5, 1.0),
            random=self._sources.random,
        )

    def due(self, now: float) -> bool:
        """Whether to refresh now; the caller then sets ``refreshing``."""
        if self.refreshing or self.signed_out or now < self._next_try:
            return False
        if self.token is None:
            return True
        return self._refresh_at is not None and now >= self._refresh_at

    def next_deadline(self, now: float) -> float | None:
        """When a refresh is due at the latest."""
        if self.refreshing or self.signed_out:
            return None
        if self.token is None:
            return max(self._next_try, now)
        if self._refresh_at is None:
            return None
        return max(self._refresh_at, self._next_try)

    def hurry(self) -> None:
        """Something changed (network, foreground): try at once."""
        self._next_try = 0.0
