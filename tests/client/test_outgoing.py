"""What may be sent, checked before it is queued."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel import protocol as p
from whimbrel.client.outgoing import outgoing, random_name
from whimbrel.core.contract import MessageRow, SendMessage
from whimbrel.core.rows import is_repeat
from whimbrel.errors import InvalidArgument, TooLarge, WhimbrelError


def command(content: Any = "hello", **changed: Any) -> SendMessage:
    fields: dict[str, Any] = {
        "key": None,
        "metadata": None,
        "reply_to": None,
        "role": "user",
        "expires_in": None,
        "on_reject": "skip",
    }
    conversation = changed.pop("conversation", "c")
    return outgoing(conversation, content, **(fields | changed))


def row_of(sent: SendMessage) -> MessageRow:
    metadata = None if sent.metadata is None else msgspec.json.encode(sent.metadata).decode()
    return MessageRow(
        id="m",
        conversation=sent.conversation,
        format=sent.format,
        body=sent.body,
        role=sent.role,
        reply_to=sent.reply_to,
        metadata=metadata,
        own=True,
        key=sent.key,
    )


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"key": ""}, InvalidArgument),
        ({"key": "k" * (p.KEY_CHARS_MAX + 1)}, InvalidArgument),
        ({"key": "\ud800"}, InvalidArgument),
        ({"key": 7}, InvalidArgument),
        ({"conversation": ""}, InvalidArgument),
        ({"conversation": "c" * (p.ID_CHARS_MAX + 1)}, InvalidArgument),
        ({"reply_to": ""}, InvalidArgument),
        ({"role": ""}, InvalidArgument),
        ({"on_reject": "maybe"}, InvalidArgument),
        ({"expires_in": 0}, InvalidArgument),
        ({"expires_in": float("nan")}, InvalidArgument),
        ({"expires_in": float("inf")}, InvalidArgument),
        ({"metadata": {"a": object()}}, InvalidArgument),
        ({"metadata": ["no", "dict"]}, InvalidArgument),
        ({"metadata": {"a": "x" * p.METADATA_BYTES_MAX}}, TooLarge),
        ({"content": "\ud800"}, InvalidArgument),
        ({"content": object()}, InvalidArgument),
        ({"content": "é" * (p.BODY_BYTES_MAX // 2 + 1)}, TooLarge),
        ({"content": b"x" * p.BODY_BYTES_MAX}, TooLarge),
    ],
)
def test_refused(changed: dict[str, Any], error: type[WhimbrelError]) -> None:
    with pytest.raises(error) as caught:
        command(**changed)
    assert "xxx" not in str(caught.value)


def test_the_largest_is_taken() -> None:
    assert len(command("x" * p.BODY_BYTES_MAX).body) == p.BODY_BYTES_MAX
    assert command(key="k" * p.KEY_CHARS_MAX).key == "k" * p.KEY_CHARS_MAX


def test_a_key_of_its_own_for_each() -> None:
    keys = {command().key for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == 27 for key in keys)
    assert len(random_name()) == 26


def test_metadata_is_copied() -> None:
    inner = [1]
    sent = command(metadata={"a": inner})
    inner.append(2)
    assert sent.metadata == {"a": [1]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(content=json_values | st.binary(), metadata=st.none() | st.dictionaries(st.text(), json_values))
def test_the_same_again_is_a_repeat(content: Any, metadata: dict[str, Any] | None) -> None:
    try:
        sent = command(content, metadata=metadata, key="k")
    except InvalidArgument:
        return
    assert is_repeat(row_of(sent), command(content, metadata=metadata, key="k"))


@pytest.mark.parametrize(
    "changed",
    [
        {"content": "other"},
        {"content": b"hello"},
        {"conversation": "d"},
        {"role": "assistant"},
        {"reply_to": "m0"},
        {"metadata": {}},
        {"metadata": {"a": 1}},
    ],
)
def test_anything_else_is_no_repeat(changed: dict[str, Any]) -> None:
    assert not is_repeat(row_of(command(key="k")), command(key="k", **changed))


@pytest.mark.parametrize("key", ["a\0b", "\0"])
def test_a_key_with_a_nul_is_refused_before_it_is_queued(key: str) -> None:
    with pytest.raises(InvalidArgument):
        command("hello", key=key)


def test_what_cannot_pass_the_wire_is_refused_before_it_is_queued() -> None:
    with pytest.raises(TooLarge):
        command("\x01" * 200_000)
