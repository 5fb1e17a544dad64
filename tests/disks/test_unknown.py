"""What a newer version says and this one does not know: kept, shown as such, in its place, never a crash."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.data.make_fixture import ANNA, BEN, KEY, LIMIT_S, TALK, facts_of, signed_in
from tests.disks.test_schemas import MADE, copied
from tests.integration.rig import history
from tests.server.app_rig import Server, serving
from whimbrel import Client, SendState
from whimbrel import protocol as p
from whimbrel.model import FailureReason, Role
from whimbrel.server.data import LEDGER_FILE
from whimbrel.server.database import connect as connect_server
from whimbrel.server.database import derive_key
from whimbrel.store import schema
from whimbrel.store.sqlite import SqliteStore

OF_TOMORROW = [
    "UPDATE messages SET kind = 'hologram', format = 'video/5d', role = 'oracle' WHERE seq = 3",
    "UPDATE messages SET state = 'teleported' WHERE key = 'c1-1-1'",
    "UPDATE messages SET reason = 'solar_wind' WHERE key = 'c1-1-100'",
    """UPDATE messages SET attempts = '[{"when": 5}]' WHERE key = 'c1-1-101'""",
    "UPDATE messages SET metadata = 'not JSON', alg = 'mls', on_reject = 'ask' WHERE seq = 4",
    """UPDATE conversations SET receipts = '[["ben", 9, 8, "seen twice"]]'""",
    "INSERT INTO meta VALUES ('of_tomorrow', 'x')",
    "INSERT INTO marks VALUES ('of_tomorrow', 7)",
]


def test_rows_of_a_newer_version_are_shown_in_their_place(tmp_path: Path) -> None:
    folder = copied(MADE[-1], tmp_path / "made")
    store = SqliteStore(folder / "rows.db", KEY)
    before = facts_of(store.messages("c1", limit=1000)), facts_of(store.arrivals(0, 1000))
    store.close()
    db = schema.connect(folder / "rows.db", KEY)
    for sql in OF_TOMORROW:
        db.execute(sql)
        assert db.changes() > 0, sql
    db.close()
    store = SqliteStore(folder / "rows.db", KEY)
    try:
        page, arrivals = store.messages("c1", limit=1000), store.arrivals(0, 1000)
        assert [message.id for message in page] == [message["id"] for message in before[0]]
        assert [message.id for message in arrivals] == [message["id"] for message in before[1]]
        odd = next(message for message in page if message.seq == 3)
        assert (odd.kind, odd.role, odd.content) == ("hologram", "oracle", "entry 3")
        by_key = {message.key: message for message in page if message.key}
        first = by_key["c1-1-1"].status
        assert first is not None
        assert first.state is SendState.SENT, "without a status we know"
        failed = by_key["c1-1-100"].status
        assert failed is not None
        assert (failed.state, failed.reason) == (SendState.FAILED, FailureReason.UNKNOWN)
        assert len(store.load().outbox) > 3
        row = store.row(by_key["c1-1-101"].id)
        assert row is not None
        assert row.attempts == ()
    finally:
        store.close()


async def test_a_queued_message_of_an_unknown_state_goes_out_in_its_place(tmp_path: Path) -> None:
    made = copied(MADE[-1], tmp_path / "made")
    db = schema.connect(made / "anna.db", KEY)
    db.execute("UPDATE messages SET state = 'teleported', reason = 'solar_wind' WHERE key = 'queued-3'")
    assert db.changes() == 1
    db.close()
    async with (
        serving(made / "server") as server,
        Client(server.url, made / "anna.db", ANNA, key=KEY) as anna,
    ):
        await anna.connected(LIMIT_S)
        assert await anna.flush(LIMIT_S) == 0
        found = await history(anna, TALK, 12)
    assert [m.content for m in found if m.seq is not None][-5:] == [f"queued {n}" for n in range(1, 6)]


# --- over the wire -------------------------------------------------------------------------------


@pytest.fixture
def talks_of_tomorrow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Both sides say, in every frame, an item nobody knows, and in every item a field nobody knows."""
    plain, said = p.frames, [0]

    def frames(items: Sequence[msgspec.Struct], size: int = p.FRAME_BYTES) -> list[bytes]:
        out = []
        for frame in plain(items, size):
            known: list[dict[str, Any]] = msgspec.json.decode(frame)
            stranger = {"t": "hologram", "seq": 1, "conversation": "c1"}
            odd = [item for one in known for item in (stranger, {**one, "of_tomorrow": {"x": [1]}})]
            out.append(msgspec.json.encode([*odd, {"t": 7}, "no item at all", None]))
            said[0] += 1
        return out

    monkeypatch.setattr(p, "frames", frames)
    return said


async def test_unknown_items_and_fields_cost_nothing(tmp_path: Path, talks_of_tomorrow: list[int]) -> None:
    async with (
        serving(tmp_path / "server", "anna", "ben") as server,
        signed_in(server, ANNA, tmp_path / "anna.db") as anna,
        signed_in(server, BEN, None) as ben,
    ):
        conversation = await anna.create_conversation("ben")
        sent = [await conversation.send(f"text {n}") for n in range(20)]
        await sent[-1].delivered(LIMIT_S)
        found = await history(ben, conversation.id, 20)
        assert [message.content for message in found] == [f"text {n}" for n in range(20)]
        assert not anna.closed
    assert talks_of_tomorrow[0] > 10, "nothing strange was said"


ODD_ENTRIES = [
    "UPDATE entries SET kind = 'sticker', format = 'video/5d', role = 'oracle', alg = 'mls' WHERE body = 'b'",
    "UPDATE entries SET kind = 'poll', body = '{' WHERE body = 'd'",
]


async def test_unknown_kinds_keep_their_place_in_the_log(tmp_path: Path) -> None:
    data = tmp_path / "server"
    async with serving(data, "anna", "ben") as server, signed_in(server, ANNA, None) as anna:
        conversation = await anna.create_conversation("ben")
        for text in "abcde":
            last = await conversation.send(text)
        await last.delivered(LIMIT_S)
        id = conversation.id
    db = connect_server(data / LEDGER_FILE, derive_key((data / "server.key").read_bytes(), "ledger"))
    for sql in ODD_ENTRIES:
        db.execute(sql)
        assert db.changes() == 1, sql
    db.close()
    async with serving(data) as server:
        await see_all(server, id, tmp_path / "ben.db")


async def see_all(server: Server, id: str, store: Path) -> None:
    for _ in range(2):  # from the server, then from the store
        async with signed_in(server, BEN, store) as ben:
            consumer = ben.events(consumer="bot")
            seen = [(await anext(consumer)).message for _ in range(6)]
            await consumer.aclose()
            page = await ben.conversation(id).messages(limit=10)
        for messages in (seen, page):
            assert [message.seq for message in messages] == [1, 2, 3, 4, 5, 6]
            assert [message.kind for message in messages][1:] == [
                "message",
                "sticker",
                "message",
                "poll",
                "message",
            ]
            assert [message.content for message in messages][1:] == ["a", "b", "c", "{", "e"]
            assert (messages[2].role, messages[1].role) == ("oracle", Role.USER)
