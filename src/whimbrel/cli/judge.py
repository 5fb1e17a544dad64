"""Was every promise kept? Judged by what senders and receivers wrote down, and by nothing else.

The judge knows no engine, no store and no server: it gets the records of `storm_journal` and the members of
each conversation. A message is known by its *label*, which the sender's plan gave it and which travels inside
the message; so a message that the system sent twice under two ids is found doubled like any other.

    lost           written down as sent, and missing at a member
    doubled        handed to a member more often than once
    out of order   handed to a member behind a later one of the same sender, or in another order
                   than another member got
    changed        another text, sender, conversation or id than was sent
    unsent         handed to a member, and sent by nobody

While a storm goes on, what is missing may be on its way. It counts as lost, then, only if a later message of
the same sender is there already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from whimbrel.cli.storm_journal import Delivered, Received, Record, Sent

__all__ = ["Judge", "Verdict"]

EXAMPLES_MAX = 20


class _Found(Protocol):
    """Takes a finding."""

    def __call__(self, what: str, text: str, times: int = 1) -> None: ...


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the judge found; all counts are of messages at one member."""

    sent: int
    """Messages of which ``send()`` returned."""
    delivered: int
    """Messages that their senders were told are delivered."""
    expected: int
    """Messages times members of their conversation: what all must have received together."""
    received: int
    """Of those, how many were (each once)."""
    lost: int
    doubled: int
    out_of_order: int
    changed: int
    unsent: int
    examples: tuple[str, ...] = ()
    """Up to 20 findings in words, by label."""

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled, out of order, changed or invented."""
        return not (self.lost or self.doubled or self.out_of_order or self.changed or self.unsent)


class Judge:
    """Gathers records, in the order each journal has them, and says at any time what they show."""

    def __init__(self, members: Mapping[str, Iterable[str]]) -> None:
        """``members``: conversation → all its members, senders included."""
        self.members = {conversation: tuple(users) for conversation, users in members.items()}
        self.sent: dict[str, Sent] = {}
        self.delivered: dict[str, Delivered] = {}
        self.received: dict[tuple[str, str], list[Received]] = {}
        """(member, conversation) → what it got, in order."""
        self._places: dict[str, int] = {}
        """Label → its place in its sender's order."""
        self._sent_by: Counter[tuple[str, str]] = Counter()
        self._resent: list[str] = []

    def __repr__(self) -> str:
        return f"<Judge of {len(self.sent)} messages>"

    def hear(self, records: Iterable[Record]) -> None:
        """Take records of one journal; the order of the calls for different journals does not matter."""
        for record in records:
            match record:
                case Sent():
                    self._hear_sent(record)
                case Delivered():
                    self.delivered.setdefault(record.label, record)
                case Received():
                    self.received.setdefault((record.user, record.conversation), []).append(record)

    def _hear_sent(self, sent: Sent) -> None:
        before = self.sent.get(sent.label)
        if before is not None:
            # Repeating itself after a crash, an app must get the same message again.
            if (before.id, before.digest) != (sent.id, sent.digest):
                self._resent.append(sent.label)
            return
        self.sent[sent.label] = sent
        sender = (sent.user, sent.conversation)
        self._places[sent.label] = self._sent_by[sender]
        self._sent_by[sender] += 1

    def verdict(self, *, final: bool) -> Verdict:
        """Judge what is known. ``final``: nothing is on its way any more, and all journals are whole."""
        counts: Counter[str] = Counter()
        examples: list[str] = []

        def found(what: str, text: str, times: int = 1) -> None:
            counts[what] += times
            if len(examples) < EXAMPLES_MAX:
                examples.append(f"{what}: {text}")

        for label in self._resent:
            found("changed", f"{label} was sent again as another message")
        expected = received = 0
        firsts: dict[str, dict[str, list[str]]] = {name: {} for name in self.members}
        for (user, conversation), records in sorted(self.received.items()):
            if user not in self.members.get(conversation, ()):
                found(
                    "unsent", f"{user} got {len(records)} messages of a conversation of others", len(records)
                )
                continue
            firsts[conversation][user] = labels = list(dict.fromkeys(record.label for record in records))
            if len(labels) < len(records):
                again = [label for label, n in Counter(r.label for r in records).items() if n > 1]
                found("doubled", f"{again[0]} at {user}", len(records) - len(labels))
            for record in records:
                self._compare(record, found, final=final)
            self._in_order(user, labels, found)
        by_conversation: dict[str, list[str]] = {name: [] for name in self.members}
        for label, sent in self.sent.items():
            by_conversation.setdefault(sent.conversation, []).append(label)
        for conversation, users in self.members.items():
            for user in users:
                got = firsts[conversation].get(user, [])
                wanted = by_conversation[conversation]
                expected += len(wanted)
                received += sum(label in self.sent for label in got)
                missing = self._missing(wanted, got, final=final)
                if missing:
                    found("lost", f"{missing[0]} at {user}", len(missing))
            _agreed(firsts[conversation], found)
        return Verdict(
            sent=len(self.sent),
            delivered=len(self.delivered),
            expected=expected,
            received=received,
            lost=counts["lost"],
            doubled=counts["doubled"],
            out_of_order=counts["out of order"],
            changed=counts["changed"],
            unsent=counts["unsent"],
            examples=tuple(examples),
        )

    def _compare(self, record: Received, found: _Found, *, final: bool) -> None:
        sent = self.sent.get(record.label)
        if sent is None:
            # A message may overtake the line that says it was sent, but not for ever.
            if final:
                found("unsent", f"{record.label or 'a message without a label'} at {record.user}")
            return
        was = (sent.digest, sent.user, sent.conversation, sent.id)
        if was != (record.digest, record.sender, record.conversation, record.id):
            found("changed", f"{record.label} at {record.user}")

    def _in_order(self, user: str, labels: Sequence[str], found: _Found) -> None:
        furthest: dict[str, int] = {}
        for label in labels:
            sent = self.sent.get(label)
            if sent is None:
                continue
            place = self._places[label]
            if place < furthest.get(sent.user, -1):
                found("out of order", f"{label} at {user}")
            furthest[sent.user] = max(place, furthest.get(sent.user, -1))

    def _missing(self, wanted: Sequence[str], got: Sequence[str], *, final: bool) -> list[str]:
        have = set(got)
        missing = [label for label in wanted if label not in have]
        if final or not missing:
            return missing
        furthest: dict[str, int] = {}
        for label in got:
            sent = self.sent.get(label)
            if sent is not None:
                furthest[sent.user] = max(self._places[label], furthest.get(sent.user, -1))
        return [x for x in missing if self._places[x] < furthest.get(self.sent[x].user, -1)]


def _agreed(got: Mapping[str, Sequence[str]], found: _Found) -> None:
    """All members got what they got in one order: that of the member who got most."""
    if len(got) < 2:
        return
    first = max(sorted(got), key=lambda user: len(got[user]))
    places = {label: place for place, label in enumerate(got[first])}
    for user, labels in got.items():
        furthest = -1
        for label in labels:
            place = places.get(label, furthest)
            if place < furthest:
                found("out of order", f"{label} at {user}, compared with {first}")
            furthest = max(furthest, place)
