"""Whatever comes, a decoder gives what it promises to give, or raises what it promises to raise."""

from __future__ import annotations

import base64
import contextlib
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from tests.attack.mutations import CLIENT_FRAMES, mutants
from tests.rounds import Rounds
from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.cli.chatlog import ChatLog
from whimbrel.server import bodies
from whimbrel.server.app import ROUTES
from whimbrel.server.auth import AccessTokens
from whimbrel.server.http import NOBODY, Call, decode_body
from whimbrel.server.settle import NUMBER_MAX
from whimbrel.server.synctoken import SyncTokens
from whimbrel.testing.traces import Trace, TraceError

EVENT = p.Event(
    conversation="c", epoch="e", seq=7, id="i", sender="ann", body="b", metadata={"a": [1]}, at=1.5
)
HEAD = p.Head(conversation="c", epoch="e", seq=7, title="T", members=("ann",), receipts=(("ann", 1, 1),))
SERVER_FRAMES = tuple(
    p.encode(items)
    for items in (
        [
            p.Welcome(
                user="ann", device="d", history="h", sync="s", heads=(HEAD,), credits=p.Credits(rate=1.0)
            )
        ],
        [EVENT, p.Delivered(conversation="c", stream=1, n=1, id="i", epoch="e", seq=7, at=1.0)],
        [p.Page(conversation="c", epoch="e", since=0, events=(EVENT,) * 3, head=9)],
        [p.Heads(heads=(HEAD,), sync="s"), p.Pong(id=1, sync="s"), p.Goaway(reconnect_in_s=1.0)],
        [
            p.Rejected(conversation="c", stream=1, n=1, code="invalid", retry_after_s=1.0),
            p.Error(code="internal"),
        ],
        [p.OutOfOrder(conversation="c", stream=1, expected=1), p.Voided(conversation="c", stream=1, n=1)],
        [p.Receipts(conversation="c", receipts=(("ann", 0, 1),)), p.TypingOf(conversation="c", user="ann")],
        [
            p.Answer(
                id="1",
                conversations=(p.ConversationInfo(id="c", title="", epoch="e", seq=1, floor=0, members=()),),
            )
        ],
    )
)
BODIES: dict[type[msgspec.Struct], msgspec.Struct] = {
    bodies.Login: bodies.Login(username="ann", password="p", device="d"),
    bodies.RefreshToken: bodies.RefreshToken(refresh_token="r"),
    bodies.NewConversation: bodies.NewConversation(id="c", title="T", members=("ann", "bob")),
    bodies.NewMember: bodies.NewMember(user="bob"),
    bodies.NewMessage: bodies.NewMessage(key="k", body="b", stream=1, n=1, metadata={"a": [None, {"b": 1}]}),
    bodies.Receipts: bodies.Receipts(received=1, read=1),
}
SYNC = SyncTokens(b"s" * 32)
ACCESS = AccessTokens(b"a" * 32)
KINDS = tuple(BODIES)


def _same_again(items: list[Any], decode: Callable[[bytes], list[Any]]) -> None:
    """What was understood can be said, and is understood the same."""
    understood = [item for item in items if not isinstance(item, p.Unknown)]
    assert all(len(item.tag) <= p.ID_CHARS_MAX for item in items if isinstance(item, p.Unknown))
    again = decode(p.encode(understood))
    # Not by ==, for which NaN is not itself; but there is no NaN in JSON.
    assert again == understood


def client_frame(data: bytes) -> None:
    _same_again(p.decode_client(data), p.decode_client)


def client_text(data: bytes) -> None:
    # As a text of Python can hold what no bytes do: halves of surrogate pairs.
    p.decode_client(data.decode(errors="surrogateescape"))


def server_frame(data: bytes) -> None:
    _same_again(p.decode_server(data), p.decode_server)


def http_body(data: bytes) -> None:
    kind = KINDS[len(data) % len(KINDS)]
    assert isinstance(decode_body(data, kind), kind)


def content(data: bytes) -> None:
    format, body = ("text", "json", "bytes")[len(data) % 3], data.decode(errors="replace")
    given = p.decode_content(format, body)
    assert isinstance(given, bytes) if format == "bytes" and not isinstance(given, str) else True
    if format == "json" and given is not body:
        assert p.decode_content(*p.encode_content(given)) == given


def sync_token(data: bytes) -> None:
    assert SYNC.decode(data.decode("latin-1"), "ann") is None


def access_token(data: bytes) -> None:
    ACCESS.verify(data.decode("latin-1"))
    raise AssertionError("a forged token was taken")


def cursor(data: bytes) -> None:
    # No line break, and no more than a request line holds: what is HTTP's is not ours.
    scope = {"type": "http", "query_string": b"since=" + data[:1_000], "headers": []}
    call = Call(request=Request(scope), service=None, identity=NOBODY, body=None)  # type: ignore[arg-type]
    assert 0 <= call.number("since", 0, 0, NUMBER_MAX) <= NUMBER_MAX


def chat_log(data: bytes) -> None:
    log = ChatLog.parse(data.decode(errors="replace"))
    assert all(line.text.encode() for line in log.lines if line.text)


def trace(data: bytes) -> None:
    Trace.parse(data.decode(errors="replace"))


def _tokens(token: str) -> tuple[bytes, ...]:
    parts = token.split(".")
    said = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)) if len(parts) > 1 else b"{}"
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=")
    return (
        token.encode(),
        said,
        token[:-1].encode(),
        none + b"." + parts[-2 if len(parts) > 1 else 0].encode() + b".",
    )


LOG = (
    "2019-05-01 [21:58:03] <ann> hello\n[21:59] * bob waves\n=== cat left\n* dan waves\n[23:59:59] <ann> ö\n"
)
DECODERS: dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...], tuple[type[Exception], ...]]] = {
    "a frame of a client": (client_frame, CLIENT_FRAMES, (errors.ProtocolError,)),
    "a frame of a client, as text": (client_text, CLIENT_FRAMES, (errors.ProtocolError,)),
    "a frame of the server": (server_frame, SERVER_FRAMES, (errors.ProtocolError,)),
    "a body of HTTP": (
        http_body,
        tuple(map(p.encode, BODIES.values())),
        (errors.InvalidRequest, errors.TooLarge),
    ),
    "content": (content, (*CLIENT_FRAMES[:3], b"text", b"AAECAw==", b'{"a":[1,2.5,null,true,"b"]}'), ()),
    "a sync token": (sync_token, _tokens(SYNC.encode("history", 17, "bob")), ()),
    "an access token": (
        access_token,
        _tokens(ACCESS.issue("ann", "d")[0][:-4] + "AAAA"),
        (errors.Unauthorized,),
    ),
    "a cursor": (
        cursor,
        (b"17", b"68719476735", b"abc", b"1&since=2", b"%31", b"0"),
        (errors.InvalidRequest,),
    ),
    "a chat log": (chat_log, (LOG.encode(), LOG.encode("utf-16")), ()),
    "a trace": (trace, (b"1\n2\n0\n5\n", b"0\n" * 50 + b"9\n"), (TraceError,)),
}


def test_every_body_is_among_those_bent() -> None:
    assert {route.body for route in ROUTES if route.body is not None} == set(BODIES)


@pytest.mark.soak
@pytest.mark.parametrize("name", DECODERS)
def test_nothing_but_what_is_promised(name: str, rounds: Rounds) -> None:
    decode, good, promised = DECODERS[name]
    count = rounds.of(ci=20_000, soak=1_000_000)
    refused = 0
    slowest_s = 0.0
    for seed in rounds.seeds(7):
        inputs = mutants(random.Random(seed), good)
        for _ in range(count // 2):
            data = next(inputs)
            began_s = time.thread_time()
            try:
                decode(data)
            except promised:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{type(error).__name__} for {data[:2000]!r} (seed {seed})") from error
            slowest_s = max(slowest_s, time.thread_time() - began_s)
    rounds.figure(f"slowest of {count:,}: {name}", round(slowest_s * 1000, 2), "ms")
    # That it was refused now and then, and taken now and then, shows that the bending is of use.
    assert not promised or refused
    assert refused < count or decode is access_token


@pytest.mark.parametrize("name", ["a frame of a client", "a body of HTTP", "content", "a chat log"])
def test_what_it_takes_in_memory_is_in_proportion(name: str) -> None:
    decode, good, promised = DECODERS[name]
    inputs = mutants(random.Random(11), good)
    tracemalloc.start()
    try:
        for _ in range(1_000):
            data = next(inputs)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with contextlib.suppress(*promised):
                decode(data)
            _, peak = tracemalloc.get_traced_memory()
            # Depth costs a frame of the decoder, an empty list 56 bytes for 3 on the wire.
            assert peak - before < 100 * len(data) + 256 * 1024
    finally:
        tracemalloc.stop()
