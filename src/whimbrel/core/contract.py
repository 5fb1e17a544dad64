"""What passes between the engine and whoever drives it: settings, rows, changes, commands, actions.

The engine decides, the driver does. A driver feeds commands, items, link events and time; writes
``Changes`` in one transaction of the store; then carries out the ``Action``s, which are derived
from committed state when asked for. The rows here are what the store keeps: one per log entry or
queued message, updated in place, and one per conversation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from whimbrel import protocol as p
from whimbrel.model import Attempt, FailureReason, SendState


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every number of the engine; the defaults are those of the specification."""

    # retry and backoff
    backoff_base_s: float = 1.0
    backoff_factor: float = 2.0
    backoff_cap_s: float = 30.0
    retries_max: int = 6
    retries_timeout: int = 3
    retries_server_error: int = 3
    retries_network_error: int = 5
    request_timeout_s: float = 10.0
    retry_rounds_max: int = 3
    resume_failed_every_s: float = 30.0
    auto_resume: bool = True
    retry_budget: float = 100.0
    retry_budget_per_s: float = 10.0
    # outbox
    outbox_messages_max: int = 10_000
    outbox_bytes_max: int = 64 * 1024 * 1024
    in_flight_max: int = 1_000
    in_flight_bytes_max: int = 1024 * 1024
    attempts_kept: int = 20
    # timeline
    out_of_order_max: int = 200
    fetch_timeout_s: float = 30.0
    """While the link lives, an answer is late rather than lost."""
    fetches_max: int = 8
    page: int = 100
    receipt_interval_s: float = 1.0
    compare_every_s: float = 30.0
    """With the next ping after so long, client and server compare how far they know the logs."""
    # calls
    call_timeout_s: float = 10.0
    calls_max: int = 100
    # link
    ping_every_s: float = 10.0
    ping_idle_after_s: float = 60.0
    """A link on which nothing but pings passed this long is pinged every ``ping_idle_s``: it saves power."""
    ping_idle_s: float = 25.0
    measure_every_s: float = 2.0
    """While data flows, a ping goes with it this often, so that the measured round trip is of now."""
    dead_after_s: float = 2.5
    probe_fast_s: float = 0.2
    probe_fast_for_s: float = 10.0
    probe_medium_s: float = 0.5
    probe_medium_until_s: float = 60.0
    probe_slow_s: float = 1.0
    server_backoff_base_s: float = 1.0
    server_backoff_cap_s: float = 30.0
    connect_patience_s: float = 10.0
    connect_attempts_max: int | None = None
    quality_excellent_s: float = 0.100
    quality_good_s: float = 0.300
    # tokens
    refresh_before_s: float = 300.0
    # events
    events_max: int = 100_000


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What a pure engine is given instead of taking: chance and the wall clock."""

    random: Callable[[], float]
    """Uniform in [0, 1)."""
    wall: Callable[[], float]
    """Seconds since 1970; stamps messages, orders nothing."""


# --- what the store keeps ----------------------------------------------------------------------


class MessageRow(msgspec.Struct, kw_only=True, gc=False):
    """One log entry or own message. The part below the line is updated in place (``OutboxUpdate``)."""

    id: str
    conversation: str
    kind: str = "message"
    sender: str = ""
    role: str = "user"
    format: str = "text"
    body: str = ""
    alg: str = "none"
    metadata: str | None = None
    """JSON text."""
    reply_to: str | None = None
    sent_at: float = 0.0
    own: bool = False
    """Sent by this very device: it has a key, a stream and a number."""
    key: str | None = None
    on_reject: str = "skip"
    expires_at: float | None = None
    """Wall clock; an unsent message is given up then."""
    # ---- updated in place
    stream: int = 0
    n: int = 0
    state: SendState | None = None
    """``None`` for what others sent."""
    reason: FailureReason | None = None
    can_retry: bool = False
    retry_count: int = 0
    last_retry_at: float | None = None
    rounds: int = 0
    attempts: tuple[Attempt, ...] = ()
    void: str | None = None
    """The reason, while the void of this number is not settled yet."""
    seq: int | None = None
    arrival: int | None = None
    """Position in this store's order of arrival; ``None``: queued, or received beyond a gap."""
    delivered_at: float | None = None
    read_at: float | None = None

    def __repr__(self) -> str:
        return f"<MessageRow {self.id} in {self.conversation} state={self.state} seq={self.seq}>"


class OutboxUpdate(msgspec.Struct, kw_only=True, gc=False):
    """The new mutable part of an own message; every field is written. Not changed once it is taken."""

    id: str
    stream: int
    n: int
    state: SendState
    reason: FailureReason | None
    can_retry: bool
    retry_count: int
    last_retry_at: float | None
    rounds: int
    attempts: tuple[Attempt, ...]
    void: str | None
    seq: int | None
    arrival: int | None
    delivered_at: float | None


class ConversationRow(msgspec.Struct, kw_only=True, gc=False):
    """One conversation: what the timeline knows, and the counters of its outbox.

    Only the timeline changes its own, in place; what it gives away are copies.
    """

    id: str
    title: str = ""
    members: tuple[str, ...] = ()
    epoch: str = ""
    position: int = 0
    """All entries up to here are in the store, or are legitimate holes."""
    head: int = 0
    """The last entry the server told of; beyond ``position``: there is something to fetch."""
    floor: int = 0
    stream: int = 1
    last_n: int = 0
    """The last number given to an own message of ``stream``."""
    read: int = 0
    """Read by this user here."""
    received_acked: int = 0
    read_acked: int = 0
    """What the server is known to have of our receipts."""
    left: bool = False
    receipts: tuple[tuple[str, int, int], ...] = ()
    """(user, received, read) of the others, merged by max."""
    synced_at: float | None = None

    def __repr__(self) -> str:
        return f"<ConversationRow {self.id} position={self.position} head={self.head}>"


class Changes(msgspec.Struct, kw_only=True):
    """What one transaction writes, all or nothing, in this order: resets, rows, updates, the rest."""

    resets: list[str] = []
    """Conversations whose history was replaced: entries lose their ``seq``, what is unsent stays.

    What others sent and the app has keeps its ``arrival``, so that it is not told twice if it comes
    again. Own messages that were in the log, and those that wait, are *displaced*: they wait, in
    the order in which they were sent, as numbers of stream 0, until the new history is known and
    shows whether it has them."""
    messages: dict[str, MessageRow] = {}
    """By id. Insert; a row that exists (own echo, buffered) gets ``seq``, ``arrival``, ``delivered_at``,
    ``state`` and ``void`` of this one and keeps its content. An own row that comes as an entry of the
    log (``state`` None here) is delivered."""
    updates: dict[str, OutboxUpdate] = {}
    """By id, of rows that exist (or are inserted by this very change)."""
    conversations: dict[str, ConversationRow] = {}
    reads: dict[str, tuple[int, float]] = {}
    """Conversation → (seq, wall time): own messages up to ``seq`` without ``read_at`` were read now."""
    meta: dict[str, str] = {}
    """``user``, ``sync``, ``history``."""
    handoffs: list[int] = []
    """Numbers of the handed over commands (``TakeHandoff``) that this carries out: deleted with it."""

    def __bool__(self) -> bool:
        return bool(
            self.resets
            or self.messages
            or self.updates
            or self.conversations
            or self.reads
            or self.meta
            or self.handoffs
        )


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine starts from: everything but settled history."""

    meta: dict[str, str] = {}
    conversations: list[ConversationRow] = []
    outbox: list[MessageRow] = []
    """Own messages not settled, by (conversation, stream, n): those with ``void`` set, and those whose
    state is not delivered, cancelled or failed for good (a refused one that blocks is not settled).
    Displaced ones (stream 0, see ``Changes.resets``) come first."""
    buffered: list[MessageRow] = []
    """Entries received beyond a gap (``seq`` > ``position``), whosever, by (conversation, seq)."""
    arrival: int = 0
    """The highest position given so far."""


# --- commands: what the app wants --------------------------------------------------------------


class SendMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Queue a message; durable once the Changes that carry it are committed."""

    conversation: str
    key: str
    format: str
    body: str
    role: str = "user"
    metadata: dict[str, Any] | None = None
    reply_to: str | None = None
    on_reject: str = "skip"
    expires_in_s: float | None = None

    def __repr__(self) -> str:
        return f"<SendMessage in {self.conversation}>"


class RetryMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Take a failed message up again now; with ``id`` None, all of them."""

    id: str | None = None


class CancelMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Withdraw a message; final at once if it never left, else when the server has answered."""

    id: str


class MarkRead(msgspec.Struct, frozen=True, kw_only=True):
    """This user has read the conversation up to ``seq``."""

    conversation: str
    seq: int


class SetTyping(msgspec.Struct, frozen=True, kw_only=True):
    """Tell the others that this user types; may be lost."""

    conversation: str
    on: bool


class CallServer(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the server and wait for its answer over reconnections; ``CallAnswered`` comes back."""

    call: p.Call
    timeout_s: float


class SetToken(msgspec.Struct, frozen=True, kw_only=True):
    """The access token to use from now on; ``None``: there is none (signed out)."""

    token: str | None
    expires_in_s: float = 0.0

    def __repr__(self) -> str:
        return "<SetToken>"


class TokenFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A refresh failed: for good (sign in again), or for now."""

    permanent: bool
    text: str = ""


HandedOver: TypeAlias = SendMessage | RetryMessage | CancelMessage | MarkRead
"""What another process on the same store may have this one do."""


class TakeHandoff(msgspec.Struct, frozen=True, kw_only=True):
    """Do what another process wrote into the store; the Changes that carry it delete it there.

    A message is durable and promised already: it is taken whatever the limits are, and where its
    conversation was left meanwhile, the server's refusal is what becomes of it.
    """

    number: int
    command: HandedOver | None
    """None: nothing is left to do, it is only to be deleted."""
    at: float
    """When it was handed over, on the wall clock."""


class Connect(msgspec.Struct, frozen=True, kw_only=True):
    """Begin connecting, or probe at once if it already tries (network change, foreground)."""


class WokeUp(msgspec.Struct, frozen=True, kw_only=True):
    """The machine was suspended: ask the link whether it lives, or probe at once; nothing if stopped."""


class Disconnect(msgspec.Struct, frozen=True, kw_only=True):
    """Close cleanly and stay offline until ``Connect``."""


Command: TypeAlias = (
    SendMessage
    | RetryMessage
    | CancelMessage
    | MarkRead
    | TakeHandoff
    | SetTyping
    | CallServer
    | SetToken
    | TokenFailed
    | Connect
    | WokeUp
    | Disconnect
)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a link failed to open or closed, as the driver saw it."""

    kind: str
    """``refused`` and ``http`` (the server's), ``network`` (unreachable, reset, DNS), ``closed``,
    ``protocol``."""
    text: str = ""
    status: int = 0
    """The HTTP status, if an answer came."""
    retry_after_s: float | None = None


# --- actions: what the driver does -------------------------------------------------------------


class OpenLink(msgspec.Struct, frozen=True, kw_only=True):
    """Open a connection under this number; report ``opened`` or ``closed``."""

    link: int


class CloseLink(msgspec.Struct, frozen=True, kw_only=True):
    """Close it; nothing more is expected from it."""

    link: int
    reason: str = ""


class SendItems(msgspec.Struct, frozen=True, kw_only=True):
    """Write these items, in order, as frames."""

    link: int
    items: tuple[p.ClientItem, ...]


class RefreshToken(msgspec.Struct, frozen=True, kw_only=True):
    """Get a new access token, once for everyone; answer with ``SetToken`` or ``TokenFailed``."""


Action: TypeAlias = OpenLink | CloseLink | SendItems | RefreshToken


class CallAnswered(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a ``CallServer``; without an answer in time, ``answer`` is None."""

    id: str
    answer: p.Answer | None
