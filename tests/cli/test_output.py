"""What is printed: nothing of others can steer the terminal, and JSON stays JSON."""

import json
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.cli.output import clock, content_text, escaped, json_text, message_fields, message_line
from whimbrel.model import Message, SendState, SendStatus

STEERING = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def steers(text: str) -> bool:
    return any(unicodedata.category(char) in ("Cc", "Cs") or char in STEERING for char in text)


def message(content: Any, **fields: Any) -> Message:
    given: dict[str, Any] = {
        "id": "m",
        "conversation": "c",
        "sender": "bob",
        "content": content,
        "sent_at": 0.0,
    }
    return Message(**given | fields)


@given(st.text(st.characters()))
def test_nothing_steers_the_terminal(text: str) -> None:
    assert not steers(escaped(text))
    assert not steers(escaped(text, lines=True).replace("\n    ", ""))
    assert not steers(json_text(text.encode(errors="replace").decode()))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_stays_what_it_was(text: str) -> None:
    assert json.loads(json_text({"content": text})) == {"content": text}


def test_what_is_kept_and_what_is_shown() -> None:
    assert escaped("plain, Grüße, 👩\u200d🚀") == "plain, Grüße, 👩\u200d🚀"
    assert escaped("\x1b[31mred\x07\x7f\x9b") == "\\x1b[31mred\\x07\\x7f\\x9b"
    assert escaped("a\tb\nc\u202ed") == "a    b\\nc\\u202ed"
    assert escaped("one\ntwo\r\n", lines=True) == "one\n    two\\x0d"


def test_a_message_cannot_pass_for_another() -> None:
    line = message_line(message("hi\n12:00 ann: I agree \x1b[1A"))
    assert re.search(r"bob: hi\n    12:00 ann: I agree \\x1b\[1A$", line)
    forged = message_line(message("hi", sender="ann: yes\nbob"))
    assert "\n" not in forged


def test_an_own_message_has_its_mark() -> None:
    status = SendStatus(state=SendState.DELIVERED)
    assert message_line(message("hi", status=status), conversation=True).endswith(" c bob: hi ✓✓")


@pytest.mark.parametrize(
    ("content", "text"),
    [("hi", "hi"), (b"\x00\x01", "[2 bytes]"), ({"a": [1]}, '{"a":[1]}'), (None, "null"), (1.5, "1.5")],
)
def test_content_of_every_kind(content: object, text: str) -> None:
    assert content_text(content) == text
    assert text in message_line(message(content))
    fields = json.loads(json_text(message_fields(message(content))))
    assert ("content_base64" in fields) == isinstance(content, bytes)


@pytest.mark.parametrize(
    "content", ["text", 3, None, {"user": "\x1b[2J", "action": ["x"]}, {"title": "\n\n"}]
)
def test_entries_nobody_wrote(content: object) -> None:
    for kind in ("member", "info", "of a later version"):
        assert not steers(message_line(message(content, kind=kind)))


@pytest.mark.parametrize("at", [0.0, -1e300, 1e300, float("nan"), float("inf"), 1e11])
def test_clocks_of_others(at: float) -> None:
    assert re.fullmatch(r"[\d:. -]+", clock(at))
