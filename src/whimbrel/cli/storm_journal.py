"""What the processes of a storm write down about themselves, for a judge who trusts nothing else.

A journal is a file of JSON lines, one record each, appended and in the kernel's hands when ``write`` returns:
``kill -9`` may tear the last line and nothing before it. A line without its end was never written: readers
ignore it, and whoever goes on writing the journal cuts it off first.

Times are of ``time.monotonic()``, one clock for all processes of a machine. A *label* names a message in the
words of the plan it came from (``anna/17``); it travels in the message's metadata, so that the judge needs
no identity made by the system it judges.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TypeAlias

import msgspec

__all__ = ["Delivered", "Journal", "JournalError", "JournalReader", "Received", "Record", "Sent", "digest_of"]

READ_BYTES_MAX = 1024 * 1024


class JournalError(ValueError):
    """A whole line of a journal is no record: someone else wrote there."""


class Sent(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="sent"):
    """``send()`` returned: from here on the message must arrive."""

    user: str
    conversation: str
    label: str
    id: str
    digest: str
    called_at_s: float
    returned_at_s: float


class Delivered(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="delivered"):
    """The sender was told that the message is in the permanent record."""

    user: str
    label: str
    id: str
    at_s: float


class Received(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="received"):
    """A member's app was handed the message."""

    user: str
    conversation: str
    label: str
    id: str
    sender: str
    seq: int
    digest: str
    at_s: float


Record: TypeAlias = Sent | Delivered | Received

_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


def digest_of(text: str) -> str:
    """The fingerprint of a text, 16 characters; the text itself stays out of the journals."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class Journal:
    """A journal open for appending; what was torn at its end is cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, _whole_bytes(path))

    def __repr__(self) -> str:
        return f"<Journal {self._path.name}>"

    def write(self, *records: Record) -> None:
        """Append; when this returns, nothing short of a power cut takes it back. Raises ``OSError``."""
        data = b"".join(_encoder.encode(record) + b"\n" for record in records)
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        os.close(self._file)


class JournalReader:
    """Reads a journal that others may be writing, each record once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def __repr__(self) -> str:
        return f"<JournalReader {self._path.name} at {self._offset}>"

    def read(self) -> list[Record]:
        """The records written since the last call; of a journal that is not there yet, none."""
        records: list[Record] = []
        rest = b""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return records
        with file:
            file.seek(self._offset)
            while chunk := file.read(READ_BYTES_MAX):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    records.append(self._decode(line))
                    self._offset += len(line) + 1
        return records

    def _decode(self, line: bytes) -> Record:
        try:
            return _decoder.decode(line)
        except msgspec.DecodeError as error:
            # Without its text, which may quote the line.
            kind = type(error).__name__
            raise JournalError(f"{self._path.name}: no record at byte {self._offset} ({kind})") from None


def _whole_bytes(path: Path) -> int:
    """How long the file is up to the end of its last whole line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        end = size
        while end > 0:
            begin = max(0, end - READ_BYTES_MAX)
            file.seek(begin)
            place = file.read(end - begin).rfind(b"\n")
            if place >= 0:
                return begin + place + 1
            end = begin
    return 0
