"""The calls over HTTP: signing in, refreshing, signing out. The one module that knows the HTTP library.

Every call has a deadline and ends in a value or in a typed error: ``ServerUnreachable`` when no
answer came (the network's or the machine's fault, try again), ``ProtocolError`` when what came is
no answer of a whimbrel server, and ``RemoteError`` when the server refused. No redirect is
followed: passwords and tokens go where the app said and nowhere else.
"""

from __future__ import annotations

import ssl
from typing import Any

import httpx2
import msgspec

from whimbrel.client.address import Address
from whimbrel.client.websocket import retry_after
from whimbrel.errors import InvalidUrl, ProtocolError, RemoteError, ServerUnreachable, remote_error

CALL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
"""Shorter: an attempt that began while the network was gone must not hold up the one after it."""
_ANSWER_BYTES_MAX = 1024 * 1024


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What signing in gives."""

    user: str
    device: str
    access_token: str
    expires_in: float
    """Seconds from now."""
    refresh_token: str

    def __repr__(self) -> str:
        return f"<Tokens of {self.user}>"


class _Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error (RFC 9457) with the server's stable ``code``."""

    code: str = ""
    title: str = ""
    detail: str = ""


_CODES = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "too_large",
    422: "invalid",
    429: "rate_limited",
}


class HttpApi:
    """The server's HTTP calls, over connections kept open between them."""

    def __init__(self, address: Address, *, tls: ssl.SSLContext | None = None) -> None:
        self._address = address
        self._tls = tls
        self._client: httpx2.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"<HttpApi {self._address.http}>"

    async def login(self, username: str, password: str, device: str) -> Tokens:
        """Sign in. Raises ``Unauthorized`` for wrong credentials."""
        body = {"username": username, "password": password, "device": device}
        return self._tokens(await self._post("/api/auth/login", body))

    async def refresh(self, refresh_token: str) -> Tokens:
        """Exchange the refresh token for a successor. Raises ``Unauthorized`` if it is no good."""
        return self._tokens(await self._post("/api/auth/refresh", {"refresh_token": refresh_token}))

    async def logout(self, refresh_token: str) -> None:
        """End the session of the refresh token, which is proof enough."""
        await self._post("/api/auth/logout", {"refresh_token": refresh_token})

    async def close(self) -> None:
        """Close the connections. May be called twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._client is None:
            self._client = httpx2.AsyncClient(
                verify=self._trust(),
                timeout=httpx2.Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                trust_env=not self._address.loopback,
            )
        try:
            async with self._client.stream(
                "POST",
                self._address.http + path,
                content=msgspec.json.encode(body),
                headers=headers,
            ) as response:
                answer = await _read_bounded(response)
        except httpx2.InvalidURL as error:
            raise InvalidUrl("the server address cannot be used") from error
        except httpx2.HTTPError as error:
            # Without its text: the library's errors may quote what was sent.
            raise ServerUnreachable(f"no answer from the server ({type(error).__name__})") from error
        if response.status_code >= 300:
            raise _error_of(response, answer)
        return answer

    def _trust(self) -> ssl.SSLContext:
        if self._tls is not None:
            return self._tls
        if self._address.secure:
            # Whom the system trusts, as the WebSocket does; the library has a list of its own.
            return ssl.create_default_context()
        # Plain http needs no certificates, and loading the system's takes 60 ms: trust nobody there.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    @staticmethod
    def _tokens(answer: bytes) -> Tokens:
        try:
            return msgspec.json.decode(answer, type=Tokens)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ProtocolError("the server's answer cannot be understood") from error


async def _read_bounded(response: httpx2.Response) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    async for part in response.aiter_bytes():
        size_bytes += len(part)
        if size_bytes > _ANSWER_BYTES_MAX:
            raise ProtocolError("the server's answer is too large")
        parts.append(part)
    return b"".join(parts)


def _error_of(response: httpx2.Response, answer: bytes) -> RemoteError | ProtocolError:
    status = response.status_code
    if status < 400:
        return ProtocolError(f"the server sent us elsewhere (HTTP status {status})")
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except (msgspec.DecodeError, UnicodeError):
        problem = _Problem()
    code = problem.code or _CODES.get(status, "unavailable" if status >= 500 else "")
    text = problem.detail or problem.title or f"HTTP status {status}"
    wait_s = retry_after(response.headers.get("Retry-After"), response.headers.get("Date"))
    return remote_error(code, text, wait_s)
