"""How a frame is written and read: a JSON array of items.

An item with an unknown tag, or one that does not fit its tag, costs itself and never its frame. Nor does one
that would become far larger in memory than it was on the wire: a megabyte of ``[],[],[]`` becomes 24. What a
client may send is a large body; of all else, more than any good item has is not taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from whimbrel.errors import ProtocolError
from whimbrel.protocol.items import (
    FRAME_BYTES,
    FRAME_ITEMS_MAX,
    ID_CHARS_MAX,
    METADATA_BYTES_MAX,
    Call,
    ClientItem,
    Send,
    ServerItem,
    Status,
    Unknown,
)

_BESIDES_BODY_BYTES_MAX = 4 * METADATA_BYTES_MAX
_CALL_BYTES_MAX = 256 * 1024
"""A call may name a thousand members."""
_TOO_LARGE = {"": " " * METADATA_BYTES_MAX}
"""Stands for metadata that were not taken apart: as much too large as they were."""


class _Tag(msgspec.Struct):
    t: str = ""


class _Body(msgspec.Struct):
    body: msgspec.Raw = msgspec.Raw(b"")

    def __repr__(self) -> str:
        return "<_Body>"


def _head_field(field: msgspec.structs.FieldInfo) -> tuple[Any, ...]:
    if field.name == "metadata":
        return field.name, msgspec.Raw, msgspec.Raw(b"")
    return (field.name, field.type) if field.required else (field.name, field.type, field.default)


_SendHead = msgspec.defstruct(
    "_SendHead",
    [_head_field(field) for field in msgspec.structs.fields(Send)],
    namespace={"__repr__": lambda _: "<_SendHead>"},  # as all items: what it holds is not shown
    kw_only=True,
)

_encoder = msgspec.json.Encoder()
_client_frame = msgspec.json.Decoder(list[ClientItem])
_client_item = msgspec.json.Decoder(ClientItem)
_server_frame = msgspec.json.Decoder(list[ServerItem])
_server_item = msgspec.json.Decoder(ServerItem)
_raw_frame = msgspec.json.Decoder(list[msgspec.Raw])
_tag_only = msgspec.json.Decoder(_Tag)
_body_only = msgspec.json.Decoder(_Body)
_send_head = msgspec.json.Decoder(_SendHead)

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
    if len(frame) > _BESIDES_BODY_BYTES_MAX:
        return _one_by_one(frame, _decode_large)
    try:
        return _bounded(_client_frame.decode(frame))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _one_by_one(frame, _client_item.decode)


def decode_server(frame: bytes | str) -> list[ServerItem | Unknown]:
    """Read a frame of the server. Raises ``ProtocolError`` if it is no array of items at all."""
    try:
        return _bounded(_server_frame.decode(frame))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _one_by_one(frame, _server_item.decode)


def bulky(send: bytes | msgspec.Raw) -> bool:
    """Whether a ``send`` in JSON holds more besides its body than any good one: take it apart no further."""
    size_bytes = len(memoryview(send))
    if size_bytes <= _BESIDES_BODY_BYTES_MAX:
        return False
    # Of a name that comes twice the last counts, and what came before it is besides.
    return size_bytes - len(memoryview(_body_only.decode(send).body)) > _BESIDES_BODY_BYTES_MAX


def _decode_large(raw: msgspec.Raw) -> ClientItem:
    size_bytes = len(memoryview(raw))
    if size_bytes > _BESIDES_BODY_BYTES_MAX:
        tag = _tag_of(raw)
        if tag == _tag(Send) and bulky(raw):
            head = _send_head.decode(raw)
            fields = {name: getattr(head, name) for name in Send.__struct_fields__}
            return Send(**{**fields, "metadata": _TOO_LARGE})
        if tag == _tag(Status) or (tag == _tag(Call) and size_bytes > _CALL_BYTES_MAX):
            raise msgspec.ValidationError("too large")
    item: ClientItem = _client_item.decode(raw)
    return item


def _tag(kind: type[msgspec.Struct]) -> Any:
    return kind.__struct_config__.tag


def _bounded(items: list[Any]) -> list[Any]:
    if len(items) > FRAME_ITEMS_MAX:
        raise ProtocolError(f"a frame has at most {FRAME_ITEMS_MAX} items")
    return items


def _one_by_one(frame: bytes | str, decode: Callable[[msgspec.Raw], Any]) -> list[Any]:
    try:
        raws = _raw_frame.decode(frame)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError("the frame is not a JSON array of items") from error
    items: list[Any] = []
    for raw in _bounded(raws):
        try:
            items.append(decode(raw))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            items.append(Unknown(tag=_tag_of(raw), reason=type(error).__name__))
    return items


def _tag_of(raw: msgspec.Raw) -> str:
    try:
        tag: str = _tag_only.decode(raw).t
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
    return tag[:ID_CHARS_MAX]
