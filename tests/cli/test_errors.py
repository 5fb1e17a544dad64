"""Everything that goes wrong ends in one line that helps, with its exit code, and without a traceback."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.rig import PASSWORDS, Home, Server, home_of, reap, serving
from whimbrel import errors
from whimbrel.cli.exits import Exit, described, exit_code

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "ann", "bob") as server:
        yield server


@pytest.fixture
def ann(tmp_path: Path, server: Server) -> Home:
    home = home_of(tmp_path, "ann")
    home.log_in(server.url, "ann").ok()
    return home


@pytest.fixture
def nobody(tmp_path: Path) -> Home:
    return home_of(tmp_path, "nobody")


def store_of(home: Home) -> Path:
    [store] = (home.folder / "data").glob("whimbrel/stores/*/*.db")
    return store


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


# --- the server ----------------------------------------------------------------------------------


def test_wrong_password(server: Server, nobody: Home) -> None:
    nobody.run("login", server.url, "ann", "--password-stdin", stdin="wrong").fails(
        4, "wrong name or password"
    )
    nobody.run("login", server.url, "x", "--password-stdin", stdin="wrong").fails(4, "wrong name or password")
    nobody.run("send", "team", "hello").fails(2, "not logged in")
    nobody.log_in(server.url, "ann").ok()


def test_unreachable(nobody: Home) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    nobody.log_in(url, "ann").fails(5, "check the address")


def test_no_whimbrel_server_there(nobody: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        code = (
            "import socket, sys; listening = socket.socket(fileno=int(sys.argv[1]));"
            " link, _ = listening.accept(); link.sendall(b'hm?\\n')"
        )
        answering = subprocess.Popen(
            [sys.executable, "-c", code, str(other.fileno())], pass_fds=[other.fileno()]
        )
        try:
            nobody.log_in(f"http://127.0.0.1:{other.getsockname()[1]}", "ann").fails(5)
        finally:
            answering.kill()
            answering.wait()


def test_unknown_conversation(ann: Home) -> None:
    ann.run("send", "nowhere", "hello").fails(4, "refused", "no such conversation", "conversation list")
    ann.run("conversation", "add", "nowhere", "bob").fails(4)
    ann.run("conversation", "leave", "nowhere").fails(4)
    assert ann.run("outbox", "--json").ok().json == []


def test_unknown_users_and_messages(ann: Home) -> None:
    ann.run("conversation", "create", "nobody").fails(4, "members", "check the names")
    ann.run("conversation", "create", "--id", "mine").ok()
    ann.run("conversation", "add", "mine", "nobody").fails(4, "check the names")
    ann.run("explain", "nothing").fails(4, "nothing")


def test_port_in_use(server: Server, nobody: Home) -> None:
    port = server.url.rpartition(":")[2]
    nobody.run("serve", "--port", port).fails(2, f"port {port}", "in use", "--port")


def test_two_servers_on_one_folder(server: Server, nobody: Home) -> None:
    nobody.run("serve", "--port", "0", "--data", str(server.data)).fails(6, "another server uses")


def test_users_twice(server: Server, nobody: Home) -> None:
    data = ("--data", str(server.data), "--generate")
    nobody.run("user", "add", "ann", *data).fails(4, "there is a user of this name")
    nobody.run("user", "password", "nobody", *data).fails(4, "no such user")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_is_stopped_without_noise(tmp_path: Path, number: int) -> None:
    with serving(tmp_path / "server") as server:
        assert server.stop(number) == 0


# --- the store, profiles, folders ----------------------------------------------------------------


def test_wrong_and_missing_keys(ann: Home) -> None:
    ann.run("outbox", variables={"WHIMBREL_PASSPHRASE": "another"}).fails(6, "passphrase")
    ann.run("outbox", variables={"WHIMBREL_PASSPHRASE": None}).fails(6, "passphrase")
    ann.run("outbox", variables={"WHIMBREL_PASSPHRASE": ""}).fails(6, "passphrase")
    key = store_of(ann).with_name(store_of(ann).name + ".key")
    key.unlink()
    ann.run("outbox").fails(6, "key")


def test_no_place_for_a_key(server: Server, nobody: Home) -> None:
    without: dict[str, str | None] = {"WHIMBREL_PASSPHRASE": None}
    password = PASSWORDS["ann"]
    command = ("login", server.url, "ann", "--password-stdin")
    nobody.run(*command, stdin=password, variables=without).fails(
        6, "--key-file-plain", "WHIMBREL_PASSPHRASE"
    )
    nobody.run(*command, "--key-file-plain", stdin=password, variables=without).ok()
    nobody.run("outbox", variables=without).ok()


def test_damaged_and_missing_stores(ann: Home) -> None:
    store = store_of(ann)
    for file in store.parent.glob(f"{store.name}-*"):
        file.unlink()
    store.write_bytes(os.urandom(8192))
    assert "damaged" in ann.run("outbox").ok().err  # and made anew: nothing of it could be read
    [aside] = store.parent.glob(f"{store.name}.corrupt-*")
    assert aside.stat().st_size == 8192
    store.unlink()
    ann.run("send", "team", "hello").fails(6, "there is no store at", "log in again")


def test_a_damaged_profile(ann: Home) -> None:
    profile = ann.folder / "config" / "whimbrel" / "profiles" / "default.json"
    assert profile.stat().st_mode & 0o777 == 0o600
    profile.write_text('{"url": 3')
    ann.run("outbox").fails(6, "damaged", str(profile))


def test_another_user_or_server_under_one_profile(server: Server, ann: Home) -> None:
    ann.log_in(server.url, "bob").fails(2, "profile default is ann", "--profile")
    ann.log_in(server.url, "bob", "--profile", "bob").ok()
    store = str(store_of_user(ann, "ann"))
    ann.log_in(server.url, "bob", "--profile", "third", "--store", store).fails(4, "another user")


def store_of_user(home: Home, user: str) -> Path:
    [store] = (home.folder / "data").glob(f"whimbrel/stores/*/{user}.db")
    return store


def test_folders_that_cannot_be_used(server: Server, nobody: Home) -> None:
    in_the_way = nobody.folder / "file"
    in_the_way.write_text("")
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        home = Home(nobody.folder, **{variable: str(in_the_way / "below")})
        home.log_in(server.url, "ann").fails(6, str(in_the_way))
    nobody.run("user", "add", "x", "--generate", "--data", str(in_the_way / "srv")).fails(6, str(in_the_way))
    nobody.run("serve", "--port", "0", "--data", str(in_the_way / "srv")).fails(6, str(in_the_way))


def test_a_disk_that_takes_nothing_more(ann: Home) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    ann.run("send", "team", "-", stdin="x" * 200_000, preexec_fn=limit).fails(6, str(store_of(ann)))


# --- input and output ----------------------------------------------------------------------------


def test_input_that_is_no_text(ann: Home) -> None:
    ann.run("send", "team", "-", stdin=b"\xff\xfe").fails(2, "not UTF-8")
    ann.run("send", "team", "-", stdin=b"x" * (300 * 1024)).fails(4, "bytes")
    login = ("login", "http://127.0.0.1:1", "ann", "--profile", "other", "--password-stdin")
    ann.run(*login, stdin=b"\xff").fails(2, "UTF-8")
    ann.run(*login, stdin="").fails(2, "no password")


def test_nobody_reads_the_output(nobody: Home) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = nobody.start("--help", stdout=writing)
    finally:
        os.close(writing)
    try:
        _, err = process.communicate(timeout=120)
    finally:
        reap(process)
    assert (process.returncode, err) == (141, b"")


def test_the_disk_of_the_output_is_full(nobody: Home) -> None:
    with Path("/dev/full").open("wb") as full:
        nobody.run("--help", stdout=full).fails(6, "No space left")


def test_traces_only_for_those_who_ask(server: Server, nobody: Home) -> None:
    debugged = nobody.run("outbox", variables={"WHIMBREL_DEBUG": "1"})
    assert debugged.code == 2
    assert "Traceback" in debugged.err
    assert debugged.err.splitlines()[-1].startswith("whimbrel: not logged in")


def test_every_error_has_its_code() -> None:
    expected = {
        errors.InvalidUrl: 2,
        errors.KeyReused: 2,
        errors.StoreFull: 6,
        errors.StoreInUse: 6,
        errors.StoreTooNew: 6,
        errors.QueueFull: 6,
        errors.NotConnected: 5,
        errors.BreakerOpen: 5,
        errors.RateLimited: 5,
        errors.ServerFailed: 5,
        errors.Unauthorized: 4,
        errors.NotFound: 4,
        errors.TooLarge: 4,
        errors.DeliveryFailed: 4,
        errors.DeliveryPending: 3,
        errors.WhimbrelError: 1,
    }
    for kind, code in expected.items():
        assert exit_code(kind("text")) == Exit(code), kind
    full = errors.StoreFull("the disk is full\x1b[2J\nwhimbrel: all is well")
    assert "\x1b" not in described(full)
    assert "\n" not in described(full)
    assert described(full).endswith(f"({full.hint})")
