"""Pages are played: their programs written down, their commands typed, their output compared.

A program has its name in the paragraph before it. A transcript is a block of text whose lines begin with the
name of a terminal: ``ann $ command`` is typed there, ``ann ⏎`` and ``ann ^C`` are keys, any other ``ann …``
is a line that terminal shows next. What differs from run to run stands in the page as an example: ids of
messages, numbers of processes, the folder. Ports of the page become free ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.markdown import ROOT

LIMIT_S = 120.0
"""Far more than any line takes to appear."""

_PROGRAM = re.compile(r"([^\n]+(?:\n[^\n]+)*)\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"(?P<terminal>[a-z]+) +(?:\$ (?P<command>.+)|(?P<key>⏎|\^C)|(?P<shown>.+))")
_ID = re.compile(r"\b[a-z2-7]{26}\b")
_EXPORT = re.compile(r"export (\w+)=\"?([^\"]*)\"?")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a transcript."""

    terminal: str
    command: str | None
    key: str | None
    shown: str | None


def programs(text: str) -> dict[str, str]:
    """The programs of a page by their file names; a later version takes the place of an earlier one."""
    found = {}
    for paragraph, program in _PROGRAM.findall(text):
        name = re.search(r"`(\w+\.py)`", paragraph)
        if name is not None:
            found[name[1]] = program
    return found


def transcript(text: str) -> list[Line]:
    """All lines of a page's transcripts."""
    lines = []
    for block in _BLOCK.findall(text):
        if not re.match(r"[a-z]+ +\$ |[a-z]+ +(?:⏎|\^C)", block):
            continue
        for written in block.splitlines():
            found = _LINE.fullmatch(written)
            assert found is not None, f"neither typed nor shown: {written!r}"
            lines.append(Line(**found.groupdict()))
    return lines


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Terminal:
    """A shell as a person uses it: one command at a time, its lines as they come."""

    name: str
    process: asyncio.subprocess.Process | None = None
    shown: list[str] = field(default_factory=list)
    code: int | None = None

    async def next_line(self) -> str:
        """The next line the command shows."""
        assert self.process is not None, f"{self.name}: nothing runs there"
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), LIMIT_S)).decode()
        assert line, f"{self.name} ended after {self.shown}"
        self.shown.append(line)
        return line.removesuffix("\n")

    async def finish(self) -> None:
        """Wait until the command has ended; everything it showed must have been read."""
        if self.process is None:
            return
        assert self.process.stdout is not None
        rest = (await asyncio.wait_for(self.process.stdout.read(), LIMIT_S)).decode()
        self.code = await asyncio.wait_for(self.process.wait(), LIMIT_S)
        self.process = None
        assert not rest, f"{self.name} shows more than the page: {rest}"


class Player:
    """Plays a page in an empty folder."""

    def __init__(self, text: str, folder: Path, ports: tuple[int, ...] = (8000, 8001)) -> None:
        self.folder = folder
        self._ports = {str(port): str(free_port()) for port in ports}
        self._values: dict[str, str] = {}
        self._text = text
        self._terminals: dict[str, Terminal] = {}
        self._environment = environment(folder)

    async def play(self) -> None:
        """Do everything the page says. Raises AssertionError where it is not true."""
        for name, program in programs(self._text).items():
            (self.folder / name).write_text(self._here(program), encoding="utf-8")
        lines = transcript(self._text)
        assert lines, "there is nothing to play"
        try:
            for line in lines:
                await self._step(line)
        finally:
            for terminal in self._terminals.values():
                await end(terminal)

    async def _step(self, line: Line) -> None:
        terminal = self._terminals.setdefault(line.terminal, Terminal(line.terminal))
        if line.shown is not None:
            self._compare(line.shown, await terminal.next_line())
        elif line.key == "⏎":
            assert terminal.process is not None
            assert terminal.process.stdin is not None
            terminal.process.stdin.write(b"\n")
        elif line.key == "^C":
            assert terminal.process is not None
            os.killpg(terminal.process.pid, signal.SIGINT)
        else:
            assert line.command is not None
            await self._type(terminal, line.command)

    async def _type(self, terminal: Terminal, command: str) -> None:
        exported = _EXPORT.fullmatch(command)
        if exported is not None:
            name, value = exported.groups()
            self._environment[name] = value.replace("$PWD", str(self.folder))
            return
        if terminal.process is not None:
            await terminal.finish()
        killed = re.fullmatch(r"kill -9 (\d+)", command)
        if killed is not None:
            await self._kill(killed[1])
            return
        terminal.shown.clear()
        terminal.process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            f"exec {self._here(command)}"
            if "|" not in command and ";" not in command
            else self._here(command),
            cwd=self.folder,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def _kill(self, number: str) -> None:
        """Kill what the page killed: a process that one of these terminals started, and no other."""
        pid = int(self._values[number])
        (killed,) = [each for each in self._terminals.values() if each.process and each.process.pid == pid]
        os.kill(pid, signal.SIGKILL)
        await killed.finish()

    def _here(self, text: str) -> str:
        """The page's text with this run's values in it."""
        text = re.sub(r"\bwhimbrel serve\b", f"whimbrel serve --port {self._ports['8000']}", text)
        for written, real in self._ports.items():
            text = re.sub(rf"\b{written}\b", real, text)
        return text.replace("FOLDER", str(self.folder))

    def _compare(self, written: str, real: str) -> None:
        process = re.fullmatch(r"(.*process )(\d+)", written)
        if process is not None:
            found = re.fullmatch(re.escape(process[1]) + r"(\d+)", real)
            assert found is not None, f"the page says {written!r}, it is {real!r}"
            self._values[process[2]] = found[1]
            return
        expected = _ID.sub("ID", written)
        for port, actual in self._ports.items():
            expected = re.sub(rf"\b{port}\b", actual, expected)
        expected = expected.replace("FOLDER", str(self.folder))
        assert _ID.sub("ID", real) == expected, f"the page says {expected!r}, it is {real!r}"


def environment(folder: Path) -> dict[str, str]:
    """A person's environment with nothing of whimbrel in it, at home in this folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WHIMBREL_", "XDG_", "PYTEST_"))
    }
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(folder),
        "PWD": str(folder),
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONWARNINGS": "error",
        "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
    }


async def end(terminal: Terminal) -> None:
    """Leave nothing running."""
    process = terminal.process
    if process is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
