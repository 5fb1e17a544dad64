"""How long to wait before trying again.

The delay grows by a factor up to a cap and is spread by a random factor *afterwards*, so that
clients which all reached the cap do not march in step.
"""

from __future__ import annotations

from collections.abc import Callable

_EXPONENT_MAX = 64


def backoff_s(
    failures: int,
    *,
    base_s: float,
    factor: float,
    cap_s: float,
    spread: tuple[float, float],
    random: Callable[[], float],
) -> float:
    """The delay in seconds after the ``failures``-th failure in a row (from 1).

    ``min(cap, base * factor^(failures-1))`` times a factor uniform in ``spread``: (1.0, 1.1) for
    messages, (0.0, 1.0), that is full jitter, for reconnecting.
    """
    exponent = min(max(failures, 1) - 1, _EXPONENT_MAX)
    low, high = spread
    return min(cap_s, base_s * factor**exponent) * (low + (high - low) * random())
