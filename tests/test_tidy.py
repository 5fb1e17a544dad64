"""The house style that no linter knows, kept by a test.

A rule takes one file and yields its findings; each finding is a line `file:line: what is wrong`. Every rule
is shown to find what it is for on a small sample, then run over the whole tree.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 80
# Folders and files of the working copy that people write; all else is made by tools.
WRITTEN_FOLDERS = (".ci", "benchmarks", "docs", "examples", "requirements", "src", "tests")
TEXT_SUFFIXES = {"", ".css", ".html", ".js", ".md", ".py", ".sql", ".toml", ".txt", ".yaml", ".yml"}
MAY_PRINT = {"cli", "ui", "demo"}

# Written in two pieces, or this file would find itself.
UNFINISHED = re.compile(r"\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME"]) + r")\b")
# A path below somebody's home or workplace, unless what precedes it makes it the tail of a path or URL.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$})/-])/(?:home|root|Users|work|opt|mnt|srv/\w+)/\w|\b[A-Z]:\\\\?Users\\"
)
VAGUE_MODULES = {"utils", "util", "helpers", "helper", "misc", "common"}
VAGUE_CLASS = re.compile(r"(?:Manager|Helper|Utils?)$")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file, by its path from the root of the working copy."""

    path: PurePosixPath
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text, filename=str(self.path))))

    def at(self, line: int, what: str) -> str:
        return f"{self.path}:{line}: {what}"


Rule = Callable[[Source], Iterator[str]]


def no_docstring(source: Source) -> Iterator[str]:
    module = source.nodes[0]
    assert isinstance(module, ast.Module)
    if not (ast.get_docstring(module) or "").strip():
        yield source.at(1, "the module has no docstring")


def long_file(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > FILE_LINES_MAX:
        yield source.at(FILE_LINES_MAX + 1, f"{lines} lines, at most {FILE_LINES_MAX}")


def long_function(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield source.at(node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}")


def stray_print(source: Source) -> Iterator[str]:
    if MAY_PRINT & {part.removesuffix(".py") for part in source.path.parts}:
        return
    for node in source.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield source.at(node.lineno, "print() outside the command line, the page and the demo")


def vague_name(source: Source) -> Iterator[str]:
    if source.path.stem in VAGUE_MODULES:
        yield source.at(1, f"{source.path.stem} does not say what the module is for")
    for node in source.nodes:
        if isinstance(node, ast.ClassDef) and VAGUE_CLASS.search(node.name):
            yield source.at(node.lineno, f"{node.name} does not say what the class does")


def unfinished(source: Source) -> Iterator[str]:
    for line, text in enumerate(source.text.splitlines(), 1):
        if found := UNFINISHED.search(text):
            yield source.at(line, f"{found.group()}: finish it or write it down elsewhere")


def machine_path(source: Source) -> Iterator[str]:
    for line, text in enumerate(source.text.splitlines(), 1):
        if found := MACHINE_PATH.search(text):
            yield source.at(line, f"a path of one machine: {found.group()}…")


def unlocked(source: Source) -> Iterator[str]:
    """In a lock every entry is an exact version with hashes, and no line says where to download from."""
    for entry in re.finditer(r"^[^\s#](?:.*\\\n)*.*", source.text, re.MULTILINE):
        if "==" not in entry.group() or "--hash=sha256:" not in entry.group():
            line = source.text.count("\n", 0, entry.start()) + 1
            yield source.at(line, "not an exact version with hashes")
    for line, text in enumerate(source.text.splitlines(), 1):
        if "://" in text or "index-url" in text or "find-links" in text:
            yield source.at(line, "the lock names an address")


def read(path: Path) -> Source:
    return Source(
        path=PurePosixPath(path.relative_to(ROOT).as_posix()), text=path.read_text(encoding="utf-8")
    )


def modules() -> list[Source]:
    return [read(path) for path in sorted((ROOT / "src").rglob("*.py"))]


def written_files() -> list[Source]:
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in WRITTEN_FOLDERS:
        paths += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [
        read(path)
        for path in sorted(paths)
        if path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts
    ]


def locks() -> list[Source]:
    return [read(path) for path in sorted((ROOT / "requirements").glob("*.txt"))]


SAMPLES: list[tuple[Rule, str, str, int]] = [
    (no_docstring, "src/a.py", "x = 1\n", 1),
    (no_docstring, "src/a.py", '"""  """\n', 1),
    (no_docstring, "src/a.py", "", 1),
    (no_docstring, "src/a.py", '"""What it is for."""\n', 0),
    (long_file, "src/a.py", "\n" * FILE_LINES_MAX, 0),
    (long_file, "src/a.py", "\n" * (FILE_LINES_MAX + 1), 1),
    (long_function, "src/a.py", "def f():\n" + "    1\n" * (FUNCTION_LINES_MAX - 1), 0),
    (long_function, "src/a.py", "def f():\n" + "    1\n" * FUNCTION_LINES_MAX, 1),
    (long_function, "src/a.py", "class C:\n  async def f():\n" + "    1\n" * FUNCTION_LINES_MAX, 1),
    (stray_print, "src/whimbrel/core/a.py", "def f():\n    print(1)\n", 1),
    (stray_print, "src/whimbrel/core/a.py", 'console.print(1)\n"print(1)"\n', 0),
    (stray_print, "src/whimbrel/cli.py", "print(1)\n", 0),
    (stray_print, "src/whimbrel/ui/page.py", "print(1)\n", 0),
    (vague_name, "src/whimbrel/utils.py", "", 1),
    (vague_name, "src/whimbrel/outbox.py", "class OutboxManager: ...\n", 1),
    (vague_name, "src/whimbrel/outbox.py", "class Outbox(AbstractContextManager): ...\n", 0),
    (unfinished, "docs/a.md", "x\n# TO" + "DO: the rest\n", 1),
    (unfinished, "docs/a.md", "TO" + "DOS\n", 0),
    (machine_path, "docs/a.md", "cd /ho" + "me/someone/whimbrel\n", 1),
    (machine_path, "docs/a.md", 'p = "/wo' + 'rk/main"\n', 1),
    (machine_path, "docs/a.md", "https://example.org/ho" + "me/a ~/.cache/work/a /usr/bin/env a/work/b\n", 0),
    (
        unlocked,
        "requirements/a.txt",
        "a==1 \\\n    --hash=sha256:00\n    # via b\nb==2 \\\n    --hash=sha256:00\n",
        0,
    ),
    (unlocked, "requirements/a.txt", "a==1\nb==2 \\\n    --hash=sha256:00\n", 1),
    (unlocked, "requirements/a.txt", "a>=1 \\\n    --hash=sha256:00\n", 1),
    (unlocked, "requirements/a.txt", "a==1 \\\n    --hash=sha256:00\n# https:" + "//example.org/simple\n", 1),
]


@pytest.mark.parametrize(("rule", "path", "text", "findings"), SAMPLES)
def test_rule_finds_what_it_is_for(rule: Rule, path: str, text: str, findings: int) -> None:
    assert len(list(rule(Source(path=PurePosixPath(path), text=text)))) == findings


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (no_docstring, modules),
        (long_file, modules),
        (long_function, modules),
        (stray_print, modules),
        (vague_name, modules),
        (unfinished, written_files),
        (machine_path, written_files),
        (unlocked, locks),
    ],
)
def test_tree_keeps_rule(rule: Rule, files: Callable[[], Iterable[Source]]) -> None:
    sources = list(files())
    assert sources, "nothing was looked at"
    findings = [finding for source in sources for finding in rule(source)]
    if findings:
        pytest.fail("\n".join([f"{len(findings)} findings:", *findings]), pytrace=False)
