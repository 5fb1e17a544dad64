"""No password in a log, no token in an address, no content outside the encrypted files.

Real processes, all at debug level: a server, the command line, a program on the SDK, event streams and
polls, with wrong passwords, nonsense and a killed server between them. What passed on the wire is kept; every
token is taken from there and searched for wherever it must not be.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import inspect
import json
import logging
import pkgutil
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

import whimbrel
from tests.attack.access_rig import Ends
from tests.cli.rig import LIMIT_S, Home, Popen, home_of, reap
from tests.integration.rig import until
from tests.server.app_rig import TLS
from whimbrel import Client, Credentials, Settings, errors
from whimbrel.client.address import parse_address
from whimbrel.client.http import HttpApi
from whimbrel.client.websocket import WebSocketLink

pytestmark = pytest.mark.timeout(600)

PASSWORD = "pass-c4n4ry-good word"
WRONG = "pass-c4n4ry-wrong word"
CONTENT = ("body-c4n4ry", "meta-c4n4ry", "title-c4n4ry", "key-c4n4ry")
PASSPHRASE = "phrase-c4n4ry"
TOKEN = re.compile(rb"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{43}|wr_[\w-]{43}")

SDK = f"""
import asyncio, json, logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from whimbrel import Client, Credentials, WhimbrelError

async def main(url, store):
    lines = []
    given = Credentials("ann", {PASSWORD!r})
    client = Client(url, store, given, passphrase={PASSPHRASE!r})
    async with client:
        await client.connected(60)
        team = await client.create_conversation("bob", title="title-c4n4ry")
        stream = client.events()
        sent = await team.send("body-c4n4ry", metadata={{"m": "meta-c4n4ry"}}, key="key-c4n4ry")
        await sent.delivered(60)
        event = await anext(stream)
        message = await client.message(sent.id)
        explained = await client.explain(sent.id)
        for value in (client, given, sent, event, message, explained, team, client._session):
            lines.append(repr(value))
            logging.getLogger("app").debug("%r", value)
        try:
            await team.send("body-c4n4ry other", key="key-c4n4ry")
        except WhimbrelError as error:
            logging.getLogger("app").exception("refused")
            lines.append(repr(error))
        try:
            await client.sign_in(Credentials("ann", {WRONG!r}))
        except WhimbrelError as error:
            logging.getLogger("app").exception("refused")
            lines.append(repr(error))
        await client.sign_in(given)
        asyncio.get_running_loop().call_exception_handler({{"message": "as a bug would", "client": client}})
    print("\\n".join(lines))

asyncio.run(main(sys.argv[1], sys.argv[2]), debug=True)
"""


class Wire:
    """Stands between clients and server, and keeps what the clients say."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._said: list[bytearray] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    @property
    def said(self) -> list[bytes]:
        """By connection, in both directions one after the other."""
        return [bytes(part) for part in self._said]

    def request_lines(self) -> list[bytes]:
        """What an access log of a proxy would have: methods and addresses."""
        found = []
        for part in self.said:
            found += re.findall(rb"^(?:GET|POST|DELETE|PUT|HEAD) [^\r\n]*", part, re.MULTILINE)
        return found

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            try:
                other = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                link.close()
                continue
            for source, sink in ((link, other), (other, link)):
                kept = bytearray()
                self._said.append(kept)
                threading.Thread(target=_carry, args=(source, sink, kept), daemon=True).start()


def _carry(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    try:
        while data := source.recv(65536):
            kept += data
            sink.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes who reads it
            end.close()


@dataclasses.dataclass(kw_only=True)
class Scene:
    """All that the processes left behind."""

    folder: Path
    logs: dict[str, str]
    """What was written to standard output and error, by who wrote it."""
    arguments: list[bytes]
    environments: list[bytes]
    wire: Wire
    tokens: frozenset[bytes]

    def secrets(self) -> list[str]:
        """Passwords, and the last part of each token: a log may shorten what it shows."""
        return [PASSWORD, WRONG, PASSPHRASE, *(token[-20:].decode() for token in self.tokens)]


class Debugged:
    """Runs programs at debug level and keeps what they say and how they were started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: dict[str, str] = {}
        self.arguments: list[bytes] = []
        self.environments: list[bytes] = []

    def seen(self, process: Popen) -> None:
        """Look at a process as anybody on the machine, and its owner, can."""
        for kept, name in ((self.arguments, "cmdline"), (self.environments, "environ")):
            kept.append(Path(f"/proc/{process.pid}/{name}").read_bytes())

    def run(self, home: Home, *arguments: str, stdin: str = "", code: int = 0) -> str:
        process = home.start(*arguments, stdin=subprocess.PIPE, variables={"WHIMBREL_DEBUG": "1"})
        try:
            self.seen(process)
            out, err = process.communicate(stdin.encode(), timeout=LIMIT_S)
        finally:
            reap(process)
        self.logs[f"{len(self.logs)} {arguments[0]}"] = (out + err).decode()
        assert process.returncode == code, err.decode()
        return out.decode()


async def _listen(url: str, token: str) -> None:
    """The other ways to listen, and nonsense with marks in it."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=LIMIT_S, verify=TLS) as http:
        polled = await http.get("/api/poll", params={"timeout": "0"})
        sync = polled.json()["sync"]
        listed = await http.get("/api/conversations")
        assert "team" in [one["id"] for one in listed.json()["conversations"]]
        room = "team"
        for path in (f"/api/events?sync={sync}", f"/api/conversations/{room}/events?since=0"):
            async with http.stream("GET", path) as stream:
                async for _ in stream.aiter_bytes():
                    break
        nonsense = (
            b'{"username": "ann", "password": "pass-c4n4ry-good word", "device": 7}',
            b'{"username": ["body-c4n4ry"], "password": "pass-c4n4ry-wrong word"',
            b'"pass-c4n4ry-wrong word',
            b'{"key": "key-c4n4ry", "body": "body-c4n4ry", "stream": "title-c4n4ry", "n": 1}',
            b'{"key": "key-c4n4ry", "body": "body-c4n4ry \\ud800", "stream": 1, "n": 1}',
            b'{"key": "key-c4n4ry", "body": "body-c4n4ry", "stream": 1, "n": 1, "format": "meta-c4n4ry"}',
        )
        for path in ("/api/auth/login", f"/api/conversations/{room}/messages/buffered"):
            for content in nonsense:
                answer = await http.post(path, content=content)
                assert answer.status_code >= 400, answer.text
                assert "c4n4ry" not in answer.text, "an error quotes what was said"


def _play(run: Debugged, homes: dict[str, Home], wire: Wire, sdk: Path) -> None:
    """Everything that carries a secret, once."""
    ann, bob = homes["ann"], homes["bob"]
    run.run(ann, "login", wire.url, "ann", "--password-stdin", stdin=WRONG, code=4)
    run.run(ann, "login", wire.url, "nobody", "--password-stdin", stdin=PASSWORD, code=4)
    for home, name in ((ann, "ann"), (bob, "bob")):
        run.run(home, "login", wire.url, name, "--password-stdin", stdin=PASSWORD)
    run.run(ann, "conversation", "create", "bob", "--id", "team", "--title", "title-c4n4ry")
    run.run(ann, "send", "team", "-", stdin="body-c4n4ry")
    run.run(bob, "sync-once")
    run.run(bob, "logout")
    process = subprocess.Popen(
        [sys.executable, "-c", SDK, wire.url, str(sdk)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        reap(process)
    assert process.returncode == 0, err.decode()
    run.logs["the SDK"] = (out + err).decode()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("secrets")
    run = Debugged(folder)
    homes = {name: home_of(folder, name) for name in ("host", "ann", "bob")}
    for home in homes.values():
        home.variables["WHIMBREL_PASSPHRASE"] = PASSPHRASE
    data = folder / "data"
    for name in ("ann", "bob"):
        run.run(homes["host"], "user", "add", name, "--data", str(data), "--password-stdin", stdin=PASSWORD)
    with (folder / "server.out").open("wb") as out, (folder / "server.err").open("wb") as err:
        server = homes["host"].start(
            *("serve", "--json", "--port", "0", "--data", str(data)),
            stdout=out,
            stderr=err,
            variables={"WHIMBREL_DEBUG": "1"},
        )
    wire: Wire | None = None
    try:
        asyncio.run(until(lambda: (folder / "server.out").read_bytes().endswith(b"\n")))
        url = json.loads((folder / "server.out").read_text().splitlines()[0])["url"]
        run.seen(server)
        wire = Wire(int(url.rpartition(":")[2]))
        _play(run, homes, wire, folder / "sdk.db")
        found = {token for part in wire.said for token in TOKEN.findall(part)}
        access = [token for token in found if token.startswith(b"eyJ")]
        asyncio.run(_listen(wire.url, access[0].decode()))
        # What waits on a device while there is no server, and files as a crash leaves them.
        server.send_signal(signal.SIGKILL)
        server.wait()
        homes["ann"].variables["WHIMBREL_DEBUG"] = "1"
        run.run(homes["ann"], "send", "team", "-", "--timeout", "0.1", stdin="body-c4n4ry waits", code=3)
    finally:
        reap(server)
        if wire is not None:
            wire.close()
    for name in ("server.out", "server.err"):
        run.logs[name] = (folder / name).read_text()
        (folder / name).unlink()
    tokens = frozenset(token for part in wire.said for token in TOKEN.findall(part))
    return Scene(
        folder=folder,
        logs=run.logs,
        arguments=run.arguments,
        environments=run.environments,
        wire=wire,
        tokens=tokens,
    )


def test_it_was_all_said_on_the_wire(scene: Scene) -> None:
    """Or the searches below would find nothing for want of anything."""
    said = b"".join(scene.wire.said)
    for mark in (PASSWORD, WRONG, *CONTENT):
        assert mark.encode() in said, mark
    assert sum(token.startswith(b"eyJ") for token in scene.tokens) >= 4
    assert sum(token.startswith(b"wr_") for token in scene.tokens) >= 4
    assert PASSPHRASE.encode() not in said


def test_no_log_has_a_secret_or_content(scene: Scene) -> None:
    shown = {name: text for name, text in scene.logs.items() if "DEBUG" in text}
    assert {"server.err", "the SDK"} <= set(shown)
    for name, text in scene.logs.items():
        for mark in (*scene.secrets(), *CONTENT):
            lines = [line for line in text.splitlines() if mark in line]
            assert not lines, f"{name}: {lines[:3]}"


def test_no_address_has_a_token(scene: Scene) -> None:
    lines = scene.wire.request_lines()
    assert len(lines) >= 15
    assert any(b"/api/ws " in line for line in lines)
    assert any(b"/api/events" in line for line in lines)
    for line in lines:
        assert not TOKEN.search(line), line
        for mark in (*scene.secrets(), *CONTENT):
            assert mark.encode() not in line, line


def test_no_argument_and_no_variable_of_a_process_has_a_secret(scene: Scene) -> None:
    assert len(scene.arguments) >= 8
    secrets = [mark.encode() for mark in scene.secrets()]
    for arguments in scene.arguments:
        assert not any(mark in arguments for mark in secrets), arguments
    # The passphrase is there because the test gave it so; nothing else is.
    for environment in scene.environments:
        assert not any(mark in environment for mark in secrets if mark != PASSPHRASE.encode())


def test_no_file_has_a_secret_or_content(scene: Scene) -> None:
    """As the server was killed: database, log and all."""
    marks = [mark.encode() for mark in (*scene.secrets(), *CONTENT)]
    files = [path for path in scene.folder.rglob("*") if path.is_file()]
    assert sum(path.name.startswith(("ledger", "accounts")) for path in files) >= 4
    assert sum(path.name.endswith(".db") for path in files) >= 5
    for path in files:
        content = path.read_bytes()
        assert not any(mark in content for mark in marks), path
        # Nobody else on the machine gets at it: the file is closed to them, or a folder on the way.
        way = [path, *(folder for folder in path.parents if scene.folder in folder.parents)]
        assert any(place.stat().st_mode & 0o077 == 0 for place in way), path


# --- what shows itself ---------------------------------------------------------------------------

HIDDEN = {
    "access_token",
    "access",
    "body",
    "content",
    "key",
    "metadata",
    "passphrase",
    "password",
    "refresh_token",
    "refresh",
    "title",
    "token",
}
HARMLESS = {
    ("whimbrel.server.http", "Call"): "its body shows itself, by type",
    ("whimbrel.server.http", "Route"): "the type of a body",
    ("whimbrel.server.problem", "Problem"): "the name of a status",
    ("whimbrel.client.http", "_Problem"): "the name of a status",
}


def values() -> list[type]:
    """Every Struct and dataclass of the library and the server."""
    found = []
    for module in pkgutil.walk_packages(whimbrel.__path__, "whimbrel."):
        if module.name.startswith(("whimbrel.cli", "whimbrel.testing")) or "__main__" in module.name:
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(kind) and kind.__module__ == module.name and fields_of(kind):
                found.append(kind)  # noqa: PERF401 - in one expression nobody could read it
    return found


def fields_of(kind: type) -> list[str]:
    """The names of what a value of this type holds; none, if it is no such type."""
    if issubclass(kind, msgspec.Struct):
        return list(kind.__struct_fields__)
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return []


def test_no_value_shows_what_it_holds() -> None:
    looked_at = 0
    for kind in values():
        names = fields_of(kind)
        hidden = HIDDEN & set(names)
        if not hidden or (kind.__module__, kind.__name__) in HARMLESS:
            continue
        value = kind(**{name: f"c4n4ry-{name}" for name in names})
        looked_at += 1
        assert not [name for name in hidden if f"c4n4ry-{name}" in repr(value) + str(value)], kind
    assert looked_at >= 20


def test_no_error_shows_a_cause_with_content() -> None:
    """What errors are built from is words and numbers of ours: no text of an exception that quotes input."""
    with pytest.raises(errors.ProtocolError) as caught:
        whimbrel_frame(b'[{"t":"event","body":"body-c4n4ry"')
    assert "c4n4ry" not in str(caught.value) + repr(caught.value)


def whimbrel_frame(data: bytes) -> None:
    from whimbrel.protocol import decode_server  # noqa: PLC0415 - beside its only use

    decode_server(data)


def test_what_holds_secrets_does_not_show_them(tmp_path: Path) -> None:
    shown = [
        repr(Client("http://127.0.0.1:1", tmp_path / "a.db", Credentials("ann", PASSWORD), key=b"k" * 32)),
        repr(Client("http://127.0.0.1:1", None, Credentials("ann", PASSWORD), passphrase=None)),
        repr(Credentials("ann", PASSWORD)),
        repr(Settings()),
        repr(HttpApi(parse_address("http://127.0.0.1:1"))),
    ]
    assert not any(PASSWORD in text or "kkkk" in text for text in shown)


# --- elsewhere -----------------------------------------------------------------------------------


class Elsewhere:
    """A server that sends everyone elsewhere, and that other place."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.visits: list[bytes] = []
        self.asked = 0

    async def __aenter__(self) -> Elsewhere:
        self._there = await asyncio.start_server(self._arrived, "127.0.0.1", 0)
        self._port = self._there.sockets[0].getsockname()[1]
        self._here = await asyncio.start_server(self._redirect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._here.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in (self._here, self._there):
            server.close()
            await server.wait_closed()

    async def _redirect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split(b" ")[1].decode()
        self.asked += 1
        location = f"http://localhost:{self._port}{path}"
        head = f"HTTP/1.1 {self.status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        writer.close()

    async def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits.append(await reader.read(65536))
        writer.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_nothing_follows_a_redirect(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Elsewhere(status) as place:
        api = HttpApi(parse_address(place.url))
        for call in (
            api.login("ann", PASSWORD, "a" * 26),
            api.refresh("wr_" + "c4n4ry" * 7 + "x"),
            api.logout("wr_" + "c4n4ry" * 7 + "x"),
        ):
            with pytest.raises(errors.ProtocolError) as caught:
                await call
            assert "c4n4ry" not in str(caught.value)
        await api.close()
        listener: Any = Ends()
        link = WebSocketLink(1, parse_address(place.url), listener)
        async with asyncio.timeout(LIMIT_S):
            await listener.end
        await link.close()
        assert place.asked == 4
        assert place.visits == []
    assert "c4n4ry" not in caplog.text
