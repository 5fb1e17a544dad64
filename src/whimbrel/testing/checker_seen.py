"""The judges of what apps saw: nothing of others, all of their own, in order, and once. See `checker`.

A server that was restored from an old backup begins a new history. Durable consumers are not told again what
they were told, but for own messages that were offered again; live events begin anew, and may leave out
what was seen before. Who was where in a history that was lost is not known any more; where nobody came or
went, a restore excuses nothing else.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from math import inf

from whimbrel.testing.evidence import log_of, members_unknown, stays_of
from whimbrel.testing.history import History, Sighting

__all__ = ["closed_to_others", "lives_in_order", "seen_by_all"]


def closed_to_others(history: History) -> Iterator[str]:
    """Nobody sees an entry of a time in which it was no member, and nobody is sent away who is one."""
    known: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for sighting in (*history.live, *history.consumed):
        user = history.users[sighting.device]
        place = (user, sighting.conversation)
        if members_unknown(history, sighting.conversation):
            continue
        stays = known.get(place)
        if stays is None:
            stays = known[place] = stays_of(history, user, sighting.conversation)
        if not any(first <= sighting.seq <= last for first, last in stays):
            yield f"{sighting!r}: {user} was no member then"
    for device, conversation, at_s in history.turned_away:
        moves = history.moves.get(conversation, [])
        gone = any(m.user == history.users[device] and not m.joined and m.at_s <= at_s for m in moves)
        if not gone and not members_unknown(history, conversation):
            yield f"{device} was told at {at_s:.3f} that its user is not in {conversation}: it always was"


def seen_by_all(history: History) -> Iterator[str]:
    """Each device's durable consumer handled all its user may see, in order; again only after a crash."""
    handled: dict[tuple[str, str], list[Sighting]] = {}
    for sighting in history.consumed:
        handled.setdefault((sighting.device, sighting.conversation), []).append(sighting)
    for device, user in history.users.items():
        for conversation, members in history.members.items():
            stays = stays_of(history, user, conversation)
            seen = handled.get((device, conversation), [])
            log = log_of(history, conversation)
            if history.restored:
                first = [one for one in seen if one.at_s < history.restored[0]]
                if not members_unknown(history, conversation):
                    yield from _in_order(device, conversation, first, stays, None)
                    yield from _authors_in_order(history, device, conversation, seen)
                yield from _once(history, device, conversation, seen)
                if user in members:
                    yield from _all_seen(device, conversation, seen, stays, log)
                continue
            yield from _in_order(device, conversation, seen, stays, log)
            upto = max((one.seq for one in seen), default=0)
            if user in members and upto != len(log):
                yield f"{device}: saw {conversation} up to {upto} of {len(log)}"


def _all_seen(
    device: str, conversation: str, seen: list[Sighting], stays: list[tuple[int, float]], log: list[Sighting]
) -> Iterator[str]:
    ids = {one.id for one in seen}
    for entry in log:
        if entry.seq >= stays[-1][0] and entry.id not in ids:
            yield f"{device}: never saw {entry.id} of {conversation} (seq {entry.seq})"


def _once(history: History, device: str, conversation: str, seen: list[Sighting]) -> Iterator[str]:
    """In one life an entry is handled once; an own one once more for each history that was lost."""
    times: Counter[tuple[int, str]] = Counter()
    for sighting in seen:
        place = (sighting.incarnation, sighting.id)
        times[place] += 1
        sent = history.submissions.get(sighting.id)
        own = sent is not None and sent.device == device
        if times[place] > 1 + (bisect_right(history.restored, sighting.at_s) if own else 0):
            yield f"{device}: {sighting.id} of {conversation} handled {times[place]} times in one life"


def _authors_in_order(
    history: History, device: str, conversation: str, seen: list[Sighting]
) -> Iterator[str]:
    """What is handled for the first time is in its author's order, whatever became of the histories."""
    known: set[str] = set()
    upto: dict[str, int] = {}
    for sighting in seen:
        sent = history.submissions.get(sighting.id)
        if sent is None or sighting.id in known:
            continue
        known.add(sighting.id)
        if sent.index < upto.get(sent.device, 0):
            yield f"{device}: saw {sent!r} after #{upto[sent.device]}"
        upto[sent.device] = max(sent.index, upto.get(sent.device, 0))


def _in_order(
    device: str,
    conversation: str,
    handled: list[Sighting],
    stays: list[tuple[int, float]],
    log: list[Sighting] | None,
) -> Iterator[str]:
    joined = {first for first, _ in stays}
    upto = 0
    life, upto_in_life = -1, 0
    for sighting in handled:
        seq = sighting.seq
        if sighting.incarnation != life:
            life, upto_in_life = sighting.incarnation, 0
        if seq <= upto_in_life:
            yield f"{device}: {sighting.id} handled twice in one life (seq {seq} of {conversation})"
        if seq > (upto_in_life or upto) + 1 and seq not in joined:
            yield f"{device}: jumped to {seq} in {conversation}, past {upto_in_life or upto}"
        if log is not None and (seq > len(log) or log[seq - 1].id != sighting.id):
            yield f"{device}: seq {seq} of {conversation} was {sighting.id}, the log says another"
        upto_in_life = seq
        upto = max(upto, seq)


def lives_in_order(history: History) -> Iterator[str]:
    """Within one life of an app, events of a conversation come one after the other: no gap, none twice."""
    last: dict[tuple[str, int, int, str], Sighting] = {}
    begun_anew: Counter[tuple[str, int, int, str]] = Counter()
    first_s = _first_seen(history) if history.restored else {}
    for sighting in history.live:
        seq = sighting.seq
        key = (sighting.device, sighting.incarnation, sighting.stream, sighting.conversation)
        before = last.get(key)
        last[key] = sighting
        log = log_of(history, sighting.conversation)
        if not history.restored and (seq > len(log) or log[seq - 1].id != sighting.id):
            yield f"{sighting!r} is not that entry of the log"
        if before is None or seq == before.seq + 1 or members_unknown(history, sighting.conversation):
            continue
        told = f"{sighting.device}: after seq {before.seq} of {sighting.conversation} came {seq}"
        restores = bisect_right(history.restored, sighting.at_s)
        if seq <= before.seq:
            begun_anew[key] += 1
            if begun_anew[key] > restores:
                yield told
        elif not restores:
            stays = stays_of(history, history.users[sighting.device], sighting.conversation)
            if seq not in {first for first, _ in stays}:
                yield told
        elif _of_this_log(history, before, log) and _of_this_log(history, sighting, log):
            for entry in log[before.seq : seq - 1]:
                if not first_s.get((sighting.device, entry.id), inf) <= sighting.at_s:
                    yield f"{told}, and it had never seen {entry.id} between them"


def _first_seen(history: History) -> dict[tuple[str, str], float]:
    """(device, id) → when it was seen first, live or by a consumer."""
    first_s: dict[tuple[str, str], float] = {}
    for sighting in (*history.live, *history.consumed):
        place = (sighting.device, sighting.id)
        first_s[place] = min(sighting.at_s, first_s.get(place, inf))
    return first_s


def _of_this_log(history: History, sighting: Sighting, log: list[Sighting]) -> bool:
    """It was seen after the last history was lost, where it stands in the one that is left."""
    seq = sighting.seq
    return sighting.at_s > history.restored[-1] and seq <= len(log) and log[seq - 1].id == sighting.id
