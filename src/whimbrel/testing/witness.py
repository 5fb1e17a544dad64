"""Who said what to whom while a storm blew: every ``send()`` that returned, and every client that was open.

A ``Witness`` watches all clients of this process between ``begin`` and ``end``; it changes nothing of what
they do. ``judge`` compares what it saw with the server's log and with what the clients have: nothing lost,
changed or reordered, and every open client has what the server has.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import msgspec

from whimbrel.client.client import Client
from whimbrel.client.handles import SentMessage
from whimbrel.errors import NotFound
from whimbrel.model import Content, Message, SendState
from whimbrel.testing.memoryserver import MemoryServer

__all__ = ["Sent", "Witness", "judge"]

FINDINGS_MAX: Final = 20
PAGE: Final = 100


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """One call of ``send()`` that returned. ``began`` and ``ended`` count calls, over all clients."""

    id: str
    device: str
    conversation: str
    content: Content
    began: int
    ended: int

    def __repr__(self) -> str:
        return f"<Sent {self.id} in {self.conversation}>"


class Witness:
    """See the module."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self._clients: list[Client] = []
        self._count = itertools.count()
        self._originals: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"<Witness of {len(self.sent)} sends>"

    @property
    def clients(self) -> list[Client]:
        """Those that are open now."""
        self._clients = [client for client in self._clients if not client.closed]
        return [*self._clients]

    def begin(self) -> None:
        """Watch from now on."""
        send, opened, witness = Client.send, Client.open, self
        self._originals = (send, opened)

        async def watched_send(
            self: Client, conversation: str, content: Content, **options: Any
        ) -> SentMessage:
            began = next(witness._count)
            message = await send(self, conversation, content, **options)
            witness.sent.append(
                Sent(
                    id=message.id,
                    device=self.device,
                    conversation=conversation,
                    content=content,
                    began=began,
                    ended=next(witness._count),
                )
            )
            return message

        async def watched_open(self: Client) -> None:
            await opened(self)
            witness._clients.append(self)

        Client.send = watched_send  # type: ignore[method-assign]  # so that no app has to take part
        Client.open = watched_open  # type: ignore[method-assign]  # as above

    def end(self) -> None:
        """Watch no more. May be called twice."""
        if self._originals is not None:
            Client.send, Client.open = self._originals  # type: ignore[method-assign]  # as above
            self._originals = None


async def settled(server: MemoryServer, clients: list[Client]) -> str:
    """What is still to be done before all is quiet, in words; empty when it is."""
    for client in clients:
        who = client.user or client.device
        waiting = len(await client.pending())
        if waiting:
            return f"{waiting} messages of {who} are queued"
        known = {conversation.id: conversation for conversation in await client.conversations()}
        for id in server.conversations():
            if client.user not in server.members(id):
                continue
            head = len(server.messages(id, kind=None))
            if id not in known or known[id].position < head:
                position = known[id].position if id in known else 0
                return f"{who} has {position} of {head} entries of {id}"
    return ""


async def judge(server: MemoryServer, witness: Witness) -> list[str]:
    """Everything that went wrong, one line each; empty when every promise was kept."""
    logs = {id: server.messages(id, kind=None) for id in server.conversations()}
    findings = [*_log_sound(logs), *[line async for line in _lost(logs, witness)], *_order(logs, witness)]
    for client in witness.clients:
        findings += [line async for line in _agrees(client, server, logs)]
    if len(findings) > FINDINGS_MAX:
        findings = [*findings[:FINDINGS_MAX], f"and {len(findings) - FINDINGS_MAX} more"]
    return findings


def _log_sound(logs: dict[str, list[Message]]) -> Iterator[str]:
    seen: set[str] = set()
    for id, log in logs.items():
        if [entry.seq for entry in log] != list(range(1, len(log) + 1)):
            yield f"the log of {id} has holes"
        for entry in log:
            if entry.id in seen:
                yield f"message {entry.id} is in the log twice"
            seen.add(entry.id)


async def _lost_status(witness: Witness, sent: Sent) -> SendState | None:
    for client in witness.clients:
        if client.device == sent.device:
            try:
                return (await client.status(sent.id)).state
            except NotFound:
                return None
    return None


async def _lost(logs: dict[str, list[Message]], witness: Witness) -> AsyncIterator[str]:
    found = {entry.id: entry for log in logs.values() for entry in log}
    for sent in {sent.id: sent for sent in witness.sent}.values():
        entry = found.get(sent.id)
        if entry is None:
            state = await _lost_status(witness, sent)
            if state not in (SendState.FAILED, SendState.CANCELLED):
                where = f"its client says {state}" if state else "no open client has it"
                yield f"message {sent.id} to {sent.conversation} was sent and is lost ({where})"
        elif entry.conversation != sent.conversation or entry.content != sent.content:
            yield f"message {sent.id} to {sent.conversation} was changed on its way"


def _order(logs: dict[str, list[Message]], witness: Witness) -> Iterator[str]:
    seqs = {entry.id: entry.seq or 0 for log in logs.values() for entry in log}
    queues: dict[tuple[str, str], list[Sent]] = {}
    first = {sent.id: sent for sent in reversed(witness.sent)}
    for sent in first.values():
        if sent.id in seqs:
            queues.setdefault((sent.device, sent.conversation), []).append(sent)
    for (_, conversation), queue in queues.items():
        # Two sends are in order if one had returned before the other began.
        ended = sorted(queue, key=lambda sent: sent.ended)
        place, highest = 0, 0
        for sent in sorted(queue, key=lambda sent: sent.began):
            while place < len(ended) and ended[place].ended < sent.began:
                highest = max(highest, seqs[ended[place].id])
                place += 1
            if seqs[sent.id] < highest:
                yield f"message {sent.id} overtook one that was sent before it in {conversation}"


async def _agrees(client: Client, server: MemoryServer, logs: dict[str, list[Message]]) -> AsyncIterator[str]:
    for id, log in logs.items():
        if client.user not in server.members(id):
            continue
        have: list[Message] = []
        after = 0
        while page := await client.conversation(id).messages(after=after, limit=PAGE):
            have += [message for message in page if message.seq is not None]
            if page[-1].seq is None:
                break
            after = page[-1].seq
        entries = {entry.seq: entry for entry in log}
        for message in have:
            entry = entries.get(message.seq)
            if entry is None or (entry.id, entry.content) != (message.id, message.content):
                yield f"{client.user} has something else at {message.seq} of {id} than the server"
        floor = server.ledger.state.members[id][client.user].floor  # what was before it joined it never sees
        if log and not have:
            yield f"{client.user} has nothing of {id}"
        elif [message.seq for message in have] != list(range(floor + 1, len(log) + 1)):
            yield f"{client.user} does not have all of {id}"
