"""What happened in a simulated run, as the apps saw it: the only thing the checkers read.

Apps write down what they handed to `send()`, when it returned, what they cancelled and read, every event
they were given and everything their durable consumers handled. At the end come the ledger's own pages, as
each member may read them, and what was still waiting. Nothing here is taken from the inside of an engine.

A crash of a device begins a new *incarnation*: what the app only held in memory is gone, what its durable
consumer handled is not.
"""

from dataclasses import dataclass, field
from math import inf

from whimbrel.model import FailureReason, SendState

__all__ = ["Claim", "History", "Move", "ReadUpTo", "Sighting", "Submission", "Usage"]


@dataclass(slots=True, kw_only=True, repr=False)
class Submission:
    """One message an app handed to `send()`, perhaps several times under the same key."""

    id: str
    device: str
    conversation: str
    index: int
    """Its place among all this app wrote to this conversation, from 1: the order that must be kept."""
    body: str
    at_s: float
    returned_at_s: float | None = None
    """When `send()` returned; from then on it may not be lost."""
    cancel_at_s: float | None = None
    """When the app asked to withdraw it."""
    expires: bool = False
    expires_at_s: float = inf
    """Before that it may not be given up, unless the device's clock was set."""
    refusable: bool = False
    """The server finds it invalid."""
    blocks: bool = False
    """If refused, those behind it wait until the app has withdrawn it."""
    times: int = 1
    """How often it was handed over, after crashes and failed commits."""

    def __repr__(self) -> str:
        return f"<Submission {self.id} #{self.index} of {self.device} in {self.conversation}>"


@dataclass(slots=True, kw_only=True, repr=False)
class Sighting:
    """One log entry as an app saw it, live, through its durable consumer, or in a page of the ledger."""

    conversation: str
    seq: int
    id: str
    sender: str
    kind: str
    body: str
    at_s: float
    device: str = ""
    incarnation: int = 0
    stream: int = 0
    """Of a live one: which stream of live events it came with."""

    def __repr__(self) -> str:
        return f"<Sighting {self.id} seq={self.seq} in {self.conversation} by {self.device}>"


@dataclass(slots=True, kw_only=True)
class Claim:
    """A status an app was told about one of its own messages."""

    device: str
    incarnation: int
    at_s: float
    id: str
    conversation: str
    state: SendState
    reason: FailureReason | None = None
    can_retry: bool = False
    retry: int = 0
    """Of a message that is retried: the number of its next attempt, the first being 0."""
    load: int = 0
    """How often, in this life, the engine had been loaded again."""
    live: bool = False
    """It was told when it happened, not found in the store."""


@dataclass(slots=True, kw_only=True)
class ReadUpTo:
    """A user's app said that it has read up to here, and (of a receipt) received up to there."""

    user: str
    conversation: str
    seq: int
    at_s: float
    received: int = 0


@dataclass(slots=True, kw_only=True)
class Move:
    """A user joined a conversation or left it, as its log says."""

    user: str
    seq: int
    at_s: float
    joined: bool


@dataclass(slots=True)
class Usage:
    """What one device asked of the network and of its processor within one virtual minute."""

    opened: int = 0
    items: int = 0
    refreshed: int = 0
    """Access tokens asked for."""
    turns: int = 0
    """Turns of the driver's loop: each wakes the processor."""
    backlog: int = 0
    """Own messages that waited, summed over every link that came up: what resuming may have to repeat."""


@dataclass(slots=True)
class History:
    """A whole run. Lists are in the order of virtual time."""

    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Conversation → who is in it at the end."""
    moves: dict[str, list[Move]] = field(default_factory=dict)
    """Conversation → who came and went, in the order of the log; its creation is the joining of the first."""
    moving: set[str] = field(default_factory=set)
    """Conversations whose members somebody wanted to change."""
    users: dict[str, str] = field(default_factory=dict)
    """Device → user."""
    submissions: dict[str, Submission] = field(default_factory=dict)
    """By message id."""
    live: list[Sighting] = field(default_factory=list)
    """`MessageReceived` events, which a crash may cut short."""
    consumed: list[Sighting] = field(default_factory=list)
    """What durable consumers handled; after a crash the last may come again."""
    claims: list[Claim] = field(default_factory=list)
    reads: list[ReadUpTo] = field(default_factory=list)
    receipts: list[tuple[str, int, ReadUpTo]] = field(default_factory=list)
    """(device, incarnation, what it was told of another user's reading)."""
    stored_at: dict[tuple[str, str], tuple[list[float], list[int]]] = field(default_factory=dict)
    """(user, conversation) → when the position on some device's disk rose, and how far it was then."""
    phase: str = "storm"
    """`storm`, then `recovery` until everything has arrived, then `idle`."""
    usage: dict[tuple[str, str, int], Usage] = field(default_factory=dict)
    """(device, phase, minute) → what it used."""
    logs: dict[tuple[str, str], list[Sighting]] = field(default_factory=dict)
    """(user, conversation) → the ledger's pages for that user, at the end."""
    whole: dict[str, list[Sighting]] = field(default_factory=dict)
    """Conversation → its log as the ledger holds it, whoever may read it."""
    waiting: dict[str, int] = field(default_factory=dict)
    """Device → own messages still not settled at the end, those the app could not hand over among them."""
    told_received: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """(device, conversation, user) → how far, at the end, the device knew that user to have received."""
    turned_away: list[tuple[str, str, float]] = field(default_factory=list)
    """(device, conversation, when): `send()` said that its user is no member."""
    poisoned: set[str] = field(default_factory=set)
    """Messages that the server could not take, again and again."""
    retry_budget: tuple[float, float] = (100.0, 10.0)
    """Retries at once, and a second, that the settings of the devices allow."""
    stepped: set[str] = field(default_factory=set)
    """Devices whose clock on the wall was set."""
    restored: list[float] = field(default_factory=list)
    """When the server's ledger was put back to an old backup."""
    faults_ended_s: float = 0.0
    drained_s: float | None = None
    """When everything had arrived everywhere, None: never within the time allowed."""
    faults: list[str] = field(default_factory=list)
    """What the world itself noticed: broken promises of the driver's contract, errors that surfaced."""

    def stored(self, user: str, conversation: str, at_s: float, position: int) -> None:
        """A device of the user has everything up to there on its disk."""
        times, positions = self.stored_at.setdefault((user, conversation), ([], []))
        if not positions or position > positions[-1]:
            times.append(at_s)
            positions.append(position)

    def usage_of(self, device: str, at_s: float) -> Usage:
        """The counters of this device for the phase and the minute of this time."""
        key = (device, self.phase, int(at_s // 60))
        usage = self.usage.get(key)
        if usage is None:
            usage = self.usage[key] = Usage()
        return usage
