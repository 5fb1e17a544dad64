"""Several commands on one store at a time: what one syncs, the others read, send and follow."""

import json
import signal
import subprocess

import pytest

from tests.cli.rig import Home, Server, reap

pytestmark = pytest.mark.timeout(900)


def test_two_tails_a_chat_and_everything_else(server: Server, ann: Home) -> None:
    running = [ann.start("tail", "team", "--json", "--last", "0") for _ in range(2)]
    running.append(ann.start("chat", "team", "--last", "0", stdin=subprocess.PIPE))
    try:
        first, second, chat = running

        def told(tail: subprocess.Popen[bytes]) -> str:
            assert tail.stdout is not None
            return str(json.loads(tail.stdout.readline())["content"])

        assert first.stderr is not None
        assert second.stderr is not None
        for tail in (first, second):  # they follow from here on
            assert tail.stderr is not None
            assert b"connected" in tail.stderr.readline()
        sent = ann.run("send", "team", "one", "--json").ok().json
        assert sent["state"] == "delivered"
        assert [told(first), told(second)] == ["one", "one"]
        assert ann.run("explain", sent["id"], "--json").ok().json["status"]["state"] == "delivered"
        assert chat.stdin is not None
        chat.stdin.write(b"two\n")
        chat.stdin.flush()
        assert [told(first), told(second)] == ["two", "two"]
        assert ann.run("outbox", "--json").ok().json == []
        ann.run("conversation", "create", "bob", "--id", "other").ok()
        # Whichever of them synced the store: the others go on without it.
        first.kill()
        first.wait()
        ann.run("send", "team", "three").ok()
        assert told(second) == "three"
        chat.stdin.close()
        assert chat.wait(120) == 0
        second.send_signal(signal.SIGINT)
        assert second.wait(120) == 130
    finally:
        for process in running:
            reap(process)
    shown = ann.run("tail", "team", "--no-follow", "--last", "9", "--json").ok().out
    texts = [entry["content"] for entry in map(json.loads, shown.splitlines()) if entry["kind"] == "message"]
    assert texts == ["one", "two", "three"]
