"""What a replay showed: the numbers, as a table for people and as JSON for programs.

Everything is counted from the journals of senders and receivers, the proxies' counters, the operating
system's view of the processes, and the server's log as a member reads it over HTTP; nothing is taken from the
clients' own accounts of themselves except what they say is left in their outboxes.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from whimbrel.cli.judge import Judge, Verdict

__all__ = ["Outage", "Percentiles", "ProcessReport", "ReplayReport", "delays", "recoveries"]


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of times in seconds."""

    count: int
    p50_s: float | None = None
    p90_s: float | None = None
    p99_s: float | None = None
    max_s: float | None = None

    @classmethod
    def of(cls, times_s: Iterable[float]) -> Percentiles:
        """Nearest rank: each number is one that was measured."""
        ordered = sorted(times_s)
        if not ordered:
            return cls(count=0)

        def rank(part: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 4)

        return cls(count=len(ordered), p50_s=rank(0.5), p90_s=rank(0.9), p99_s=rank(0.99), max_s=rank(1.0))

    def __str__(self) -> str:
        if self.p50_s is None or self.p90_s is None or self.p99_s is None or self.max_s is None:
            return "nothing to measure"
        return (
            f"p50 {self.p50_s:.3f} s, p90 {self.p90_s:.3f} s, p99 {self.p99_s:.3f} s,"
            f" max {self.max_s:.3f} s, of {self.count}"
        )


class ProcessReport(msgspec.Struct, frozen=True, kw_only=True):
    """One process, over all its lives."""

    name: str
    pids: tuple[int, ...]
    kills: int
    users: int = 0
    memory_bytes_max: int = 0


class LogReport(msgspec.Struct, frozen=True, kw_only=True):
    """One chat log, and what became of it."""

    name: str
    lines: int
    users: int
    skipped: int
    unreadable: int
    duration_s: float
    stored: int
    """Entries of its conversation in the server's log, counted by a member over HTTP."""


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that a replay measured; ``passed`` is the verdict."""

    passed: bool
    seed: int
    speed: float
    took_s: float
    drained_s: float
    """From the last line of the log to the moment when everything had arrived everywhere."""
    logs: tuple[LogReport, ...]
    processes: tuple[ProcessReport, ...]
    server: ProcessReport
    users: int
    verdict: Verdict
    stored: int
    queued: int
    """What the clients say is left in their outboxes."""
    received_per_member_min: int
    received_per_member_median: int
    received_per_member_max: int
    send_to_delivered: Percentiles
    send_to_received: Percentiles
    network_back_to_delivering: Percentiles
    faults: dict[str, float]
    kills: int
    note: str = ""
    """Why it ended early, if it did."""

    def __repr__(self) -> str:
        return f"<ReplayReport passed={self.passed}>"

    def rows(self) -> list[tuple[str, str]]:
        """The report as pairs of a name and a value, in the order to be read."""
        found = self.verdict
        rows = [
            (
                f"log {log.name}",
                f"{log.lines} lines of {log.users} users over {log.duration_s / 3600:.1f} h"
                f" ({log.skipped} skipped, {log.unreadable} unreadable), stored {log.stored}",
            )
            for log in self.logs
        ]
        rows += [
            (
                f"process {process.name}",
                f"pid {' → '.join(map(str, process.pids))}, {process.users} users,"
                f" killed {process.kills} ×, peak {_mib(process.memory_bytes_max)}",
            )
            for process in self.processes
        ]
        peak = _mib(self.server.memory_bytes_max)
        pids = " → ".join(map(str, self.server.pids))
        per_member = (
            self.received_per_member_min,
            self.received_per_member_median,
            self.received_per_member_max,
        )
        rows += [
            ("process server", f"pid {pids}, killed {self.server.kills} ×, peak {peak}"),
            ("speed, seed", f"{self.speed:g} ×, {self.seed}"),
            ("took", f"{self.took_s:.1f} s, of which {self.drained_s:.1f} s after the last line"),
            ("users", str(self.users)),
            ("sent, stored", f"{found.sent}, {self.stored}"),
            ("told delivered", str(found.delivered)),
            ("received", f"{found.received} of {found.expected}"),
            ("per member", "min {}, median {}, max {}".format(*per_member)),
            ("send → delivered", str(self.send_to_delivered)),
            ("send → received", str(self.send_to_received)),
            ("network back → delivering", str(self.network_back_to_delivering)),
            ("faults", ", ".join(f"{name} {count:g}" for name, count in self.faults.items()) or "none"),
            ("kill -9 of clients", str(self.kills)),
            ("left in outboxes", str(self.queued)),
            ("lost", str(found.lost)),
            ("doubled", str(found.doubled)),
            ("out of order", str(found.out_of_order)),
            ("changed", str(found.changed)),
            ("sent by nobody", str(found.unsent)),
            ("verdict", "passed" if self.passed else f"FAILED {self.note}".rstrip()),
        ]
        return rows


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB" if size_bytes else "unknown"


def delays(judge: Judge) -> tuple[Percentiles, Percentiles]:
    """From the call of ``send()`` to the sender being told, and to each other member being handed it."""
    told = [
        record.at_s - judge.sent[label].called_at_s
        for label, record in judge.delivered.items()
        if label in judge.sent
    ]
    handed = [
        record.at_s - sent.called_at_s
        for (user, _), records in judge.received.items()
        for record in records
        if (sent := judge.sent.get(record.label)) is not None and sent.user != user
    ]
    return Percentiles.of(told), Percentiles.of(handed)


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which some users had no network, on the monotonic clock."""

    users: frozenset[str]
    began_at_s: float
    ended_at_s: float


def recoveries(
    judge: Judge, outages: Sequence[Outage], away: Mapping[str, Sequence[tuple[float, float]]]
) -> Percentiles:
    """From the end of each outage to the first message delivered over it, where one was waiting.

    Waiting for the users behind an outage are their own messages, sent before its end, and those of
    others that the server had by then. ``away``: user → the times in which its process was killed or
    coming up; an outage that ended within one of those says nothing about the network.
    """
    waits: dict[str, list[tuple[float, float]]] = {}
    """User → (since when it waited there, when it was over)."""
    for label, record in judge.delivered.items():
        sent = judge.sent.get(label)
        if sent is not None:
            waits.setdefault(sent.user, []).append((sent.returned_at_s, record.at_s))
    for (user, _), records in judge.received.items():
        for got in records:
            told = judge.delivered.get(got.label)
            if told is not None and told.user != user:
                waits.setdefault(user, []).append((told.at_s, got.at_s))
    for times in waits.values():
        times.sort(key=lambda pair: pair[1])
    found: list[float] = []
    for outage in outages:
        end_s = outage.ended_at_s
        users = [
            user
            for user in outage.users
            if not any(begin <= end_s <= over for begin, over in away.get(user, ()))
        ]
        first = min((_first_after(waits.get(user, []), end_s) for user in users), default=float("inf"))
        if first < float("inf"):
            found.append(first - end_s)
    return Percentiles.of(found)


def _first_after(waits: Sequence[tuple[float, float]], at_s: float) -> float:
    """When the first of those that waited at this time was over."""
    begin = bisect.bisect_left(waits, at_s, key=lambda pair: pair[1])
    return next((over for since, over in waits[begin:] if since <= at_s), float("inf"))
