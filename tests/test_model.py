"""Values an app sees."""

from __future__ import annotations

import base64
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from whimbrel.model import FailureReason, Message, SendState, SendStatus, message_id


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_message_id_is_base32_of_a_digest(device: str, key: str) -> None:
    digest = hashlib.sha256(f"{len(device)}:{device}{key}".encode()).digest()[:16]
    assert message_id(device, key) == base64.b32encode(digest).decode().rstrip("=").lower()


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
