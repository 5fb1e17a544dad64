"""What the judges of a simulated run look up in its history."""

from math import inf

from whimbrel.model import FailureReason, SendState
from whimbrel.testing.history import Claim, History, Sighting, Submission

__all__ = [
    "entries_of",
    "gone_with_its_sender",
    "last_claims",
    "log_of",
    "members_unknown",
    "read_by",
    "stays_of",
    "was_outside",
    "withdrawn_since",
]


def log_of(history: History, conversation: str) -> list[Sighting]:
    """The log as the ledger holds it; `agreed` sees to it that its members may read it."""
    return history.whole.get(conversation, [])


def stays_of(history: History, user: str, conversation: str) -> list[tuple[int, float]]:
    """The user's times in a conversation: (the entry of its joining, that of its leaving or infinity)."""
    stays: list[tuple[int, float]] = []
    for move in history.moves.get(conversation, []):
        if move.user != user:
            continue
        if move.joined:
            stays.append((move.seq, inf))
        elif stays:
            stays[-1] = (stays[-1][0], move.seq)
    return stays


def was_outside(history: History, user: str, conversation: str, from_s: float, to_s: float) -> bool:
    """Whether the user was no member at some time of these."""
    outside_since: float | None = -inf
    for move in history.moves.get(conversation, []):
        if move.user != user:
            continue
        if move.joined:
            if outside_since is not None and outside_since <= to_s and move.at_s >= from_s:
                return True
            outside_since = None
        else:
            outside_since = move.at_s
    return outside_since is not None and outside_since <= to_s


def entries_of(history: History) -> dict[str, list[Sighting]]:
    """Message id → its entries, over all logs: each must be one."""
    entries: dict[str, list[Sighting]] = {}
    for conversation in history.members:
        for entry in log_of(history, conversation):
            if entry.kind == "message":
                entries.setdefault(entry.id, []).append(entry)
    return entries


def last_claims(history: History) -> dict[str, Claim]:
    """Message id → what its app was told last."""
    return {claim.id: claim for claim in history.claims}


def read_by(history: History, user: str, conversation: str, at_s: float) -> int:
    """How far a user had said it has read by then."""
    return max(
        (
            read.seq
            for read in history.reads
            if read.user == user and read.conversation == conversation and read.at_s <= at_s
        ),
        default=0,
    )


def withdrawn_since(history: History, claim: Claim) -> bool:
    """A delivered message that a restored server lacks waits again, and may then be withdrawn.

    Or refused, where its sender may have come or gone in the history that was lost. What was on its way to
    the app when the server was restored is told after that; `no_lie` counts how often anything is undone.
    """
    sent = history.submissions[claim.id]
    last = last_claims(history)[claim.id]
    if last.reason is FailureReason.REJECTED:
        return members_unknown(history, sent.conversation)
    return bool(history.restored) and sent.cancel_at_s is not None and last.state is SendState.CANCELLED


def members_unknown(history: History, conversation: str) -> bool:
    """In a history that was lost somebody may have come or gone: who was where is not known any more."""
    return bool(history.restored) and conversation in history.moving


def gone_with_its_sender(history: History, sent: Submission) -> bool:
    """It was in a history that was lost, and its sender is not there any more to offer it again."""
    user = history.users[sent.device]
    return members_unknown(history, sent.conversation) and user not in history.members[sent.conversation]
