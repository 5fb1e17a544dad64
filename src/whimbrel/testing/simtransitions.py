"""Which transitions the machines of an engine took."""

from collections import Counter
from typing import Any

__all__ = ["transitions_of"]


def transitions_of(engine: Any) -> Counter[str]:
    """`machine.state:event` → how often it was taken; nothing of an engine that is not there."""
    found: Counter[str] = Counter()
    for machine in ("link", "outbox"):
        for (state, event), times in getattr(getattr(engine, machine, None), "transitions", {}).items():
            found[f"{machine}.{state}:{event}"] += times
    return found
