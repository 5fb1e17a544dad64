"""Make the files of the present schema versions, which later versions must open for ever.

    python -m tests.data.make_fixture

Run it once, by the version of whimbrel that brings a new schema, and commit what it makes; what is there
already is never made again. Below ``schema/``, in a folder named by the schemas of store, ledger, accounts:

* ``anna.db``: the store of a client that talked to the server of the same run, then queued messages while
  that server was away;
* ``server/``: the data folder of that server, as it stopped; since anna left, it took more of ben's messages;
* ``rows.db``: a store with a row of every state and kind;
* ``facts.json``: what is in them, as the version that made them showed it.

All are made by the real client and the real server. Keys and passwords are those below: they protect nothing.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.server.app_rig import PASSWORD, Server, serving
from whimbrel import Client, Credentials, Message, MessageReceived, ReceiptChanged
from whimbrel.core.contract import Changes
from whimbrel.model import Attempt, Event, FailureReason, SendState
from whimbrel.server.data import ACCOUNTS_FILE, KEY_FILE, LEDGER_FILE, open_data
from whimbrel.store import schema
from whimbrel.store.sqlite import SqliteStore
from whimbrel.testing.store_rows import changes, conversation, entry, queued, update

FOLDER = Path(__file__).parent / "schema"
KEY = bytes(range(100, 132))
LIMIT_S = 30.0
ANNA = Credentials("anna", PASSWORD)
BEN = Credentials("ben", PASSWORD)
TALK, LEFT = "plans-of-anna-and-ben", "a-group-anna-was-in"


def facts_of(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """What an app saw of these messages, as JSON has it, without what is not set."""
    return [
        {name: value for name, value in msgspec.to_builtins(message).items() if value is not None}
        for message in messages
    ]


# --- a store and the server it talked to -------------------------------------------------------


@asynccontextmanager
async def signed_in(server: Server, credentials: Credentials, store: Path | None) -> AsyncIterator[Client]:
    key = KEY if store is not None else None
    async with Client(server.url, store, credentials, key=key) as client:
        await client.connected(LIMIT_S)
        yield client


async def seen(events: Any, kind: type[Event], wanted: Callable[[Any], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        async for event in events:
            if isinstance(event, kind) and wanted(event):
                return


async def talk(anna: Client, ben: Client) -> None:
    """What can happen between two people while both are connected."""
    news = ben.events()
    plans = await anna.create_conversation("ben", title="Plans", id=TALK)
    first = await plans.send("first", key="order-1", metadata={"topic": "herons", "n": [1, 2.5, None]})
    second = await plans.send({"json": ["second", 2]}, key="order-2", reply_to=first.id)
    third = await plans.send(b"third \x00\xff", key="order-3", role="assistant")
    last = await third.delivered(LIMIT_S)
    await second.delivered(LIMIT_S)
    await seen(news, MessageReceived, lambda event: event.message.id == third.id)
    receipts, answers = anna.events(), anna.events()
    theirs = ben.conversation(TALK)
    await theirs.mark_read()
    await seen(
        receipts,
        ReceiptChanged,
        lambda event: event.conversation == TALK and event.receipt.read >= (last.seq or 0),
    )
    answer = await theirs.send("answer of ben", reply_to=second.id)
    await answer.delivered(LIMIT_S)
    await seen(answers, MessageReceived, lambda event: event.message.id == answer.id)
    await plans.mark_read()
    refused = await plans.send("to nobody", reply_to="x" * 26, key="order-4", role="root")
    with_reason = await anna.explain(refused.id)
    assert with_reason.message_id == refused.id
    group = await ben.create_conversation("anna", title="Group", id=LEFT)
    await (await group.send("you will not see the next")).delivered(LIMIT_S)
    gone = anna.events()
    await group.remove_member("anna")
    await seen(gone, MessageReceived, lambda event: event.message.kind == "member")
    await (await group.send("anna must not see this")).delivered(LIMIT_S)
    consumer = anna.events(consumer="bot")
    for _ in range(3):
        await (await anext(consumer)).done()
    await consumer.aclose()
    await anna.flush(LIMIT_S)


async def queue_offline(url: str, store: Path) -> dict[str, Any]:
    """What is queued while the server is away, and all that the store shows then."""
    async with Client(url, store, ANNA, key=KEY) as anna:
        plans = anna.conversation(TALK)
        for n in range(1, 6):
            await plans.send(f"queued {n}", key=f"queued-{n}", metadata={"n": n})
        cancelled = await plans.send("never mind", key="cancelled")
        await anna.cancel(cancelled.id)
        facts = {
            "device": anna.device,
            "user": anna.user,
            "conversations": msgspec.to_builtins(await anna.conversations()),
            "history": facts_of(await plans.messages(limit=100)),
            "left": facts_of(await anna.conversation(LEFT).messages(limit=100)),
            "arrivals": facts_of(await anna.arrivals(0, 1000)),
            "bot": await anna.consumer_position("bot"),
        }
        await anna.close(0)
    with_pending = SqliteStore(store, KEY)
    try:
        facts["pending"] = facts_of(with_pending.pending())
        facts["meta"] = with_pending.load().meta
    finally:
        with_pending.close()
    return facts


async def make_pair(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the store and the data folder; give the facts of both."""
    store, data = folder / "anna.db", folder / "server"
    async with serving(data, "anna", "ben") as server:
        async with signed_in(server, ANNA, store) as anna, signed_in(server, BEN, None) as ben:
            await talk(anna, ben)
        async with signed_in(server, BEN, None) as ben:
            for n in range(1, 4):
                sent = await ben.conversation(TALK).send(f"while you were away {n}")
                await sent.delivered(LIMIT_S)
        url = server.url
    store_facts = await queue_offline(url, store)
    with open_data(data) as opened:
        page = opened.ledger.page("ben", TALK, limit=100)
        group = opened.ledger.page("anna", LEFT, limit=100)
        assert page is not None
        assert group is not None
        server_facts = {
            "history": opened.ledger.history,
            "commit": opened.ledger.commit,
            "talk": msgspec.to_builtins(page.events),
            "group": msgspec.to_builtins(group.events),
            "heads": msgspec.to_builtins(opened.ledger.heads("ben", 0)),
            "users": sorted(opened.accounts.users_exist(["anna", "ben", "cleo"])),
        }
    return store_facts, server_facts


# --- a store with a row of every kind ----------------------------------------------------------


def make_rows(path: Path) -> dict[str, Any]:
    """A row of every state; give the facts."""
    attempts = tuple(
        Attempt(at=1000.0 + n, reason=reason, text=f"attempt {n}") for n, reason in enumerate(FailureReason)
    )
    rows = [
        queued(n, state=state, retry_count=n, last_retry_at=1500.5 + n)
        for n, state in enumerate(SendState, 1)
    ]
    failed = [
        queued(
            100 + n,
            state=SendState.FAILED,
            reason=reason,
            can_retry=bool(n % 2),
            rounds=n,
            attempts=attempts[: n + 1],
            on_reject="block" if n % 3 == 0 else "skip",
            expires_at=4e9 + n,
        )
        for n, reason in enumerate(FailureReason)
    ]
    voided = queued(200, state=SendState.CANCELLED, void="cancelled")
    own = queued(300)
    others = [entry(seq, arrival=seq, metadata='{"n":1}', kind=kind) for seq, kind in enumerate(KINDS, 1)]
    buffered = [entry(seq, arrival=None) for seq in (20, 21, 25)]
    store = SqliteStore(path, KEY)
    try:
        store.apply(
            changes(
                *rows,
                *failed,
                voided,
                own,
                *others,
                *buffered,
                conversations={
                    "c1": conversation(
                        title="Täglich 🐦", position=10, head=25, floor=0, stream=1, last_n=300, read=3,
                        received_acked=4, read_acked=3, receipts=(("ben", 9, 8),), synced_at=1700.25,
                    ),
                    "c2": conversation("c2", left=True, members=("ben",), stream=3),
                },
                meta={"user": "anna", "sync": "a token", "history": "h1"},
            )
        )  # fmt: skip
        done = update(own, state=SendState.DELIVERED, seq=10, arrival=10, delivered_at=2010.0)
        store.apply(Changes(updates={own.id: done}, reads={"c1": (10, 2020.0)}))
        store.set_secret("tokens", '{"user":"anna","refresh_token":"wr_nothing"}')
        store.set_consumer_position("bot", 7)
        return {
            "device": store.device,
            "snapshot": msgspec.to_builtins(store.load()),
            "messages": facts_of(store.messages("c1", limit=1000)),
            "arrivals": facts_of(store.arrivals(0, 1000)),
            "pending": facts_of(store.pending()),
            "bot": store.consumer_position("bot"),
            "secret": store.get_secret("tokens"),
        }
    finally:
        store.close()


KINDS = (
    "info",
    "message",
    "member",
    "message",
    "message",
    "of-a-newer-version",
    "message",
    "message",
    "edit",
)


# --- where it goes -----------------------------------------------------------------------------


def main() -> None:
    """Make what is missing."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        store_facts, server_facts = asyncio.run(make_pair(made))
        rows_facts = make_rows(made / "rows.db")
        with open_data(made / "server") as data:
            ledger = data.ledger._writer
            assert ledger is not None
            versions = [
                ledger.pragma("user_version"),
                data.accounts._connection.pragma("user_version"),
            ]
        folder = FOLDER / "_".join(str(version) for version in (len(schema.migrations()), *versions))
        if folder.exists():
            sys.exit(f"{folder} is there: what was made once is kept for ever")
        folder.mkdir(parents=True)
        for file in ("anna.db", "rows.db"):
            shutil.copy(made / file, folder / file)
        (folder / "server").mkdir()
        for file in (LEDGER_FILE, ACCOUNTS_FILE, KEY_FILE):
            shutil.copy(made / "server" / file, folder / "server" / file)
        facts = {"anna": store_facts, "rows": rows_facts, "server": server_facts}
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
