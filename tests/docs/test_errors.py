"""``docs/errors.md`` says what the code says, and there is no code that is not there."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import whimbrel
from tests.docs.markdown import PACKAGE, ROOT, code, sections, table, text_of
from tests.docs.test_words import TEST
from whimbrel import errors
from whimbrel.cli import exits
from whimbrel.server.problem import STATUS_OF_CODE

SECTIONS = sections(text_of("docs/errors.md"), 2)
AGAIN = {"itself", "later", "no"}
BUILDERS = {"Refused", "Rejected", "Error", "Answer", "WasVoided", "problem", "_turn_away"}
"""What an error code of the wire is given to."""


def tree() -> dict[str, set[str]]:
    """Every error of ours with a code of its own, by that code: the names of its classes."""
    for module in pkgutil.walk_packages(whimbrel.__path__, "whimbrel."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    found: dict[str, set[str]] = {}
    todo: list[type[errors.WhimbrelError]] = [errors.WhimbrelError]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if "code" in vars(kind) and kind.__module__.startswith("whimbrel."):
            found.setdefault(kind.code, set()).add(kind.__name__)
    return found


def wire_codes() -> set[str]:
    """Every code the server or the protocol builds an error with, as written in its source."""
    found = set(STATUS_OF_CODE)
    for path in sorted((PACKAGE / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if name not in BUILDERS:
                continue
            values = [word.value for word in node.keywords if word.arg == "code"]
            if name in ("problem", "_turn_away"):
                values += node.args[:2]
            said = [value.value for value in values if isinstance(value, ast.Constant)]
            found |= {one for one in said if isinstance(one, str) and re.fullmatch(r"[a-z_]+", one)}
    return found


def test_every_exception_is_in_the_table_and_nothing_else() -> None:
    rows = table(SECTIONS["Exceptions"])
    assert {code(row[0]): {code(row[1])} for row in rows} == tree()
    assert len(rows) == len({row[0] for row in rows})
    for _, _, who, meaning, to_do, again in rows:
        assert who
        assert meaning
        assert to_do
        assert again in AGAIN


def test_public_exceptions_can_be_imported_from_the_top() -> None:
    for names in tree().values():
        for name in names - {"KeyRaced"}:
            assert getattr(whimbrel, name) is getattr(errors, name)
    assert set(errors.__all__) - {"remote_error"} == {
        name for names in tree().values() for name in names - {"KeyRaced"}
    }


def test_every_code_of_the_wire_is_in_the_table_and_nothing_else() -> None:
    rows = {code(row[0]): row for row in table(SECTIONS["Codes on the wire"])}
    protocol = {code(row[0]) for row in table(sections(text_of("docs/protocol.md"), 2)["Errors"])}
    assert wire_codes() == set(rows) == protocol
    for name, (_, kind, to_do, again) in rows.items():
        if name != "protocol":  # a link says that, and no call is answered by it
            assert type(errors.remote_error(name, "")).__name__ == code(kind)
        assert to_do
        assert again in AGAIN


def test_every_exit_is_in_the_table_and_nothing_else() -> None:
    rows = table(SECTIONS["Exit codes"])
    assert {code(row[1]): int(code(row[0])) for row in rows} == {one.name: one.value for one in exits.Exit}
    for number, _, meaning, _, shown in rows:
        assert meaning
        found = TEST.fullmatch(shown)
        assert found is not None
        file, name = found.groups()
        body = source_of(ROOT / file, name)
        said = {"0": r"\.ok\(", "1": r"== 1\b"}.get(code(number), rf"\({code(number)}\b|\b{code(number)}\b")
        assert re.search(said, body), f"{name} does not speak of {number}"


def source_of(file: Path, name: str) -> str:
    """The source of a test."""
    text = file.read_text(encoding="utf-8")
    [node] = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    return ast.get_source_segment(text, node) or ""


def test_every_error_says_what_to_do() -> None:
    """Where the text alone cannot, by its hint."""
    without = {"usage", "store", "link", "remote", "error", "delivery_failed"}
    for names in tree().values():
        for name in names - {"KeyRaced"}:
            kind = getattr(errors, name)
            if kind.code in without or issubclass(kind, errors.RemoteError):
                continue
            assert kind("").hint or kind.code == "invalid_argument", name
            assert str(kind("")), name


def test_what_has_no_code_of_its_own_ends_with_one() -> None:
    program = "import sys; sys.modules['cyclopts'] = None; from whimbrel.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "outbox"]
    ended = subprocess.run(command, check=False, capture_output=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert b"whimbrel[cli]" in ended.stderr
