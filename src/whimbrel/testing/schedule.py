"""Faults by a timetable, as data: written down in JSON, played against a proxy in real time.

A `Schedule` is a list of faults with times and a duration. `run_schedule` applies each to a `FaultProxy`
when it begins and lifts it when it ends; faults that overlap compose. Killing and restarting processes is
handed to the caller, in the order of the schedule for each process; a slow restart holds up nothing else.

At equal times a fault that begins comes before one that ends: one silence after another leaves no gap.
Invariant: whatever way `run_schedule` ends, no fault that it applied stays on.
"""

import asyncio
from collections.abc import Awaitable, Callable
from math import isfinite
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from whimbrel.errors import InvalidArgument
from whimbrel.testing.proxy import AppliedFault
from whimbrel.testing.proxy_faults import (
    TIME_S_MAX,
    AnyFault,
    ChunkLoss,
    DropAnswer,
    Fault,
    FaultError,
    HalfOpen,
    Kill,
    Latency,
    LimitCapacity,
    Refuse,
    Reset,
    Stall,
)

__all__ = [
    "STORM",
    "AnyFault",
    "ChunkLoss",
    "DropAnswer",
    "Fault",
    "FaultChange",
    "FaultError",
    "HalfOpen",
    "Kill",
    "Latency",
    "LimitCapacity",
    "ProcessAction",
    "Refuse",
    "Reset",
    "Schedule",
    "ScheduleError",
    "ScheduleReport",
    "Stall",
    "Weather",
    "run_schedule",
]

FAULTS_MAX: Final = 10_000
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
NAME_CHARS_MAX: Final = 200

ProcessAction = Literal["kill", "restart"]


class Weather(Protocol):
    """What faults are applied to: a `FaultProxy`, or a `VirtualNetwork`."""

    def apply(self, fault: AnyFault) -> AppliedFault:
        """Begin a fault, at once; it is on until `lift`."""

    def lift(self, applied: AppliedFault) -> None:
        """End a fault, at once. Lifting one that has ended already does nothing."""

    def calm(self) -> None:
        """End every fault."""

    def reset_connections(self) -> int:
        """Reset every connection; how many that were."""

    @property
    def present_fault(self) -> str:
        """What is wrong just now, in a few words for a person."""


class ScheduleError(InvalidArgument):
    """A schedule that cannot be used: not found, not JSON, of another shape, or with values out of range."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A timetable of faults. Every fault begins and ends within `duration_s`; their order does not matter.

    Raises ScheduleError when made by hand with values out of range.
    """

    name: str
    duration_s: float
    faults: tuple[AnyFault, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= NAME_CHARS_MAX:
            raise ScheduleError(f"name has {len(self.name)} characters, not 1–{NAME_CHARS_MAX}")
        if not (isfinite(self.duration_s) and 0 < self.duration_s <= TIME_S_MAX):
            raise ScheduleError(f"duration_s is {self.duration_s:g}, not above 0 and up to {TIME_S_MAX:g}")
        if len(self.faults) > FAULTS_MAX:
            raise ScheduleError(f"{len(self.faults)} faults, at most {FAULTS_MAX} are allowed")
        for index, fault in enumerate(self.faults):
            end_s = fault.restart_at_s if isinstance(fault, Kill) else fault.until_s
            if max(fault.at_s, end_s or 0.0) > self.duration_s:
                raise ScheduleError(f"fault {index} goes beyond duration_s {self.duration_s:g}")

    @classmethod
    def from_json(cls, data: bytes | str) -> "Schedule":
        """Read a schedule. Raises ScheduleError, which says where, for anything that is not one."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ScheduleError(f"not a schedule: {_bad_fault(data)}{error}") from error

    def to_json(self) -> bytes:
        """The schedule as indented JSON; `from_json` gives an equal one."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def load(cls, path: str | Path) -> "Schedule":
        """Read a schedule from a file (at most 4 MiB). Raises ScheduleError, naming the file."""
        path = Path(path)
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise ScheduleError(f"larger than {FILE_BYTES_MAX} bytes")
            return cls.from_json(path.read_bytes())
        except (OSError, ScheduleError) as error:
            raise ScheduleError(f"{path.name}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the schedule to a file. Raises ScheduleError, naming the file, if that is not possible."""
        path = Path(path)
        try:
            path.write_bytes(self.to_json())
        except OSError as error:
            raise ScheduleError(f"{path.name}: {error}") from error


class _Outline(msgspec.Struct, frozen=True, kw_only=True):
    faults: tuple[msgspec.Raw, ...]


def _bad_fault(data: bytes | str) -> str:
    """Which fault makes this no schedule: decoding as a whole says what is wrong, but not where."""
    try:
        for index, fault in enumerate(msgspec.json.decode(data, type=_Outline).faults):
            try:
                msgspec.json.decode(fault, type=AnyFault)
            except msgspec.ValidationError:
                return f"fault {index}: "
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    return ""


class FaultChange(msgspec.Struct, frozen=True, kw_only=True):
    """A fault began or ended."""

    at_s: float
    """When, by the schedule."""
    fault: AnyFault
    began: bool
    present_fault: str
    """What is wrong from now on, for a person."""


class ScheduleReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did."""

    faults_applied: int
    process_actions_done: int
    process_actions_ignored: int
    """Kills and restarts that nobody carried out, because there was no `on_process_fault`."""


OnFault = Callable[[FaultChange], None]
OnProcessFault = Callable[[Kill, ProcessAction], Awaitable[None]]


async def run_schedule(
    schedule: Schedule,
    proxy: Weather,
    *,
    on_fault: OnFault | None = None,
    on_process_fault: OnProcessFault | None = None,
    speed: float = 1.0,
) -> ScheduleReport:
    """Play a schedule against a proxy, on the clock of the event loop, to the end of its `duration_s`.

    `on_fault` is told of each fault when it has begun and when it has ended, kills included.
    `on_process_fault` carries out kills and restarts: one after the other for each process, not held up by
    other processes, and all done before this returns. If either raises, or this is cancelled, the run ends
    with that error. A fault that begins too late because the machine is slow lasts accordingly shorter, but
    never less than one turn of the event loop.
    `speed` (above 0) divides the times of the schedule, not the parameters of its faults.
    """
    if not (isfinite(speed) and speed > 0):
        raise ValueError("speed is above 0")
    run = _Run(proxy, on_fault, on_process_fault)
    loop = asyncio.get_running_loop()
    started_at_s = loop.time()
    try:
        async with asyncio.TaskGroup() as processes:
            for moment in (*_moments(schedule), None):
                at_s = schedule.duration_s if moment is None else moment.at_s
                # Sleeping, for no time too, lets the proxy act between two changes.
                await asyncio.sleep(max(started_at_s + at_s / speed - loop.time(), 0.0))
                if moment is not None:
                    run.carry_out(moment, processes)
    except ExceptionGroup as group:
        # The first is the reason; the others are what it brought down.
        raise _first(group) from group
    finally:
        run.lift_all()
    return run.report()


class _Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One fault begins or ends."""

    at_s: float
    fault: AnyFault
    index: int
    begins: bool


def _moments(schedule: Schedule) -> list[_Moment]:
    """Every beginning and end within the schedule, in the order in which they are carried out."""
    moments: list[_Moment] = []
    for index, fault in enumerate(schedule.faults):
        moments.append(_Moment(at_s=fault.at_s, fault=fault, index=index, begins=True))
        if isinstance(fault, Kill):
            end_s = fault.restart_at_s
        elif isinstance(fault, Reset) and fault.every_s is None:
            end_s = fault.at_s  # it acts once
        else:
            end_s = fault.until_s
        if end_s is not None:
            moments.append(_Moment(at_s=end_s, fault=fault, index=index, begins=False))
    return sorted(moments, key=lambda moment: (moment.at_s, not moment.begins, moment.index))


class _Run:
    """The state of one run: which faults are on, and how far each process is."""

    def __init__(
        self, proxy: Weather, on_fault: OnFault | None, on_process_fault: OnProcessFault | None
    ) -> None:
        self._proxy = proxy
        self._on_fault = on_fault
        self._on_process_fault = on_process_fault
        self._applied: dict[int, AppliedFault] = {}
        self._last_action: dict[str, asyncio.Task[None]] = {}
        self._faults_applied = 0
        self._actions_done = 0
        self._actions_ignored = 0

    def carry_out(self, moment: _Moment, processes: asyncio.TaskGroup) -> None:
        if moment.begins:
            self._applied[moment.index] = self._proxy.apply(moment.fault)
            self._faults_applied += not isinstance(moment.fault, Kill)
        else:
            self._proxy.lift(self._applied.pop(moment.index))
        if isinstance(moment.fault, Kill):
            self._act(moment.fault, "kill" if moment.begins else "restart", processes)
        if self._on_fault is not None:
            change = FaultChange(
                at_s=moment.at_s,
                fault=moment.fault,
                began=moment.begins,
                present_fault=self._proxy.present_fault,
            )
            self._on_fault(change)

    def lift_all(self) -> None:
        for applied in self._applied.values():
            self._proxy.lift(applied)
        self._applied.clear()

    def report(self) -> ScheduleReport:
        return ScheduleReport(
            faults_applied=self._faults_applied,
            process_actions_done=self._actions_done,
            process_actions_ignored=self._actions_ignored,
        )

    def _act(self, fault: Kill, action: ProcessAction, processes: asyncio.TaskGroup) -> None:
        if self._on_process_fault is None:
            self._actions_ignored += 1
            return
        before = self._last_action.get(fault.target)
        task = processes.create_task(self._act_after(before, fault, action, self._on_process_fault))
        self._last_action[fault.target] = task

    async def _act_after(
        self,
        before: asyncio.Task[None] | None,
        fault: Kill,
        action: ProcessAction,
        carry_out: OnProcessFault,
    ) -> None:
        if before is not None:
            await before
        await carry_out(fault, action)
        self._actions_done += 1


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


STORM: Final = Schedule(
    name="storm",
    duration_s=60.0,
    faults=(
        Stall(at_s=5.0, until_s=10.0),
        Reset(at_s=15.0, until_s=17.0, every_s=0.2),
        Latency(at_s=17.0, until_s=25.0, latency_s=0.8, jitter_s=0.4),
        Kill(at_s=25.0, target="server", restart_at_s=25.0),
        Kill(at_s=35.0, target="client:1", restart_at_s=36.0),
        ChunkLoss(at_s=36.0, until_s=50.0, probability=0.2, direction="down", older_than_s=1.0),
    ),
)
"""A minute in which everything happens: silence, resets, a slow link, two kills, losses; then calm."""
