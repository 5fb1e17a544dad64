"""What the how-to pages say in tables and unit files is what the code says."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from tests.docs.markdown import blocks, code, tables, text_of
from whimbrel import FailureReason, SendState, SendStatus, Settings
from whimbrel.cli.app import app

SLOW_LINKS = tables(text_of("docs/how-to/slow-links.md"))
STATES = tables(text_of("docs/how-to/show-sending-states.md"))[0]
UNITS = [
    line.partition("=")[2]
    for page in ("run-a-server", "send-from-scripts")
    for block in blocks(text_of(f"docs/how-to/{page}.md"), "ini")
    for line in block.splitlines()
    if line.startswith("ExecStart=")
]


def test_settings_for_slow_links_are_there_with_these_defaults() -> None:
    rows = [row for table in SLOW_LINKS for row in table]
    assert len(rows) >= 10
    defaults = Settings()
    for name, default, other, meaning in rows:
        assert float(default) == getattr(defaults, code(name)), name
        assert float(other) != float(default)
        assert meaning
        changed = Settings(**{code(name): type(getattr(defaults, code(name)))(float(other))})
        assert changed != defaults


def status(words: str) -> SendStatus:
    """What a row's first cell stands for."""
    state = SendState(code(words.partition(",")[0]))
    more: dict[str, Any] = {}
    if state is SendState.RETRYING:
        more = {"retry": 1, "retry_max": 3}
    if state is SendState.FAILED:
        more = {"reason": FailureReason.REJECTED, "can_retry": "can_retry" in words}
    return SendStatus(state=state, **more)


def test_every_state_has_its_row_and_its_mark() -> None:
    found = [(status(words), mark, offer) for words, mark, _, offer in STATES]
    assert {each.state for each, *_ in found} == set(SendState)
    for each, mark, offer in found:
        assert mark.removesuffix(" blue") == each.mark
        assert ("cancel" in offer) == (not each.settled and each.state is not SendState.SENT)


@pytest.mark.parametrize("line", UNITS)
def test_commands_of_services_are_there(line: str) -> None:
    program, *words = shlex.split(line)
    assert program.endswith("/bin/whimbrel")
    command = app[words[0]]
    known = {name for argument in command.assemble_argument_collection() for name in argument.names}
    assert {word for word in words if word.startswith("--")} <= known
