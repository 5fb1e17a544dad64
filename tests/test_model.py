"""Values an app sees."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.client.outgoing import new_key
from whimbrel.model import FailureReason, Message, SendState, SendStatus, message_id


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_message_id_is_base32_of_a_digest(device: str, key: str) -> None:
    digest = hashlib.sha256(f"{len(device)}:{device}{key}".encode()).digest()[:16]
    assert message_id(device, key) == base64.b32encode(digest).decode().rstrip("=").lower()


@given(st.text(max_size=40), st.floats(0, 4e9))
def test_the_id_of_a_key_that_was_made_begins_with_its_time(device: str, at: float) -> None:
    key = new_key(at)
    digest = hashlib.sha256(f"{len(device)}:{device}{key}".encode()).digest()[:10]
    assert message_id(device, key) == key[1:11] + base64.b32encode(digest).decode().lower()


_OTHERS = ["t" + "A" * 26, "u" + "a" * 26, "t" + "a" * 25, "t" + "a" * 27, "t" + "1" * 26]


@pytest.mark.parametrize("key", _OTHERS)
def test_a_key_that_only_looks_made_is_like_any_other(key: str) -> None:
    digest = hashlib.sha256(f"3:abc{key}".encode()).digest()[:16]
    assert message_id("abc", key) == base64.b32encode(digest).decode().rstrip("=").lower()


def test_keys_are_new_and_sort_by_their_time() -> None:
    keys = [new_key(1_700_000_000 + n * 0.002) for n in range(1_000)]
    assert keys == sorted(keys)
    assert len({new_key(1.0) for _ in range(10_000)}) == 10_000
    assert {len(key) for key in [*keys, new_key(-1.0), new_key(1e12)]} == {27}
    ids = [message_id("abc", key) for key in keys]
    assert ids == sorted(ids)


_FORKS = """
import os
from whimbrel.client.outgoing import new_key

new_key(0.0)
read, write = os.pipe()
if not (child := os.fork()):
    os.write(write, new_key(0.0).encode())
    os._exit(0)
os.waitpid(child, 0)
assert os.read(read, 100).decode() != new_key(0.0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_makes_other_keys() -> None:
    subprocess.run([sys.executable, "-c", _FORKS], check=True)


def test_device_and_key_cannot_run_into_each_other() -> None:
    assert message_id("ab", "c") != message_id("a", "bc")


def test_a_message_never_shows_its_content() -> None:
    message = Message(
        id="m", conversation="c", sender="anna", content="the secret", metadata={"a": "hidden"}, sent_at=0.0
    )
    assert "secret" not in repr(message)
    assert "hidden" not in repr(message)


def test_marks_and_texts() -> None:
    assert SendStatus(state=SendState.RETRYING, retry=1, retry_max=3).mark == "⟳ 1/3"
    assert [
        SendStatus(state=state).mark for state in (SendState.PENDING, SendState.SENT, SendState.DELIVERED)
    ] == [
        "⏰",
        "✓",
        "✓✓",
    ]
    assert all(reason.friendly for reason in FailureReason)
