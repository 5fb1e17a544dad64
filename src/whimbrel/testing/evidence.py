"""What the judges of a simulated run look up in its history."""

from bisect import bisect_right
from math import inf

from whimbrel.model import SendState
from whimbrel.testing.history import Claim, History, Sighting, Submission

__all__ = ["entries_of", "last_claims", "log_of", "read_by", "stays_of", "was_outside"]


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
    """A delivered message that a restored server lacks waits again, and may then be withdrawn."""
    sent = history.submissions[claim.id]
    restored_since = bisect_right(history.restored, claim.at_s) < len(history.restored)
    last = last_claims(history)[claim.id]
    return restored_since and sent.cancel_at_s is not None and last.state is SendState.CANCELLED


def membership_lost(history: History, sent: Submission) -> bool:
    """In a history that was lost its sender may have come or gone, and it was refused there, or is now."""
    return bool(history.restored) and sent.conversation in history.moving
