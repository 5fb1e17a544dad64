"""What a simulated run is made of: its size, its people, what their apps do, and what goes wrong when.

`SimPlan` holds the numbers; `draw` makes the whole story from a plan and one random source, before anything
runs. So a story does not depend on the code under test: after a fix, the same seed tells the same story.

    0 ──────────── storm_s ─────────────────────────── storm_s + drain_s
    apps write, faults happen   │ no more faults, links are fast: everything must arrive
"""

import random
from typing import Final, Literal

import msgspec

from whimbrel.core.contract import Settings
from whimbrel.server.settings import ServerSettings

__all__ = ["CONSEQUENCES", "FAULTS", "Deed", "Device", "PlannedFault", "SimPlan", "Story", "draw"]

DeedKind = Literal["send", "cancel", "read", "retry", "typing", "nudge", "background"]


class SimPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a run. Times in virtual seconds."""

    devices: int = 3
    messages: int = 100
    storm_s: float = 60.0
    drain_s: float = 120.0
    """How long after the last fault everything may take to arrive."""
    faults: int = 14
    fault_kinds: tuple[str, ...] | None = None
    """Only these; None: all there are."""
    wire_share: float = 0.25
    """For which share of the seeds frames are encoded and decoded as on a real wire."""
    rate_limit: float | None = 10.0
    """Messages/s the server grants each user."""
    settings: Settings = Settings()
    tight_share: float = 0.3
    """In which share of the seeds the bounds of the clients are so tight that they bind; and the server's."""


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


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """Something an app does at a time."""

    at_s: float
    device: int
    kind: DeedKind
    conversation: str = ""
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
    deeds: tuple[Deed, ...]
    faults: tuple[PlannedFault, ...]
    wire: bool
    """Frames are encoded and decoded as on a real wire."""
    settings: Settings
    server_settings: ServerSettings


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
    "latency": (3.0, 20.0, 0.3, 2.0),
    "low_capacity": (3.0, 20.0, 500.0, 8_000.0),
    "trace": (10.0, 40.0, 0.0, 300.0),
    "crash_any_time": (0.1, 8.0, 0, 1),
    "crash_before_commit": (0.1, 8.0, 0, 1),
    "crash_after_commit": (0.1, 8.0, 0, 1),
    "commit_failed": (0, 0, 0, 0),
    "disk_full": (0.5, 10.0, 0, 0),
    "disk_gone": (0.5, 8.0, 0, 0),
    "disk_slow": (2.0, 12.0, 0.2, 4.0),
    "token_failed": (1.0, 10.0, 0, 0),
    "token_expired": (0, 0, 0, 0),
    "server_crash_any_time": (0.3, 8.0, 0, 1),
    "server_crash_before_commit": (0.3, 8.0, 0, 1),
    "server_crash_after_commit": (0.3, 8.0, 0, 1),
    "server_restart": (0.3, 3.0, 0, 0),
    "server_slow": (2.0, 10.0, 0.1, 3.0),
    "ledger_unavailable": (0.5, 10.0, 0, 0),
    "ledger_hiccup": (0, 0, 0, 0),
}
"""Every kind of fault that is planned. A size of a crash below 0.5: nobody is told that it happened."""

INVALID_SHARE: Final = 0.015
CONSEQUENCES: Final = (
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

_OF_SERVER: Final = frozenset(kind for kind in FAULTS if kind.startswith(("server_", "ledger_")))


def draw(rng: random.Random, plan: SimPlan) -> Story:
    """Make the whole story."""
    devices, conversations = _draw_people(rng, plan)
    return Story(
        devices=devices,
        conversations=conversations,
        deeds=tuple(sorted(_draw_deeds(rng, plan, devices), key=lambda deed: deed.at_s)),
        faults=tuple(sorted(_draw_faults(rng, plan), key=lambda fault: fault.at_s)),
        wire=rng.random() < plan.wire_share,
        settings=_draw_settings(rng, plan),
        server_settings=_draw_server_settings(rng, plan),
    )


def _draw_settings(rng: random.Random, plan: SimPlan) -> Settings:
    if rng.random() >= plan.tight_share:
        return plan.settings
    return msgspec.structs.replace(
        plan.settings,
        outbox_messages_max=rng.randint(3, 20),
        in_flight_max=rng.randint(1, 6),
        in_flight_bytes_max=rng.choice((1_000, 4_000)),
        out_of_order_max=rng.randint(1, 10),
        fetches_max=rng.randint(1, 2),
        page=rng.randint(1, 10),
        connect_attempts_max=rng.choice((None, None, 5)),
        retry_budget=rng.choice((1.0, 100.0)),
    )


def _draw_server_settings(rng: random.Random, plan: SimPlan) -> ServerSettings:
    settings = ServerSettings(rate_limit=plan.rate_limit, send_accepted=rng.random() < 0.5)
    if rng.random() >= plan.tight_share:
        return settings
    return msgspec.structs.replace(
        settings,
        rate_limit=rng.choice((3.0, None)),
        rate_burst=rng.randint(1, 10),
        batch_operations_max=rng.randint(1, 5),
        waiting_per_link_max=rng.randint(1, 10),
        queue_items_max=rng.randint(1, 20),
        queue_bytes_max=rng.choice((1_500, 8_000)),
        item_bytes_max=rng.choice((4_000, 100_000)),
    )


def _draw_people(rng: random.Random, plan: SimPlan) -> tuple[tuple[Device, ...], dict[str, tuple[str, ...]]]:
    names = [f"user{number}" for number in range(plan.devices)]
    if plan.devices > 2 and rng.random() < 0.25:
        names[-1] = names[0]  # one user with two devices
    users = list(dict.fromkeys(names))
    conversations = {"all": tuple(users)}
    for number in range(rng.randrange(3)):
        members = rng.sample(users, min(2, len(users)))
        conversations[f"pair{number}"] = tuple(sorted(members))
    devices = []
    for number, user in enumerate(names):
        latency = rng.choice((0.005, 0.03, 0.1, 0.4))
        devices.append(
            Device(
                name=f"device{number}",
                user=user,
                conversations=tuple(id for id, members in conversations.items() if user in members),
                latency_s=latency,
                jitter_s=latency * rng.random() * 0.8,
                disk_s=rng.choice((0.0005, 0.005, 0.05)),
                skew_s=rng.choice((0.0, 0.0, rng.uniform(-3600, 3600))),
            )
        )
    return tuple(devices), conversations


def _draw_deeds(rng: random.Random, plan: SimPlan, devices: tuple[Device, ...]) -> list[Deed]:
    deeds: list[Deed] = []
    sent = 0
    while sent < plan.messages:
        device = rng.randrange(len(devices))
        at_s = rng.uniform(0.0, plan.storm_s)
        conversation = rng.choice(devices[device].conversations)
        for _ in range(min(rng.choice((1, 1, 2, 5, 12)), plan.messages - sent)):
            sent += 1
            deeds.append(
                Deed(
                    at_s=at_s,
                    device=device,
                    kind="send",
                    conversation=conversation,
                    size=rng.choice((10, 30, 100, 100, 2_000)),
                    expires_in_s=rng.uniform(0.5, 60.0) if rng.random() < 0.04 else None,
                    invalid=rng.choice(("skip", "block")) if rng.random() < INVALID_SHARE else "",
                )
            )
            at_s += rng.choice((0.0, 0.0, 0.05))
        if rng.random() < 0.25:
            later = at_s + rng.choice((0.0, 0.02, 0.5))
            deeds.append(Deed(at_s=later, device=device, kind="cancel", conversation=conversation))
    others: tuple[tuple[DeedKind, int], ...] = (
        ("read", 20),
        ("retry", 2),
        ("typing", 4),
        ("nudge", 2),
        ("background", 1),
    )
    for kind, times in others:
        for _ in range(rng.randrange(times + 1)):
            device = rng.randrange(len(devices))
            deeds.append(
                Deed(
                    at_s=rng.uniform(0.0, plan.storm_s),
                    device=device,
                    kind=kind,
                    conversation=rng.choice(devices[device].conversations),
                    duration_s=rng.uniform(0.5, 10.0),
                )
            )
    return deeds


def _draw_faults(rng: random.Random, plan: SimPlan) -> list[PlannedFault]:
    kinds = plan.fault_kinds if plan.fault_kinds is not None else tuple(FAULTS)
    faults: list[PlannedFault] = []
    if not kinds:
        return faults
    # Swarms: a run sees few kinds, often; runs that see a little of everything find less.
    swarm = rng.sample(kinds, min(len(kinds), rng.randint(2, 8)))
    for _ in range(rng.randint(plan.faults // 2, plan.faults)):
        kind = rng.choice(swarm)
        shortest, longest, least, most = FAULTS[kind]
        at_s = rng.uniform(0.2, plan.storm_s - 1.0)
        faults.append(
            PlannedFault(
                at_s=at_s,
                kind=kind,
                device=-1 if kind in _OF_SERVER else rng.randrange(plan.devices),
                duration_s=min(rng.uniform(shortest, longest), plan.storm_s - at_s),
                size=rng.uniform(least, most),
            )
        )
    return faults
