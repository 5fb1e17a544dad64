"""The tutorial and the how-to pages are played as they stand: programs, commands and outputs are true."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.test_tls import Authority
from tests.docs.markdown import ROOT, blocks, text_of
from tests.docs.transcript import Player, programs, transcript

SERVER = """\
```text
server $ export WHIMBREL_DATA="$PWD/server-data"
server $ echo "password of ann" | whimbrel user add ann --password-stdin
server   added ann
server $ echo "password of bob" | whimbrel user add bob --password-stdin
server   added bob
server $ echo "password of bot" | whimbrel user add bot --password-stdin
server   added bot
server $ export WHIMBREL_PASSPHRASE="words of this machine"
server $ whimbrel serve
server   whimbrel serves at http://127.0.0.1:8000 (data in FOLDER/server-data)
```
"""
"""What a page takes for granted that says nothing of the server."""

PAGES = {
    "docs/tutorial.md": "",
    "docs/how-to/send-from-scripts.md": SERVER,
    "docs/how-to/write-a-bot.md": SERVER,
    "docs/how-to/show-sending-states.md": "",
    "docs/how-to/several-programs.md": SERVER,
    "docs/how-to/slow-links.md": "",
    "docs/how-to/run-a-server.md": "",
}
"""Pages by what is done before."""
TESTED_ELSEWHERE = {"docs/how-to/test-your-app.md", "docs/how-to/back-up-and-restore.md"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a short name, as people have it: sockets lie beside stores."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-") as name:
        yield Path(name).resolve()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
async def test_the_page_is_true(page: str, folder: Path) -> None:
    (folder / "password.txt").write_text("password of ann\n", encoding="utf-8")
    authority = Authority(folder / "authority", "an authority for this test")
    made = authority.issue("127.0.0.1")
    made.cert.rename(folder / "fullchain.pem")
    made.key.rename(folder / "privkey.pem")
    authority.file.rename(folder / "authority.pem")
    await Player(PAGES[page] + text_of(page), folder).play()


def test_every_page_is_played() -> None:
    pages = {f"docs/how-to/{path.name}" for path in (ROOT / "docs" / "how-to").glob("*.md")}
    assert pages | {"docs/tutorial.md"} == set(PAGES) | TESTED_ELSEWHERE
    for page in PAGES:
        assert transcript(text_of(page)), page


@pytest.mark.parametrize("page", PAGES)
def test_every_program_of_a_page_is_run(page: str) -> None:
    text = text_of(page)
    found = programs(text)
    typed = " ".join(line.command or "" for line in transcript(text))
    for name in found:
        imported = any(f"from {name.removesuffix('.py')} import" in program for program in found.values())
        assert f"python {name}" in typed or imported, f"{name} is never run"
    for block in blocks(text, "python"):
        assert block in found.values() or _is_an_excerpt(block), block


def _is_an_excerpt(block: str) -> bool:
    """Whether it only makes something: imports and one assignment, which it is enough to execute."""
    exec(compile(ast.parse(block), "page", "exec"), {})  # noqa: S102 - our own page
    return True
