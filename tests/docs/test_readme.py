"""The README is true: its first app runs against a real server, its commands exist."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, blocks, documents, sections, text_of
from whimbrel.cli.app import app

LIMIT_S = 120.0
"""Far more than anything here takes."""
ADDRESS = "http://127.0.0.1:8000"


def first_app() -> tuple[list[str], str]:
    """The lines that start a server, and the program."""
    section = sections(text_of("README.md"), 2)["A first app"]
    (shell,) = blocks(section, "sh")
    (program,) = blocks(section, "python")
    return shell.splitlines(), program


async def run(folder: Path, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=environment(folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return out.decode()


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WHIMBREL_")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(folder),
        "PWD": str(folder),
        "WHIMBREL_DATA": str(folder / "server-data"),
        "PYTHONPATH": str(ROOT / "src"),
    }


@pytest.mark.timeout(300)  # four processes, each of which works a second or two
async def test_the_first_app_does_what_the_readme_says(tmp_path: Path) -> None:
    shell, program = first_app()
    # What stands for the terminal of a person: here the environment is there, and the port is a free one.
    assert shell.pop(0) == ". .venv/bin/activate"
    assert shell.pop() == "whimbrel serve"
    assert ADDRESS in program
    assert await run(tmp_path, "sh", "-e", "-c", "\n".join(shell)) == "added ann\nadded bob\n"
    server = await asyncio.create_subprocess_exec(
        "whimbrel",
        "serve",
        "--port",
        "0",
        "--json",
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        ready = json.loads(await asyncio.wait_for(server.stdout.readline(), LIMIT_S))
        (tmp_path / "first.py").write_text(program.replace(ADDRESS, ready["url"]), encoding="utf-8")
        said = await run(tmp_path, sys.executable, "-W", "error", "first.py")
        (promised,) = re.findall(r"It prints `([^`]+)`", text_of("README.md"))
        assert said == f"{promised}\n"
    finally:
        if server.returncode is None:
            server.terminate()
            try:
                await asyncio.wait_for(server.wait(), LIMIT_S)
            finally:
                if server.returncode is None:
                    server.kill()
                    await server.wait()
    assert server.returncode == 0


def test_the_first_app_is_short() -> None:
    _, program = first_app()
    lines = [line for line in program.splitlines() if line.strip()]
    assert len(lines) <= 16
    assert all(len(line) <= 110 for line in lines)


def named_commands() -> list[str]:
    found = []
    for path in documents():
        for block in blocks(path.read_text(encoding="utf-8"), "sh"):
            for line in block.splitlines():
                found += re.findall(r"(?:^|\| )(whimbrel [^|#]*[^|#\s])", line)
    return found


@pytest.mark.parametrize("line", named_commands())
def test_commands_are_there(line: str) -> None:
    here = app
    for word in line.split()[1:]:
        if word not in here:
            break
        here = here[word]
    assert here is not app, f"no such command: {line}"
    options = [word.partition("=")[0] for word in line.split() if word.startswith("--")]
    known = {name for argument in here.assemble_argument_collection() for name in argument.names}
    assert set(options) <= known


def test_targets_of_make_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
    named = re.findall(r"^make ([a-z]+)", "\n".join(blocks(text_of("README.md"), "sh")), re.MULTILINE)
    assert named[:2] == ["demo", "test"]
    assert set(named) <= targets
