"""The id a store gives its device when it is made."""

from __future__ import annotations

import base64
import os


def new_device_id() -> str:
    """16 random bytes as 26 lowercase base32 characters."""
    return base64.b32encode(os.urandom(16)).decode().rstrip("=").lower()
