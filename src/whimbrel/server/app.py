"""The ASGI application: HTTP routes, the WebSocket, and nothing of its own."""

from __future__ import annotations

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path
from starlette.types import ASGIApp, Receive, Scope, Send

from whimbrel import protocol as p
from whimbrel.server import endpoints, streams
from whimbrel.server.bodies import Document
from whimbrel.server.connection import TRUSTED
from whimbrel.server.http import Call, Route, endpoint
from whimbrel.server.openapi import document
from whimbrel.server.problem import problem
from whimbrel.server.service import Service
from whimbrel.server.websocket import refuse, serve_websocket

WEBSOCKET_PATH = "/api/ws"


async def openapi(call: Call) -> Response:
    """Give this document."""
    return Response(_document(), media_type="application/json")


ROUTES = (
    *endpoints.ROUTES,
    *streams.ROUTES,
    Route(
        method="GET",
        path="/api/openapi.json",
        name="openapi",
        handler=openapi,
        answer=Document,
        public=True,
    ),
)


def _document() -> bytes:
    return p.encode(Document(**document(ROUTES, str(p.VERSION))))


def create_app(service: Service) -> ASGIApp:
    """Give the application for uvicorn, or any ASGI server that keeps to the bounds in ``run``."""
    http = Starlette(
        routes=[Path(route.path, endpoint(route, service), methods=[route.method]) for route in ROUTES],
        exception_handlers={HTTPException: _not_routed},
    )
    http.router.redirect_slashes = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await http(scope, receive, send)
        elif scope["path"] == WEBSOCKET_PATH:
            await serve_websocket(service.gateway, receive, send, scope.get("state", {}).get(TRUSTED))
        else:
            await refuse(scope, receive, send)

    return app


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it alone"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response = problem("method_not_allowed", "not with this method")
        response.headers.update(error.headers or {})
        return response
    return problem("not_found", "no such path")
