"""Chat logs as people keep them, read into lines with a speaker and a time.

Three shapes are read, with or without seconds, and with anything (a date, a channel) before the bracket:

    [21:58] <nick> text                    2019-05-01 [21:58:03] <nick> text
    [21:58] * nick waves                   * nick waves

Lines that begin with ``===`` tell who came and went: they are skipped and counted. What cannot be read is
counted too, never guessed. A log says times, not moments: a time that goes back by more than
``BACKWARDS_S_MAX`` is one of the next day (a smaller step back is a clock that was set), and lines under one
stamp are spread evenly over the minute, or second, that the stamp stands for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import msgspec

from whimbrel import protocol as p
from whimbrel.errors import InvalidArgument

__all__ = ["ChatLine", "ChatLog", "ChatLogError", "user_name"]

FILE_BYTES_MAX = 64 * 1024 * 1024
TEXT_BYTES_MAX = p.BODY_BYTES_MAX // 8
"""Even if every character had to be escaped, it would still fit into one message."""
NICK_CHARS_MAX = 256
BACKWARDS_S_MAX = 300
DAY_S = 24 * 3600
_NAME_CHARS_MAX = 64

_STAMPED = re.compile(
    r"(?P<prefix>[^\[<*]{0,64})\[(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?\]\s+"
    r"(?:<\s*(?P<nick>[^<>\s][^<>]*?)\s*>|\*\s+(?P<actor>\S+))(?:\s(?P<text>.*))?",
    re.DOTALL,
)
_ACTION = re.compile(r"\*\s+(?P<actor>[^*\s]\S*)\s(?P<text>.*)", re.DOTALL)
_DATE = re.compile(r"(?<!\d)(\d{4})-(\d\d)-(\d\d)(?!\d)")
_MODES = "@+%&~"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")


class ChatLogError(InvalidArgument):
    """A chat log that cannot be used: not there, too large, or without a single line of a speaker."""


class ChatLine(msgspec.Struct, frozen=True, kw_only=True):
    """One thing somebody said or did."""

    nick: str
    text: str
    action: bool = False
    at_s: float
    """Since the first line of the log."""

    def __repr__(self) -> str:
        return f"<ChatLine of {self.nick} at {self.at_s:.1f} s>"


class ChatLog(msgspec.Struct, frozen=True, kw_only=True):
    """A log that was read: its lines in order, and how many were left out."""

    name: str
    lines: tuple[ChatLine, ...]
    skipped: int
    """Lines about who came and went."""
    unreadable: int
    """Lines of no known shape, or longer than a message may be."""

    def __repr__(self) -> str:
        return f"<ChatLog {self.name}: {len(self.lines)} lines of {len(self.users)} users>"

    @property
    def duration_s(self) -> float:
        return self.lines[-1].at_s if self.lines else 0.0

    @property
    def users(self) -> dict[str, str]:
        """User name → the nick it was first seen under, in the order of appearance."""
        users: dict[str, str] = {}
        for line in self.lines:
            users.setdefault(user_name(line.nick), line.nick)
        return users

    @classmethod
    def load(cls, path: str | Path) -> ChatLog:
        """Read a log from a file (at most 64 MiB; bytes that are no UTF-8 become U+FFFD).

        Raises ``ChatLogError``, naming the file.
        """
        path = Path(path)
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise ChatLogError(f"{path.name}: larger than {FILE_BYTES_MAX} bytes")
            text = path.read_bytes().decode(errors="replace")
        except OSError as error:
            raise ChatLogError(f"{path.name}: cannot be read: {error.strerror}") from error
        log = cls.parse(text, name=path.name.removesuffix(path.suffix))
        if not log.lines:
            raise ChatLogError(f"{path.name}: nobody says anything in it that could be read")
        return log

    @classmethod
    def parse(cls, text: str, *, name: str = "log") -> ChatLog:
        """Read a log from text; never raises."""
        clock = _Clock()
        said: list[_Said] = []
        skipped = unreadable = 0
        for raw in text.removeprefix("\ufeff").split("\n"):
            line = raw.removesuffix("\r")
            if not line.strip():
                continue
            if line.startswith("==="):
                skipped += 1
            elif (one := _read(line, clock)) is None:
                unreadable += 1
            else:
                said.append(one)
        return cls(name=name, lines=tuple(_spread(said)), skipped=skipped, unreadable=unreadable)


def user_name(nick: str) -> str:
    """The name of the account of a nick: of ``a-z 0-9 . _ -`` and at most 64 characters.

    Case does not tell nicks apart; everything else does: what a name may not hold is written as its
    code between dots. The same nick gives the same name always, and another nick another one.
    """
    name = "".join(c if c in _PLAIN else f".{ord(c):x}." for c in nick.casefold())
    if len(name) <= _NAME_CHARS_MAX:
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return f"{name[: _NAME_CHARS_MAX - 26]}..{digest}"


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    nick: str
    text: str
    action: bool
    stamp_s: int
    """Since the midnight before the first line."""
    window_s: int
    """How long the stamp lasts: a minute, or a second."""


class _Clock:
    """Follows the stamps of a log over midnights."""

    def __init__(self) -> None:
        self.stamp_s = 0
        self.window_s = 60
        self._started = False
        self._first_day: date | None = None

    def read(self, found: re.Match[str]) -> bool:
        """Take the time of a line; False if it is none."""
        hour, minute, second = int(found["hour"]), int(found["minute"]), int(found["second"] or 0)
        if hour > 23 or minute > 59 or second > 60:
            return False
        self.window_s = 60 if found["second"] is None else 1
        of_day_s = hour * 3600 + minute * 60 + second
        day = self._day(found["prefix"])
        if day is None and self._started:
            day = self.stamp_s // DAY_S
            if day * DAY_S + of_day_s < self.stamp_s - BACKWARDS_S_MAX:
                day += 1
        stamp_s = (day or 0) * DAY_S + of_day_s
        self.stamp_s = max(stamp_s, self.stamp_s) if self._started else stamp_s
        self._started = True
        return True

    def _day(self, prefix: str) -> int | None:
        """Which day of the log this is, if it says so."""
        found = _DATE.search(prefix)
        if found is None:
            return None
        try:
            day = date(*map(int, found.groups()))
        except ValueError:
            return None
        if self._first_day is None:
            self._first_day = date.fromordinal(max(1, day.toordinal() - self.stamp_s // DAY_S))
        return max(0, (day - self._first_day).days)


def _read(line: str, clock: _Clock) -> _Said | None:
    found = _STAMPED.fullmatch(line)
    if found is None:
        found = _ACTION.fullmatch(line)
        if found is None:
            return None
        nick, action = found["actor"], True
    else:
        action = found["nick"] is None
        nick = found["actor"] if action else found["nick"]
        if not clock.read(found):
            return None
    text = found["text"] or ""
    if len(nick) > 1 and nick[0] in _MODES:
        nick = nick[1:]
    if len(nick) > NICK_CHARS_MAX or len(text.encode()) > TEXT_BYTES_MAX:
        return None
    return _Said(nick=nick, text=text, action=action, stamp_s=clock.stamp_s, window_s=clock.window_s)


def _spread(said: list[_Said]) -> Iterator[ChatLine]:
    """Give every line a moment of its own, in order, the first at 0."""
    first_s = said[0].stamp_s if said else 0
    begin = 0
    while begin < len(said):
        end = begin
        while end < len(said) and said[end].stamp_s == said[begin].stamp_s:
            end += 1
        for place, one in enumerate(said[begin:end]):
            # The next stamp may be nearer than this one lasts, where shapes are mixed.
            next_s = said[end].stamp_s if end < len(said) else one.stamp_s + one.window_s
            window_s = min(one.window_s, next_s - one.stamp_s)
            at_s = one.stamp_s - first_s + window_s * place / (end - begin)
            yield ChatLine(nick=one.nick, text=one.text, action=one.action, at_s=at_s)
        begin = end
