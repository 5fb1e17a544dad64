"""Without a server: what is sent waits, says why, and goes out when it can."""

import json
import signal

import pytest

from tests.cli.rig import Home, Server, reap

pytestmark = pytest.mark.timeout(900)


def test_sent_offline_then_synced_once(server: Server, ann: Home) -> None:
    server.stop()
    queued = ann.run("send", "team", "hello", "--timeout", "0.5", "--json")
    queued.fails(3, "queued on this device", "sync-once")
    assert queued.json["state"] == "queued"
    assert queued.json["explanation"]["blocked_by"]
    ann.run("send", "team", "world", "--timeout", "0").fails(3)

    waiting = ann.run("outbox", "--json").ok().json
    assert [entry["conversation"] for entry in waiting] == ["team", "team"]
    assert waiting[0]["id"] == queued.json["id"]
    table = ann.run("outbox").ok().out
    assert "hello" in table
    assert queued.json["id"] in table
    assert ann.run("conversation", "list", "--json", "--timeout", "0.5").json[0]["pending"] == 2
    assert "connection" in ann.run("explain", queued.json["id"]).ok().out

    failed = ann.run("sync-once", "--timeout", "0.5", "--json")
    failed.fails(3, "2 messages still queued")
    assert failed.json == {"sent": 0, "pending": 2, "caught_up": False}

    server.start()
    assert ann.run("sync-once", "--json").ok().json == {"sent": 2, "pending": 0, "caught_up": True}
    assert ann.run("outbox", "--json").ok().json == []
    shown = ann.run("tail", "team", "--no-follow", "--last", "2", "--json").ok().out
    assert [json.loads(line)["content"] for line in shown.splitlines()] == ["hello", "world"]


def test_sync_once_without_a_server_and_with_nothing_to_send(server: Server, ann: Home) -> None:
    server.stop()
    ann.run("sync-once", "--timeout", "0.5").fails(5, "not caught up")
    ann.run("conversation", "add", "team", "carol").fails(5)


def test_a_tail_sends_what_waits_when_the_server_is_back(server: Server, ann: Home) -> None:
    server.stop()
    ann.run("send", "team", "hello", "--timeout", "0").fails(3)
    tail = ann.start("tail", "team", "--json", "--last", "0", "--limit", "1")
    try:
        assert tail.stderr is not None
        assert "Offline" in tail.stderr.readline().decode()
        # It syncs the store while it runs; other commands work through it.
        assert "hello" in ann.run("outbox").ok().out
        server.start()
        out, _ = tail.communicate(timeout=120)
        assert tail.returncode == 0
        assert json.loads(out)["content"] == "hello"
    finally:
        reap(tail)


def test_interrupted_while_it_waits_the_message_is_kept(server: Server, ann: Home) -> None:
    server.stop()
    tail = ann.start("tail", "team")
    try:
        assert tail.stderr is not None
        tail.stderr.readline()
        tail.send_signal(signal.SIGINT)
        _, err = tail.communicate(timeout=120)
        assert tail.returncode == 130
        assert err.strip() == b""
    finally:
        reap(tail)
    ann.run("send", "team", "hello", "--timeout", "0").fails(3)
    assert len(ann.run("outbox", "--json").ok().json) == 1


def test_expired_offline(server: Server, ann: Home) -> None:
    server.stop()
    ann.run("send", "team", "hello", "--expires-in", "0.05", "--timeout", "100").fails(4, "expired")
    assert ann.run("outbox", "--json").ok().json == []
    server.start()
    assert ann.run("sync-once", "--json").ok().json == {"sent": 0, "pending": 0, "caught_up": True}
    ann.run("send", "team", "world").ok()
