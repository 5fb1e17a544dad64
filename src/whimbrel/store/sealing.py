"""The key file beside a store: sealed under a passphrase, or plain.

Sealed: AES-256-GCM under a key that Argon2id derives from the passphrase; the parameters stand in
the file and are authenticated with it, so a change of any byte is refused. The file is written whole
or not at all, readable by its owner only.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Literal

import msgspec
from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from whimbrel.errors import StoreKeyError
from whimbrel.store.schema import KEY_BYTES

FILE_BYTES_MAX = 4096
_SALT_BYTES = 16
_NONCE_BYTES = 12


class SealedKey(msgspec.Struct, frozen=True, kw_only=True, tag="sealed", tag_field="key"):
    """A key under a passphrase, with all that is needed to open it but the passphrase."""

    version: Literal[1] = 1
    kdf: Literal["argon2id"] = "argon2id"
    rounds: int = 3
    memory_kib: int = 64 * 1024
    lanes: int = 4
    salt: bytes
    nonce: bytes
    box: bytes = b""

    def __repr__(self) -> str:
        return "<SealedKey>"


class PlainKey(msgspec.Struct, frozen=True, kw_only=True, tag="plain", tag_field="key"):
    """A key that only the file's mode protects."""

    version: Literal[1] = 1
    raw: bytes

    def __repr__(self) -> str:
        return "<PlainKey>"


_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[SealedKey | PlainKey] = msgspec.json.Decoder(SealedKey | PlainKey)


def seal(key: bytes, passphrase: str, *, rounds: int = 3, memory_kib: int = 64 * 1024) -> SealedKey:
    """Seal ``key`` under ``passphrase``; the parameters are those of RFC 9106, section 4, second choice."""
    empty = SealedKey(
        rounds=rounds, memory_kib=memory_kib, salt=os.urandom(_SALT_BYTES), nonce=os.urandom(_NONCE_BYTES)
    )
    box = AESGCM(_derive(empty, passphrase)).encrypt(empty.nonce, key, _encode(empty))
    return msgspec.structs.replace(empty, box=box)


def unseal(sealed: SealedKey, passphrase: str, file: Path) -> bytes:
    """Open it. Raises ``StoreKeyError`` for another passphrase, and for a file that was changed."""
    # Bounds before the derivation: a changed file must not take all memory, or for ever.
    sound = (
        1 <= sealed.rounds <= 64
        and 1 <= sealed.lanes <= 16
        and 8 * sealed.lanes <= sealed.memory_kib <= 1024 * 1024
        and len(sealed.salt) == _SALT_BYTES
        and len(sealed.nonce) == _NONCE_BYTES
    )
    if not sound:
        raise StoreKeyError(f"{file} is damaged")
    try:
        opened = AESGCM(_derive(sealed, passphrase)).decrypt(
            sealed.nonce, sealed.box, _encode(msgspec.structs.replace(sealed, box=b""))
        )
    except InvalidTag as error:
        raise StoreKeyError(f"the passphrase does not open {file}, or the file was changed") from error
    if len(opened) != KEY_BYTES:
        raise StoreKeyError(f"{file} is damaged")
    return opened


def _derive(sealed: SealedKey, passphrase: str) -> bytes:
    # The same words typed on another keyboard may be composed of other code points.
    words = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    return hash_secret_raw(
        secret=words,
        salt=sealed.salt,
        time_cost=sealed.rounds,
        memory_cost=sealed.memory_kib,
        parallelism=sealed.lanes,
        hash_len=KEY_BYTES,
        type=Type.ID,
    )


def read_key_file(file: Path) -> SealedKey | bytes:
    """What the file holds: a sealed key, or the bytes of a plain one. Raises ``StoreKeyError``, OSError."""
    with file.open("rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        text = stream.read(FILE_BYTES_MAX + 1)
    try:
        content = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise StoreKeyError(f"{file} is no key file, or is damaged") from error
    if isinstance(content, SealedKey):
        return content
    if mode & 0o077:
        raise StoreKeyError(f"others may read the key in {file}", hint="chmod 600 it, if nobody has")
    if len(content.raw) != KEY_BYTES:
        raise StoreKeyError(f"{file} is damaged")
    return content.raw


def write_key_file(file: Path, content: SealedKey | bytes) -> None:
    """Write it whole, durable on return. Only under the store's lock, and where there is no such file."""
    text = _encode(PlainKey(raw=content) if isinstance(content, bytes) else content)
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text)
        os.fsync(fd)
    finally:
        os.close(fd)
    part.rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
