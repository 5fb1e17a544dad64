"""Was every promise kept? Judges the history of a run, knowing nothing of how engine and server work.

Each check is a function from a `History` to the violations it found, one line each, naming messages by id.
`CHECKS` holds them all; `check` runs them. What they demand is what the guarantees say: nothing lost,
doubled, reordered or changed, all members agree, no status that lied, everything drained in time once the
faults stopped, and no spinning at any time.
"""

from collections.abc import Callable, Iterator
from typing import Final

from whimbrel.model import FailureReason, SendState
from whimbrel.testing.history import Claim, History, Sighting, Submission
from whimbrel.testing.simclock import EPOCH_S

__all__ = [
    "CHECKS",
    "ITEMS_PER_MINUTE_MAX",
    "OPENED_PER_MINUTE_MAX",
    "Check",
    "agreed",
    "check",
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
    "world_sound",
]

Check = Callable[[History], Iterator[str]]

OPENED_PER_MINUTE_MAX: Final = 400
"""Connections begun in one virtual minute: five a second at the very most, and some beside another."""
ITEMS_PER_MINUTE_MAX: Final = 600
"""Items sent in one virtual minute, beyond what links that came up had to repeat."""
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


def _log(history: History, conversation: str) -> list[Sighting]:
    """The log as its first member reads it; `agreed` sees to it that all read the same."""
    members = history.members[conversation]
    return history.logs.get((members[0], conversation), [])


def _entries(history: History) -> dict[str, list[Sighting]]:
    """Message id → its entries, over all logs: each must be one."""
    entries: dict[str, list[Sighting]] = {}
    for conversation in history.members:
        for entry in _log(history, conversation):
            if entry.kind == "message":
                entries.setdefault(entry.id, []).append(entry)
    return entries


def _last_claims(history: History) -> dict[str, Claim]:
    return {claim.id: claim for claim in history.claims}


def nothing_lost(history: History) -> Iterator[str]:
    """Every send that returned is in the log, unless it was withdrawn, expired or refused (and told so)."""
    entries = _entries(history)
    last = _last_claims(history)
    for sent in history.submissions.values():
        if sent.returned_at_s is None or sent.id in entries:
            continue
        claim = last.get(sent.id)
        if sent.cancel_at_s is not None and claim is not None and claim.state is SendState.CANCELLED:
            continue
        if sent.expires and claim is not None and claim.reason is FailureReason.EXPIRED:
            continue
        if sent.refusable and claim is not None and claim.reason is FailureReason.REJECTED:
            continue
        state = "nothing" if claim is None else claim.state
        yield f"{sent!r}: send() returned at {sent.returned_at_s:.3f}, not in the log, last told: {state}"


def logs_whole(history: History) -> Iterator[str]:
    """Logs have no hole and nothing twice, and hold only what some app handed over."""
    for conversation in history.members:
        for place, entry in enumerate(_log(history, conversation), 1):
            if entry.seq != place:
                yield f"{conversation}: entry {place} of the log has seq {entry.seq}"
                break
    for id, entries in _entries(history).items():
        if len(entries) > 1:
            yield f"{id} is in the log {len(entries)} times: seq {[entry.seq for entry in entries]}"
        if id not in history.submissions:
            yield f"{id} is in the log and nobody sent it"
        elif history.submissions[id].refusable:
            yield f"{id} is in the log, though it is invalid"


def order_kept(history: History) -> Iterator[str]:
    """What one app wrote to a conversation is in the log in the order it was written."""
    for conversation in history.members:
        highest: dict[str, Submission] = {}
        for entry in _log(history, conversation):
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
    """All members may read the same log."""
    for conversation, members in history.members.items():
        first = [(entry.seq, entry.id) for entry in _log(history, conversation)]
        for user in members[1:]:
            other = [(entry.seq, entry.id) for entry in history.logs.get((user, conversation), [])]
            if other != first:
                yield f"{conversation}: {user} reads another log than {members[0]}"


def seen_by_all(history: History) -> Iterator[str]:
    """Each device's durable consumer handled the whole log, in order; again only what a crash interrupted."""
    handled: dict[tuple[str, str], list[Sighting]] = {}
    for sighting in history.consumed:
        handled.setdefault((sighting.device, sighting.conversation), []).append(sighting)
    for device, user in history.users.items():
        for conversation, members in history.members.items():
            if user not in members:
                continue
            log = _log(history, conversation)
            yield from _handled_is_log(device, conversation, handled.pop((device, conversation), []), log)
    for device, conversation in handled:
        yield f"{device} saw entries of {conversation}, of which its user is no member"


def _handled_is_log(
    device: str, conversation: str, handled: list[Sighting], log: list[Sighting]
) -> Iterator[str]:
    upto = 0
    life, upto_in_life = -1, 0
    for sighting in handled:
        if sighting.incarnation != life:
            life, upto_in_life = sighting.incarnation, 0
        if sighting.seq <= upto_in_life:
            yield f"{device}: {sighting.id} handled twice in one life (seq {sighting.seq} of {conversation})"
        if sighting.seq > (upto_in_life or upto) + 1:
            yield f"{device}: jumped to {sighting.seq} in {conversation}, past {upto_in_life or upto}"
        if sighting.seq <= len(log) and log[sighting.seq - 1].id != sighting.id:
            yield f"{device}: seq {sighting.seq} of {conversation} was {sighting.id}, the log says another"
        upto_in_life = sighting.seq
        upto = max(upto, sighting.seq)
    if upto != len(log):
        yield f"{device}: saw {conversation} up to {upto} of {len(log)}"


def lives_in_order(history: History) -> Iterator[str]:
    """Within one life of an app, events of a conversation come one after the other: no gap, none twice."""
    upto: dict[tuple[str, int, str], int] = {}
    for sighting in history.live:
        key = (sighting.device, sighting.incarnation, sighting.conversation)
        before = upto.get(key)
        if before is not None and sighting.seq != before + 1:
            yield f"{sighting.device}: after seq {before} of {sighting.conversation} came {sighting.seq}"
        upto[key] = sighting.seq
        log = _log(history, sighting.conversation)
        if sighting.seq > len(log) or log[sighting.seq - 1].id != sighting.id:
            yield f"{sighting!r} is not that entry of the log"


def no_lie(history: History) -> Iterator[str]:
    """`delivered` only once in the log, `cancelled` and final failures never there, nothing undone."""
    entries = _entries(history)
    settled: dict[str, Claim] = {}
    for claim in history.claims:
        entry = entries.get(claim.id, [None])[0]
        what = f"{claim.device} was told {claim.state} of {claim.id} at {claim.at_s:.3f}"
        final = claim.state is SendState.FAILED and not claim.can_retry
        if claim.state in (SendState.DELIVERED, SendState.READ):
            if entry is None:
                yield f"{what}, but it is not in the log"
            elif entry.at_s - EPOCH_S > claim.at_s:
                yield f"{what}, but it was committed at {entry.at_s - EPOCH_S:.3f}"
        elif (claim.state is SendState.CANCELLED or final) and entry is not None:
            yield f"{what}, but it is in the log as seq {entry.seq}"
        if claim.state is SendState.CANCELLED:
            sent = history.submissions.get(claim.id)
            if sent is None or sent.cancel_at_s is None:
                yield f"{what}, but nobody cancelled it"
        before = settled.get(claim.id)
        if before is not None and claim.state not in (SendState.READ, before.state):
            yield f"{what}, after {before.state} at {before.at_s:.3f}"
        if claim.state in SETTLED_STATES:
            settled[claim.id] = claim


def no_lie_about_reading(history: History) -> Iterator[str]:
    """`read` only when every other member had read it; nobody is said to have read more than it did."""
    entries = _entries(history)
    for claim in history.claims:
        if claim.state is not SendState.READ or claim.id not in entries:
            continue
        entry = entries[claim.id][0]
        for user in history.members[entry.conversation]:
            if user != entry.sender and _read(history, user, entry.conversation, claim.at_s) < entry.seq:
                yield f"{claim.device} was told {claim.id} is read, but {user} had not read it"
    highest: dict[tuple[str, int, str, str], int] = {}
    for device, incarnation, told in history.receipts:
        if told.seq > _read(history, told.user, told.conversation, told.at_s):
            yield f"{device} was told {told.user} read {told.conversation} up to {told.seq}: it had not"
        key = (device, incarnation, told.conversation, told.user)
        if told.seq < highest.get(key, 0):
            yield f"{device}: the receipt of {told.user} in {told.conversation} went back to {told.seq}"
        highest[key] = told.seq


def _read(history: History, user: str, conversation: str, at_s: float) -> int:
    return max(
        (
            read.seq
            for read in history.reads
            if read.user == user and read.conversation == conversation and read.at_s <= at_s
        ),
        default=0,
    )


def decisions_awaited(history: History) -> Iterator[str]:
    """With `on_reject="block"`, nothing behind a refused message arrives before the app has decided.

    One that expired before any refusal was told never was a refused message: the app had set its time.
    """
    told_refused = {claim.id for claim in history.claims if claim.reason is FailureReason.REJECTED}
    told_expired = {claim.id for claim in history.claims if claim.reason is FailureReason.EXPIRED}
    refused: dict[tuple[str, str], list[Submission]] = {}
    for sent in history.submissions.values():
        expired = sent.expires and sent.id in told_expired - told_refused
        if sent.refusable and sent.blocks and not expired:
            refused.setdefault((sent.device, sent.conversation), []).append(sent)
    if not refused:
        return
    for conversation in history.members:
        for entry in _log(history, conversation):
            behind = history.submissions.get(entry.id)
            if behind is None:
                continue
            for sent in refused.get((behind.device, conversation), ()):
                decided_s = sent.cancel_at_s
                if sent.index < behind.index and (decided_s is None or entry.at_s - EPOCH_S < decided_s):
                    yield f"{behind!r} arrived at {entry.at_s - EPOCH_S:.3f}, before a decision on {sent!r}"


def receipts_arrived(history: History) -> Iterator[str]:
    """In the end each device knows that all others have received everything."""
    if history.drained_s is None:
        return
    for device, user in history.users.items():
        for conversation, members in history.members.items():
            if user not in members:
                continue
            end = len(_log(history, conversation))
            for other in members:
                told = history.told_received.get((device, conversation, other), 0)
                if other != user and told != end:
                    yield f"{device} thinks {other} received {conversation} up to {told} of {end}"


def drained(history: History) -> Iterator[str]:
    """Once the faults stopped, everything arrived everywhere within the time allowed."""
    for device, count in history.waiting.items():
        if count:
            yield f"{device}: {count} own messages still wait"
    if history.drained_s is None:
        yield f"not everything had arrived in time; the faults stopped at {history.faults_ended_s:.1f}"


def no_spinning(history: History) -> Iterator[str]:
    """No device ever asked more of the network in a minute than an honest one needs."""
    for (device, minute), usage in history.usage.items():
        if usage.opened > OPENED_PER_MINUTE_MAX:
            yield f"{device}: {usage.opened} connections begun in minute {minute}"
        if usage.items > ITEMS_PER_MINUTE_MAX + 2 * usage.backlog:
            yield f"{device}: {usage.items} items sent in minute {minute}, backlog {usage.backlog}"


def world_sound(history: History) -> Iterator[str]:
    """The world itself noticed nothing wrong."""
    yield from history.faults


CHECKS: Final[tuple[Check, ...]] = (
    nothing_lost,
    logs_whole,
    order_kept,
    unchanged,
    agreed,
    seen_by_all,
    lives_in_order,
    no_lie,
    no_lie_about_reading,
    decisions_awaited,
    receipts_arrived,
    drained,
    no_spinning,
    world_sound,
)
