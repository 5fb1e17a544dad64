"""Errors of the HTTP interface: ``application/problem+json``, with our stable ``code`` in each."""

from __future__ import annotations

import math
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from whimbrel import errors
from whimbrel import protocol as p

STATUS_OF_CODE = {
    "invalid": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "out_of_order": 409,
    "voided": 409,
    "too_large": 413,
    "rate_limited": 429,
    "internal": 500,
    "unavailable": 503,
}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every error; ``code`` is for programs, ``detail`` for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    expected: int | None = None
    """With ``out_of_order``: the number that comes first."""
    final: bool | None = None
    """Of a message: whether its number is void now, so that those behind it go on."""
    retry_after_s: float | None = None


def problem(
    code: str,
    detail: str = "",
    *,
    expected: int | None = None,
    final: bool | None = None,
    retry_after_s: float | None = None,
) -> Response:
    """Build the answer for an error code; an unknown one is a bad request."""
    status = STATUS_OF_CODE.get(code, 400)
    if retry_after_s is None and status == 503:
        retry_after_s = 1.0
    headers = {}
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        expected=expected,
        final=final,
        retry_after_s=retry_after_s,
    )
    return Response(p.encode(body), status, headers, media_type="application/problem+json")


def problem_of(error: errors.WhimbrelError) -> Response:
    """Answer what was raised on purpose; a fault of this machine is told as unavailable, no more."""
    if isinstance(error, errors.RemoteError):
        return problem(error.code, str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, errors.UsageError):
        return problem("invalid", str(error))
    return problem("unavailable", "the server cannot do this now")
