"""Whose fault a failure is, and what follows: the one place where "can this be retried" is decided."""

from __future__ import annotations

import enum

import msgspec

from whimbrel.model import FailureReason


class Consequence(enum.Enum):
    """What a failure of one message leads to."""

    RETRY = "retry"
    """Try again after a backoff; uses an attempt."""
    PAUSE = "pause"
    """The whole pipe waits; uses no attempt."""
    REFRESH = "refresh"
    """Get a new token, then go on; uses no attempt."""
    RENUMBER = "renumber"
    """The server counts otherwise: go on in a new stream; uses no attempt."""
    REJECT = "reject"
    """It will never succeed as it is."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The reason to show and the consequence to draw."""

    reason: FailureReason
    consequence: Consequence


_VERDICTS = {
    "rate_limited": Verdict(reason=FailureReason.RATE_LIMITED, consequence=Consequence.PAUSE),
    "unauthorized": Verdict(reason=FailureReason.AUTHENTICATION_ERROR, consequence=Consequence.REFRESH),
    "unavailable": Verdict(reason=FailureReason.SERVER_ERROR, consequence=Consequence.RETRY),
    "internal": Verdict(reason=FailureReason.SERVER_ERROR, consequence=Consequence.RETRY),
    "timeout": Verdict(reason=FailureReason.TIMEOUT, consequence=Consequence.RETRY),
    "network": Verdict(reason=FailureReason.NETWORK_ERROR, consequence=Consequence.RETRY),
    "conflict": Verdict(reason=FailureReason.REJECTED, consequence=Consequence.RENUMBER),
    "invalid": Verdict(reason=FailureReason.REJECTED, consequence=Consequence.REJECT),
    "not_found": Verdict(reason=FailureReason.REJECTED, consequence=Consequence.REJECT),
    "forbidden": Verdict(reason=FailureReason.REJECTED, consequence=Consequence.REJECT),
    "too_large": Verdict(reason=FailureReason.REJECTED, consequence=Consequence.REJECT),
}
_UNKNOWN = Verdict(reason=FailureReason.UNKNOWN, consequence=Consequence.RETRY)


def classify(code: str) -> Verdict:
    """The verdict on an error code of the server; an unknown code is retried."""
    return _VERDICTS.get(code, _UNKNOWN)


def code_of_status(status: int) -> str:
    """The error code that an HTTP status stands for."""
    if status == 401:
        return "unauthorized"
    if status == 429:
        return "rate_limited"
    if status >= 500 or status == 408:
        return "unavailable"
    return {403: "forbidden", 404: "not_found", 409: "conflict", 413: "too_large"}.get(status, "invalid")
