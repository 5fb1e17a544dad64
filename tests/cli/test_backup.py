"""`backup` and `restore` with real processes: what an operator does, and what the clients see of it."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import pytest

from tests.cli.rig import LIMIT_S, Home, Result, home_of, reap, serving
from tests.docs.markdown import blocks, text_of
from whimbrel.server.data import LEDGER_FILE

pytestmark = pytest.mark.timeout(600)

HOW_TO = "docs/how-to/back-up-and-restore.md"


def said(home: Home) -> list[str]:
    lines = home.run("tail", "team", "--json", "--no-follow").ok().out.splitlines()
    messages = [json.loads(line) for line in lines]
    return [message["content"] for message in messages if message["kind"] == "message"]


def test_back_to_a_backup_after_a_kill(tmp_path: Path) -> None:
    with serving(tmp_path / "server", "ann", "bob") as server:
        ann, bob = home_of(tmp_path, "ann"), home_of(tmp_path, "bob")
        for name, home in (("ann", ann), ("bob", bob)):
            home.log_in(server.url, name).ok()
        ann.run("conversation", "create", "bob", "--id", "team").ok()
        ann.run("send", "team", "before").ok()
        backup = tmp_path / "backups" / "one"
        made = server.home.run("backup", str(backup), "--data", str(server.data), "--json").ok().json
        assert made["backup"] == str(backup)
        bob.run("sync-once").ok()
        ann.run("send", "team", "after").ok()
        server.stop(signal.SIGKILL)
        restore = ("restore", str(backup), "--data", str(server.data))
        server.home.run(*restore).fails(2, "--replace")
        restored = server.home.run(*restore, "--replace", "--json").ok().json
        assert Path(restored["kept"]).is_dir()
        server.start()
        for home in (ann, bob):
            home.run("sync-once").ok()
            assert said(home) == ["before", "after"]


def test_a_damaged_ledger_is_not_served_and_the_way_out_is_said(tmp_path: Path) -> None:
    with serving(tmp_path / "server", "ann", "bob") as server:
        ann = home_of(tmp_path, "ann")
        ann.log_in(server.url, "ann").ok()
        ann.run("conversation", "create", "bob", "--id", "team").ok()
        backup = tmp_path / "backup"
        server.home.run("backup", str(backup), "--data", str(server.data)).ok()
        ann.run("send", "team", "hello").ok()
        server.stop(signal.SIGKILL)
        (server.data / f"{LEDGER_FILE}-wal").unlink()
        result = server.home.run("serve", "--port", "0", "--data", str(server.data))
        result.fails(6, "ledger.db is damaged", "commits are missing", "whimbrel restore BACKUP")
        (hint,) = re.findall(r"\(restore a backup: whimbrel (.*)\)", result.err)
        command = [str(backup) if word == "BACKUP" else word for word in shlex.split(hint)]
        server.home.run(*command).ok()
        server.start()
        ann.run("send", "team", "again").ok()


def test_a_server_that_meets_damage_stops_and_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with serving(tmp_path / "server", "ann", "bob") as server:
        ann, bob = home_of(tmp_path, "ann"), home_of(tmp_path, "bob")
        ann.log_in(server.url, "ann").ok()
        ann.run("conversation", "create", "bob", "--id", "team").ok()
        ann.run("send", "team", "-", stdin="long " * 10_000).ok()
        server.stop()
        port = server.url.rpartition(":")[2]
        process = home.start("serve", "--port", port, "--data", str(server.data))
        try:
            assert process.stdout is not None
            assert b"serves at" in process.stdout.readline()
            ledger = server.data / LEDGER_FILE
            content = bytearray(ledger.read_bytes())
            for place in range(2048 + 100, len(content), 2048):
                content[place] ^= 1
            ledger.write_bytes(content)
            bob.log_in(server.url, "bob")
            bob.run("sync-once", "--timeout", "5")
            _, err = process.communicate(timeout=LIMIT_S)
            Result(process.returncode, "", err.decode()).fails(6, "ledger.db is damaged", "whimbrel restore")
        finally:
            reap(process)


def test_the_how_to_is_true(tmp_path: Path) -> None:
    with serving(tmp_path / "server", "ann") as server:
        home = server.home
        (home.folder / "keys").mkdir()
        (home.folder / "state").symlink_to(server.data.name)
        (home.folder / "keys" / "server.key").write_bytes((server.data / "server.key").read_bytes())
        lines = [line for block in blocks(text_of(HOW_TO), "sh") for line in block.splitlines()]
        commands = [shlex.split(line)[1:] for line in lines]
        assert [command[0] for command in commands] == ["backup", "backup", "restore", "restore"]
        for command in commands[:2]:
            home.run(*command).ok()
        home.run(*commands[2]).fails(6, "a server uses")
        server.stop()
        (home.folder / "state").unlink()
        server.data.rename(home.folder / "state")
        for command in commands[2:]:
            home.run(*command).ok()
        assert len(list(home.folder.glob("state.replaced-*"))) == 2
        (example,) = blocks(text_of(HOW_TO), "")
        assert example.startswith("whimbrel: ledger.db is damaged: its last 12 commits are missing")
