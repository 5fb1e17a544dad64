"""How what an app sends becomes the body of an item, and comes back."""

from __future__ import annotations

import base64
import binascii

import msgspec

from whimbrel.errors import InvalidArgument
from whimbrel.model import Content


def encode_content(content: Content) -> tuple[str, str]:
    """Give (format, body) for what an app sends. Raises ``InvalidArgument`` for what JSON cannot hold."""
    if isinstance(content, str):
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument("the text holds half of a surrogate pair") from error
        return "text", content
    if isinstance(content, bytes | bytearray | memoryview):
        return "bytes", base64.b64encode(content).decode()
    try:
        return "json", msgspec.json.encode(content).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgument("content must be str, bytes, or something JSON can hold") from error


def decode_content(format: str, body: str) -> Content:
    """Give back what the app sent; of an unknown format, or damaged, the body as text."""
    try:
        if format == "bytes":
            return base64.b64decode(body, validate=True)
        if format == "json":
            content: Content = msgspec.json.decode(body)
            return content
    except (binascii.Error, msgspec.DecodeError, ValueError, RecursionError):
        return body
    return body
