"""The server's address: what is taken, what is refused, and what follows from it."""

import pytest

from whimbrel.client.address import parse_address
from whimbrel.errors import InsecureUrl, InvalidUrl


@pytest.mark.parametrize(
    ("url", "http", "websocket", "secure"),
    [
        ("https://chat.example.org", "https://chat.example.org", "wss://chat.example.org/api/ws", True),
        ("https://chat.example.org:8443/", "https://chat.example.org:8443", None, True),
        ("HTTPS://Chat.Example.org/base/", "https://chat.example.org/base", None, True),
        ("wss://chat.example.org", "https://chat.example.org", "wss://chat.example.org/api/ws", True),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "ws://127.0.0.1:8000/api/ws", False),
        ("http://127.9.9.9", "http://127.9.9.9", "ws://127.9.9.9/api/ws", False),
        ("http://localhost:1", "http://localhost:1", "ws://localhost:1/api/ws", False),
        ("http://[::1]:8000", "http://[::1]:8000", "ws://[::1]:8000/api/ws", False),
        ("ws://localhost", "http://localhost", "ws://localhost/api/ws", False),
    ],
)
def test_good_addresses(url: str, http: str, websocket: str | None, secure: bool) -> None:
    address = parse_address(url)
    assert address.http == http
    assert address.websocket == websocket or websocket is None
    assert address.websocket.startswith("wss://" if secure else "ws://")
    assert address.secure is secure
    assert address.loopback is not secure


@pytest.mark.parametrize(
    "url",
    [
        "http://chat.example.org",
        "http://192.168.1.7:8000",
        "ws://10.0.0.1",
        "http://0.0.0.0:8000",
        "http://127.0.0.1.example.org",
        "http://localhost.example.org",
        "http://[fe80::1]:80",
    ],
)
def test_plain_http_off_the_loopback_needs_to_be_asked_for(url: str) -> None:
    with pytest.raises(InsecureUrl):
        parse_address(url)
    assert not parse_address(url, insecure=True).secure


@pytest.mark.parametrize(
    "url",
    [
        "",
        "chat.example.org",
        "ftp://chat.example.org",
        "https://",
        "https://user:secret@chat.example.org",
        "https://chat.example.org?a=b",
        "https://chat.example.org#x",
        "https://chat.example.org:99999",
        "https://chat.example.org:0",
        "https://chat.example.org:port",
        "https://[::1",
        "https://chat .example.org",
        "https://chat.example.org\r\nHost: other",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        parse_address(url)
    assert not isinstance(caught.value, InsecureUrl)
    assert "secret" not in str(caught.value)
