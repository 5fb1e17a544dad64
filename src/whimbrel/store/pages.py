"""The pages of a store's file, read without SQLite: what is still whole in a damaged one.

Every page is authenticated by the cipher (ChaCha20-Poly1305; the last 32 bytes of a page are its nonce and
tag), so a page is either exactly what was once written there, or known to be damaged. The newest
version of a page is its last frame in the log, as far as the log's checksums hold and a transaction is
whole; else what the file has. Frames beyond that (the log was damaged before them) are *loose*:
authentic, but perhaps never committed, or without the frames they belong to.

From pages to rows: leaf cells, their overflow chains, and the record format, as
https://sqlite.org/fileformat2.html describes them. Left to others: what the rows mean (``store.salvage``).
Nothing is written.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.poly1305 import Poly1305

from whimbrel.store.schema import PAGE_BYTES

Value: TypeAlias = int | float | str | bytes | None
Row: TypeAlias = tuple[Value, ...]

RESERVED_BYTES = 32
USABLE_BYTES = PAGE_BYTES - RESERVED_BYTES
PAYLOAD_BYTES_MAX = 16 * 1024 * 1024
HEADER = bytes.fromhex("1000020220402020")
"""Bytes 16 to 23 of a store: its page size and versions, the only ones in plain."""
_PLAIN_BYTES = 24
_TABLE_LOCAL_MAX = USABLE_BYTES - 35
_INDEX_LOCAL_MAX = (USABLE_BYTES - 12) * 64 // 255 - 23
_MAGIC = b"SQLite format 3\0"
_FRAME = struct.Struct(">IIIIII")
_WAL_HEADER = struct.Struct(">8I")
_DEPTH_MAX = 20

_INDEX_LEAF, _INDEX_INNER, _TABLE_LEAF, _TABLE_INNER = 0x0A, 0x02, 0x0D, 0x05


class Damaged(Exception):
    """What was asked for is not whole."""


def opened_page(content: bytes, number: int, key: bytes) -> bytes | None:
    """The plain page, or None if it is not what was written there under this key."""
    body, nonce, tag = content[:USABLE_BYTES], content[USABLE_BYTES:-16], content[-16:]
    counter = int.from_bytes(nonce[12:], "little") ^ number

    def stream(data: bytes, under: bytes, block: int) -> bytes:
        start = (block & 0xFFFFFFFF).to_bytes(4, "little") + nonce[:12]
        return Cipher(algorithms.ChaCha20(under, start), mode=None).encryptor().update(data)

    keys = stream(bytes(64), key, counter)
    try:
        Poly1305.verify_tag(keys[:32], body + nonce, tag)
    except InvalidSignature:
        return None
    if number == 1:
        plain = _MAGIC + body[16:_PLAIN_BYTES] + stream(body[_PLAIN_BYTES:], keys[32:], counter + 1)
    else:
        plain = stream(body, keys[32:], counter + 1)
    return plain


class Pages:
    """The pages of the store at ``path`` and of its log; a context manager. Raises OSError."""

    def __init__(self, path: Path, key: bytes, *, log: bool = True) -> None:
        """``log``: with the log beside it, if there is one."""
        self._key = key
        self._file = _opened(path)
        self._wal = _opened(path.with_name(path.name + "-wal")) if log else None
        self.count = -(-_size(self._file) // PAGE_BYTES)
        """How many pages there are, or were."""
        self.torn = False
        """The log has frames that are damaged, or that belong to no whole transaction."""
        self._frames: dict[int, int] = {}
        self._loose: list[tuple[int, int, bool]] = []
        self._read_log()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in (self._file, self._wal):
            if fd is not None:
                os.close(fd)

    def page(self, number: int) -> bytes | None:
        """The newest committed version of a page; None if that is damaged or missing."""
        if not 1 <= number <= self.count:
            return None
        place = self._frames.get(number)
        content = _read(self._file, (number - 1) * PAGE_BYTES) if place is None else _read(self._wal, place)
        return None if content is None else opened_page(content, number, self._key)

    def loose(self) -> Iterator[tuple[bytes, bool]]:
        """The authentic pages of frames that belong to no whole transaction, in the order of the log.

        Each with whether it is newer than the page of the file: written since the log was begun anew.
        """
        for number, place, newer in self._loose:
            content = _read(self._wal, place)
            page = None if content is None else opened_page(content, number, self._key)
            if page is not None:
                yield page, newer

    def authentic(self) -> bool:
        """Whether any page is one of a store under this key."""
        return any(self.page(number) is not None for number in range(1, self.count + 1)) or any(
            True for _ in self.loose()
        )

    def _read_log(self) -> None:
        """Find the frames of whole transactions, as SQLite would, and what lies beyond them."""
        head = None if self._wal is None else os.pread(self._wal, 32, 0)
        if head is None or len(head) < 32:
            self.torn = head is not None and len(head) > 0
            return
        magic, _, size, _, salt1, salt2, *told = _WAL_HEADER.unpack(head)
        order = ">" if magic & 1 else "<"
        sums = _sums(head[:24], (0, 0), order)
        chained = magic >> 1 == 0x377F0682 >> 1 and size == PAGE_BYTES and list(sums) == told
        self.torn = not chained
        pending: dict[int, int] = {}
        places: list[tuple[int, int, bool]] = []
        current = (salt1, salt2) if list(sums) == told else None
        # Old frames, of before the log was begun anew, have other salts. A damaged header tells none.
        for place in range(32, _size(self._wal), _FRAME.size + PAGE_BYTES):
            frame = _read(self._wal, place, _FRAME.size + PAGE_BYTES)
            if frame is None:
                self.torn = self.torn or chained
                break
            number, commit, mine1, mine2, *told = _FRAME.unpack(frame[: _FRAME.size])
            current = current or (mine1, mine2)
            fits = (mine1, mine2) == (salt1, salt2)
            if chained:
                sums = _sums(frame[_FRAME.size :], _sums(frame[:8], sums, order), order)
                chained = fits and list(sums) == told and number > 0
            at = place + _FRAME.size
            if chained:
                pending[number] = at
                places.append((number, at, True))
                if commit:
                    self._frames.update(pending)
                    self.count = commit
                    pending.clear()
                    places.clear()
            else:
                self.torn = self.torn or fits
                places.append((number, at, (mine1, mine2) == current))
        self._loose = [place for place in places if place[0] > 0]

    # --- from pages to rows ------------------------------------------------------------------------

    def rows(self, page: bytes, number: int, *, whole_only: bool = False) -> Iterator[tuple[int, Row]]:
        """The rows of a table's leaf page with their rowids; ``whole_only``: none that goes on elsewhere."""
        if _kind(page, number) != _TABLE_LEAF:
            return
        for at in _cells(page, number):
            try:
                yield self._table_row(page, at, whole_only=whole_only)
            except (Damaged, IndexError, ValueError, struct.error):
                continue

    def pairs(self, page: bytes, number: int) -> Iterator[Row]:
        """The records of two values on a leaf page of an index: what the small tables are made of."""
        if _kind(page, number) != _INDEX_LEAF:
            return
        for at in _cells(page, number):
            try:
                if not _may_be_pair(page, at):
                    return  # all records of a page are of one index
                row = self._index_row(page, at)
            except (Damaged, IndexError, ValueError, struct.error):
                continue
            if len(row) == 2:
                yield row

    def walk(self, root: int, *, values: int | None = None) -> Iterator[Row]:
        """All rows of the table or index whose first page is ``root``. Raises ``Damaged``.

        ``values``: how many each row has, or the tree is not what it was.
        """
        for _, row in self._walk(root, set(), _DEPTH_MAX):
            if values is not None and len(row) != values:
                raise Damaged
            yield row

    def rowids(self, root: int) -> Iterator[int]:
        """The rowids of the table whose first page is ``root``. Raises ``Damaged``."""
        return (rowid for rowid, _ in self._walk(root, set(), _DEPTH_MAX))

    def _walk(self, number: int, seen: set[int], depth: int) -> Iterator[tuple[int, Row]]:
        # Pages that are whole, but not of one time, may lead in circles.
        page = None if number in seen else self.page(number)
        if page is None or depth == 0:
            raise Damaged
        seen.add(number)
        kind, below = _kind(page, number), _Below(page, number)
        try:
            for at in _cells(page, number):
                if kind in (_INDEX_INNER, _TABLE_INNER):
                    yield from self._walk(below.of(at), seen, depth - 1)
                if kind == _INDEX_LEAF:
                    yield 0, self._index_row(page, at)
                elif kind == _INDEX_INNER:
                    yield 0, self._index_row(page, at + 4)
                elif kind == _TABLE_LEAF:
                    yield self._table_row(page, at, whole_only=False)
                elif kind != _TABLE_INNER:
                    raise Damaged
            if kind in (_INDEX_INNER, _TABLE_INNER):
                yield from self._walk(below.last, seen, depth - 1)
        except (IndexError, ValueError, struct.error) as error:
            raise Damaged from error

    def _table_row(self, page: bytes, at: int, *, whole_only: bool) -> tuple[int, Row]:
        size, at = _varint(page, at)
        rowid, at = _varint(page, at)
        return rowid, decoded(self._payload(page, at, size, _TABLE_LOCAL_MAX, whole_only))

    def _index_row(self, page: bytes, at: int) -> Row:
        size, at = _varint(page, at)
        return decoded(self._payload(page, at, size, _INDEX_LOCAL_MAX, whole_only=False))

    def _payload(self, page: bytes, at: int, size: int, local_max: int, whole_only: bool) -> bytes:
        if size > PAYLOAD_BYTES_MAX:
            raise Damaged
        if size <= local_max:
            return _slice(page, at, size)
        local_min = (USABLE_BYTES - 12) * 32 // 255 - 23
        local = local_min + (size - local_min) % (USABLE_BYTES - 4)
        local = local if local <= local_max else local_min
        if whole_only:
            raise Damaged
        parts, left = [_slice(page, at, local)], size - local
        (following,) = struct.unpack(">I", _slice(page, at + local, 4))
        while left > 0:
            more = self.page(following)
            if more is None:
                raise Damaged
            parts.append(more[4 : 4 + min(left, USABLE_BYTES - 4)])
            left -= USABLE_BYTES - 4
            (following,) = struct.unpack(">I", more[:4])
        if following:
            raise Damaged  # not the chain it was
        return b"".join(parts)


class _Below:
    """The children of an inner page."""

    def __init__(self, page: bytes, number: int) -> None:
        self._page = page
        start = 100 if number == 1 else 0
        self.last: int = struct.unpack(">I", page[start + 8 : start + 12])[0]

    def of(self, at: int) -> int:
        child: int = struct.unpack(">I", _slice(self._page, at, 4))[0]
        return child


def _kind(page: bytes, number: int) -> int:
    return page[100 if number == 1 else 0]


def _cells(page: bytes, number: int) -> tuple[int, ...]:
    start = 100 if number == 1 else 0
    (count,) = struct.unpack(">H", page[start + 3 : start + 5])
    first = start + (12 if page[start] in (_INDEX_INNER, _TABLE_INNER) else 8)
    cells: tuple[int, ...] = struct.unpack(f">{count}H", _slice(page, first, 2 * count))
    return cells


def _may_be_pair(page: bytes, at: int) -> bool:
    """Whether the record of an index may have two values: two kinds of up to three bytes in its header."""
    _, at = _varint(page, at)
    header, _ = _varint(page, at)
    return 3 <= header <= 7


def _slice(page: bytes, at: int, size: int) -> bytes:
    if at + size > USABLE_BYTES:
        raise Damaged
    return page[at : at + size]


def _varint(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(at, at + 8):
        byte = page[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    value = value << 8 | page[at + 8]
    return value - (1 << 64 if value >> 63 else 0), at + 9


def decoded(payload: bytes) -> Row:
    """The values of a record. Raises ``Damaged`` or ValueError."""
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Value] = []
    at = end
    for kind in kinds:
        size = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] if 0 <= kind < 10 else (kind - 12) // 2
        content = payload[at : at + size]
        if kind < 0 or kind in (10, 11) or len(content) != size:
            raise Damaged
        at += size
        if kind == 0:
            values.append(None)
        elif kind <= 6:
            values.append(int.from_bytes(content, "big", signed=True))
        elif kind == 7:
            values.append(struct.unpack(">d", content)[0])
        elif kind in (8, 9):
            values.append(kind - 8)
        else:
            values.append(content.decode() if kind % 2 else content)
    if at != len(payload):
        raise Damaged
    return tuple(values)


def _sums(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """The running checksums of the log."""
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for word in words:
        first = (first + word + second) & 0xFFFFFFFF
        second = (second + next(words) + first) & 0xFFFFFFFF
    return first, second


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _size(fd: int | None) -> int:
    return 0 if fd is None else os.fstat(fd).st_size


def _read(fd: int | None, place: int, size: int = PAGE_BYTES) -> bytes | None:
    content = b"" if fd is None else os.pread(fd, size, place)
    return content if len(content) == size else None
