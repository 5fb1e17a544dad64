"""What an app sends, checked and put into the engine's words before anything is queued.

A message that could never be accepted is refused here, where the caller can still change it. The
limits are those of ``protocol``.
"""

from __future__ import annotations

import math
import os
import random
import time
from typing import Any

import msgspec

from whimbrel import protocol as p
from whimbrel.core.contract import SendMessage
from whimbrel.errors import InvalidArgument, TooLarge
from whimbrel.model import BASE32, Content, Role, base32

ROLE_CHARS_MAX = 32
_WIRE_BYTES_MAX = p.FRAME_BYTES_MAX * 3 // 4
"""What a server takes of one message, with room for what goes around it."""
_SURELY_FITS_BYTES = (_WIRE_BYTES_MAX - 6 * p.METADATA_BYTES_MAX) // 6 - 6 * 1024
"""A body that fits whatever it is made of, and whatever goes with it."""
_ORDERED = "".join(sorted(BASE32))
_PAIRS = [first + second for first in _ORDERED for second in _ORDERED]
_random = random.Random()
"""A key must be new, not secret. Of its own: an app that seeds the shared one would repeat its keys."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)
_ON_REJECT = ("skip", "block")


def new_key(at: float) -> str:
    """A key that was never used before: 27 characters, those made later (``at``, wall clock) sorting behind.

    A ``t``, and in base32 with the digits first: 48 bits of milliseconds since 1970, 82 random bits. The
    message's id begins with its time (``model.message_id``).
    """
    bits = (max(0, int(at * 1000)) & 0xFFFF_FFFF_FFFF) << 2 | _random.getrandbits(2)
    # As in ``message_id``: in parts that are quick to take apart.
    one, two, pairs = _random.getrandbits(40), _random.getrandbits(40), _PAIRS
    return (
        f"t{pairs[bits >> 40]}{pairs[bits >> 30 & 1023]}{pairs[bits >> 20 & 1023]}"
        f"{pairs[bits >> 10 & 1023]}{pairs[bits & 1023]}"
        f"{pairs[one >> 30]}{pairs[one >> 20 & 1023]}{pairs[one >> 10 & 1023]}{pairs[one & 1023]}"
        f"{pairs[two >> 30]}{pairs[two >> 20 & 1023]}{pairs[two >> 10 & 1023]}{pairs[two & 1023]}"
    )


def random_name() -> str:
    """128 random bits as 26 lowercase characters: the id of a conversation or call."""
    return base32(os.urandom(16))


def checked_text(what: str, value: str, chars_max: int, *, empty: bool = False) -> str:
    """Give ``value`` back if it is text of a length the protocol takes, else ``InvalidArgument``."""
    if not isinstance(value, str):
        raise InvalidArgument(f"the {what} must be a string")
    if len(value) > chars_max or (not value and not empty):
        raise InvalidArgument(f"the {what} must have {0 if empty else 1} to {chars_max} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"the {what} holds half of a surrogate pair") from error
    if "\0" in value:
        raise InvalidArgument(f"the {what} holds a NUL")
    return value


def outgoing(
    conversation: str,
    content: Content,
    *,
    key: str | None,
    metadata: dict[str, Any] | None,
    reply_to: str | None,
    role: Role | str,
    expires_in: float | None,
    on_reject: str,
) -> SendMessage:
    """Build the command. Raises ``InvalidArgument``, or ``TooLarge`` over a size limit."""
    checked_text("conversation", conversation, p.ID_CHARS_MAX)
    if reply_to is not None:
        checked_text("reply_to", reply_to, p.ID_CHARS_MAX)
    if expires_in is not None and not (math.isfinite(expires_in) and expires_in > 0):
        raise InvalidArgument("expires_in must be a number of seconds above 0")
    if on_reject not in _ON_REJECT:
        raise InvalidArgument('on_reject must be "skip" or "block"')
    format, body = p.encode_content(content)
    size_bytes = len(body.encode())
    if size_bytes > p.BODY_BYTES_MAX:
        raise TooLarge(f"the content is {size_bytes} bytes encoded, at most {p.BODY_BYTES_MAX}")
    command = SendMessage(
        conversation=conversation,
        key=new_key(time.time()) if key is None else checked_text("key", key, p.KEY_CHARS_MAX),
        format=format,
        body=body,
        role=checked_text("role", str(role), ROLE_CHARS_MAX),
        metadata=None if metadata is None else _plain(metadata),
        reply_to=reply_to,
        on_reject=on_reject,
        expires_in_s=expires_in,
    )
    # Control characters take six bytes each on the wire: what cannot pass must not be queued.
    if size_bytes > _SURELY_FITS_BYTES and (wire_bytes := len(p.encode(command))) > _WIRE_BYTES_MAX:
        raise TooLarge(f"the message is {wire_bytes} bytes on the wire, at most {_WIRE_BYTES_MAX}")
    return command


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """A copy that holds only what JSON can: what the app changes later changes nothing here."""
    if not isinstance(metadata, dict):
        raise InvalidArgument("metadata must be a dictionary")
    try:
        text = msgspec.json.encode(metadata)
        plain: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgument("metadata must be something JSON can hold") from error
    if len(text) > p.METADATA_BYTES_MAX:
        raise TooLarge(f"the metadata is {len(text)} bytes encoded, at most {p.METADATA_BYTES_MAX}")
    return plain
