"""Draws the story of a run from a plan and one random source: people, deeds, faults, settings."""

import random
from typing import Final

import msgspec

from whimbrel.core.contract import Settings
from whimbrel.server.settings import ServerSettings
from whimbrel.testing.simplan import (
    BURST_MESSAGES,
    FAULTS,
    KINDS,
    Deed,
    DeedKind,
    Device,
    PlannedFault,
    SimPlan,
    Story,
)

__all__ = ["draw"]

ONE_USER_SHARE: Final = 0.1
"""In which share of the seeds all devices are one user's; in three times as many, two of them are."""
CLUB: Final = "club"
"""The conversation whose members change."""
_OF_SERVER: Final = frozenset(kind for kind in FAULTS if kind.startswith(("server_", "ledger_")))


def draw(rng: random.Random, plan: SimPlan) -> Story:
    """Make the whole story."""
    devices, conversations = _draw_people(rng, plan)
    settings = _draw_settings(rng, plan)
    server_settings = _draw_server_settings(rng, plan)
    loose = settings is plan.settings and server_settings.rate_limit == plan.rate_limit
    return Story(
        devices=devices,
        conversations=conversations,
        deeds=tuple(sorted(_draw_deeds(rng, plan, devices, loose), key=lambda deed: deed.at_s)),
        faults=tuple(sorted(_draw_faults(rng, plan), key=lambda fault: fault.at_s)),
        wire=rng.random() < plan.wire_share,
        accepts_early=rng.random() < plan.early_share,
        settings=settings,
        server_settings=server_settings,
        server_loop_s=rng.choice((0.0, 0.0005, 0.005)),
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
        retry_budget_per_s=rng.choice((0.5, 10.0)),
        retries_max=rng.choice((1, 6)),
        retry_rounds_max=rng.choice((1, 3)),
        backoff_base_s=rng.choice((0.2, 1.0)),
        resume_failed_every_s=rng.choice((2.0, 30.0)),
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
    if plan.devices > 2:
        drawn = rng.random()
        if drawn < ONE_USER_SHARE:
            names = [names[0]] * plan.devices
        elif drawn < 4 * ONE_USER_SHARE:
            names[-1] = names[0]  # one user with two devices
    users = list(dict.fromkeys(names))
    conversations = {"all": tuple(users)}
    for number in range(rng.randrange(3)):
        members = rng.sample(users, min(2, len(users)))
        conversations[f"pair{number}"] = tuple(sorted(members))
    if len(users) > 1 and rng.random() < plan.moves_share:
        conversations[CLUB] = tuple(sorted(rng.sample(users, rng.randint(1, len(users)))))
    devices = []
    for number, user in enumerate(names):
        latency = rng.choice((0.005, 0.03, 0.1, 0.4))
        devices.append(
            Device(
                name=f"device{number}",
                user=user,
                # Who is not in the club writes to it all the same, and is turned away.
                conversations=tuple(
                    id for id, members in conversations.items() if user in members or id == CLUB
                ),
                latency_s=latency,
                jitter_s=latency * rng.random() * 0.8,
                disk_s=rng.choice((0.0005, 0.005, 0.05)),
                skew_s=rng.choice((0.0, 0.0, rng.uniform(-3600, 3600))),
                loop_s=rng.choice((0.0, 0.001, 0.01)),
            )
        )
    return tuple(devices), conversations


def _draw_deeds(rng: random.Random, plan: SimPlan, devices: tuple[Device, ...], loose: bool) -> list[Deed]:
    """`loose`: no bound is tight, so that a burst can drain in time."""
    deeds: list[Deed] = []
    sent = 0
    # Some fall silent early: nothing that comes later makes up for what was lost at their end.
    ends_s = {
        id: plan.storm_s * rng.choice((0.3, 0.7, 1.0))
        for id in sorted({id for device in devices for id in device.conversations})
    }
    while sent < plan.messages:
        device = rng.randrange(len(devices))
        conversation = rng.choice(devices[device].conversations)
        at_s = rng.uniform(0.0, ends_s[conversation])
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
                    invalid=rng.choice(("skip", "block")) if rng.random() < plan.invalid_share else "",
                )
            )
            at_s += rng.choice((0.0, 0.0, 0.05))
        if rng.random() < 0.25:
            later = at_s + rng.choice((0.0, 0.02, 0.5))
            deeds.append(Deed(at_s=later, device=device, kind="cancel", conversation=conversation))
    if rng.random() < plan.burst_share and loose:
        deeds += _draw_burst(rng, plan, devices)
    deeds += _draw_moves(rng, plan, devices)
    others: tuple[tuple[DeedKind, int], ...] = (
        ("read", 20),
        ("retry", 3),
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


def _draw_burst(rng: random.Random, plan: SimPlan, devices: tuple[Device, ...]) -> list[Deed]:
    """More at once than a user has credits for."""
    device, at_s = rng.randrange(len(devices)), rng.uniform(0.0, plan.storm_s - 1.0)
    return [
        Deed(at_s=at_s, device=device, kind="send", conversation="all", size=30)
        for _ in range(BURST_MESSAGES)
    ]


def _draw_moves(rng: random.Random, plan: SimPlan, devices: tuple[Device, ...]) -> list[Deed]:
    """Who joins and leaves the club; that it is there, and who may, is looked at when it is done."""
    if not any(CLUB in device.conversations for device in devices):
        return []
    users = sorted({device.user for device in devices})
    kinds: tuple[DeedKind, ...] = ("add", "add", "add", "leave", "remove")
    return [
        Deed(
            at_s=rng.uniform(0.0, plan.storm_s),
            device=rng.randrange(len(devices)),
            kind=rng.choice(kinds),
            conversation=CLUB,
            user=rng.choice(users),
        )
        for _ in range(rng.randint(2, 8))
    ]


def _draw_faults(rng: random.Random, plan: SimPlan) -> list[PlannedFault]:
    kinds = plan.fault_kinds if plan.fault_kinds is not None else KINDS
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
