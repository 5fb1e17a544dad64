"""A process full of members that listen: `python -m benchmarks.ears CONFIG.json`.

Connects a `Speaker` for each token, says `ready` on its standard output when all are welcomed, and notes for
each message how long it took: a message's text is the sender's monotonic clock in nanoseconds, which all
processes of a machine share. When its standard input ends, it writes what it noted to a file and ends.
"""

from __future__ import annotations

import asyncio
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.speakers import say_hello
from whimbrel import protocol as p

__all__ = ["EarsConfig", "EarsReport"]


class EarsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Whose ears these are, and where to."""

    port: int
    tokens: tuple[str, ...]
    report: str
    """The file of the report; the times, in seconds, are beside it, with `.times` behind the name."""

    def __repr__(self) -> str:
        return f"<EarsConfig of {len(self.tokens)}>"


class EarsReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the members of one process heard."""

    heard: tuple[int, ...]
    """Messages, by member."""
    not_in_order: int
    """How often one was not the next in the log."""
    failures: tuple[str, ...]
    """Of members whose connections ended."""
    busy_s: float
    """Processor time since all were ready."""


async def _listen(config: EarsConfig) -> None:
    times = array("d")
    heard = [0] * len(config.tokens)
    last: list[int | None] = [None] * len(config.tokens)
    not_in_order = 0

    def ear(number: int) -> Callable[[p.Event], None]:
        def hear(event: p.Event) -> None:
            nonlocal not_in_order
            if event.kind != "message":
                return
            times.append(time.monotonic() - int(event.body) / 1e9)
            before, last[number] = last[number], event.seq
            heard[number] += 1
            not_in_order += before is not None and event.seq != before + 1

        return hear

    speakers = await say_hello(list(config.tokens), config.port, ear)
    try:
        busy_s = time.process_time()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        await reader.readline()
        report = EarsReport(
            heard=tuple(heard),
            not_in_order=not_in_order,
            failures=tuple(str(speaker.failure) for speaker in speakers if speaker.failure is not None),
            busy_s=time.process_time() - busy_s,
        )
    finally:
        for speaker in speakers:
            speaker.close()
    await asyncio.to_thread(_write, config, report, times)


def _write(config: EarsConfig, report: EarsReport, times: array[float]) -> None:
    Path(config.report).write_bytes(msgspec.json.encode(report))
    Path(f"{config.report}.times").write_bytes(times.tobytes())


def main() -> int:
    """Listen until told to stop."""
    asyncio.run(_listen(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=EarsConfig)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
