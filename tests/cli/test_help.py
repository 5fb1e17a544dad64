"""Every command explains itself; what is not understood ends in one line and code 2."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import whimbrel
from tests.cli.rig import Home, home_of

EVERYWHERE = "0.0.0.0"  # noqa: S104 - to be refused
COMMANDS = [
    "send",
    "chat",
    "tail",
    "outbox",
    "explain",
    "sync-once",
    "conversation create",
    "conversation list",
    "conversation add",
    "conversation remove",
    "conversation leave",
    "login",
    "logout",
    "serve",
    "user add",
    "user password",
    "backup",
    "restore",
    "demo",
    "replay",
    "sim",
]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_of(tmp_path, "anybody")


def test_the_first_page(home: Home) -> None:
    page = home.run("--help").ok().out
    for word in ["Exit codes", "130", "WHIMBREL_PASSPHRASE", "NO_COLOR", "To begin"]:
        assert word in page
    for command in COMMANDS:
        assert re.search(rf"\b{command.split()[0]}  ", page), command
    assert home.run().ok().out == page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(home: Home, command: str) -> None:
    page = home.run(*command.split(), "--help").ok()
    assert page.err == ""
    assert page.out.startswith(f"Usage: whimbrel {command}")
    examples = page.out.partition("Examples:")[2]
    assert f"whimbrel {command}" in examples
    description = page.out.partition("\n\n")[2].partition("╭")[0]
    assert len(description.partition("\n\n")[0]) > 10
    for line, after in pairwise(description.splitlines()):
        if line.strip() and after.strip():  # broken by who wrote it and by the terminal, it would be ragged
            assert len(f"{line.rstrip()} {after.split()[0]}") > 76, line
    assert all(line.startswith("  ") for line in examples.splitlines() if line)


@pytest.mark.parametrize("group", ["conversation", "user"])
def test_groups_list_their_commands(home: Home, group: str) -> None:
    page = home.run(group, "--help").ok().out
    for command in COMMANDS:
        if command.startswith(f"{group} "):
            assert f" {command.split()[1]} " in page


def test_the_long_text_is_there(home: Home) -> None:
    page = home.run("send", "--help").ok().out
    assert "exit\ncode is 3" in page or "exit code is 3" in " ".join(page.split())


def test_versions(home: Home) -> None:
    for flag in ("--version", "-V"):
        assert home.run(flag).ok().out == f"{whimbrel.__version__}\n"


def test_no_colour_where_there_is_no_terminal(home: Home) -> None:
    assert "\x1b" not in home.run("--help").ok().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sned"], ["no command sned", "did you mean send?"]),
        (["conversation", "mkae"], ["no command mkae", "whimbrel conversation --help"]),
        (["send", "team"], ["TEXT", "whimbrel send --help"]),
        (["send", "team", "hello", "you"], ["you"]),
        (["send", "team", "hello", "--tiemout", "3"], ["--tiemout"]),
        (["send", "team", "hello", "--timeout", "soon"], ["soon"]),
        (["send", "team", "hello", "--timeout", "nan"], ["--timeout"]),
        (["send", "team", "{", "--parse-json"], ["not JSON"]),
        (["tail", "--since", "3"], ["--since needs a conversation"]),
        (["tail", "--limit", "0"], ["--limit"]),
        (["chat", "team", "--last", "-1"], ["--last"]),
        (["outbox", "--profile", "../../up"], ["profile"]),
        (["serve", "--port", "70000"], ["port"]),
        (["serve", "--tls-cert", "chain.pem"], ["certificate"]),
        (["serve", "--host", EVERYWHERE, "--port", "0"], ["plain http", "--insecure"]),
        (["user", "add", "not a name", "--generate"], ["name"]),
        (["user", "add", "ann"], ["--password-stdin"]),
        (["user", "add", "ann", "--generate", "--password-stdin"], ["not both"]),
        (["login", "ftp://example.org", "ann"], ["http://"]),
        (["login", "http://chat.example.org", "ann"], ["plain http", "--insecure"]),
        (["login", "http://127.0.0.1:1", "ann"], ["--password-stdin"]),
        (["login", "http://127.0.0.1:1", " "], ["name"]),
        (["sim", "--ablation", "all"], ["there is no ablation", "gaps_ignored"]),
        (["sim", "--seeds", "0"], ["--seeds"]),
        (["sim", "--jobs", "0"], ["--jobs"]),
        (["replay"], ["log"]),
    ],
)
def test_wrong_calls(home: Home, arguments: list[str], words: list[str]) -> None:
    assert home.run(*arguments).fails(2, *words).out == ""
    assert list((home.folder / "data").glob("**/*.db")) == []


def test_starting_loads_only_what_is_needed() -> None:
    """Neither client, server, simulator nor tables for the parser and a list of commands."""
    code = (
        "import sys; import whimbrel.cli.app; "
        "print([m for m in ('httpx2', 'websockets', 'apsw', 'uvicorn', 'cryptography', 'rich.table',"
        " 'whimbrel.client', 'whimbrel.server', 'whimbrel.testing', 'whimbrel.cli.sending')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
