"""The real command in processes of its own, with folders of its own, against a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
PASSWORDS = {"ann": "ann's long password", "bob": "bob's long password", "carol": "carol's long password"}


class Result:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document."""
        return json.loads(self.out)

    def ok(self) -> Result:
        assert self.code == 0, f"exit code {self.code}: {self.err}"
        assert "Traceback" not in self.err
        return self

    def fails(self, code: int, *words: str) -> Result:
        """It ended with this code and one line on standard error that has these words."""
        lines = self.err.splitlines()
        assert self.code == code, f"exit code {self.code}, not {code}: {self.err}"
        assert len(lines) == 1, self.err
        assert lines[0].startswith("whimbrel: "), self.err
        for word in words:
            assert word in lines[0], f"{word!r} is not in: {lines[0]}"
        return self


class Home:
    """A person's folders and environment."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
        self.variables = {
            **kept,
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_DATA_HOME": str(folder / "data"),
            "WHIMBREL_PASSPHRASE": "a passphrase for tests",
            "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
            "COLUMNS": "100",
            **variables,
        }

    def start(
        self, *arguments: str, variables: Mapping[str, str | None] | None = None, **options: Any
    ) -> Popen:
        """Start the command."""
        merged = {**self.variables, **(variables or {})}
        environment = {name: value for name, value in merged.items() if value is not None}
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        } | options
        command = [sys.executable, "-m", "whimbrel.cli", *arguments]
        process: Any = subprocess.Popen(command, env=environment, cwd=self.folder, **options)
        started: Popen = process
        return started

    def run(
        self,
        *arguments: str,
        stdin: str | bytes | None = None,
        variables: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> Result:
        """Run the command to its end."""
        if stdin is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(*arguments, variables=variables, **options)
        try:
            data = stdin.encode() if isinstance(stdin, str) else stdin
            out, err = process.communicate(data, timeout=LIMIT_S)
        finally:
            reap(process)
        return Result(process.returncode, (out or b"").decode(), (err or b"").decode())

    def log_in(self, url: str, name: str, *options: str) -> Result:
        return self.run("login", url, name, "--password-stdin", *options, stdin=PASSWORDS[name] + "\n")


Popen = subprocess.Popen[bytes]


def reap(process: Popen) -> None:
    """End a process that still runs, and collect it."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


class Server:
    """A server process; can be stopped, and started again at the same address."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.data = home.folder / "server"
        self.url = ""
        self._process: Popen | None = None

    def start(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        self._process = self.home.start("serve", "--json", "--port", port, "--data", str(self.data))
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, err = self._process.communicate(timeout=LIMIT_S)
            raise AssertionError(f"the server did not start: {err.decode()}")
        self.url = json.loads(line)["url"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it, and give its exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        try:
            process.send_signal(number)
            process.wait(timeout=LIMIT_S)
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()
        finally:
            reap(process)
        return process.returncode

    def add(self, *names: str) -> None:
        for name in names:
            self.home.run(
                "user", "add", name, "--data", str(self.data), "--password-stdin", stdin=PASSWORDS[name]
            ).ok()

    def close(self) -> None:
        if self._process is not None:
            reap(self._process)
            self._process = None


@contextmanager
def serving(folder: Path, *names: str) -> Iterator[Server]:
    """A server with these users."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(Home(folder))
    try:
        server.add(*names)
        server.start()
        yield server
    finally:
        server.close()


def home_of(folder: Path, name: str) -> Home:
    """A fresh home below ``folder``."""
    made = folder / name
    made.mkdir(parents=True, exist_ok=True)
    return Home(made)
