"""Any order of operations, repeated and batched in any way, gives the log a simple model gives."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel.model import message_id
from whimbrel.server import ledger as led
from whimbrel.server.ledger_memory import MemoryLedger
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.testing.ledger_conformance_settle import append, create, void

DEVICES = {"a" * 26: "ann", "b" * 26: "ben", "e" * 26: "eve"}


class Model:
    """The rules told as simply as can be: no batches, no tables, one conversation."""

    def __init__(self) -> None:
        self.log: list[str] = ["info"]
        self.floors = {"ann": 0, "ben": 0}
        self.present = {"ann", "ben"}
        self.settled: dict[tuple[str, int], list[tuple[str, str | None, str]]] = {}
        self.content: dict[str, str] = {}

    def apply(self, operation: Any) -> str:
        match operation:
            case led.Append():
                return self.append(operation)
            case led.AppendVoid():
                item = operation.void
                id = message_id(operation.device, item.key)
                return self.settle(operation.device, item, id, None, lambda: self.void(id))
            case led.AddMember():
                if operation.user not in self.present:
                    return "not_found"
                if operation.member not in self.present:
                    self.present.add(operation.member)
                    self.floors[operation.member] = len(self.log)
                    self.log.append(f"joined {operation.member}")
                return "set"
            case led.RemoveMember():
                if operation.user not in self.present:
                    left = operation.user == operation.member and operation.user in self.floors
                    return "set" if left else "not_found"
                if operation.member in self.present:
                    self.present.discard(operation.member)
                    self.log.append(f"left {operation.member}")
                return "set"
            case _:
                raise AssertionError(operation)

    def settle(self, device: str, item: Any, id: str, body: str | None, new: Any) -> str:
        numbers = self.settled.setdefault((device, item.stream), [])
        if item.n > len(numbers) + 1:
            return f"ahead {len(numbers) + 1}"
        if item.n <= len(numbers):
            known, offered, outcome = numbers[item.n - 1]
            if outcome.startswith("seq"):
                offered = self.content[known]
            same = known == id and (body is None or offered in (None, body))
            return outcome if same else "conflict"
        outcome = str(new())
        if outcome != "refused":
            numbers.append((id, body, outcome))
        return outcome

    def void(self, id: str) -> str:
        return f"seq {self.log.index(id) + 1}" if id in self.log else "void"

    def append(self, operation: led.Append) -> str:
        item = operation.send
        id = message_id(operation.device, item.key)

        def new() -> str:
            if id in self.log:
                if self.content[id] == item.body:
                    return self.void(id)
            elif operation.user in self.present:
                self.log.append(id)
                self.content[id] = item.body
                return f"seq {len(self.log)}"
            return "refused" if item.on_reject == "block" else "void"

        return self.settle(operation.device, item, id, item.body, new)


def told(outcome: Any) -> str:
    """Give an outcome in the model's words."""
    match outcome:
        case led.Committed(event=event):
            return f"seq {event.seq}"
        case led.WasVoided():
            return "void"
        case led.Ahead(expected=expected):
            return f"ahead {expected}"
        case led.ConversationSet():
            return "set"
        case led.Refused(code=code):
            return str(code)
        case _:
            raise AssertionError(outcome)


@st.composite
def operations(draw: st.DrawFn) -> Any:
    device = draw(st.sampled_from(sorted(DEVICES)))
    user = DEVICES[device]
    n, stream = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    # Mostly the key a client gives the number, sometimes one of another number or stream.
    key = f"k{draw(st.one_of(st.just(n), st.integers(1, 5)))}"
    match draw(st.sampled_from(["send", "send", "send", "send", "void", "add", "remove"])):
        case "send":
            body, reject = draw(st.sampled_from("xxxy")), draw(st.sampled_from(["skip", "block"]))
            return append(n, key, user=user, device=device, stream=stream, body=body, on_reject=reject)
        case "void":
            item = void(n, key, stream=stream)
            return led.AppendVoid(user=user, device=device, void=item.void)
        case "add":
            member = draw(st.sampled_from(sorted(DEVICES.values())))
            return led.AddMember(user=user, conversation="c1", member=member)
        case _:
            member = draw(st.sampled_from(sorted(DEVICES.values())))
            return led.RemoveMember(user=user, conversation="c1", member=member)


def check(ledger: led.Ledger, batches: list[list[Any]]) -> None:
    ledger.apply([create()], 0.0)
    model = Model()
    for batch in batches:
        before = ledger.commit
        expected = [model.apply(operation) for operation in batch]
        outcomes = ledger.apply(batch, 1.0)
        for operation, wanted, outcome in zip(batch, expected, outcomes, strict=True):
            got = told(outcome)
            if wanted == "refused":
                assert got in {"not_found", "conflict"}, operation
            else:
                assert got == wanted, operation
        assert ledger.commit in (before, before + 1)
    for user, floor in model.floors.items():
        page = ledger.page(user, "c1", limit=100)
        assert page is not None
        assert page.floor == floor
        if user in model.present:
            ids = [event.id if event.kind == "message" else event.kind for event in page.events]
            kinds = {"info": "info", "joined": "member", "left": "member"}
            assert ids == [kinds.get(entry.split()[0], entry) for entry in model.log[floor:]]
    assert ledger.members("c1") == tuple(sorted(model.present))
    for (device, stream), numbers in model.settled.items():
        for n, (_, _, wanted) in enumerate(numbers, 1):
            assert told(ledger.settled(device, "c1", stream, n)) == wanted


BATCHES = st.lists(st.lists(operations(), max_size=6), max_size=12)


@given(BATCHES)
@settings(max_examples=150)
def test_memory_ledger_is_the_model(batches: list[list[Any]]) -> None:
    check(MemoryLedger(), batches)


@given(BATCHES)
@settings(max_examples=40)
def test_sqlite_ledger_is_the_model(batches: list[list[Any]]) -> None:
    with TemporaryDirectory() as folder:
        ledger = SqliteLedger(Path(folder, "ledger.db"), b"k" * 32)
        try:
            check(ledger, batches)
        finally:
            ledger.close()


def test_model_tells_a_wrong_ledger() -> None:
    class Forgetful(MemoryLedger):
        def apply(self, operations: Any, now: float) -> list[led.Outcome]:
            outcomes = super().apply(operations, now)
            self.state.streams.clear()
            return outcomes

    with pytest.raises(AssertionError):
        check(Forgetful(), [[append(1)], [append(2)]])
