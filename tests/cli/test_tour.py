"""The whole way, with real processes: a server, users, a conversation, messages, and what tells of them."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.rig import Home, Popen, Server, home_of, reap

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def ann(tmp_path: Path, server: Server) -> Home:
    home = home_of(tmp_path, "ann")
    home.log_in(server.url, "ann").ok()
    return home


@pytest.fixture
def bob(tmp_path: Path, server: Server) -> Home:
    home = home_of(tmp_path, "bob")
    home.log_in(server.url, "bob", "--key-file-plain").ok()
    return home


def lines_of(process: Popen, count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().decode() for _ in range(count)]


def test_a_message_goes_the_whole_way(server: Server, ann: Home, bob: Home) -> None:
    made = ann.run("conversation", "create", "bob", "--id", "team", "--title", "The team", "--json").ok()
    assert made.json == {"id": "team", "title": "The team", "members": ["bob"]}

    tail = bob.start("tail", "team", "--json")
    try:
        sent = ann.run("send", "team", "hello", "--json").ok().json
        assert sent["state"] == "delivered"
        piped = ann.run("send", "team", "-", stdin="from\na pipe\n").ok()
        assert piped.out.startswith("delivered ")
        value = (
            ann.run("send", "team", '{"item": 42}', "--parse-json", "--key", "order-42", "--json").ok().json
        )
        assert value["key"] == "order-42"
        got = [json.loads(line) for line in lines_of(tail, 4)]
        tail.send_signal(signal.SIGTERM)
        assert tail.wait(60) == 143
    finally:
        reap(tail)
    assert [entry["kind"] for entry in got] == ["info", "message", "message", "message"]
    assert [entry["content"] for entry in got[1:]] == ["hello", "from\na pipe", {"item": 42}]
    assert [entry["seq"] for entry in got] == [1, 2, 3, 4]
    assert got[1]["id"] == sent["id"]
    assert {entry["sender"] for entry in got} == {"ann"}

    # The same key again is the same message; with other content it is refused here.
    again = ann.run("send", "team", '{"item": 42}', "--parse-json", "--key", "order-42", "--json").ok().json
    assert again["id"] == value["id"]
    ann.run("send", "team", "other", "--key", "order-42").fails(2, "key")

    assert ann.run("outbox", "--json").ok().json == []
    assert "delivered" in ann.run("outbox").ok().out
    explained = ann.run("explain", sent["id"], "--json").ok().json
    assert explained["id"] == sent["id"]
    assert explained["status"]["state"] in ("delivered", "read")
    assert sent["id"] in ann.run("explain", sent["id"]).ok().out

    [listed] = bob.run("conversation", "list", "--json").ok().json
    assert (listed["id"], listed["title"], listed["members"]) == ("team", "The team", ["ann", "bob"])
    assert "The team" in bob.run("conversation", "list", "--offline").ok().out
    assert bob.run("sync-once", "--json").ok().json == {"sent": 0, "pending": 0, "caught_up": True}

    shown = bob.run("tail", "team", "--since", "2", "--no-follow").ok().out
    assert "from\n    a pipe" in shown
    assert "hello" not in shown
    last = bob.run("tail", "--last", "1", "--no-follow", "--json").ok()
    assert last.json["content"] == {"item": 42}
    assert server.stop(signal.SIGINT) == 0


def test_members_come_and_go(server: Server, ann: Home, bob: Home) -> None:
    id = ann.run("conversation", "create").ok().out.strip()
    server.add("carol")  # while it runs
    bob.run("send", id, "may I?").fails(4, "refused")
    ann.run("conversation", "add", id, "bob").ok()
    bob.run("send", id, "here I am").ok()
    ann.run("conversation", "add", id, "nobody").fails(4)
    assert ann.run("conversation", "remove", id, "bob", "--json").ok().json["done"] == "removed"
    bob.run("conversation", "add", id, "carol").fails(4)
    ann.run("conversation", "leave", id).ok()
    [listed] = ann.run("conversation", "list", "--json").ok().json
    assert listed["status"] == "left"
    ann.run("send", id, "still here?").fails(4, "no longer a member")


def test_logging_out_and_in_again_keeps_what_waits(server: Server, ann: Home) -> None:
    ann.run("conversation", "create", "bob", "--id", "team").ok()
    server.stop()
    ann.run("send", "team", "later", "--timeout", "0.1").fails(3)
    out = ann.run("logout")
    assert out.code == 0
    assert "1 message not delivered" in out.err
    ann.run("outbox").fails(2, "not logged in", "whimbrel login")
    server.start()
    ann.log_in(server.url, "ann").ok()
    ann.run("sync-once").ok()
    last = ann.run("tail", "team", "--last", "1", "--no-follow", "--json").ok().json
    assert (last["content"], last["status"]["state"]) == ("later", "delivered")


def test_a_new_password_ends_every_session(server: Server, ann: Home) -> None:
    ann.run("conversation", "create", "bob", "--id", "team").ok()
    data = ("--data", str(server.data))
    given = server.home.run("user", "password", "ann", "--generate", "--json", *data).ok().json["password"]
    ann.log_in(server.url, "ann").fails(4, "wrong name or password")
    ann.run("login", server.url, "ann", "--password-stdin", stdin=given).ok()
    ann.run("login", server.url, "ann", variables={"WHIMBREL_PASSWORD": given}).ok()
    ann.run("send", "team", "hello").ok()


def test_a_store_without_a_profile(tmp_path: Path, server: Server, ann: Home) -> None:
    """Everything from variables, as a service would be set up."""
    stored = ann.run(
        "login", server.url, "ann", "--password-stdin", "--json", stdin="ann's long password"
    ).json
    bare = Home(home_of(tmp_path, "service").folder, WHIMBREL_URL=server.url, WHIMBREL_STORE=stored["store"])
    bare.run("conversation", "create", "bob", "--id", "team").ok()
    bare.run("send", "team", "hello").ok()
    assert not (bare.folder / "config").exists()
