"""How a frame is written and read: a JSON array of items.

An item with an unknown tag, or one that does not fit its tag, costs itself and never its frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from whimbrel.errors import ProtocolError
from whimbrel.protocol.items import (
    FRAME_BYTES,
    FRAME_ITEMS_MAX,
    ID_CHARS_MAX,
    ClientItem,
    ServerItem,
    Unknown,
)

_encoder = msgspec.json.Encoder()
_client_frame = msgspec.json.Decoder(list[ClientItem])
_client_item = msgspec.json.Decoder(ClientItem)
_server_frame = msgspec.json.Decoder(list[ServerItem])
_server_item = msgspec.json.Decoder(ServerItem)
_raw_frame = msgspec.json.Decoder(list[msgspec.Raw])
_tag_only = msgspec.json.Decoder(dict[str, Any])

encode = _encoder.encode
"""Encode a list of items as one frame, or any Struct as JSON."""


def frames(items: Sequence[msgspec.Struct], size: int = FRAME_BYTES) -> list[bytes]:
    """Pack items, in order, into frames of at most ``size`` bytes; a larger single item gets its own."""
    out: list[bytes] = []
    parts: list[bytes] = []
    used = 2
    for item in items:
        part = _encoder.encode(item)
        if parts and used + len(part) + 1 > size:
            out.append(b"[" + b",".join(parts) + b"]")
            parts, used = [], 2
        parts.append(part)
        used += len(part) + 1
    if parts:
        out.append(b"[" + b",".join(parts) + b"]")
    return out


def decode_client(frame: bytes | str) -> list[ClientItem | Unknown]:
    """Read a frame of a client. Raises ``ProtocolError`` if it is no array of items at all."""
    try:
        return _bounded(_client_frame.decode(frame))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _one_by_one(frame, _client_item)


def decode_server(frame: bytes | str) -> list[ServerItem | Unknown]:
    """Read a frame of the server. Raises ``ProtocolError`` if it is no array of items at all."""
    try:
        return _bounded(_server_frame.decode(frame))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _one_by_one(frame, _server_item)


def _bounded(items: list[Any]) -> list[Any]:
    if len(items) > FRAME_ITEMS_MAX:
        raise ProtocolError(f"a frame has at most {FRAME_ITEMS_MAX} items")
    return items


def _one_by_one(frame: bytes | str, decoder: msgspec.json.Decoder[Any]) -> list[Any]:
    try:
        raws = _raw_frame.decode(frame)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError("the frame is not a JSON array of items") from error
    items: list[Any] = []
    for raw in _bounded(raws):
        try:
            items.append(decoder.decode(raw))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            items.append(Unknown(tag=_tag_of(raw), reason=type(error).__name__))
    return items


def _tag_of(raw: msgspec.Raw) -> str:
    try:
        tag = _tag_only.decode(raw).get("t", "")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
    return tag[:ID_CHARS_MAX] if isinstance(tag, str) else ""
