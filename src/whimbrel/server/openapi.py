"""The OpenAPI 3.1 document, written from the table of routes that also does the routing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from whimbrel import protocol as p
from whimbrel.server.http import Route
from whimbrel.server.problem import Problem


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Describe every route; what they take and give is under ``components``."""
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "whimbrel", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _types(routes: Iterable[Route]) -> list[Any]:
    found: dict[Any, None] = {Problem: None, p.ServerItem: None}
    for route in routes:
        for kind in (route.body, route.answer):
            if kind is not None:
                found[kind] = None
    return list(found)


def _operation(route: Route, schema_of: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": (route.handler.__doc__ or "").strip(),
        "parameters": [
            *(
                # A slash would be another path, however it is escaped.
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1, "pattern": "^[^/]+$"},
                }
                for name in re.findall(r"{(\w+)}", route.path)
            ),
            *(
                {
                    "name": query.name,
                    "in": query.where,
                    "description": query.about,
                    "schema": {"type": query.kind},
                }
                for query in route.query
            ),
        ],
        "responses": {str(route.status): _answer(route, schema_of)},
        "security": [] if route.public else [{"bearer": []}],
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema_of[route.body]}},
        }
    for status in route.problems:
        operation["responses"][str(status)] = {
            "description": "a problem; see its code",
            "content": {"application/problem+json": {"schema": schema_of[Problem]}},
        }
    return operation


def _answer(route: Route, schema_of: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "done"}
    if route.answer is not None:
        answer["content"] = {route.media_type: {"schema": schema_of[route.answer]}}
    elif route.status != 204:
        # What each `data:` of the stream holds.
        answer["content"] = {
            route.media_type: {"schema": {"type": "array", "items": schema_of[p.ServerItem]}}
        }
    return answer
