"""What goes to the terminal: results on standard output, words for people on standard error.

What others wrote is data: control characters, and those that turn the direction of text, are
shown as escapes, so that a message can neither move the cursor nor pass for another line. Colour
only on a terminal, and never with ``NO_COLOR`` set. With ``--json``, standard output holds JSON and
nothing else, one document (or one line each) per result.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO

import msgspec

from whimbrel.model import Message

_STYLES = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
# C0, DEL, C1, marks that turn the direction, separators of lines, halves of pairs.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_WIDTH_WITHOUT_TERMINAL = 10_000
_CONTINUED = "\n    "


def set_up_streams() -> None:
    """Let nothing fail because the terminal's encoding lacks a character: it is shown as an escape."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write out what is buffered. Raises ``OSError``: the reader went away, the disk is full."""
    sys.stdout.flush()
    sys.stderr.flush()


def silence_output() -> None:
    """Nobody reads any more: let the interpreter's own last flush go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def show(text: str = "") -> None:
    """A line of the result."""
    print(text, flush=True)


def say(text: str) -> None:
    """A line for people, beside the result."""
    print(text, file=sys.stderr, flush=True)


def emit(value: Any) -> None:
    """A result as one line of JSON."""
    show(json_text(value))


def json_text(value: Any) -> str:
    """JSON in one line, safe to look at on a terminal too."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", msgspec.json.encode(value).decode())


def escaped(text: str, *, lines: bool = False) -> str:
    """Text of others, fit for a terminal. ``lines``: keep its line breaks, indented, as lines of its own."""
    if lines:
        return _CONTINUED.join(escaped(line) for line in text.rstrip("\n").split("\n"))
    return _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    if found.group() == "\t":
        return "    "
    if found.group() == "\n":
        return "\\n"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def coloured(stream: TextIO) -> bool:
    """Whether colour is wanted there."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def styled(text: str, style: str, *, stream: TextIO | None = None) -> str:
    """The text in this style, where that is wanted."""
    if not coloured(sys.stdout if stream is None else stream):
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; the cells may hold anything."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(
        highlight=False,
        no_color=not coloured(sys.stdout),
        width=None if terminal else _WIDTH_WITHOUT_TERMINAL,
    )
    drawn = Table(box=SIMPLE_HEAD if terminal else None, pad_edge=False, show_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(escaped(cell)) for cell in row))
    console.print(drawn)


# --- messages ----------------------------------------------------------------------------------


def message_fields(message: Message) -> dict[str, Any]:
    """A message for ``--json``; content that is bytes comes as ``content_base64``."""
    fields: dict[str, Any] = {
        "id": message.id,
        "conversation": message.conversation,
        "seq": message.seq,
        "kind": message.kind,
        "sender": message.sender,
        "role": str(message.role),
        "sent_at": message.sent_at,
        "delivered_at": message.delivered_at,
        "reply_to": message.reply_to,
        "metadata": message.metadata,
    }
    if isinstance(message.content, bytes):
        fields["content_base64"] = message.content
    else:
        fields["content"] = message.content
    if message.status is not None:
        fields["key"] = message.key
        fields["status"] = msgspec.to_builtins(message.status)
    return fields


def message_line(message: Message, *, conversation: bool = False) -> str:
    """A message for people: when, who, what, and the mark of an own one."""
    at = message.sent_at if message.delivered_at is None else message.delivered_at
    parts = [styled(clock(at), "dim")]
    if conversation:
        parts.append(styled(escaped(message.conversation), "blue"))
    if message.kind != "message":
        return " ".join([*parts, styled(_change_line(message), "dim")])
    own = message.status is not None
    parts.append(styled(f"{escaped(message.sender or '?')}:", "green" if own else "cyan"))
    parts.append(escaped(content_text(message.content), lines=True))
    if message.status is not None:
        parts.append(styled(message.status.mark, "dim"))
    return " ".join(parts)


def _change_line(message: Message) -> str:
    """An entry that nobody wrote: members, a title, or a kind from later."""
    content = message.content if isinstance(message.content, dict) else {}
    told = ", ".join(f"{name} {_words(value)}" for name, value in content.items())
    return escaped(f"— {message.sender or '?'}: {message.kind}: {told or content_text(message.content)}")


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def counted(number: int, what: str) -> str:
    """``1 message``, ``2 messages``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def content_text(content: Any) -> str:
    """Content as text: JSON as JSON, bytes by their number."""
    if isinstance(content, str):
        return content
    if isinstance(content, bytes):
        return f"[{len(content)} bytes]"
    return msgspec.json.encode(content).decode()


def clock(at: float) -> str:
    """A wall time for people: the time of day, with the date if that is not today's."""
    try:
        then, now = datetime.fromtimestamp(at).astimezone(), datetime.fromtimestamp(time.time()).astimezone()
    except (OverflowError, ValueError, OSError):
        return "--:--"  # a clock of somebody else's
    return then.strftime("%H:%M" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def seconds(left_s: float | None) -> str:
    """A time to wait for people."""
    return "" if left_s is None else f"in {left_s:.1f} s"
