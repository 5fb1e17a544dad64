from pathlib import Path

import pytest

from whimbrel.cli.chatlog import ChatLine, ChatLog, ChatLogError, user_name
from whimbrel.server.accounts import fold_name

HARBOUR = Path(__file__).resolve().parent.parent / "data" / "harbour.log"


def only(text: str) -> ChatLine:
    (line,) = ChatLog.parse(text).lines
    return line


@pytest.mark.parametrize(
    ("line", "nick", "text", "action"),
    [
        ("[21:58] <gull> all quiet", "gull", "all quiet", False),
        ("[21:58:59] <gull> all quiet", "gull", "all quiet", False),
        ("2031-02-03 [21:58:59] <gull> all quiet", "gull", "all quiet", False),
        ("#quay 2031-02-03 [21:58] <gull> all quiet", "gull", "all quiet", False),
        ("[21:58] * gull waves", "gull", "waves", True),
        ("* gull waves", "gull", "waves", True),
        ("2031-02-03 [21:58:59] * gull waves", "gull", "waves", True),
        ("[21:58] <@gull> all quiet", "gull", "all quiet", False),
        ("[21:58] < gull> all quiet", "gull", "all quiet", False),
        ("[21:58] <[gull]^> all quiet", "[gull]^", "all quiet", False),
        ("[21:58] <gull> [09:00] <wren> quoted", "gull", "[09:00] <wren> quoted", False),
        ("* gull points at [09:00] <wren> there", "gull", "points at [09:00] <wren> there", True),
        ("[21:58] <gull>  two spaces ", "gull", " two spaces ", False),
        ("[21:58] <gull> ", "gull", "", False),
        ("[21:58] <gull>", "gull", "", False),
        ("[21:58] <gull> a\x85b\u2028c", "gull", "a\x85b\u2028c", False),
        ("[21:58] <gull> text\r", "gull", "text", False),
        ("\ufeff[21:58] <gull> text", "gull", "text", False),
    ],
)
def test_shapes(line: str, nick: str, text: str, action: bool) -> None:
    read = only(line)
    assert (read.nick, read.text, read.action) == (nick, text, action)


@pytest.mark.parametrize(
    "line",
    ["plain words", "[25:00] <gull> never", "[12:60] <gull> never", "[12:00] gull says", "-- log rotated --"],
)
def test_what_cannot_be_read_is_counted(line: str) -> None:
    log = ChatLog.parse(f"[12:00] <gull> one\n{line}\n[12:01] <gull> two\n")
    assert [one.text for one in log.lines] == ["one", "two"]
    assert (log.skipped, log.unreadable) == (0, 1)


def test_too_long_for_a_message_is_counted() -> None:
    log = ChatLog.parse(f"[12:00] <gull> {'x' * 300_000}\n[12:01] <{'n' * 300}> two\n")
    assert (log.lines, log.unreadable) == ((), 2)


def test_who_came_and_went_is_skipped_and_counted() -> None:
    log = ChatLog.parse("=== gull has joined\n\n[12:00] <gull> one\n=== [12:00] <gull> no\n")
    assert (len(log.lines), log.skipped, log.unreadable) == (1, 2, 0)


def times(text: str) -> list[float]:
    return [line.at_s for line in ChatLog.parse(text).lines]


def test_lines_of_one_minute_are_spread_over_it() -> None:
    text = "[12:00] <a> 1\n[12:00] <a> 2\n[12:00] <a> 3\n[12:02] <a> 4\n"
    assert times(text) == [0.0, 20.0, 40.0, 120.0]
    assert times("[12:00:05] <a> 1\n[12:00:05] <a> 2\n[12:00:06] <a> 3\n") == [0.0, 0.5, 1.0]


def test_midnight_is_crossed_each_time() -> None:
    assert times("[23:59] <a> 1\n[00:01] <a> 2\n[23:59] <a> 3\n[00:00] <a> 4\n") == [0, 120, 86_400, 86_460]


def test_a_clock_that_was_set_back_is_no_midnight() -> None:
    assert times("[12:05] <a> 1\n[12:03] <a> 2\n[12:06] <a> 3\n") == [0.0, 30.0, 60.0]


def test_dates_decide_where_they_are_given() -> None:
    text = "2031-12-31 [23:59:59] <a> 1\n2032-01-02 [00:00:00] <a> 2\n[00:00:10] <a> 3\n"
    assert times(text) == [0.0, 86_401.0, 86_411.0]


def test_an_action_without_a_time_is_of_the_line_before() -> None:
    assert times("* a sits\n[12:00] <a> 1\n* a waves\n[12:01] <a> 2\n") == [0.0, 43_200.0, 43_230.0, 43_260.0]


def test_times_never_go_back() -> None:
    log = ChatLog.load(HARBOUR)
    moments = [line.at_s for line in log.lines]
    assert moments == sorted(moments)
    assert moments[0] == 0.0


@pytest.mark.parametrize(
    "nick", ["ole^", "[gull]", "{buoy}", "tide|watch", "Åse", "a.b", "x" * 256, "日本", "`"]
)
def test_every_nick_has_a_name_the_server_takes(nick: str) -> None:
    name = user_name(nick)
    assert fold_name(name) == name
    assert user_name(nick.upper()) == user_name(nick)


def test_other_nicks_have_other_names() -> None:
    nicks = ["a^", "a.5e.", "a", "a_", "a-", "a|", "a||", "5e", "x" * 255, "x" * 256, "^" * 30, "^" * 31]
    assert len({user_name(nick) for nick in nicks}) == len(nicks)


def test_the_log_of_the_harbour() -> None:
    text = HARBOUR.read_text(encoding="utf-8")
    log = ChatLog.load(HARBOUR)
    lines = text.count("\n")
    assert lines == 300
    assert (len(log.lines), log.skipped, log.unreadable) == (292, 6, 2)
    assert len(log.lines) + log.skipped + log.unreadable == lines
    assert len(log.users) == 12
    assert 4 * 3600 < log.duration_s < 6 * 3600  # over midnight
    assert any(line.action for line in log.lines)
    assert max(len(line.text) for line in log.lines) > 500
    assert any(not line.text.isascii() for line in log.lines)


def test_a_log_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(ChatLogError, match="nothing-there"):
        ChatLog.load(tmp_path / "nothing-there.log")
    empty = tmp_path / "empty.log"
    empty.write_text("=== nobody\n")
    with pytest.raises(ChatLogError, match="empty"):
        ChatLog.load(empty)


def test_bytes_that_are_no_text_are_read_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "old.log"
    file.write_bytes(b"[12:00] <gull> caf\xe9\n")
    assert ChatLog.load(file).lines[0].text == "caf\ufffd"


def test_it_shows_nothing_of_what_was_said() -> None:
    log = ChatLog.parse("[12:00] <gull> secret words\n")
    assert "secret" not in repr(log)
    assert "secret" not in repr(log.lines[0])
