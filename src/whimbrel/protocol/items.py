"""The items of both directions, and the limits they keep. ``docs/protocol.md`` is normative."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

VERSION = 1

FRAME_BYTES = 16 * 1024
"""What a sender packs into one frame, unless a single item is larger."""
FRAME_BYTES_MAX = 1024 * 1024
"""What a receiver takes; a larger frame closes the link."""
FRAME_ITEMS_MAX = 4096
BODY_BYTES_MAX = 256 * 1024
METADATA_BYTES_MAX = 16 * 1024
ID_CHARS_MAX = 64
KEY_CHARS_MAX = 128
PAGE_MAX = 100
MEMBERS_MAX = 1000
TITLE_CHARS_MAX = 200


class _Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t"):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the server takes."""

    frame_bytes_max: int = FRAME_BYTES_MAX
    body_bytes_max: int = BODY_BYTES_MAX
    page_max: int = PAGE_MAX


class Credits(_Item, frozen=True, kw_only=True, tag="credits"):
    """How fast this user may send: ``rate`` messages/s, ``burst`` at once; ``rate`` 0 is unlimited."""

    rate: float = 0.0
    burst: int = 0
    available: float = 0.0


class Head(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a conversation's log goes, for this user."""

    conversation: str
    epoch: str
    seq: int
    floor: int = 0
    """The log is visible from ``floor + 1`` on; what is before is a legitimate hole."""
    title: str | None = None
    members: tuple[str, ...] | None = None
    """Given when the set of members may be new to the client."""
    receipts: tuple[tuple[str, int, int], ...] = ()
    """(user, received, read), those that may be new to the client."""
    left: bool = False
    """The user is no longer a member; ``seq`` is the last entry it may see."""

    def __repr__(self) -> str:
        return f"<Head of {self.conversation} at {self.seq}>"


class ConversationInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as ``Answer`` and the HTTP calls give it."""

    id: str
    title: str
    epoch: str
    seq: int
    floor: int
    members: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<ConversationInfo of {self.id} at {self.seq}>"


# --- client to server -------------------------------------------------------------------------


class Hello(_Item, frozen=True, kw_only=True, tag="hello"):
    """The first item on a link: the newest hello of a device owns it, older links are closed."""

    token: str
    version: int = VERSION
    sync: str | None = None
    agent: str = ""


class Auth(_Item, frozen=True, kw_only=True, tag="auth"):
    """A fresh access token for a standing link."""

    token: str


class Send(_Item, frozen=True, kw_only=True, tag="send"):
    """One message: number ``n`` of ``stream`` of this device in this conversation, under ``key``."""

    conversation: str
    stream: int
    n: int
    key: str
    body: str
    format: str = "text"
    """``text``; ``json`` (body is JSON text); ``bytes`` (body is base64)."""
    alg: str = "none"
    """How the body is sealed; ``none`` is plain."""
    role: str = "user"
    metadata: dict[str, Any] | None = None
    reply_to: str | None = None
    sent_at: float = 0.0
    on_reject: str = "skip"


class Void(_Item, frozen=True, kw_only=True, tag="void"):
    """Number ``n`` will not be sent; those behind it need not wait."""

    conversation: str
    stream: int
    n: int
    key: str
    reason: str = "cancelled"


class Fetch(_Item, frozen=True, kw_only=True, tag="fetch"):
    """Ask for entries with ``seq`` > ``since``; answered by ``Page``, or ``Error`` that names it."""

    conversation: str
    since: int = 0
    limit: int = PAGE_MAX


class Status(_Item, frozen=True, kw_only=True, tag="status"):
    """Ask what became of these numbers; answered by their outcomes, or by ``OutOfOrder``."""

    conversation: str
    stream: int
    numbers: tuple[int, ...]


class Received(_Item, frozen=True, kw_only=True, tag="received"):
    """This user's device has all entries up to ``seq`` on disk."""

    conversation: str
    seq: int


class Read(_Item, frozen=True, kw_only=True, tag="read"):
    """This user has read all entries up to ``seq``."""

    conversation: str
    seq: int


class Typing(_Item, frozen=True, kw_only=True, tag="typing"):
    """This user types, or stopped; may be lost."""

    conversation: str
    on: bool = True


class Ping(_Item, frozen=True, kw_only=True, tag="ping"):
    """Answered by ``Pong`` with the same id, before anything else that waits."""

    id: int = 0


class Compare(_Item, frozen=True, kw_only=True, tag="compare"):
    """How far the client knows all its logs together; if the server knows otherwise, it tells all heads."""

    version: int
    """The sum of the heads' ``seq`` over the conversations in which the user is."""


class Bye(_Item, frozen=True, kw_only=True, tag="bye"):
    """The client closes on purpose."""


class Call(_Item, frozen=True, kw_only=True, tag="call"):
    """A request that may be repeated: ``create``, ``add``, ``remove``, ``list``; answered by ``Answer``."""

    id: str
    op: str
    conversation: str = ""
    title: str = ""
    members: tuple[str, ...] = ()
    user: str = ""


ClientItem: TypeAlias = (
    Hello | Auth | Send | Void | Fetch | Status | Received | Read | Typing | Ping | Compare | Bye | Call
)

# --- server to client -------------------------------------------------------------------------


class Welcome(_Item, frozen=True, kw_only=True, tag="welcome"):
    """The link is good; ``heads`` are what changed since the sync token (all, without one)."""

    user: str
    device: str
    history: str
    """Names the server's history; another one than before: positions may not fit any more."""
    sync: str
    heads: tuple[Head, ...] = ()
    complete: bool = False
    """``heads`` are all conversations of the user, not only the changed ones."""
    credits: Credits = Credits()
    limits: Limits = Limits()
    reconnect_spread_s: float = 0.0
    time: float = 0.0
    token_expires_in_s: float = 0.0


class Accepted(_Item, frozen=True, kw_only=True, tag="accepted"):
    """The buffer has it, at ``position`` of its ``epoch``: not yet a promise."""

    conversation: str
    stream: int
    n: int
    id: str
    epoch: str = ""
    position: str = ""


class Delivered(_Item, frozen=True, kw_only=True, tag="delivered"):
    """Committed in the permanent store as entry ``seq``. For this device it is also that entry's event."""

    conversation: str
    stream: int
    n: int
    id: str
    epoch: str
    seq: int
    at: float


class Rejected(_Item, frozen=True, kw_only=True, tag="rejected"):
    """Refused. ``final``: its number is void, those behind go on. Else: number ``n`` is still expected."""

    conversation: str
    stream: int
    n: int
    code: str
    text: str = ""
    final: bool = False
    retry_after_s: float | None = None


class Voided(_Item, frozen=True, kw_only=True, tag="voided"):
    """Number ``n`` is void for ever."""

    conversation: str
    stream: int
    n: int
    reason: str = "cancelled"


class OutOfOrder(_Item, frozen=True, kw_only=True, tag="out_of_order"):
    """Number ``expected`` comes first; 0: the server cannot know (restored), begin a new stream."""

    conversation: str
    stream: int
    expected: int


class Event(_Item, frozen=True, kw_only=True, tag="event"):
    """Entry ``seq`` of a conversation's log."""

    conversation: str
    epoch: str
    seq: int
    id: str
    sender: str
    kind: str = "message"
    body: str = ""
    format: str = "text"
    alg: str = "none"
    role: str = "user"
    metadata: dict[str, Any] | None = None
    reply_to: str | None = None
    sent_at: float = 0.0
    at: float = 0.0


class Page(_Item, frozen=True, kw_only=True, tag="page"):
    """Entries after ``since``, without a gap except below ``floor``; ``head`` is the log's end."""

    conversation: str
    epoch: str
    since: int
    events: tuple[Event, ...]
    head: int
    floor: int = 0


class Heads(_Item, frozen=True, kw_only=True, tag="heads"):
    """Conversations that appeared or changed; ``sync`` covers everything sent on this link before it."""

    heads: tuple[Head, ...] = ()
    sync: str | None = None


class Receipts(_Item, frozen=True, kw_only=True, tag="receipts"):
    """How far members of a conversation have received and read."""

    conversation: str
    receipts: tuple[tuple[str, int, int], ...]
    """(user, received, read), one for each member of whom there is news."""


class TypingOf(_Item, frozen=True, kw_only=True, tag="typing_of"):
    """A member types, or stopped."""

    conversation: str
    user: str
    on: bool = True


class Pong(_Item, frozen=True, kw_only=True, tag="pong"):
    """The answer to a ping; ``sync`` as in ``Heads``."""

    id: int = 0
    sync: str | None = None


class Error(_Item, frozen=True, kw_only=True, tag="error"):
    """Something went wrong with the link, or with what concerned ``conversation``."""

    code: str
    text: str = ""
    conversation: str = ""
    retry_after_s: float | None = None


class Goaway(_Item, frozen=True, kw_only=True, tag="goaway"):
    """The server goes down, or a newer link owns the device (``replaced``): come back in that time."""

    reconnect_in_s: float = 0.0
    reason: str = ""


class Answer(_Item, frozen=True, kw_only=True, tag="answer"):
    """The answer to ``Call`` ``id``: ``code`` is empty on success."""

    id: str
    code: str = ""
    text: str = ""
    conversations: tuple[ConversationInfo, ...] = ()


ServerItem: TypeAlias = (
    Welcome
    | Accepted
    | Delivered
    | Rejected
    | Voided
    | OutOfOrder
    | Event
    | Page
    | Heads
    | Receipts
    | TypingOf
    | Pong
    | Error
    | Goaway
    | Answer
    | Credits
)


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """An item of a tag this version does not know, or that does not fit its tag."""

    tag: str
    reason: str = ""
