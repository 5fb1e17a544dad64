"""What simulated runs came to: one result per seed, and the sum over many.

A report says how often each fault took effect and each transition was taken. A batch in which one never
happened has not tested it: `missing_faults` names those. A failing seed names the command that repeats it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from whimbrel.core import life, linkstate
from whimbrel.testing.simplan import CONSEQUENCES, KINDS

__all__ = ["SimReport", "SimResult", "all_transitions"]

FAILURES_SHOWN = 10
VIOLATIONS_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class SimResult:
    """One run. `violations` is empty if every promise was kept."""

    seed: int
    ablation: str | None
    violations: tuple[str, ...]
    faults: dict[str, int]
    """Kind → how often it took effect."""
    transitions: dict[str, int]
    """`machine.state:event` → how often it was taken."""
    messages: int
    virtual_s: float
    drained_s: float | None
    """How long after the last fault everything had arrived everywhere."""
    took_s: float
    """Processor time."""
    steps: int
    trace_hash: str
    """Of everything that happened, in order: equal runs have equal hashes."""
    trace: tuple[str, ...] = ()
    """The lines of it, when asked for."""

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations

    @property
    def command(self) -> str:
        """What repeats this run."""
        ablation = f" --ablation {self.ablation}" if self.ablation else ""
        return f"whimbrel sim --seed {self.seed}{ablation}"

    def text(self) -> str:
        """The result for people."""
        lines = [f"seed {self.seed}: {'ok' if self.ok else 'FAILED'}, repeat with: {self.command}"]
        lines += [f"  {violation}" for violation in self.violations]
        drained = "never" if self.drained_s is None else f"{self.drained_s:.1f} s after the last fault"
        lines.append(f"  {self.messages} messages in {self.virtual_s:.0f} virtual s; arrived: {drained}")
        lines.append(f"  faults: {_counts(self.faults)}")
        lines.append(f"  trace {self.trace_hash}, {self.steps} steps, {self.took_s * 1000:.0f} ms")
        return "\n".join(lines)


@dataclass(kw_only=True)
class SimReport:
    """The sum of many runs."""

    seeds: int = 0
    failures: list[SimResult] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    transitions: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    virtual_s: float = 0.0
    drained_s_max: float = 0.0
    took_s: float = 0.0
    """Processor time, summed over all processes."""

    @property
    def ok(self) -> bool:
        """Whether every promise was kept in every run."""
        return not self.failures

    @property
    def seeds_per_s(self) -> float:
        """Per core."""
        return self.seeds / self.took_s if self.took_s else 0.0

    def add(self, result: SimResult) -> None:
        """Take one run in."""
        self.seeds += 1
        self.faults.update(result.faults)
        self.transitions.update(result.transitions)
        self.messages += result.messages
        self.virtual_s += result.virtual_s
        self.drained_s_max = max(self.drained_s_max, result.drained_s or 0.0)
        self.took_s += result.took_s
        if not result.ok:
            self.failures.append(result)

    def merge(self, other: SimReport) -> None:
        """Take another report in."""
        self.seeds += other.seeds
        self.failures += other.failures
        self.failures.sort(key=lambda result: result.seed)
        self.faults.update(other.faults)
        self.transitions.update(other.transitions)
        self.messages += other.messages
        self.virtual_s += other.virtual_s
        self.drained_s_max = max(self.drained_s_max, other.drained_s_max)
        self.took_s += other.took_s

    def missing_faults(self, kinds: Iterable[str] | None = None) -> list[str]:
        """The kinds of faults, of these or of all there are, that never took effect."""
        wanted = (*KINDS, *CONSEQUENCES) if kinds is None else tuple(kinds)
        return [kind for kind in wanted if not self.faults[kind]]

    def missing_transitions(self) -> list[str]:
        """The transitions of the machines' tables that were never taken."""
        return [name for name in all_transitions() if not self.transitions[name]]

    def text(self) -> str:
        """The report for people."""
        lines = [
            f"{self.seeds} seeds, {len(self.failures)} failed; {self.messages} messages, "
            f"{self.virtual_s:.0f} virtual s; {self.seeds_per_s:.1f} seeds/s per core",
            f"arrived at the latest {self.drained_s_max:.1f} s after the last fault",
            f"faults: {_counts(self.faults)}",
            f"transitions: {_counts(self.transitions)}",
        ]
        for what, names in (
            ("faults", self.missing_faults()),
            ("transitions", self.missing_transitions()),
        ):
            if names:
                lines.append(f"{what} that never happened: {', '.join(names)}")
        for result in self.failures[:FAILURES_SHOWN]:
            lines.append(f"seed {result.seed} FAILED, repeat with: {result.command}")
            lines += [f"  {violation}" for violation in result.violations[:VIOLATIONS_SHOWN]]
        if len(self.failures) > FAILURES_SHOWN:
            others = ", ".join(str(result.seed) for result in self.failures[FAILURES_SHOWN:])
            lines.append(f"also failed: {others}")
        return "\n".join(lines)


def all_transitions() -> list[str]:
    """Every transition in the tables of the machines, as the reports name them."""
    names = [f"link.{state.value}:{event}" for state, row in linkstate.TRANSITIONS.items() for event in row]
    names += [f"outbox.{state.value}:{event}" for state, row in life.TRANSITIONS.items() for event in row]
    return names


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
