"""What a simulated run is made of: its size, its people, what their apps do, and what goes wrong when.

`SimPlan` holds the numbers, `Story` is what is drawn from them and a seed (`simstory`), before anything runs.
So a story does not depend on the code under test: after a fix, the same seed tells the same story.

    0 ──────────── storm_s ─────────────────────────── storm_s + drain_s
    apps write, faults happen   │ no more faults, links are fast: everything must arrive
"""

from typing import Final, Literal

import msgspec

from whimbrel.core.contract import Settings
from whimbrel.server.settings import ServerSettings

__all__ = [
    "BURST_MESSAGES",
    "CONSEQUENCES",
    "DRAIN_S_MAX",
    "FAULTS",
    "KINDS",
    "Deed",
    "Device",
    "PlannedFault",
    "SimPlan",
    "Story",
]

DeedKind = Literal[
    "send", "cancel", "read", "retry", "typing", "nudge", "background", "add", "remove", "leave"
]

DRAIN_S_MAX: Final = 120.0
"""How long after the last fault everything may take to arrive, in virtual seconds.

The worst honest run: a message exhausted its retries in the storm's last moment and is taken up again after
30 s (`resume_failed_every_s`), once behind each of the two other reasons to wait that may add up: the
longest backoff (30 s), and a fetch whose answer is awaited for 30 s while the link lives. What takes longer
is not slow but stuck.
"""
BURST_MESSAGES: Final = 200


class SimPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a run. Times in virtual seconds."""

    devices: int = 3
    messages: int = 100
    storm_s: float = 60.0
    drain_s: float = DRAIN_S_MAX
    """How long after the last fault everything may take to arrive."""
    faults: int = 14
    fault_kinds: tuple[str, ...] | None = None
    """Only these; None: all of `KINDS`."""
    wire_share: float = 0.25
    """For which share of the seeds frames are encoded and decoded as on a real wire."""
    rate_limit: float | None = 10.0
    """Messages/s the server grants each user."""
    settings: Settings = Settings()
    tight_share: float = 0.3
    """In which share of the seeds the bounds of the clients are so tight that they bind; and the server's."""
    invalid_share: float = 0.015
    """Which share of the messages the server will refuse."""
    early_share: float = 0.25
    """In which share of the seeds the server says `Accepted` on taking a message in, before its commit."""
    burst_share: float = 0.02
    """In which share of the seeds a device sends a burst of `BURST_MESSAGES` beside all others."""
    moves_share: float = 0.4
    """In which share of the seeds members join late, leave, are removed and come back."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device and the link it lives on."""

    name: str
    user: str
    conversations: tuple[str, ...]
    latency_s: float
    jitter_s: float
    disk_s: float
    """How long a commit takes, about."""
    skew_s: float
    """How wrong its wall clock is."""
    loop_s: float
    """How long after an input its driver's loop comes to its next turn; what comes meanwhile shares it."""


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """Something an app does at a time."""

    at_s: float
    device: int
    kind: DeedKind
    conversation: str = ""
    user: str = ""
    """Who is added or removed."""
    size: int = 0
    """Of a message: characters, padding included."""
    expires_in_s: float | None = None
    duration_s: float = 0.0
    invalid: str = ""
    """Of a message: what `on_reject` says, of one that the server will refuse."""


class PlannedFault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that goes wrong at a time; what does not concern a device has -1."""

    at_s: float
    kind: str
    device: int = -1
    duration_s: float = 0.0
    size: float = 0.0
    """A rate, a delay or a chance, by kind."""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """All that is drawn from a seed before the run begins."""

    devices: tuple[Device, ...]
    conversations: dict[str, tuple[str, ...]]
    """Who is in each when the run begins."""
    deeds: tuple[Deed, ...]
    faults: tuple[PlannedFault, ...]
    wire: bool
    """Frames are encoded and decoded as on a real wire."""
    accepts_early: bool
    """The server says `Accepted` when it takes a message in."""
    settings: Settings
    server_settings: ServerSettings
    server_loop_s: float


FAULTS: Final[dict[str, tuple[float, float, float, float]]] = {
    # kind: shortest and longest duration in s, smallest and largest size
    "stall": (1.0, 15.0, 0, 0),
    "cut": (0.05, 4.0, 0, 0),
    "reset": (0, 0, 0, 0),
    "half_open": (0, 0, 0, 0),
    "held_up": (3.0, 20.0, 0, 0),
    "held_down": (3.0, 20.0, 0, 0),
    "refusing": (1.0, 15.0, 0, 0),
    "unreachable": (1.0, 25.0, 0, 0),
    "unanswered": (2.0, 15.0, 0, 0),
    "unavailable": (1.0, 10.0, 0.5, 5.0),
    "flapping": (5.0, 15.0, 0.3, 3.0),
    "answer_lost": (0, 0, 0, 0),
    "swallowed": (1.0, 10.0, 0.1, 1.0),
    "latency": (3.0, 20.0, 0.3, 2.0),
    "low_capacity": (3.0, 20.0, 500.0, 8_000.0),
    "narrow": (10.0, 40.0, 2_000.0, 2_000.0),
    "duplicated": (3.0, 20.0, 0.1, 0.6),
    "trace": (10.0, 40.0, 0.0, 300.0),
    "crash_any_time": (0.1, 8.0, 0, 1),
    "crash_before_commit": (0.1, 8.0, 0, 1),
    "crash_after_commit": (0.1, 8.0, 0, 1),
    "crash_giving_up": (0.1, 4.0, 0, 1),
    "suspended": (2.0, 25.0, 0, 1),
    "clock_stepped": (0, 0, -1.0, 1.0),
    "commit_failed": (0, 0, 0, 0),
    "commit_unsure": (0, 0, 0, 0),
    "io_errors": (0.5, 10.0, 0.1, 0.9),
    "disk_full": (0.5, 10.0, 0, 0),
    "disk_gone": (0.5, 8.0, 0, 0),
    "disk_slow": (2.0, 12.0, 0.2, 4.0),
    "token_failed": (1.0, 10.0, 0, 0),
    "token_expired": (0, 0, 0, 0),
    "token_dead": (1.0, 15.0, 0, 0),
    "server_crash_any_time": (0.3, 8.0, 0, 1),
    "server_crash_before_commit": (0.3, 8.0, 0, 1),
    "server_crash_after_commit": (0.3, 8.0, 0, 1),
    "server_restart": (0.3, 3.0, 0, 0),
    "server_stopped": (0.5, 15.0, 0, 0),
    "server_slow": (2.0, 10.0, 0.1, 3.0),
    "server_restored": (0.3, 3.0, 1.0, 30.0),
    "poison": (2.0, 20.0, 0.3, 1.0),
    "ledger_unavailable": (0.5, 10.0, 0, 0),
    "ledger_hiccup": (0, 0, 0, 0),
    "ledger_unreadable": (0.3, 6.0, 0.2, 1.0),
}
"""Every kind of fault that is planned. A size of a crash below 0.5: nobody is told that it happened."""

KINDS: Final = tuple(kind for kind in FAULTS if kind != "server_restored")
"""The kinds that storms take by themselves; a restored server is for storms that name it."""

CONSEQUENCES: Final = (
    "burst",
    "joined_late",
    "left",
    "came_back",
    "turned_away",
    "refused",
    "unavailable_503",
    "late_after_new_link",
    "sent_again",
    "redelivered",
    "congested",
    "queue_full",
    "rejected",
)
"""What the world counts beside them, since it shows that faults reached where they should."""
