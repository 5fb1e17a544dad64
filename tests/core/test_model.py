"""The engine against a simple model: any sequence of sends, faults, crashes and restarts.

The model is a list per conversation and a number per stream: what a server that never fails would
hold. After every sequence the faults stop, everything drains, and then the log must hold each
message that was on disk exactly once, in the order it was sent, and the store must show that log.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.rig import WALL, Rig, head
from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.model import MessageReceived, message_id


class ModelServer:
    """What a correct server does, in the fewest lines: the reference, not the product."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.outcomes: dict[tuple[int, int], int] = {}
        self.last_n: dict[int, int] = {}

    def event(self, seq: int) -> p.Event:
        id, sender, body = self.log[seq - 1]
        return p.Event(conversation="c1", epoch="e1", seq=seq, id=id, sender=sender, body=body, at=WALL)

    def answer(self, item: p.ClientItem, device: str) -> p.ServerItem | None:
        match item:
            case p.Send(stream=stream, n=n):
                last = self.last_n.get(stream, 0)
                if n > last + 1:
                    return p.OutOfOrder(conversation="c1", stream=stream, expected=last + 1)
                id = message_id(device, item.key)
                if n == last + 1:
                    self.log.append((id, "anna", item.body))
                    self.outcomes[stream, n] = len(self.log)
                    self.last_n[stream] = n
                return p.Delivered(
                    conversation="c1",
                    stream=stream,
                    n=n,
                    id=id,
                    epoch="e1",
                    seq=self.outcomes[stream, n],
                    at=WALL,
                )
            case p.Fetch(since=since):
                seqs = range(since + 1, min(len(self.log), since + 2) + 1)
                return p.Page(
                    conversation="c1",
                    epoch="e1",
                    since=since,
                    events=tuple(self.event(seq) for seq in seqs),
                    head=len(self.log),
                )
            case p.Ping(id=id):
                return p.Pong(id=id)
            case p.Received(seq=seq):
                return p.Receipts(conversation="c1", receipts=(("anna", seq, 0),))
            case _:
                return None


class Storm(RuleBasedStateMachine):
    """Sends, faults, crashes, restarts, in any order."""

    @initialize()
    def start(self) -> None:
        self.rig = Rig()
        self.server = ModelServer()
        self.up: list[p.ClientItem] = []
        self.down: list[p.ServerItem] = []
        self.link: int | None = None
        self.durable: list[str] = []
        self.count = 0
        self.shown: list[str] = []

    def pump(self) -> None:
        if self.link is not None:
            self.up.extend(self.rig.take(self.link))

    @rule(times=st.integers(1, 4))
    def send(self, times: int) -> None:
        for _ in range(times):
            self.count += 1
            self.durable.append(self.rig.send(f"k{self.count}"))
        self.pump()

    @rule()
    def crash_before_the_commit(self) -> None:
        self.count += 1
        self.rig.engine.submit(
            c.SendMessage(conversation="c1", key=f"k{self.count}", format="text", body="never"),
            self.rig.now,
        )
        self.leave_what_leaves()
        self.restart()

    @rule()
    def crash_after_the_commit(self) -> None:
        self.count += 1
        key = f"k{self.count}"
        self.rig.engine.submit(
            c.SendMessage(conversation="c1", key=key, format="text", body="kept"), self.rig.now
        )
        changes = self.rig.engine.take_changes()
        assert changes is not None
        self.rig.store.apply(changes)
        self.durable.append(message_id(self.rig.store.device, key))
        self.restart()

    @rule()
    def failed_commit(self) -> None:
        self.count += 1
        self.rig.engine.submit(
            c.SendMessage(conversation="c1", key=f"k{self.count}", format="text", body="refused"),
            self.rig.now,
        )
        for item in self.down:
            if self.link is not None:
                self.rig.engine.receive(self.link, item, self.rig.now)
        if self.rig.engine.take_changes() is None:
            return
        self.leave_what_leaves()
        self.rig.engine.commit_failed(self.rig.now)
        self.rig.act()
        self.drop_link()
        self.rig.engine.reload(self.rig.store.load(), self.rig.now)
        self.rig.settle()

    def leave_what_leaves(self) -> None:
        """Nothing of what is not on disk may be among it."""
        self.rig.act()
        self.pump()
        self.server_works(1000)

    @rule()
    def restart(self) -> None:
        self.remember()
        self.drop_link()
        self.rig.restart()
        self.rig.opened.clear()

    @precondition(lambda self: self.link is None)
    @rule()
    def connect(self) -> None:
        self.rig.engine.submit(c.SetToken(token="t"), self.rig.now)
        self.rig.engine.submit(c.Connect(), self.rig.now)
        self.rig.settle()
        self.rig.run(self.rig.now + 0.3)
        while self.rig.opened:
            link = self.rig.opened.pop()
            if link in self.rig.closed:
                continue
            self.rig.engine.opened(link, self.rig.now)
            self.rig.settle()
            self.rig.receive(link, self.rig.welcome(head(len(self.server.log))))
            if self.rig.engine.link.active == link:
                self.link = link
                self.rig.opened.clear()
                break
        self.pump()

    @precondition(lambda self: self.link is not None)
    @rule()
    def lose_link(self) -> None:
        link = self.link
        self.drop_link()
        assert link is not None
        self.rig.lose(link)

    @rule(count=st.integers(1, 5))
    def server_works(self, count: int) -> None:
        for _ in range(count):
            if self.up:
                answer = self.server.answer(self.up.pop(0), self.rig.store.device)
                if answer is not None:
                    self.down.append(answer)

    @rule(count=st.integers(1, 5))
    def answers_arrive(self, count: int) -> None:
        for _ in range(count):
            if self.down and self.link is not None:
                self.rig.receive(self.link, self.down.pop(0))
        self.pump()

    @rule(pushed=st.booleans())
    def another_member_sends(self, pushed: bool) -> None:
        seq = len(self.server.log) + 1
        self.server.log.append((f"other{seq}", "ben", f"text {seq}"))
        if self.link is not None:
            self.down.append(self.server.event(seq) if pushed else p.Heads(heads=(head(seq),)))

    @rule(seconds=st.floats(0.1, 3.0))
    def time_passes(self, seconds: float) -> None:
        self.rig.run(self.rig.now + seconds)
        self.pump()
        if self.link is not None and self.rig.engine.link.active != self.link:
            self.drop_link()

    def drop_link(self) -> None:
        self.link = None
        self.up.clear()
        self.down.clear()

    def remember(self) -> None:
        self.shown.extend(e.message.id for e in self.rig.events if isinstance(e, MessageReceived))
        self.rig.events.clear()

    @invariant()
    def nothing_is_doubled_or_reordered(self) -> None:
        if not hasattr(self, "server"):
            return
        ids = [id for id, _, _ in self.server.log]
        assert len(ids) == len(set(ids))
        own = [id for id in ids if id in set(self.durable)]
        assert own == self.durable[: len(own)]
        stored = [m.id for m in self.rig.store.messages("c1", limit=1000) if m.seq is not None]
        position = next((x.position for x in self.rig.store.conversations() if x.id == "c1"), 0)
        assert stored[:position] == ids[:position]

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        for _ in range(200):
            if self.link is None:
                self.connect()
            self.server_works(1000)
            self.answers_arrive(1000)
            self.time_passes(1.0)
            settled = self.rig.engine.pending == 0 and not self.up and not self.down
            caught_up = all(
                log.row.position == len(self.server.log) for log in self.rig.engine.timeline.logs.values()
            )
            if settled and caught_up and (self.rig.engine.timeline.logs or not self.server.log):
                break
        ids = [id for id, _, _ in self.server.log]
        assert [id for id in ids if not id.startswith("other")] == self.durable
        messages = self.rig.store.messages("c1", limit=1000)
        assert [m.id for m in messages] == ids
        assert [m.position for m in messages] == list(range(1, len(ids) + 1))
        self.remember()
        assert len(self.shown) == len(set(self.shown))
        assert self.shown == [id for id in ids if id in set(self.shown)]


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
