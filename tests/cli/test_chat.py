"""``chat`` in a pipe and on a terminal of its own."""

import fcntl
import os
import pty
import re
import select
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.rig import Home, Popen, Server, home_of, reap, serving

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "ann", "bob") as server:
        yield server


@pytest.fixture
def ann(tmp_path: Path, server: Server) -> Home:
    home = home_of(tmp_path, "ann")
    home.log_in(server.url, "ann", "--key-file-plain").ok()
    return home


class Terminal:
    """A process on a terminal: what it shows, and what is typed."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        try:
            self.process: Popen = home.start(
                *arguments,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                variables={"TERM": "xterm"},
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
            )
        finally:
            os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str, limit_s: float = 120.0) -> str:
        """Wait until this is on the screen, behind what was waited for before."""
        until = time.monotonic() + limit_s
        while (found := re.search(pattern, self.shown)) is None:
            left_s = until - time.monotonic()
            assert left_s > 0, f"{pattern} did not appear: {self.shown!r}"
            if select.select([self._master], [], [], left_s)[0]:
                try:
                    self.shown += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    assert re.search(pattern, self.shown), f"{pattern} did not appear: {self.shown!r}"
        text = self.shown[: found.end()]
        self.shown = self.shown[found.end() :]
        return text

    def close(self) -> None:
        reap(self.process)
        os.close(self._master)


def test_in_a_pipe(server: Server, ann: Home) -> None:
    id = ann.run("conversation", "create", "bob").ok().out.strip()
    talk = ann.run("chat", id, stdin="one\n\n//two\n/explain 1\n/nothing\n/retry 99\nthree")
    assert talk.code == 0, talk.err
    for number, text in enumerate(["one", "/two", "three"], 1):
        assert f"#{number} " in talk.out
        assert text in talk.out
        assert f"#{number} ✓✓ delivered" in talk.out
    assert "message   " in talk.out
    assert "there is no command /nothing" in talk.err
    assert "there is no message #99 here" in talk.err
    assert "\x1b" not in talk.out
    again = ann.run("chat", id, stdin="/quit\nnever sent\n").ok().out
    assert re.search(r"ann: one ✓✓\n.*ann: /two ✓✓\n.*ann: three ✓✓\n", again)
    assert "never" not in again


def test_without_a_server_it_waits(tmp_path: Path) -> None:
    with serving(tmp_path / "server", "ann") as server:
        ann = home_of(tmp_path, "ann")
        ann.log_in(server.url, "ann", "--key-file-plain").ok()
        ann.run("conversation", "create", "--id", "notes").ok()
        server.stop()
        talk = ann.run("chat", "notes", stdin="one\n")
        assert talk.code == 3
        assert "#1 ⏰" in talk.out
        assert "🔴 Offline" in talk.err
        assert "1 message queued on this device" in talk.err
        assert "Traceback" not in talk.err
        server.start()
        # What waited has a number in the next sitting, and goes out there.
        talk = ann.run("chat", "notes", stdin="two\n").ok()
        assert re.search(r"ann: one .*#1", talk.out)
        assert "#1 ✓✓ delivered" in talk.out
        assert "#2 ✓✓ delivered" in talk.out


def test_on_a_terminal(tmp_path: Path, server: Server, ann: Home) -> None:
    bob = home_of(tmp_path, "bob")
    bob.log_in(server.url, "bob", "--key-file-plain").ok()
    id = ann.run("conversation", "create", "bob").ok().out.strip()
    terminal = Terminal(ann, "chat", id)
    try:
        terminal.until("connected")
        terminal.type("hello\r")
        assert "\x1b[" in terminal.until("#1 ✓✓ delivered")
        bob.run("send", id, "hi\x1b[2J there").ok()
        assert "\x1b[2J" not in terminal.until(re.escape("hi\\x1b[2J there"))
        other = Terminal(bob, "chat", id)
        try:
            terminal.until("#1 ✓✓ read")
            other.type("\x04")  # Ctrl-D
            assert other.process.wait(120) == 0
        finally:
            other.close()
        terminal.type("\x03")  # Ctrl-C
        terminal.until(r"\^C")
        assert terminal.process.wait(120) == 130
    finally:
        terminal.close()


def test_no_colour_when_asked(server: Server, ann: Home) -> None:
    terminal = Terminal(Home(ann.folder, NO_COLOR="1"), "conversation", "list")
    try:
        assert "\x1b[3" not in terminal.until(r"WAITING|no conversations")
        assert terminal.process.wait(120) == 0
    finally:
        terminal.close()
