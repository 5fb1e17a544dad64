"""The reference of the command line, from the commands themselves.

``python -m docs.making.command_line docs/reference/command-line.md`` writes the page; a test compares it.
What every command of a client takes (server, store, output) is told once.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App, Group
from cyclopts.argument import Argument

from whimbrel.cli.app import app
from whimbrel.cli.exits import EXIT_CODES

__all__ = ["page"]

_SHARED_GROUPS = ("Connection", "Output")
_VALUES = {"Path": "PATH", "str": "TEXT", "int": "NUMBER", "float": "NUMBER"}
_FIRST = """\
# Command line

This page is made from the commands themselves: `whimbrel COMMAND --help` says the same.

Input and output: what was asked for is on standard output, everything else on standard error. `--json` makes
the former JSON. A command of a client opens the store of a *profile*, which `whimbrel login` makes.
"""


def page() -> str:
    """The whole page."""
    commands = list(_commands(app, "whimbrel"))
    parts = [_FIRST, "## Exit codes\n", _indented(EXIT_CODES), "## Variables\n", _indented(_variables())]
    parts += ["## Options of many commands\n", *_shared(commands)]
    for name, command in commands:
        parts += [f"## {name}\n", *_command(name, command)]
    return "\n".join(parts).rstrip() + "\n"


def _commands(parent: App, name: str) -> Iterator[tuple[str, App]]:
    """All commands below, in the order in which the first page of the help has them."""
    for word in parent:
        if word.startswith("-"):
            continue
        command = parent[word]
        if any(not inner.startswith("-") for inner in command):
            yield from _commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def _variables() -> str:
    epilogue = app.help_epilogue
    assert isinstance(epilogue, str)
    return epilogue.removeprefix(EXIT_CODES).strip()


def _indented(text: str) -> str:
    """The lines below a heading of the help, as they stand there."""
    _, _, lines = text.strip().partition("\n")
    return f"```text\n{inspect.cleandoc(lines)}\n```\n"


def _command(name: str, command: App) -> Iterator[str]:
    arguments = [
        argument for argument in command.assemble_argument_collection(parse_docstring=True) if argument.show
    ]
    words = [_word(argument) for argument in arguments if _positional(argument)]
    own = [argument for argument in arguments if _group(argument) not in _SHARED_GROUPS]
    options = " [OPTIONS]" if len(arguments) > len(words) else ""
    yield f"```text\n{' '.join([name, *words])}{options}\n```\n"
    text = inspect.getdoc(command.default_command) or ""
    yield text.partition("\nParameters\n---")[0].strip() + "\n"
    yield from _table(own)
    shared = sorted(
        {_group(argument).lower() for argument in arguments} & set(map(str.lower, _SHARED_GROUPS))
    )
    if shared:
        yield f"And the options of *{'* and *'.join(shared)}*.\n"
    epilogue = command.help_epilogue
    if isinstance(epilogue, str) and epilogue.startswith("Examples:"):
        yield f"```sh\n{inspect.cleandoc(epilogue.partition(chr(10))[2])}\n```\n"


def _shared(commands: list[tuple[str, App]]) -> Iterator[str]:
    """The options that many commands have, each once; they are the same in all of them."""
    for group in _SHARED_GROUPS:
        found: dict[str, Argument] = {}
        for _, command in commands:
            for argument in command.assemble_argument_collection(parse_docstring=True):
                if argument.show and _group(argument) == group:
                    found.setdefault(argument.names[0], argument)
        yield f"### {group}\n"
        yield from _table(list(found.values()))


def _table(arguments: list[Argument]) -> Iterator[str]:
    if not arguments:
        return
    rows = [f"| {_named(argument)} | {_help(argument)} |" for argument in arguments]
    yield "\n".join(["| argument or option | meaning |", "|---|---|", *rows]) + "\n"


def _positional(argument: Argument) -> bool:
    return not argument.names[0].startswith("-")


def _word(argument: Argument) -> str:
    word = argument.names[0]
    if argument.hint is not None and argument.field_info.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"[{word}...]"
    return word if argument.required else f"[{word}]"


def _named(argument: Argument) -> str:
    first, *others = argument.names
    if _positional(argument):
        return f"`{first}`"
    if argument.hint is bool:
        off = [name for name in others if name.startswith("--no-")]
        return "`, `".join([f"`{first}", *(off if argument.field_info.default is True else [])]) + "`"
    values = re.findall(r"\b(Path|str|int|float)\b", str(argument.hint)) or ["str"]
    return f"`{first} {' '.join(_VALUES[value] for value in values)}`"


def _group(argument: Argument) -> str:
    groups = argument.parameter.group
    group = groups[0] if isinstance(groups, tuple) and groups else groups
    return group.name if isinstance(group, Group) else str(group or "")


def _help(argument: Argument) -> str:
    text = " ".join((argument.parameter.help or "").split()).replace("|", "\\|")
    default = argument.field_info.default
    if (
        argument.parameter.show_default is not False
        and default not in (inspect.Parameter.empty, None, "")
        and not isinstance(default, bool)
    ):
        text += f" Default: `{default:g}`." if isinstance(default, float) else f" Default: `{default}`."
    variables = argument.parameter.env_var
    if variables:
        text += f" Variable: `{'`, `'.join([variables] if isinstance(variables, str) else variables)}`."
    return text


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
