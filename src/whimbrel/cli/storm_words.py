"""What the processes of a storm say to each other: plans, orders and reports, as JSON lines.

A worker is started with the path of a `WorkerConfig`, takes `Order`s on its standard input and writes
`Report`s on its standard output, one JSON object per line. The end of its input ends the worker, so none
outlives whoever started it.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = [
    "CreateConversation",
    "Go",
    "Line",
    "Order",
    "PlanLine",
    "Report",
    "Stop",
    "WorkerConfig",
    "WorkerUser",
]

SCREEN_LINES_MAX = 40


class PlanLine(msgspec.Struct, frozen=True, kw_only=True):
    """One message to be sent, and when."""

    user: str
    conversation: str
    line: int
    """Its number in the plan; the app's key for it, and with the user its label."""
    at_s: float
    """After the beginning."""
    text: str
    action: bool = False

    def __repr__(self) -> str:
        return f"<PlanLine {self.label} at {self.at_s:.2f} s>"

    @property
    def label(self) -> str:
        return f"{self.user}/{self.line}"


class WorkerUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user that a worker plays."""

    name: str
    password: str

    def __repr__(self) -> str:
        return f"<WorkerUser {self.name}>"


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All a worker process needs to know; written to a file, since it holds passwords."""

    name: str
    url: str
    folder: str
    """Where its stores and journals are."""
    plan: str
    """A file of `PlanLine`s; those of other users are passed over."""
    users: tuple[WorkerUser, ...]
    conversations: dict[str, int]
    """Of how many conversations each user is a member."""
    receipt_interval_s: float = 1.0
    report_every_s: float = 0.5
    screen: str = ""
    """The conversation whose newest lines and marks are reported; empty: none."""

    def __repr__(self) -> str:
        return f"<WorkerConfig {self.name}, {len(self.users)} users>"


class CreateConversation(msgspec.Struct, frozen=True, kw_only=True, tag="create"):
    """One of the worker's users creates a conversation."""

    user: str
    conversation: str
    title: str
    members: tuple[str, ...]


class Go(msgspec.Struct, frozen=True, kw_only=True, tag="go"):
    """The plan begins, or began, at this time of the machine's monotonic clock."""

    at_s: float


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Close everything and end."""


Order: TypeAlias = CreateConversation | Go | Stop


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it is shown."""

    sender: str
    text: str
    mark: str = ""
    state: str = ""

    def __repr__(self) -> str:
        return f"<Line of {self.sender} {self.state}>"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker stands."""

    connected: int = 0
    """How many of its users are."""
    ready: int = 0
    """How many of its users know all their conversations."""
    to_send: int = 0
    """Lines of the plan that were not handed over yet."""
    pending: int = 0
    """Messages in its outboxes."""
    received: int = 0
    """Messages written down as received, over all its users."""
    rejected: int = 0
    """Messages that the system gave up."""
    link: str = ""
    """Of the first user: its state, in words."""
    latency_ms: float | None = None
    quality: str = ""
    lines: tuple[Line, ...] = ()
    closed: bool = False
    """The last report: it was told to stop, and ``pending`` is what its clients left behind."""

    def __repr__(self) -> str:
        return f"<Report to_send={self.to_send} pending={self.pending} received={self.received}>"
