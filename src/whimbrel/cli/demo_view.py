"""The demo on the terminal: two screens side by side, the storm above them, the judge below.

`Scene` is what there is to see at a moment; `LiveView` draws it in place, `PlainView` tells in lines what
changed, for pipes, for terminals that cannot be drawn on, and for whoever asks for it. Neither decides
anything.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import msgspec
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from whimbrel.cli.judge import Verdict
from whimbrel.cli.output import escaped
from whimbrel.cli.storm_words import Line

__all__ = ["LiveView", "PlainView", "Scene", "Screen", "Span", "View"]

PLAIN_EVERY_S = 5.0
_BAR_CHARS = 60
_AROUND_LINES = 12
"""What is above, below and around the messages."""

_STYLES = {
    "pending": "dim",
    "offline": "dim",
    "sending": "yellow",
    "retrying": "bold yellow",
    "sent": "dim",
    "delivered": "green",
    "read": "bright_blue",
    "failed": "bold red",
    "cancelled": "dim",
}
_QUALITY_STYLES = {"excellent": "green", "good": "green", "poor": "yellow", "offline": "red"}


class Screen(msgspec.Struct, frozen=True, kw_only=True):
    """What one person sees."""

    user: str
    alive: bool
    link: str
    latency_ms: float | None
    quality: str
    queued: int
    received: int
    lines: tuple[Line, ...]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A fault in the time line."""

    begin_s: float
    end_s: float
    what: str


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """Everything to be seen at a moment."""

    at_s: float
    duration_s: float
    fault: str
    spans: tuple[Span, ...]
    server: str
    screens: tuple[Screen, ...]
    verdict: Verdict


class View(Protocol):
    """Shows scenes, and says things in between."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, scene: Scene) -> None:
        """Show how things are now."""

    def tell(self, at_s: float, text: str) -> None:
        """Say what has just happened."""


class PlainView:
    """Tells in lines: what happened, and every few seconds how things are."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_s = -PLAIN_EVERY_S
        self._links: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, scene: Scene) -> None:
        """Tell what changed since the last scene."""
        for screen in scene.screens:
            link = screen.link.partition(" ")[0] if screen.alive else "killed"
            if self._links.get(screen.user, "connected") != link:
                self.tell(scene.at_s, f"{screen.user}: {link}")
            self._links[screen.user] = link
        if scene.at_s - self._last_s >= PLAIN_EVERY_S:
            self._last_s = scene.at_s
            queued = ", ".join(f"{screen.user} {screen.queued}" for screen in scene.screens)
            self.tell(scene.at_s, f"{scene.fault}; queued: {queued}; {judged(scene.verdict)}")

    def tell(self, at_s: float, text: str) -> None:
        """Print a line."""
        self._console.print(f"{at_s:5.1f} s  {escaped(text)}", markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """Draws the scene in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._news = ""

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, scene: Scene) -> None:
        """Draw it."""
        self._live.update(draw(scene, self._news, self._live.console.height), refresh=True)

    def tell(self, at_s: float, text: str) -> None:
        """Keep it on the line of the news."""
        self._news = f"{at_s:.1f} s: {text}"


def judged(verdict: Verdict) -> str:
    """The verdict in one line."""
    return (
        f"sent {verdict.sent}, received {verdict.received}, lost {verdict.lost}, doubled {verdict.doubled},"
        f" out of order {verdict.out_of_order}, changed {verdict.changed + verdict.unsent}"
    )


def draw(scene: Scene, news: str, height: int) -> RenderableType:
    """The whole picture, for a terminal of so many lines."""
    layout = Layout()
    layout.split_column(
        Layout(_storm(scene, news), size=6, name="storm"),
        Layout(name="screens"),
        Layout(_judge(scene), size=3, name="judge"),
    )
    layout["screens"].split_row(
        *(Layout(_screen(screen, height - _AROUND_LINES)) for screen in scene.screens)
    )
    return layout


def _storm(scene: Scene, news: str) -> Panel:
    coming = min((span for span in scene.spans if span.begin_s > scene.at_s), key=_begin_s, default=None)
    body = Group(
        _bar(scene),
        Text(f"now:  {scene.fault}", style="bold", no_wrap=True, overflow="ellipsis"),
        Text(
            "next: calm"
            if coming is None
            else f"next: {coming.what} in {_begin_s(coming) - scene.at_s:.0f} s",
            no_wrap=True,
            overflow="ellipsis",
        ),
        Text(f"last: {news}", style="dim", no_wrap=True, overflow="ellipsis"),
    )
    return Panel(body, title=f"the storm · {scene.at_s:4.1f} of {scene.duration_s:g} s", title_align="left")


def _begin_s(span: Span) -> float:
    return span.begin_s


def _bar(scene: Scene) -> Text:
    text = Text()
    for cell in range(_BAR_CHARS):
        begin_s = cell * scene.duration_s / _BAR_CHARS
        end_s = (cell + 1) * scene.duration_s / _BAR_CHARS
        rough = any(span.begin_s < end_s and begin_s <= span.end_s for span in scene.spans)
        past = end_s <= scene.at_s
        text.append(
            "▓" if rough else "░",
            style=("red" if rough else "green") if past else ("bold" if rough else "dim"),
        )
    return text


def _screen(screen: Screen, height: int) -> Panel:
    if not screen.alive:
        head = Text("killed with kill -9; coming back", style="bold red")
    else:
        latency = "" if screen.latency_ms is None else f" {screen.latency_ms:.0f} ms"
        head = Text.assemble(
            (screen.link, "green" if screen.link == "connected" else "yellow"),
            "  ",
            (f"{screen.quality}{latency}", _QUALITY_STYLES.get(screen.quality, "")),
            f"  queued {screen.queued}  received {screen.received}",
            no_wrap=True,
            overflow="ellipsis",
        )
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
    grid.add_column(no_wrap=True, justify="right", min_width=5)
    for line in screen.lines[-height:]:
        own = line.sender == screen.user
        text = Text.assemble((f"{line.sender}: ", "green" if own else "cyan"), escaped(line.text))
        grid.add_row(text, Text(line.mark, style=_STYLES.get(line.state, "")))
    return Panel(Group(head, grid), title=screen.user, title_align="left")


def _judge(scene: Scene) -> Panel:
    verdict = scene.verdict
    bad = "bold red"
    parts = [Text(f"sent {verdict.sent}"), Text(f"received {verdict.received}")]
    for name, count in (
        ("lost", verdict.lost),
        ("doubled", verdict.doubled),
        ("out of order", verdict.out_of_order),
        ("changed", verdict.changed + verdict.unsent),
    ):
        parts.append(Text(f"{name} {count}", style=bad if count else "green"))
    parts.append(Text(f"server {scene.server}"))
    return Panel(Columns(parts, padding=(0, 3)), title="the judge", title_align="left")
