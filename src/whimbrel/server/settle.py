"""The rules of the ledger, pure: what becomes of an operation, staged in a ``Batch``.

A number of a stream is settled once, as an entry or as void, and always in this order: a number
settled before gives its outcome again; one beyond the next is ``Ahead``; the next one is looked up
by its message id (a client that opened a new stream offers again what it cannot know to be
committed); then checked; then appended. A refused send is void if it says ``skip``, else its number
stays expected.

An operation that raises is our own mistake or a row nothing can be done with. It costs itself:
``settle_all`` begins anew, one batch per operation, and refuses that one as ``unavailable``. What
cannot be numbered at all (no conversation, number 0) is ``invalid`` and settles nothing.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Sequence

import msgspec

from whimbrel import protocol as p
from whimbrel.model import Role, message_id
from whimbrel.server import ledger as led
from whimbrel.server.records import Batch, Entry, NewId, Number, Records, StreamName, is_text
from whimbrel.server.settle_members import add, create, member_fault, receipt, remove, unknown

_log = logging.getLogger(__name__)

NUMBER_MAX = (1 << 36) - 1
"""Numbers and seqs fit 36 bits, so that one integer can name a number and its stream."""
STREAM_MAX = (1 << 53) - 1
CONTENT_BYTES_MAX = p.FRAME_BYTES_MAX * 3 // 4
"""Of body and metadata as JSON, where a control character takes six bytes: an entry fits one frame."""
METADATA_DEPTH_MAX = 32
"""Objects and lists within each other. What is nested deeper than a reader can follow is never read again."""
REASON_CHARS_MAX = 64

_NESTING = (dict, list, tuple)

_FORMATS = frozenset({"text", "json", "bytes"})
_ROLES = frozenset(role.value for role in Role)
_ALG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}", re.ASCII)
_encode = msgspec.json.Encoder(order="sorted").encode


def settle_all(
    records: Records,
    commit: int,
    operations: Sequence[led.Operation],
    now: float,
    new_id: NewId,
    *,
    fatal: tuple[type[Exception], ...] = (MemoryError,),
) -> tuple[Batch, list[led.Outcome]]:
    """Stage all operations as commit ``commit``; one that raises is refused alone, unless it is ``fatal``."""
    batch = Batch(records, commit)
    try:
        return batch, [settle(batch, operation, now, new_id) for operation in operations]
    except fatal:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it must cost one operation only
        _log.warning("a batch of %d failed (%s): one by one", len(operations), type(error).__name__)
    # What the failed operation staged before it raised cannot be told apart: begin anew.
    batch = Batch(records, commit)
    outcomes: list[led.Outcome] = []
    for operation in operations:
        trial = Batch(batch, commit)
        try:
            outcome = settle(trial, operation, now, new_id)
        except fatal:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            outcomes.append(cannot(operation, error))
        else:
            batch.merge(trial)
            outcomes.append(outcome)
    return batch, outcomes


def cannot(operation: object, error: Exception) -> led.Refused:
    """Refuse an operation that raised; the log names the kinds and no value."""
    _log.error("%s failed: %s", type(operation).__name__, type(error).__name__)
    return led.Refused(code="unavailable", text="the server could not carry this out")


def settle(batch: Batch, operation: led.Operation, now: float, new_id: NewId) -> led.Outcome:
    """Stage one operation and give its outcome."""
    match operation:
        case led.Append():
            return _append(batch, operation, now)
        case led.AppendVoid():
            return _append_void(batch, operation)
        case led.CreateConversation():
            return create(batch, operation, now, new_id)
        case led.AddMember():
            return add(batch, operation, now)
        case led.RemoveMember():
            return remove(batch, operation, now)
        case led.SetReceipt():
            return receipt(batch, operation)
        case _:  # pragma: no cover - typed as impossible, refused alone if it happens
            raise TypeError("not an operation")


# --- numbers --------------------------------------------------------------------------------------


def _append(batch: Batch, operation: led.Append, now: float) -> led.Outcome:
    send = operation.send
    if fault := _numbering_fault(operation.device, send):
        return fault
    id = message_id(operation.device, send.key)
    stream = (operation.device, send.conversation, send.stream)
    known_n = batch.last_n(stream)
    last_n = known_n or 0
    content, fault = _content(send)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    if send.n <= last_n:
        return _again(batch, stream, send.n, id, digest)
    if send.n > last_n + 1:
        return _ahead(batch, known_n)
    if located := batch.located(id):
        known = batch.entry(*located)
        assert known is not None, "an id leads to its entry"
        if known.digest == digest:
            batch.put_number(stream, send.n, Number(seq=known.event.seq, id=id))
            return led.Committed(event=known.event, repeated=True)
        fault = led.Refused(code="conflict", text="this key was used before, for other content")
    conversation = batch.conversation(send.conversation)
    fault = fault or _content_fault(send, len(content)) or member_fault(batch, conversation, operation.user)
    if fault is not None or conversation is None:
        return _refuse(batch, stream, send, fault or unknown(), id=id, digest=digest)
    event = p.Event(
        conversation=conversation.id,
        epoch=conversation.epoch,
        seq=conversation.seq + 1,
        id=id,
        sender=operation.user,
        body=send.body,
        format=send.format,
        alg=send.alg,
        role=send.role,
        metadata=send.metadata,
        reply_to=send.reply_to,
        sent_at=float(send.sent_at),
        at=now,
    )
    batch.append(conversation, Entry(event=event, digest=digest))
    batch.put_number(stream, send.n, Number(seq=event.seq, id=id))
    return led.Committed(event=event)


def _append_void(batch: Batch, operation: led.AppendVoid) -> led.Outcome:
    void = operation.void
    if fault := _numbering_fault(operation.device, void):
        return fault
    if not is_text(void.reason, REASON_CHARS_MAX):
        return led.Refused(code="invalid", text="the reason is missing or too long")
    id = message_id(operation.device, void.key)
    stream = (operation.device, void.conversation, void.stream)
    known_n = batch.last_n(stream)
    last_n = known_n or 0
    if void.n <= last_n:
        return _again(batch, stream, void.n, id, None)
    if void.n > last_n + 1:
        return _ahead(batch, known_n)
    # Committed under another number: too late to withdraw, and whoever asked must hear so.
    located = batch.located(id)
    if located is not None and located[0] == void.conversation:
        known = batch.entry(*located)
        assert known is not None, "an id leads to its entry"
        batch.put_number(stream, void.n, Number(seq=known.event.seq, id=id))
        return led.Committed(event=known.event, repeated=True)
    batch.put_number(stream, void.n, Number(seq=0, id=id, reason=void.reason))
    return led.WasVoided(reason=void.reason)


def _numbering_fault(device: str, item: p.Send | p.Void) -> led.Refused | None:
    if not (1 <= item.n <= NUMBER_MAX and 1 <= item.stream <= STREAM_MAX):
        return led.Refused(code="invalid", text="stream and number begin at 1")
    if not is_text(item.conversation, p.ID_CHARS_MAX) or not is_text(device, p.ID_CHARS_MAX):
        return led.Refused(code="invalid", text="no conversation, or too long an id")
    if not is_text(item.key, p.KEY_CHARS_MAX):
        return led.Refused(code="invalid", text="no key, or too long a one")
    return None


def _ahead(records: Records, known_n: int | None) -> led.Ahead:
    # After a restore, a stream without a trace may have been settled further in what was lost.
    if known_n is None and records.renewed:
        return led.Ahead(expected=0)
    return led.Ahead(expected=(known_n or 0) + 1)


def _again(batch: Batch, stream: StreamName, n: int, id: str, digest: bytes | None) -> led.Outcome:
    """Give the outcome of a settled number again, if it is still the same message."""
    number = batch.number(stream, n)
    assert number is not None, "every number up to the last is kept"
    same = number.id == id
    if same and digest is not None:
        if number.seq:
            known = batch.entry(stream[1], number.seq)
            same = known is not None and known.digest == digest
        else:
            same = number.digest in (None, digest)
    if not same:
        return led.Refused(code="conflict", text="this number was settled for another message")
    return outcome_of(batch, stream, number)


def outcome_of(records: Records, stream: StreamName, number: Number) -> led.Outcome:
    """Give the outcome that a settled number had."""
    if not number.seq:
        return led.WasVoided(reason=number.reason, code=number.code, text=number.text, repeated=True)
    known = records.entry(stream[1], number.seq)
    assert known is not None, "a number leads to its entry"
    return led.Committed(event=known.event, repeated=True)


def settled(records: Records, stream: StreamName, n: int) -> led.Outcome | None:
    """Give what became of a number, ``Ahead`` if nothing yet; None: there is no such number."""
    if not 1 <= n <= NUMBER_MAX or not 1 <= stream[2] <= STREAM_MAX:
        return None
    known_n = records.last_n(stream)
    if n > (known_n or 0):
        return led.Ahead(expected=1) if n == 1 else _ahead(records, known_n)
    number = records.number(stream, n)
    assert number is not None, "every number up to the last is kept"
    return outcome_of(records, stream, number)


def _refuse(
    batch: Batch, stream: StreamName, send: p.Send, fault: led.Refused, *, id: str, digest: bytes
) -> led.Outcome:
    if send.on_reject == "block":
        if send.n == 1 and batch.renewed:
            # The stream is new and not lost: those behind this number are told to wait for it.
            batch.put_stream(stream)
        return fault
    void = Number(seq=0, id=id, digest=digest, reason="rejected", code=fault.code, text=fault.text)
    batch.put_number(stream, send.n, void)
    return led.WasVoided(reason=void.reason, code=void.code, text=void.text)


def _content(send: p.Send) -> tuple[bytes, led.Refused | None]:
    """Give what the digest is made of, or why there is none."""
    if send.metadata is not None and _too_deep(send.metadata):
        text = f"the metadata are nested deeper than {METADATA_DEPTH_MAX}"
        return b"", led.Refused(code="invalid", text=text)
    try:
        return _encode(
            (send.conversation, send.format, send.alg, send.role, send.body, send.metadata, send.reply_to)
        ), None
    except (ValueError, OverflowError, RecursionError):
        return b"", led.Refused(code="invalid", text="the content cannot be put into JSON")


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(METADATA_DEPTH_MAX):
        level = [
            inner
            for outer in level
            if isinstance(outer, _NESTING)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(value, _NESTING) for value in level)


def _content_fault(send: p.Send, content_bytes: int) -> led.Refused | None:
    # No character takes more than four bytes, so most bodies need not be encoded to be measured.
    chars = len(send.body)
    if chars > p.BODY_BYTES_MAX or (
        chars > p.BODY_BYTES_MAX // 4 and len(send.body.encode()) > p.BODY_BYTES_MAX
    ):
        return led.Refused(code="too_large", text=f"the body is over {p.BODY_BYTES_MAX} bytes")
    if send.metadata is not None and len(_encode(send.metadata)) > p.METADATA_BYTES_MAX:
        return led.Refused(code="too_large", text=f"the metadata are over {p.METADATA_BYTES_MAX} bytes")
    if content_bytes > CONTENT_BYTES_MAX:
        return led.Refused(code="too_large", text=f"as JSON it is over {CONTENT_BYTES_MAX} bytes")
    if send.format not in _FORMATS:
        return led.Refused(code="invalid", text="unknown format")
    if send.role not in _ROLES:
        return led.Refused(code="invalid", text="unknown role")
    if not _ALG.fullmatch(send.alg):
        return led.Refused(code="invalid", text="alg is not a name")
    if send.reply_to is not None and not is_text(send.reply_to, p.ID_CHARS_MAX):
        return led.Refused(code="invalid", text="reply_to is not an id")
    if not math.isfinite(send.sent_at):
        return led.Refused(code="invalid", text="sent_at is not a time")
    return None
