"""Files of every schema there ever was open with this version, hold what they held, and go on.

The files are below ``tests/data/schema``, made once by the version that brought the schema and kept for ever
(``tests/data/make_fixture.py``). Files of a newer schema are refused and left as they are.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.data.make_fixture import ANNA, BEN, FOLDER, KEY, LEFT, LIMIT_S, TALK, facts_of, signed_in
from tests.integration.rig import history
from tests.server.app_rig import serving
from whimbrel import Client, MessageReceived, SendState
from whimbrel.errors import StoreTooNew
from whimbrel.server.data import ACCOUNTS_FILE, LEDGER_FILE, ServerData, open_data
from whimbrel.server.database import connect as connect_server
from whimbrel.server.database import derive_key
from whimbrel.store import schema
from whimbrel.store.sqlite import SqliteStore

MADE = sorted(FOLDER.iterdir(), key=lambda folder: [int(number) for number in folder.name.split("_")])


def facts(folder: Path) -> Any:
    return json.loads((folder / "facts.json").read_text(encoding="utf-8"))


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    for path in (to, *to.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return to


def holds(found: Any, fact: Any) -> bool:
    """Whether all that was known then is so now; there may be more to know."""
    if isinstance(fact, dict):
        return all(holds(found.get(name), value) for name, value in fact.items())
    if isinstance(fact, list):
        return len(found) == len(fact) and all(map(holds, found, fact))
    return bool(found == fact)


def test_the_present_schemas_have_files() -> None:
    folder = Path(open_data.__code__.co_filename).parent / "migrations"
    ledger, accounts = (len(list(folder.glob(f"{name}_*.sql"))) for name in ("ledger", "accounts"))
    present = f"{len(schema.migrations())}_{ledger}_{accounts}"
    assert present in {made.name for made in MADE}, "run tests.data.make_fixture and keep what it makes"


# --- the client's store --------------------------------------------------------------------------


@pytest.mark.parametrize("folder", MADE, ids=lambda folder: str(folder.name))
def test_a_store_holds_what_it_held(folder: Path, tmp_path: Path) -> None:
    known = facts(folder)["rows"]
    store = SqliteStore(copied(folder, tmp_path / "store") / "rows.db", KEY)
    try:
        assert store.device == known["device"]
        assert holds(msgspec.to_builtins(store.load()), known["snapshot"])
        assert holds(facts_of(store.messages("c1", limit=1000)), known["messages"])
        assert holds(facts_of(store.arrivals(0, 1000)), known["arrivals"])
        assert holds(facts_of(store.pending()), known["pending"])
        assert store.consumer_position("bot") == known["bot"]
        assert store.get_secret("tokens") == known["secret"]
    finally:
        store.close()
    with contextlib.closing(SqliteStore(tmp_path / "store" / "rows.db", KEY)) as again:
        assert again.device == known["device"], "brought up to date once and for all"


@pytest.mark.parametrize("folder", MADE, ids=lambda folder: str(folder.name))
async def test_a_store_goes_on_with_the_server_it_talked_to(folder: Path, tmp_path: Path) -> None:
    known = facts(folder)["anna"]
    made = copied(folder, tmp_path / "made")
    store, data = made / "anna.db", made / "server"
    async with serving(data) as server:
        async with Client(server.url, store, ANNA, key=KEY) as anna:
            assert (anna.device, anna.user) == (known["device"], known["user"])
            assert holds(facts_of(await anna.conversation(LEFT).messages(limit=100)), known["left"])
            await anna.connected(LIMIT_S)
            assert await anna.flush(LIMIT_S) == 0
            mine = await history(anna, TALK, 12)
            consumer = anna.events(consumer="bot")
            assert (await anext(consumer)).message.position == known["bot"] + 1
            await consumer.aclose()
        async with signed_in(server, BEN, None) as ben:
            theirs = await history(ben, TALK, 12)
            news = ben.events()
            async with signed_in(server, ANNA, store) as anna:
                fresh = await anna.conversation(TALK).send("and on it goes")
                await fresh.delivered(LIMIT_S)
            async for event in news:
                if isinstance(event, MessageReceived) and event.message.id == fresh.id:
                    break
    delivered = [message for message in mine if message.seq is not None]
    before = [
        message["id"] for message in known["history"] if "seq" in message and message["kind"] == "message"
    ]
    queued = [message["id"] for message in known["history"] if message.get("key", "").startswith("queued-")]
    assert len(queued) == 5
    assert [message.id for message in delivered][: len(before)] == before
    assert [message.content for message in delivered][len(before) :] == [
        *(f"while you were away {n}" for n in (1, 2, 3)),
        *(f"queued {n}" for n in range(1, 6)),
    ]
    assert [message.id for message in delivered][-5:] == queued
    assert [(message.id, message.content) for message in theirs] == [
        (message.id, message.content) for message in delivered
    ]
    states = {message.key: message.status.state for message in mine if message.status is not None}
    assert (states["cancelled"], states["order-4"]) == (SendState.CANCELLED, SendState.FAILED)


def test_a_store_of_a_newer_version_is_left_as_it_is(tmp_path: Path) -> None:
    folder = copied(MADE[-1], tmp_path / "store")
    db = schema.connect(folder / "anna.db", KEY)
    db.execute("CREATE TABLE of_tomorrow (x TEXT) STRICT")
    db.pragma("user_version", len(schema.migrations()) + 1)
    db.close()
    before = (folder / "anna.db").read_bytes()
    with pytest.raises(StoreTooNew):
        SqliteStore(folder / "anna.db", KEY)
    assert (folder / "anna.db").read_bytes() == before


# --- the server's files --------------------------------------------------------------------------


def told(data: ServerData) -> dict[str, Any]:
    talk, group = data.ledger.page("ben", TALK, limit=100), data.ledger.page("anna", LEFT, limit=100)
    assert talk is not None
    assert group is not None
    return {
        "history": data.ledger.history,
        "commit": data.ledger.commit,
        "talk": msgspec.to_builtins(talk.events),
        "group": msgspec.to_builtins(group.events),
        "heads": msgspec.to_builtins(data.ledger.heads("ben", 0)),
        "users": sorted(data.accounts.users_exist(["anna", "ben", "cleo"])),
    }


@pytest.mark.parametrize("folder", MADE, ids=lambda folder: str(folder.name))
def test_a_server_holds_what_it_held(folder: Path, tmp_path: Path) -> None:
    data = copied(folder / "server", tmp_path / "server")
    for _ in range(2):
        with open_data(data) as opened:
            assert holds(told(opened), facts(folder)["server"])
            assert opened.accounts.verify(ANNA.username, ANNA.password)


@pytest.mark.parametrize(("file", "purpose"), [(LEDGER_FILE, "ledger"), (ACCOUNTS_FILE, "accounts")])
def test_a_server_of_a_newer_version_is_left_as_it_is(tmp_path: Path, file: str, purpose: str) -> None:
    data = copied(MADE[-1] / "server", tmp_path / "server")
    db = connect_server(data / file, derive_key((data / "server.key").read_bytes(), purpose))
    db.pragma("user_version", 1 + db.pragma("user_version"))
    db.close()
    before = (data / file).read_bytes()
    with pytest.raises(StoreTooNew):
        open_data(data)
    assert (data / file).read_bytes() == before
