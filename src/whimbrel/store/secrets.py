"""The port of small secrets kept beside the messages: refresh tokens, never message keys.

Both stores have it. In ``store.sqlite`` the values are inside the encrypted file; in ``store.memory``
they go with the process. They are never part of a ``Snapshot``.
"""

from __future__ import annotations

from typing import Protocol


class Secrets(Protocol):
    """A few named texts, kept like messages are: durably, encrypted."""

    def get_secret(self, name: str) -> str | None:
        """The value under ``name``, or None."""

    def set_secret(self, name: str, value: str | None) -> None:
        """Keep ``value`` under ``name``, durable on return; None removes it. Raises ``StoreError``."""
