"""Scenarios in virtual time: real engines, stores, hub and ledger, where a wait of an hour costs nothing.

A scenario says who is there, over which link, what they write and what goes wrong; ``live`` runs it, has the
simulator's checkers judge it, and tells when each message was delivered. Times are asserted here only.
"""

from __future__ import annotations

import random

import msgspec

from whimbrel.core import contract as c
from whimbrel.model import SendState
from whimbrel.testing.ablations import Parts
from whimbrel.testing.checker import check
from whimbrel.testing.history import History, Submission
from whimbrel.testing.simplan import Deed, PlannedFault, SimPlan
from whimbrel.testing.simstory import draw
from whimbrel.testing.simworld import World

TOKEN_S = 900.0
"""What a server's access token is good for."""


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one message."""

    written_s: float
    delivered_s: float
    first_retry_s: float | None = None
    """When it first was to be tried again."""
    failed: bool = False
    """Whether it ever showed as failed."""


class Lived:
    """What came of a scenario."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.history: History = world.history

    def times(self) -> list[Times]:
        """What became of every message, in the order they were written."""
        every = sorted(self.history.submissions.values(), key=lambda submission: submission.at_s)
        return [self._times(submission) for submission in every]

    def _times(self, submission: Submission) -> Times:
        claims = [claim for claim in self.history.claims if claim.id == submission.id]
        delivered = [claim.at_s for claim in claims if claim.state in (SendState.DELIVERED, SendState.READ)]
        retries = [claim.at_s for claim in claims if claim.state is SendState.RETRYING]
        return Times(
            written_s=submission.at_s,
            delivered_s=min(delivered),
            first_retry_s=min(retries, default=None),
            failed=any(claim.state is SendState.FAILED for claim in claims),
        )

    def opened_at_s(self, device: str = "anna") -> list[float]:
        """When a device began connections; with ``keep_trace``."""
        lines = (line.split(" ") for line in self.world.trace)
        return [float(words[0]) for words in lines if words[1:3] == [device, "open"]]


class _World(World):
    """Tokens last as long as a real server's."""

    def new_token(self, device: str) -> tuple[str, float] | None:
        return self.server.new_token(device, TOKEN_S)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The way between a device and the server: how long it takes one way, and by how much that varies."""

    latency_s: float = 0.03
    jitter_s: float = 0.005


GOOD = Line()
"""A good mobile link."""


def message(at_s: float, *, by: int = 0, size: int = 40) -> Deed:
    """Someone writes."""
    return Deed(at_s=at_s, device=by, kind="send", conversation="all", size=size)


def live(
    *deeds: Deed,
    faults: tuple[PlannedFault, ...] = (),
    lines: tuple[Line, ...] = (GOOD, GOOD),
    duration_s: float = 60.0,
    seed: int = 1,
    settings: c.Settings | None = None,
    rate_limit: float | None = 10.0,
    keep_trace: bool = False,
) -> Lived:
    """Live through it; asserts that every promise was kept."""
    plan = SimPlan(
        devices=len(lines), storm_s=duration_s, tight_share=0.0, wire_share=1.0, rate_limit=rate_limit
    )
    rng = random.Random(seed)
    drawn = draw(rng, plan)
    names = ("anna", "ben", "carl", "dora")[: len(lines)]
    story = msgspec.structs.replace(
        drawn,
        devices=tuple(
            msgspec.structs.replace(
                device,
                name=name,
                user=name,
                conversations=("all",),
                latency_s=line.latency_s,
                jitter_s=line.jitter_s,
                disk_s=0.002,
                skew_s=0.0,
            )
            for device, name, line in zip(drawn.devices, names, lines, strict=True)
        ),
        conversations={"all": names},
        deeds=tuple(sorted(deeds, key=lambda deed: deed.at_s)),
        faults=faults,
        settings=settings or c.Settings(),
    )
    world = _World(story, plan, Parts(), rng, keep_trace=keep_trace)
    world.run()
    assert check(world.history) == []
    return Lived(world)
