"""The HTTP interface's one table of routes: the router and the OpenAPI document are both made from it.

A handler gets a ``Call`` (who, with what) and gives a response; it raises ``WhimbrelError`` for what
goes wrong. Around it, in this order: the bearer token is checked, the body read within its bounds and
decoded, errors turned into problems. A stranger gets the same 404 as for what does not exist.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server.hub import Identity
from whimbrel.server.ledger import LedgerUnavailable
from whimbrel.server.problem import problem, problem_of
from whimbrel.server.service import Service

_log = logging.getLogger(__name__)

T = TypeVar("T")

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One request that passed the checks."""

    request: Request
    service: Service
    identity: Identity
    """Of nobody (empty) where no token is asked for."""
    body: Any
    """An instance of the route's ``body``."""

    def path(self, name: str) -> str:
        """Give a part of the path."""
        return str(self.request.path_params[name])

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """Give a whole number of the query. Raises ``InvalidRequest``."""
        text = self.request.query_params.get(name)
        if text is None:
            return default
        # isdecimal alone takes digits of other scripts; so does int(), but nobody means them here.
        if not (text.isascii() and text.isdecimal() and len(text) <= 18 and low <= int(text) <= high):
            raise errors.InvalidRequest(f"{name} is a whole number from {low} to {high}")
        return int(text)


Handler = Callable[[Call], Awaitable[Response]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """One parameter of the query, or a header."""

    name: str
    about: str
    kind: str = "string"
    where: str = "query"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """One operation: how it is reached, what it takes, what it gives."""

    method: str
    path: str
    name: str
    handler: Handler
    """Its docstring is what the document says of the route."""
    body: type[msgspec.Struct] | None = None
    body_bytes_max: int = 64 * 1024
    answer: type[msgspec.Struct] | None = None
    media_type: str = JSON
    status: int = 200
    query: tuple[Query, ...] = ()
    problems: tuple[int, ...] = ()
    public: bool = False


def json(value: msgspec.Struct, status: int = 200) -> Response:
    """Answer with a Struct."""
    return Response(p.encode(value), status, {"Cache-Control": "no-store"}, media_type=JSON)


NOBODY = Identity(user="", device="", expires_at=0.0)


def endpoint(route: Route, service: Service) -> Callable[[Request], Awaitable[Response]]:
    """Give the function that Starlette calls for a route."""

    async def serve(request: Request) -> Response:
        try:
            identity = NOBODY if route.public else service.authenticate(_bearer(request))
            body = await _body(request, route, service.http.body_within_s)
            call = Call(request=request, service=service, identity=identity, body=body)
            return await route.handler(call)
        except errors.WhimbrelError as error:
            return problem_of(error)
        except LedgerUnavailable:
            return problem("unavailable", "the ledger cannot be read now")
        except ClientDisconnect:
            return problem("invalid", "the body did not come whole")
        except Exception:  # noqa: BLE001 - one request must not show its failure, nor cost the connection
            _log.exception("%s failed", route.name)
            return problem("internal", "the server failed")

    return serve


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise errors.Unauthorized("an access token is needed: Authorization: Bearer …")
    return token.strip()


async def _body(request: Request, route: Route, within_s: float) -> Any:
    if route.body is None:
        return None
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > route.body_bytes_max:
        raise errors.TooLarge(f"the body is over {route.body_bytes_max} bytes")
    data = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for part in request.stream():
                data += part
                if len(data) > route.body_bytes_max:
                    raise errors.TooLarge(f"the body is over {route.body_bytes_max} bytes")
    except TimeoutError:
        raise errors.InvalidRequest("the body came too slowly") from None
    return decode_body(bytes(data), route.body)


def decode_body(data: bytes, kind: type[T]) -> T:
    """Read a body. Raises ``InvalidRequest`` and ``TooLarge``, and nothing else."""
    try:
        if "metadata" in getattr(kind, "__struct_fields__", ()) and p.bulky(data):
            raise errors.TooLarge(f"the metadata are over {p.METADATA_BYTES_MAX} bytes")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        # The text names the place and the kind, never the value; a cause might show more.
        text = str(error) if isinstance(error, msgspec.DecodeError) else "not JSON"
        raise errors.InvalidRequest(f"the body does not fit: {text}") from None
