"""What a hostile or broken peer may write: good frames bent in every way there is, and rubbish.

Endless, from a seed. Half of it is bent as bytes (bits, splices, ends cut off, parts twice), half as JSON
(values of other kinds, extreme numbers, depth, names that are missing or twice); now and then pure chance.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from whimbrel import protocol as p

SIZE_BYTES_MAX = 64 * 1024
BRACKETS = (b"[]", b"{}", b'{"a":')
ODD_NUMBERS = (0, -1, 1, 2**31, 2**36, 2**36 - 1, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**70), 10**400)
ODD_TEXTS = (
    "",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "a" * 65,
    "ä" * 200,
    "𝄞",
    "\u202e",
    "' OR 1=1 --",
    "../../x",
    "%00",
    "x" * 5_000,
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0.5,
    -0.0,
    1e308,
    5e-324,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"t": "send"},
)
RAW_VALUES = (
    b"1e999",
    b"-1e999",
    b"NaN",
    b"Infinity",
    b"01",
    b"0x1",
    b"+1",
    b'"\\ud800"',
    b'"\\u00"',
    b"'a'",
    b"nul",
    b"9" * 5_000,
    b"1E400",
    b'"\xff"',
    b"/**/1",
)

CLIENT_FRAMES: tuple[bytes, ...] = tuple(
    p.encode(items)
    for items in (
        [p.Hello(token="a.b.c", sync="abc", agent="x")],
        [p.Ping(id=7), p.Auth(token="a.b.c"), p.Bye()],
        [p.Send(conversation="c", stream=1, n=n, key=f"k{n}", body="text äöü 𝄞") for n in range(1, 4)],
        [
            p.Send(
                conversation="c",
                stream=1,
                n=1,
                key="k",
                body='{"a":[1,2,{"b":null}]}',
                format="json",
                metadata={"a": [1, {"b": [True, None]}], "c": 0.5},
                reply_to="x",
                sent_at=1.7e9,
                on_reject="block",
                role="assistant",
                alg="m.v1",
            )
        ],
        [
            p.Void(conversation="c", stream=1, n=2, key="k2", reason="expired"),
            p.Fetch(conversation="c", since=3, limit=10),
        ],
        [p.Status(conversation="c", stream=1, numbers=(1, 2, 3)), p.Received(conversation="c", seq=3)],
        [p.Read(conversation="c", seq=3), p.Typing(conversation="c", on=False)],
        [p.Call(id="1", op="create", conversation="d", title="T", members=("ann", "bob"))],
        [
            p.Call(id="2", op="add", conversation="d", user="cat"),
            p.Call(id="3", op="remove", conversation="d"),
            p.Call(id="4", op="list"),
        ],
    )
)


def mutants(rng: random.Random, good: Sequence[bytes]) -> Iterator[bytes]:
    """Give bent versions of what is good, without end."""
    while True:
        if rng.random() < 0.1:
            yield rng.randbytes(rng.randrange(200))
            continue
        bent = rng.choice(good)
        if rng.random() < 0.7:
            bent = _bent_json(rng, bent, good)[:SIZE_BYTES_MAX]
            yield bent
        # Bending bytes is cheap: some near each.
        for _ in range(4):
            yield _bent_bytes(rng, bent, good)[:SIZE_BYTES_MAX]


def _bent_bytes(rng: random.Random, data: bytes, good: Sequence[bytes]) -> bytes:
    bent = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = int(rng.random() * (len(bent) + 1))
        to = min(len(bent), at + 1 + int(rng.random() * 20))
        match int(rng.random() * 8):
            case 0 | 1 if at < len(bent):
                bent[at] ^= 1 << rng.randrange(8)
            case 2:
                del bent[at:to]
            case 3:
                bent[at:at] = bent[at:to] * rng.choice((1, 2, 50))
            case 4:
                other = rng.choice(good)
                cut = rng.randrange(len(other) + 1)
                bent[at:to] = other[cut : cut + rng.randrange(1, 60)]
            case 5:
                del bent[at:]
            case 6:
                bent[at:at] = rng.choice(RAW_VALUES)
            case _:
                bent[at:to] = rng.randbytes(to - at)
    return bytes(bent)


def _bent_json(rng: random.Random, data: bytes, good: Sequence[bytes]) -> bytes:
    value: Any
    try:
        value = json.loads(data)
    except ValueError:
        return _bent_bytes(rng, data, good)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _bend(rng, value)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7).encode(errors="surrogatepass")
    if rng.random() < 0.1:
        left, right = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"t":"send","metadata":', b"}]")))
        depth = rng.choice((1, 31, 32, 33, 500, 990, 1_000, 5_000))
        text = text.replace(b"null", left * depth + b"1" + right * depth, 1)
    if rng.random() < 0.1:
        # Names and values that no JSON library would write.
        at = text.find(b":", rng.randrange(len(text) + 1))
        if at >= 0:
            text = text[: at + 1] + rng.choice(RAW_VALUES) + text[at + 1 :].lstrip(b' "0123456789')
    return text


def _bend(rng: random.Random, value: Any) -> Any:
    """Change one thing somewhere inside."""
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[: at + 1] * rng.choice((1, 2, 30)) + value[at:]
            case 2:
                return rng.sample(value, len(value))
            case _:
                return [*value[:at], _bend(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                return {key: inner for key, inner in value.items() if key != name}
            case 1:
                return {**value, rng.choice(ODD_TEXTS): value[name]}
            case 2:
                return {**value, name: value[rng.choice(list(value))]}
            case _:
                return {**value, name: _bend(rng, value[name])}
    return _odd(rng)


def _odd(rng: random.Random) -> Any:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(ODD_NUMBERS)
    if kind == 1:
        return rng.choice(ODD_TEXTS)
    return rng.choice(ODD_VALUES) if kind == 2 else rng.randrange(-5, 200)
