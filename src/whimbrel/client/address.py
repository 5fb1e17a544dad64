"""Where the server is: one address as people type it, and the URLs that follow from it.

``http`` goes with ``ws`` and ``https`` with ``wss``. Plain ``http`` is taken on the loopback only,
since anyone on the way could read passwords and tokens, unless the app says that it accepts this.
Leaves to others: names are not resolved here, so ``localhost`` is trusted by its name.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import msgspec

from whimbrel.errors import InsecureUrl, InvalidUrl

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """The server's address, checked."""

    http: str
    """Base of HTTP calls, without a slash at the end."""
    websocket: str
    """The URL of the WebSocket."""
    secure: bool
    loopback: bool


def parse_address(url: str, *, insecure: bool = False) -> Address:
    """Read a server address such as ``https://chat.example.org`` or ``http://127.0.0.1:8000``.

    A path is kept as a prefix (``https://example.org/chat``). Raises ``InvalidUrl`` for anything
    that is not such an address (user names, queries and fragments have no place in it), and
    ``InsecureUrl`` for plain http off the loopback unless ``insecure``.
    """
    if not isinstance(url, str):
        raise InvalidUrl("the server address must be a string")
    if any(ord(char) <= 0x20 or ord(char) == 0x7F for char in url):
        raise InvalidUrl("the server address holds spaces or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidUrl("the server address cannot be read") from error
    scheme = _SCHEMES.get(parts.scheme.lower())
    if scheme is None:
        raise InvalidUrl("the server address must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise InvalidUrl("the server address must not hold a user name or password")
    if parts.query or parts.fragment:
        raise InvalidUrl("the server address must not hold a query or a fragment")
    host = parts.hostname
    if not host or port == 0:
        raise InvalidUrl("the server address names no host, or port 0")
    secure = scheme == "wss"
    loopback = is_loopback(host)
    if not secure and not loopback and not insecure:
        raise InsecureUrl(f"plain http to {host} can be read by others")
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc = f"{netloc}:{port}"
    path = parts.path.rstrip("/")
    return Address(
        http=f"{'https' if secure else 'http'}://{netloc}{path}",
        websocket=f"{scheme}://{netloc}{path}/api/ws",
        secure=secure,
        loopback=loopback,
    )


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
