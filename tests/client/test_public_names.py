"""The package's face: light to import, and complete."""

import ast
import subprocess
import sys
from pathlib import Path

import whimbrel
from whimbrel import errors, model


def test_every_public_name_is_there() -> None:
    for name in whimbrel.__all__:
        assert getattr(whimbrel, name) is not None, name
    assert set(whimbrel.__all__) <= set(dir(whimbrel))
    assert set(model.__all__) <= set(whimbrel.__all__)
    assert set(errors.__all__) - {"remote_error"} <= set(whimbrel.__all__)


def test_type_checkers_are_told_the_same() -> None:
    tree = ast.parse(Path(whimbrel.__file__).read_text(encoding="utf-8"))
    told = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("whimbrel.")
        for alias in node.names
    }
    assert told == {(home, name) for name, home in whimbrel._HOME_OF.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(whimbrel, "NoSuchThing")


def test_importing_loads_nothing_heavy() -> None:
    heavy = ("asyncio", "msgspec", "httpx2", "websockets", "apsw", "ssl")
    code = f"import sys, whimbrel; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
