"""Was every promise kept? Judges the history of a run, knowing nothing of how engine and server work.

Each check is a function from a `History` to the violations it found, one line each, naming messages by id.
`CHECKS` holds them all; `check` runs them. What they demand is what the guarantees say: nothing lost,
doubled, reordered or changed, all members agree and nobody else sees anything, no status that lied,
everything drained in time once the faults stopped, no spinning in any phase. After the server was restored
from an old backup the log is another one: what was seen before need not fit it, but every message that
`send()` returned for is in it, and everyone has seen all of it.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from whimbrel.model import FailureReason, SendState
from whimbrel.testing.checker_seen import closed_to_others, lives_in_order, seen_by_all
from whimbrel.testing.evidence import (
    entries_of,
    gone_with_its_sender,
    last_claims,
    log_of,
    members_unknown,
    read_by,
    stays_of,
    was_outside,
    withdrawn_since,
)
from whimbrel.testing.history import Claim, History, Submission
from whimbrel.testing.simclock import EPOCH_S

__all__ = [
    "CHECKS",
    "LIMITS",
    "Check",
    "agreed",
    "check",
    "closed_to_others",
    "decisions_awaited",
    "drained",
    "lives_in_order",
    "logs_whole",
    "no_lie",
    "no_lie_about_reading",
    "no_spinning",
    "nothing_lost",
    "order_kept",
    "receipts_arrived",
    "seen_by_all",
    "unchanged",
    "within_budget",
    "world_sound",
]

Check = Callable[[History], Iterator[str]]

LIMITS: Final[dict[str, dict[str, int]]] = {
    "storm": {"opened": 300, "items": 300, "refreshed": 40, "turns": 2_000},
    "recovery": {"opened": 300, "items": 300, "refreshed": 40, "turns": 2_000},
    "idle": {"opened": 6, "items": 30, "refreshed": 6, "turns": 100},
}
"""What a device may use in one virtual minute of each phase; whatever it used more of, it was spinning.

`opened`: a lost link is probed for 10 s every 0.2 s and then every 0.5 s: 150 connections in its first
minute, and another link may be lost within that. `items`: beyond what resuming repeats and three for each
message it writes; the rest are pings, receipts and pages. `refreshed`: a token that cannot be had is asked
for every 5 s, after a few quick attempts. `turns` of the driver's loop: beside ten for each message. `idle`
is a link with a ping every 10 s, and at most one token that is renewed every 13 s.
"""
RETRIES_SLACK: Final = 2
CLOCK_SLACK_S: Final = 0.001
SETTLED_STATES: Final = frozenset({SendState.DELIVERED, SendState.READ, SendState.CANCELLED})
VIOLATIONS_MAX: Final = 20
"""Of each check; one bug can break a thousand things."""


def check(history: History) -> list[str]:
    """All violations, those of each check together, at most 20 of each."""
    found: list[str] = []
    for one in CHECKS:
        name = one.__name__
        for number, text in enumerate(one(history)):
            if number == VIOLATIONS_MAX:
                found.append(f"{name}: and more")
                break
            found.append(f"{name}: {text}")
    return found


def nothing_lost(history: History) -> Iterator[str]:
    """Every send that returned is in the log, unless it was withdrawn, expired or refused (and told so)."""
    entries = entries_of(history)
    last = last_claims(history)
    for sent in history.submissions.values():
        if sent.returned_at_s is None or sent.id in entries:
            continue
        if gone_with_its_sender(history, sent):
            continue
        claim = last.get(sent.id)
        if sent.cancel_at_s is not None and claim is not None and claim.state is SendState.CANCELLED:
            continue
        if sent.expires and claim is not None and claim.reason is FailureReason.EXPIRED:
            continue
        if (
            claim is not None
            and claim.reason is FailureReason.REJECTED
            and _may_be_refused(history, sent, claim)
        ):
            continue
        state = "nothing" if claim is None else claim.state
        yield f"{sent!r}: send() returned at {sent.returned_at_s:.3f}, not in the log, last told: {state}"


def _may_be_refused(history: History, sent: Submission, claim: Claim) -> bool:
    """It is invalid, or the server could not take it again and again, or its sender was no member."""
    if sent.refusable or sent.id in history.poisoned or members_unknown(history, sent.conversation):
        return True
    return was_outside(history, history.users[sent.device], sent.conversation, sent.at_s, claim.at_s)


def logs_whole(history: History) -> Iterator[str]:
    """Logs have no hole and nothing twice, and hold only what some app handed over."""
    for conversation in history.members:
        for place, entry in enumerate(log_of(history, conversation), 1):
            if entry.seq != place:
                yield f"{conversation}: entry {place} of the log has seq {entry.seq}"
                break
    for id, entries in entries_of(history).items():
        if len(entries) > 1:
            yield f"{id} is in the log {len(entries)} times: seq {[entry.seq for entry in entries]}"
        stays = stays_of(history, entries[0].sender, entries[0].conversation)
        if not any(first <= entries[0].seq <= last for first, last in stays):
            yield f"{id} is in the log, though its sender was no member"
        if id not in history.submissions:
            yield f"{id} is in the log and nobody sent it"
        elif history.submissions[id].refusable:
            yield f"{id} is in the log, though it is invalid"


def order_kept(history: History) -> Iterator[str]:
    """What one app wrote to a conversation is in the log in the order it was written."""
    for conversation in history.members:
        highest: dict[str, Submission] = {}
        for entry in log_of(history, conversation):
            sent = history.submissions.get(entry.id)
            if sent is None:
                continue
            before = highest.get(sent.device)
            if before is not None and before.index > sent.index:
                yield f"{sent!r} comes after #{before.index} in the log"
            else:
                highest[sent.device] = sent


def unchanged(history: History) -> Iterator[str]:
    """Content, sender and conversation are those that were handed over, in the log and in every app."""
    seen = [*history.live, *history.consumed]
    for entries in history.logs.values():
        seen += entries
    for entry in seen:
        sent = history.submissions.get(entry.id)
        if sent is None or entry.kind != "message":
            continue
        if entry.body != sent.body:
            yield f"{entry!r}: other content than was sent"
        if entry.sender != history.users[sent.device] or entry.conversation != sent.conversation:
            yield f"{entry!r}: another sender or conversation than {sent!r}"


def agreed(history: History) -> Iterator[str]:
    """Every member may read the log from its joining on, and who left up to that; nobody reads another."""
    for (user, conversation), read in history.logs.items():
        stays = stays_of(history, user, conversation)
        first, last = stays[-1] if stays else (inf, inf)
        mine = [(e.seq, e.id) for e in log_of(history, conversation) if first <= e.seq <= last]
        if [(entry.seq, entry.id) for entry in read] != mine:
            yield f"{conversation}: {user} does not read the log that it may read"
    for conversation, members in history.members.items():
        for user in members:
            if (user, conversation) not in history.logs:
                yield f"{conversation}: {user} is a member and cannot read it"


def _is_final(claim: Claim) -> bool:
    failed = claim.state is SendState.FAILED and not claim.can_retry
    return failed or claim.state is SendState.CANCELLED


def _taken_back(history: History, claim: Claim) -> bool:
    """What was refused in one history may be in the log of the backup that came after it.

    Until the device has read that, its store says what it said before.
    """
    later = bisect_right(history.restored, claim.at_s) < len(history.restored)
    unread = not claim.live and (history.drained_s is None or claim.at_s < history.drained_s)
    return later or (bool(history.restored) and unread)


def _too_early(history: History, claim: Claim) -> bool:
    sent = history.submissions.get(claim.id)
    waited = sent is not None and claim.at_s >= sent.expires_at_s - CLOCK_SLACK_S
    return not waited and claim.device not in history.stepped


def no_lie(history: History) -> Iterator[str]:
    """`delivered` only once in the log, `cancelled` and final failures never there, nothing undone."""
    entries = entries_of(history)
    settled: dict[str, Claim] = {}
    undone: Counter[str] = Counter()
    for claim in history.claims:
        sent = history.submissions.get(claim.id)
        entry = entries.get(claim.id, [None])[0]
        restores = bisect_right(history.restored, claim.at_s)
        what = f"{claim.device} was told {claim.state} of {claim.id} at {claim.at_s:.3f}"
        if claim.state in (SendState.DELIVERED, SendState.READ):
            if entry is None:
                if sent is None or not (
                    gone_with_its_sender(history, sent) or withdrawn_since(history, claim)
                ):
                    yield f"{what}, but it is not in the log"
            elif entry.at_s - EPOCH_S > claim.at_s and not history.restored:
                yield f"{what}, but it was committed at {entry.at_s - EPOCH_S:.3f}"
        elif entry is not None and _is_final(claim) and not _taken_back(history, claim):
            yield f"{what}, but it is in the log as seq {entry.seq}"
        if claim.state is SendState.CANCELLED and (sent is None or sent.cancel_at_s is None):
            yield f"{what}, but nobody cancelled it"
        if claim.reason is FailureReason.EXPIRED and _too_early(history, claim):
            yield f"{what}, it expired, and that was too early"
        before = settled.get(claim.id)
        if before is not None and claim.state not in (SendState.READ, before.state):
            # What was delivered to a history that was lost waits again, once for each that was lost.
            undone[claim.id] += claim.state is not SendState.DELIVERED
            if before.state is SendState.CANCELLED or undone[claim.id] > restores or not restores:
                yield f"{what}, after {before.state} at {before.at_s:.3f}"
            del settled[claim.id]
        if claim.state in SETTLED_STATES:
            settled[claim.id] = claim


def no_lie_about_reading(history: History) -> Iterator[str]:
    """`read` only when every other member had read it; nobody is said to have read more than it did."""
    entries = entries_of(history)
    for claim in history.claims:
        if claim.state is not SendState.READ or claim.id not in entries or history.restored:
            continue  # places of a lost history and of the new one cannot be told apart
        entry = entries[claim.id][0]
        for user in history.members[entry.conversation]:
            stays = stays_of(history, user, entry.conversation)
            if user == entry.sender or len(stays) > 1 or stays[0][0] > entry.seq:
                continue  # who came later, or was away, is not waited for
            if read_by(history, user, entry.conversation, claim.at_s) < entry.seq:
                yield f"{claim.device} was told {claim.id} is read, but {user} had not read it"
    highest: dict[tuple[str, int, str, str], int] = {}
    for device, incarnation, told in history.receipts:
        if told.seq > read_by(history, told.user, told.conversation, told.at_s):
            yield f"{device} was told {told.user} read {told.conversation} up to {told.seq}: it had not"
        key = (device, incarnation, told.conversation, told.user)
        times, positions = history.stored_at.get((told.user, told.conversation), ([], []))
        place = bisect_right(times, told.at_s)
        if told.received > (positions[place - 1] if place else 0):
            upto = f"received {told.conversation} up to {told.received}"
            yield f"{device} was told {told.user} {upto}: it had not"
        if told.seq < highest.get(key, 0) and not bisect_right(history.restored, told.at_s):
            yield f"{device}: the receipt of {told.user} in {told.conversation} went back to {told.seq}"
        highest[key] = told.seq


def decisions_awaited(history: History) -> Iterator[str]:
    """With `on_reject="block"`, nothing behind a refused message arrives before the app has decided.

    One that expired before any refusal was told never was a refused message: the app had set its time.
    """
    told_refused = {claim.id for claim in history.claims if claim.reason is FailureReason.REJECTED}
    told_expired = {claim.id for claim in history.claims if claim.reason is FailureReason.EXPIRED}
    refused: dict[tuple[str, str], list[Submission]] = {}
    for sent in history.submissions.values():
        expired = sent.expires and sent.id in told_expired - told_refused
        if sent.refusable and sent.blocks and not expired and sent.returned_at_s is not None:
            refused.setdefault((sent.device, sent.conversation), []).append(sent)
    if not refused:
        return
    for conversation in history.members:
        for entry in log_of(history, conversation):
            behind = history.submissions.get(entry.id)
            if behind is None:
                continue
            for sent in refused.get((behind.device, conversation), ()):
                decided_s = sent.cancel_at_s
                if sent.index < behind.index and (decided_s is None or entry.at_s - EPOCH_S < decided_s):
                    yield f"{behind!r} arrived at {entry.at_s - EPOCH_S:.3f}, before a decision on {sent!r}"


def receipts_arrived(history: History) -> Iterator[str]:
    """In the end each device knows that all others have received everything, but for what they sent last."""
    if history.drained_s is None:
        return
    for device, user in history.users.items():
        for conversation, members in history.members.items():
            if user not in members:
                continue
            log = log_of(history, conversation)
            for other in members:
                told = history.told_received.get((device, conversation, other), 0)
                owed = max((entry.seq for entry in log if entry.sender != other), default=0)
                if other != user and not owed <= told <= len(log):
                    yield f"{device} thinks {other} received {conversation} up to {told} of {len(log)}"


def drained(history: History) -> Iterator[str]:
    """Once the faults stopped, everything arrived everywhere within the time allowed."""
    for device, count in history.waiting.items():
        if count:
            yield f"{device}: {count} own messages still wait"
    if history.drained_s is None:
        yield f"not everything had arrived in time; the faults stopped at {history.faults_ended_s:.1f}"


def no_spinning(history: History) -> Iterator[str]:
    """In no phase did a device ask more of network and processor in a minute than an honest one needs."""
    written = Counter(sent.device for sent in history.submissions.values())
    for (device, phase, minute), usage in history.usage.items():
        limits = LIMITS[phase]
        where = f"in minute {minute}, {phase}"
        busy = 0 if phase == "idle" else written[device]
        if usage.opened > limits["opened"]:
            yield f"{device}: {usage.opened} connections begun {where}"
        if usage.items > limits["items"] + 2 * usage.backlog + 3 * busy:
            yield f"{device}: {usage.items} items sent {where}, backlog {usage.backlog}"
        if usage.refreshed > limits["refreshed"]:
            yield f"{device}: {usage.refreshed} tokens asked for {where}"
        if usage.turns > limits["turns"] + 10 * busy:
            yield f"{device}: {usage.turns} turns {where}"


def within_budget(history: History) -> Iterator[str]:
    """Over all conversations, no more second and further attempts than the retry budget allows."""
    burst, per_s = history.retry_budget
    times: dict[tuple[str, int, int], list[float]] = {}
    for claim in history.claims:
        if claim.state is SendState.RETRYING and claim.retry > 1 and claim.live:
            times.setdefault((claim.device, claim.incarnation, claim.load), []).append(claim.at_s)
    for (device, _, _), failed_s in times.items():
        allowed = burst + per_s * (failed_s[-1] - failed_s[0]) + RETRIES_SLACK
        if len(failed_s) > allowed:
            took_s = failed_s[-1] - failed_s[0]
            yield f"{device}: {len(failed_s)} retries failed within {took_s:.1f} s, {allowed:.1f} are allowed"


def world_sound(history: History) -> Iterator[str]:
    """The world itself noticed nothing wrong."""
    yield from history.faults


CHECKS: Final[tuple[Check, ...]] = (
    nothing_lost,
    logs_whole,
    order_kept,
    unchanged,
    agreed,
    closed_to_others,
    seen_by_all,
    lives_in_order,
    no_lie,
    no_lie_about_reading,
    decisions_awaited,
    receipts_arrived,
    drained,
    no_spinning,
    within_budget,
    world_sound,
)
