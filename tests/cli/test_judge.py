import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from whimbrel.cli.judge import Judge, Verdict
from whimbrel.cli.storm_journal import (
    Delivered,
    Journal,
    JournalError,
    JournalReader,
    Received,
    Record,
    Sent,
    digest_of,
)

MEMBERS = {"quay": ("anna", "ben", "cleo")}


def sent(user: str, n: int) -> Sent:
    return Sent(
        user=user,
        conversation="quay",
        label=f"{user}/{n}",
        id=f"id-{user}-{n}",
        digest=digest_of(f"text {n}"),
        called_at_s=float(n),
        returned_at_s=n + 0.1,
    )


def got(member: str, user: str, n: int, seq: int) -> Received:
    return Received(
        user=member,
        conversation="quay",
        label=f"{user}/{n}",
        id=f"id-{user}-{n}",
        sender=user,
        seq=seq,
        digest=digest_of(f"text {n}"),
        at_s=n + 1.0,
    )


ORDER = [("anna", 1), ("ben", 1), ("anna", 2), ("ben", 2), ("anna", 3)]
SENT = [sent(user, n) for user, n in ORDER]


def everybody() -> dict[str, list[Received]]:
    return {
        member: [got(member, user, n, seq) for seq, (user, n) in enumerate(ORDER, 1)]
        for member in MEMBERS["quay"]
    }


def judged(
    received: dict[str, list[Received]], senders: Iterable[Record] = SENT, *, final: bool = True
) -> Verdict:
    judge = Judge(MEMBERS)
    judge.hear(senders)
    for records in received.values():
        judge.hear(records)
    return judge.verdict(final=final)


def faults(verdict: Verdict) -> dict[str, int]:
    names = ("lost", "doubled", "out_of_order", "changed", "unsent")
    return {name: count for name in names if (count := getattr(verdict, name))}


def test_a_run_without_faults_is_clean() -> None:
    verdict = judged(everybody())
    assert verdict.clean
    assert (verdict.sent, verdict.expected, verdict.received) == (5, 15, 15)
    assert verdict.examples == ()


def test_lost_at_one_member() -> None:
    runs = everybody()
    del runs["cleo"][2]
    verdict = judged(runs)
    assert faults(verdict) == {"lost": 1}
    assert verdict.received == 14
    assert "anna/2 at cleo" in verdict.examples[0]


def test_lost_at_its_own_sender() -> None:
    runs = everybody()
    del runs["anna"][4]
    assert faults(judged(runs)) == {"lost": 1}


def test_lost_everywhere() -> None:
    runs = {member: records[:-1] for member, records in everybody().items()}
    assert faults(judged(runs)) == {"lost": 3}


def test_a_member_who_got_nothing_lost_everything() -> None:
    runs = everybody()
    runs["ben"] = []
    assert faults(judged(runs)) == {"lost": 5}


def test_doubled() -> None:
    runs = everybody()
    runs["ben"].insert(2, runs["ben"][1])
    assert faults(judged(runs)) == {"doubled": 1}


def test_doubled_under_another_id() -> None:
    runs = everybody()
    runs["ben"].append(msgspec.structs.replace(runs["ben"][-1], id="id-other", seq=6))
    verdict = judged(runs)
    assert verdict.doubled == 1
    assert not verdict.clean


def test_out_of_order_of_a_sender_for_everybody() -> None:
    runs = everybody()
    for records in runs.values():
        records[0], records[2] = records[2], records[0]
    assert faults(judged(runs)) == {"out_of_order": 3}


def test_out_of_order_for_one_member_only() -> None:
    runs = everybody()
    runs["ben"][0], runs["ben"][1] = runs["ben"][1], runs["ben"][0]
    # Each sender's own order is kept, but the others got another one.
    assert faults(judged(runs)) == {"out_of_order": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda record: msgspec.structs.replace(record, digest=digest_of("text 9")),
        lambda record: msgspec.structs.replace(record, sender="cleo"),
        lambda record: msgspec.structs.replace(record, id="id-other"),
    ],
)
def test_changed(change: Callable[[Received], Received]) -> None:
    runs = everybody()
    runs["cleo"][1] = change(runs["cleo"][1])
    assert faults(judged(runs)) == {"changed": 1}


def test_sent_by_nobody() -> None:
    runs = everybody()
    runs["cleo"].append(got("cleo", "anna", 99, 6))
    assert faults(judged(runs)) == {"unsent": 1}
    unlabelled = msgspec.structs.replace(runs["cleo"].pop(), label="")
    runs["cleo"].append(unlabelled)
    assert faults(judged(runs)) == {"unsent": 1}


def test_got_by_one_who_is_no_member() -> None:
    runs = everybody()
    runs["dora"] = [got("dora", "anna", 1, 1)]
    assert faults(judged(runs)) == {"unsent": 1}


def test_sent_again_as_another_message_after_a_restart() -> None:
    again = msgspec.structs.replace(SENT[0], id="id-other")
    assert faults(judged(everybody(), [*SENT, again])) == {"changed": 1}
    assert judged(everybody(), [*SENT, SENT[0]]).clean


def test_while_it_goes_on_only_what_was_overtaken_is_lost() -> None:
    runs = everybody()
    on_its_way = {member: records[:-1] for member, records in runs.items()}
    assert judged(on_its_way, final=False).clean
    overtaken = {**runs, "ben": [runs["ben"][1], *runs["ben"][2:]]}
    assert faults(judged(overtaken, final=False)) == {"lost": 1}
    # What arrives before its sender has written it down is no invention, yet.
    assert judged(runs, SENT[:-1], final=False).clean
    assert judged(runs, SENT[:-1]).unsent == 3


def test_examples_are_bounded_and_hold_no_text() -> None:
    runs: dict[str, list[Received]] = {member: [] for member in MEMBERS["quay"]}
    many = [sent("anna", n) for n in range(100)]
    runs["ben"] = [got("ben", "cleo", n, n) for n in range(100)]
    verdict = judged(runs, many)
    assert (verdict.lost, verdict.unsent) == (300, 100)
    assert len(verdict.examples) == 20
    assert not any("text" in example for example in verdict.examples)


# --- journals ----------------------------------------------------------------------------------

RECORDS: list[Record] = [
    SENT[0],
    Delivered(user="anna", label="anna/1", id="x", at_s=2.0),
    got("b", "a", 1, 1),
]


def test_a_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    reader = JournalReader(tmp_path / "j.jsonl")
    journal.write(*RECORDS[:2])
    assert reader.read() == RECORDS[:2]
    journal.write(RECORDS[2])
    assert reader.read() == RECORDS[2:]
    assert reader.read() == []
    journal.close()
    assert JournalReader(tmp_path / "none.jsonl").read() == []


def test_a_torn_last_line_was_never_written(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    journal = Journal(file)
    journal.write(*RECORDS)
    journal.close()
    whole = file.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole)):
        file.write_bytes(whole[:end])
        reader = JournalReader(file)
        assert reader.read() == RECORDS[:2]
        # Who goes on writing cuts it off first, and readers go on where they were.
        journal = Journal(file)
        journal.write(RECORDS[2])
        journal.close()
        assert reader.read() == RECORDS[2:]
        assert file.read_bytes() == whole


def test_a_journal_of_nothing_but_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    file.write_bytes(b'["sent","an')
    assert JournalReader(file).read() == []
    Journal(file).close()
    assert file.read_bytes() == b""


def test_a_long_torn_line_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    Journal(file).close()
    file.write_bytes(b"[]\n" + b"x" * (3 * 1024 * 1024))
    Journal(file).close()
    assert file.read_bytes() == b"[]\n"


def test_a_whole_line_that_is_no_record_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    file.write_bytes(b'["sent"]\n')
    with pytest.raises(JournalError, match=r"j\.jsonl: no record at byte 0"):
        JournalReader(file).read()


WRITER = """
import itertools, sys
from pathlib import Path
from whimbrel.cli.storm_journal import Delivered, Journal
journal = Journal(Path(sys.argv[1]))
for n in itertools.count():
    journal.write(Delivered(user="anna", label=str(n), id="x", at_s=1.0))
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_lines_behind(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)])
    try:
        while len(JournalReader(file).read()) < 100:
            assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    records = JournalReader(file).read()
    assert len(records) >= 100
    assert [record.label for record in records] == [str(n) for n in range(len(records))]
