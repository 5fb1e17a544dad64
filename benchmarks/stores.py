"""Stores and ledgers that are full before the clock starts, written through their own `apply`.

What is written is what a client that received and sent all this would have: rows in their places, positions,
the history's name. Nothing is written past the port, so the files are what the system itself makes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from whimbrel import protocol as p
from whimbrel.core.contract import Changes, ConversationRow, MessageRow
from whimbrel.model import SendState
from whimbrel.server.ledger import Append, Committed, CreateConversation, Operation
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.store.sqlite import SqliteStore

__all__ = ["EPOCH", "HISTORY", "KEY", "OTHER", "USER", "fill_ledger", "fill_store", "row_of", "text_of"]

KEY = b"k" * 32
USER, OTHER = "anna", "ben"
EPOCH, HISTORY = "epoch-of-the-benchmark", "history-of-the-benchmark"
BATCH = 2_000
STORED_AT = 1_700_000_000.0
OWN_EVERY = 2
"""Every second message is an own one."""


def text_of(number: int) -> str:
    """A text of 100 characters."""
    return f"message {number}: the tide is coming in, take the upper path ".ljust(100, ".")


def row_of(conversation: str, seq: int, arrival: int) -> MessageRow:
    """A stored message, delivered or received."""
    own = seq % OWN_EVERY == 0
    return MessageRow(
        id=f"{conversation}-{seq:08d}-of-bench",
        conversation=conversation,
        sender=USER if own else OTHER,
        body=text_of(seq),
        sent_at=STORED_AT + seq,
        own=own,
        key=f"key-{conversation}-{seq}" if own else None,
        stream=1 if own else 0,
        n=seq // OWN_EVERY if own else 0,
        state=SendState.DELIVERED if own else None,
        seq=seq,
        arrival=arrival,
        delivered_at=STORED_AT + seq,
    )


def fill_store(path: Path, messages: int, conversations: int) -> list[str]:
    """Make a store with so many messages, spread evenly; gives the conversations' ids."""
    each = messages // conversations
    ids = [f"room-{number:03d}" for number in range(conversations)]
    store = SqliteStore(path, KEY)
    try:
        arrival = 0
        for id in ids:
            for begin in range(1, each + 1, BATCH):
                seqs = range(begin, min(begin + BATCH, each + 1))
                rows = [row_of(id, seq, arrival + seq) for seq in seqs]
                conversation = _conversation(id, seqs[-1])
                meta = {"user": USER, "history": HISTORY}
                store.apply(
                    Changes(
                        messages={row.id: row for row in rows}, conversations={id: conversation}, meta=meta
                    )
                )
            arrival += each
    finally:
        store.close()
    return ids


def _conversation(id: str, seq: int) -> ConversationRow:
    return ConversationRow(
        id=id,
        title=f"about {id}",
        members=(USER, OTHER),
        epoch=EPOCH,
        position=seq,
        head=seq,
        last_n=seq // OWN_EVERY,
        received_acked=seq,
        synced_at=time.time(),
    )


def fill_ledger(ledger: SqliteLedger, conversation: str, members: tuple[str, ...], messages: int) -> None:
    """Create a conversation in which the first member has sent so many messages, from one device."""
    create = CreateConversation(
        user=members[0], conversation=conversation, title=conversation, members=members
    )
    ledger.apply([create], STORED_AT)
    for begin in range(1, messages + 1, BATCH):
        numbers = range(begin, min(begin + BATCH, messages + 1))
        outcomes = ledger.apply(list(appends(conversation, members[0], numbers)), STORED_AT)
        if not all(isinstance(outcome, Committed) for outcome in outcomes):
            raise RuntimeError("the ledger did not take what it was filled with")


def appends(conversation: str, user: str, numbers: range) -> Iterator[Operation]:
    """What appends these messages of a user's one device."""
    for number in numbers:
        send = p.Send(
            conversation=conversation,
            stream=1,
            n=number,
            key=f"{conversation}-{number}",
            body=text_of(number),
            sent_at=STORED_AT + number,
        )
        yield Append(user=user, device=f"device-of-{user}", send=send)
