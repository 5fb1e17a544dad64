"""What a guest and the one that syncs the store say to each other, on a local socket.

The socket carries nothing that must not be lost: what is to be done lies in the store before it is told
(``Handed``), and what happened is in the store before it is told (``Arrived``, ``News``). So it may
break at any time, and who comes back reads the store. It carries what only an engine knows, too:
the link's state, explanations, the server's answers.

A frame is one line of JSON. Both sides prove that they can read the store: a secret is kept in it, and
each answers the other's random challenge with it. Who only can reach the socket learns nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
from typing import Any, TypeAlias, TypeVar, get_args

import msgspec

from whimbrel import model
from whimbrel import protocol as p
from whimbrel.core.contract import Connect, SetTyping
from whimbrel.errors import RemoteError, WhimbrelError

FRAME_BYTES_MAX = 2 * p.FRAME_BYTES_MAX
UNSENT_BYTES_MAX = 8 * 1024 * 1024
"""What may wait for a reader that does not read; beyond, the connection is cut, and it reads the store."""
HANDSHAKE_S = 5.0
SECRET_NAME = "handoff"  # noqa: S105 - the name of the secret, not the secret
_LABEL = b"whimbrel local 1"


class _Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="f"):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


# --- the handshake -----------------------------------------------------------------------------


class Challenge(_Frame, frozen=True, kw_only=True, tag="challenge"):
    """Of the one that syncs: prove that you can read the store."""

    nonce: str


class Enter(_Frame, frozen=True, kw_only=True, tag="enter"):
    """The guest's proof, and its own challenge."""

    proof: str
    nonce: str


class Enough(_Frame, frozen=True, kw_only=True, tag="enough"):
    """The proof of the one that syncs. From here on both talk."""

    proof: str


# --- of the guest ------------------------------------------------------------------------------


class Handed(_Frame, frozen=True, kw_only=True, tag="handed"):
    """Something was handed over in the store."""


class SignIn(_Frame, frozen=True, kw_only=True, tag="sign_in"):
    """Use these credentials."""

    username: str
    password: str


class SignOut(_Frame, frozen=True, kw_only=True, tag="sign_out"):
    """Forget the tokens."""


class Explain(_Frame, frozen=True, kw_only=True, tag="explain"):
    """Why is this message where it is?"""

    message: str


class Settle(_Frame, frozen=True, kw_only=True, tag="settle"):
    """Answer when all that came from the server so far is in the store."""


class AskServer(_Frame, frozen=True, kw_only=True, tag="ask_server"):
    """Ask the server, and give its answer."""

    call: p.Call
    timeout_s: float


Question: TypeAlias = SignIn | SignOut | Explain | Settle | AskServer


class Ask(_Frame, frozen=True, kw_only=True, tag="ask"):
    """Answered by ``Reply`` under the same number."""

    number: int
    question: Question


class Typing(_Frame, frozen=True, kw_only=True, tag="typing"):
    """Tell the others that this user types."""

    conversation: str
    on: bool


class Hurry(_Frame, frozen=True, kw_only=True, tag="hurry"):
    """Try to connect at once."""


GuestFrame: TypeAlias = Enter | Handed | Ask | Typing | Hurry


def of_command(command: SetTyping | Connect) -> Typing | Hurry:
    """A command that nobody waits for, and that may be lost."""
    if isinstance(command, SetTyping):
        return Typing(conversation=command.conversation, on=command.on)
    return Hurry()


# --- of the one that syncs ---------------------------------------------------------------------


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error, to be raised by another process."""

    code: str
    text: str
    hint: str = ""
    retry_after_s: float | None = None


class State(_Frame, frozen=True, kw_only=True, tag="state"):
    """Where the link stands, and who is signed in."""

    connection: model.ConnectionChanged
    user: str | None
    failure: Failure | None
    possible: bool
    last_error: str


class Arrived(_Frame, frozen=True, kw_only=True, tag="arrived"):
    """The store has an entry at this position of its order of arrival."""

    position: int


class News(_Frame, frozen=True, kw_only=True, tag="news"):
    """An event other than an arrival."""

    name: str
    event: msgspec.Raw


class Stirred(_Frame, frozen=True, kw_only=True, tag="stirred"):
    """Who waits for something should look again."""


class Reply(_Frame, frozen=True, kw_only=True, tag="reply"):
    """What came of an ``Ask``."""

    number: int
    failure: Failure | None = None
    answer: p.Answer | None = None
    explanation: model.Explanation | None = None


HostFrame: TypeAlias = Challenge | Enough | State | Arrived | News | Stirred | Reply

_EVENTS: dict[str, Any] = {
    kind.name: kind for kind in get_args(model.Event) if kind is not model.MessageReceived
}


def told(event: model.Event) -> Arrived | News:
    """The frame that tells an event; what arrived is read from the store."""
    if isinstance(event, model.MessageReceived):
        assert event.message.position is not None
        return Arrived(position=event.message.position)
    return News(name=event.name, event=msgspec.Raw(msgspec.json.encode(event)))


def event_of(news: News) -> model.Event | None:
    """The event again; None for one that is not known here, of a newer version."""
    kind = _EVENTS.get(news.name)
    if kind is None:
        return None
    try:
        event: model.Event = msgspec.json.decode(news.event, type=kind)
    except msgspec.DecodeError:
        return None
    return event


# --- errors ------------------------------------------------------------------------------------


def failure_of(error: WhimbrelError) -> Failure:
    """The error as it travels."""
    retry_after_s = error.retry_after_s if isinstance(error, RemoteError) else None
    return Failure(code=error.code, text=error.text, hint=error.hint, retry_after_s=retry_after_s)


def error_of(failure: Failure) -> WhimbrelError:
    """The error again, of the same kind if it is known here."""
    kinds: list[type[WhimbrelError]] = [WhimbrelError]
    for kind in kinds:  # grows while it is walked: the whole tree
        if kind.code == failure.code:
            break
        kinds += kind.__subclasses__()
    else:
        kind = WhimbrelError
    # An error of a module's own is told as the public one that it is: it may be made in another way.
    kind = next(public for public in kind.__mro__ if public.__module__ == WhimbrelError.__module__)
    error = kind(failure.text, hint=failure.hint)
    if isinstance(error, RemoteError):
        error.retry_after_s = failure.retry_after_s
    return error


# --- the connection ----------------------------------------------------------------------------

F = TypeVar("F")


class Line:
    """One end of a connection: frames of one kind go out, of another come in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, frame: GuestFrame | HostFrame) -> None:
        """Write a frame, without waiting; a peer that does not read is cut off."""
        self.send_line(encoded(frame))

    def send_line(self, line: bytes) -> None:
        """Write a frame that is encoded already."""
        if self._writer.is_closing():
            return
        self._writer.write(line)
        if self._writer.transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._writer.transport.abort()

    async def receive(self, decoder: msgspec.json.Decoder[F]) -> F | None:
        """The next frame that is understood; None at the end."""
        while True:
            try:
                line = await self._reader.readuntil()
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                return None
            with contextlib.suppress(msgspec.DecodeError):
                return decoder.decode(line)

    def cut(self) -> None:
        """End it at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """End it."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def encoded(frame: GuestFrame | HostFrame) -> bytes:
    """The frame as a line."""
    return msgspec.json.encode(frame) + b"\n"


guest_frames: msgspec.json.Decoder[GuestFrame] = msgspec.json.Decoder(GuestFrame)
host_frames: msgspec.json.Decoder[HostFrame] = msgspec.json.Decoder(HostFrame)


def random_text() -> str:
    """256 random bits: a secret, or a challenge."""
    return base64.b64encode(os.urandom(32)).decode()


def _proof(secret: str, who: bytes, *nonces: str) -> str:
    said = b"\0".join((_LABEL, who, *(nonce.encode() for nonce in nonces)))
    return hmac.new(secret.encode(), said, hashlib.sha256).hexdigest()


def _proves(proof: str, expected: str) -> bool:
    # As bytes: text that is not ASCII, which anybody may send, cannot be compared in constant time.
    return hmac.compare_digest(proof.encode(), expected.encode())


async def admit(line: Line, secret: str) -> bool:
    """Let a guest in, if it proves that it can read the store."""
    mine = random_text()
    line.send(Challenge(nonce=mine))
    entering = await line.receive(guest_frames)
    if not isinstance(entering, Enter):
        return False
    if not _proves(entering.proof, _proof(secret, b"guest", mine, entering.nonce)):
        return False
    line.send(Enough(proof=_proof(secret, b"host", mine, entering.nonce)))
    return True


async def enter(line: Line, secret: str) -> bool:
    """Be let in by the one that syncs, if it proves that it is."""
    challenge = await line.receive(host_frames)
    if not isinstance(challenge, Challenge):
        return False
    mine = random_text()
    line.send(Enter(proof=_proof(secret, b"guest", challenge.nonce, mine), nonce=mine))
    enough = await line.receive(host_frames)
    expected = _proof(secret, b"host", challenge.nonce, mine)
    return isinstance(enough, Enough) and _proves(enough.proof, expected)
