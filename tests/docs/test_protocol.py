"""``docs/protocol.md`` says what the code says: items, limits, codes and calls."""

from __future__ import annotations

import base64
import hashlib
import typing

import msgspec
import pytest
from msgspec import inspect

from tests.docs.markdown import code, sections, table, text_of
from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.core.classify import Consequence, classify
from whimbrel.model import message_id
from whimbrel.protocol import items
from whimbrel.server.app import ROUTES, WEBSOCKET_PATH
from whimbrel.server.problem import STATUS_OF_CODE
from whimbrel.server.websocket import CLOSE_CODE_OTHERS, CLOSE_CODES

TEXT = text_of("docs/protocol.md")
SECTIONS = sections(TEXT, 2)
NESTED = (p.Limits, p.Head, p.ConversationInfo)
CLIENT_ITEMS = typing.get_args(p.ClientItem)
SERVER_ITEMS = typing.get_args(p.ServerItem)


def name_of(struct: type[msgspec.Struct]) -> str:
    """How the document calls it: by its tag, or in small letters."""
    tag = struct.__struct_config__.tag
    return str(tag) if tag is not None else struct.__name__.lower()


def kind_of(kind: inspect.Type) -> str:
    """A type as JSON knows it."""
    match kind:
        case inspect.StrType():
            return "string"
        case inspect.IntType():
            return "integer"
        case inspect.FloatType():
            return "number"
        case inspect.BoolType():
            return "boolean"
        case inspect.NoneType():
            return "null"
        case inspect.DictType():
            return "object"
        case inspect.StructType(cls=cls):
            return name_of(cls)
        case inspect.VarTupleType(item_type=inner):
            return f"array of {kind_of(inner)}"
        case inspect.TupleType(item_types=inners):
            return f"[{', '.join(kind_of(inner) for inner in inners)}]"
        case inspect.UnionType(types=types):
            return " or ".join(kind_of(one) for one in types)
        case _:
            raise AssertionError(f"nothing on the wire is a {kind}")


def fields_of(struct: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """Name, type and default of each field."""
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    found = []
    for field in described.fields:
        if field.required:
            default = "required"
        elif isinstance(field.default, msgspec.Struct):
            assert field.default == type(field.default)()
            default = "its defaults"
        else:
            default = f"`{msgspec.json.encode(field.default).decode()}`"
        found.append((field.encode_name, kind_of(field.type), default))
    return found


@pytest.mark.parametrize(
    ("heading", "structs"),
    [
        ("What the client says", CLIENT_ITEMS),
        ("What the server says", SERVER_ITEMS),
        ("Inside items", NESTED),
    ],
)
def test_every_item_and_no_other(heading: str, structs: tuple[type[msgspec.Struct], ...]) -> None:
    described = [code(title) for title in sections(SECTIONS[heading], 3)]
    assert sorted(described) == sorted(name_of(struct) for struct in structs)


@pytest.mark.parametrize("struct", [*CLIENT_ITEMS, *SERVER_ITEMS, *NESTED])
def test_every_field_with_type_default_and_meaning(struct: type[msgspec.Struct]) -> None:
    found = [
        body
        for heading in ("What the client says", "What the server says", "Inside items")
        for title, body in sections(SECTIONS[heading], 3).items()
        if code(title) == name_of(struct)
    ]
    (body,) = found
    expected = fields_of(struct)
    if not expected:
        assert "|" not in body
        return
    rows = table(body)
    assert [(code(name), kind, default) for name, kind, default, _ in rows] == expected
    assert all(meaning for *_, meaning in rows)


def test_the_tag_is_where_the_document_says() -> None:
    for struct in (*CLIENT_ITEMS, *SERVER_ITEMS):
        assert struct.__struct_config__.tag_field == "t"
    assert p.encode([p.Ping(id=7)]) == b'[{"t":"ping","id":7}]'
    assert '[{"t":"ping","id":7}]' in TEXT


def test_the_id_of_a_message() -> None:
    said = " ".join(SECTIONS["Exactly once and in order"].split())
    assert f"Device `abc` and key `k1` give `{message_id('abc', 'k1')}`." in said
    digest = hashlib.sha256(b"3:abck1").digest()[:16]
    assert base64.b32encode(digest).decode().rstrip("=").lower() == message_id("abc", "k1")


def test_limits() -> None:
    rows = {code(name): int(value.replace(",", "")) for name, value, _ in table(SECTIONS["Limits"])}
    public = {name for name in vars(items) if name.endswith(("_MAX", "_BYTES"))}
    assert rows == {name: getattr(items, name) for name in public}
    assert f"version {p.VERSION}" in SECTIONS["Frames"]


def test_codes_of_errors() -> None:
    rows = {code(name): (status, what) for name, status, what, _ in table(SECTIONS["Errors"])}
    assert {name: int(status) for name, (status, _) in rows.items() if status != "–"} == STATUS_OF_CODE
    said = {name: what for name, (_, what) in rows.items() if what != "–"}
    words = {
        Consequence.RETRY: "tries again",
        Consequence.PAUSE: "pauses",
        Consequence.REFRESH: "refreshes",
        Consequence.RENUMBER: "new stream",
        Consequence.REJECT: "gives up",
    }
    assert said == {name: words[classify(name).consequence] for name in said}
    known = {kind.code for kind in errors.RemoteError.__subclasses__()}
    assert known <= set(rows)


def test_codes_of_closing() -> None:
    rows = {code(reason): int(number) for reason, number in table(SECTIONS["Links"])}
    assert rows.pop("anything else") == CLOSE_CODE_OTHERS
    assert rows == CLOSE_CODES


def test_http_calls() -> None:
    rows = table(SECTIONS["HTTP calls"])
    assert [(method, code(path)) for method, path, _ in rows] == [
        (route.method, route.path) for route in ROUTES
    ]
    assert all(about for *_, about in rows)
    assert WEBSOCKET_PATH in SECTIONS["Links"]
    public = {route.path for route in ROUTES if route.public}
    assert {code(path) for _, path, about in rows if "No token." in about} == public
