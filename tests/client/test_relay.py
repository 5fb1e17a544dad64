"""What a guest and the one that syncs say to each other, over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from whimbrel import errors, model
from whimbrel.client import doorway, relay
from whimbrel.store.handoff import KeyRaced
from whimbrel.store.integrity import Damage

LIMIT_S = 30


@asynccontextmanager
async def lines(path: Path) -> AsyncIterator[tuple[relay.Line, relay.Line]]:
    """Both ends of a connection: the guest's, the host's."""
    met: asyncio.Future[relay.Line] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_unix_server(
        lambda reader, writer: met.set_result(relay.Line(reader, writer)),
        sock=doorway.listen(path),
        limit=relay.FRAME_BYTES_MAX,
    )
    guest = await doorway.connect(path)
    assert guest is not None
    host = await met
    try:
        yield guest, host
    finally:
        server.close()
        await guest.close()
        await host.close()


async def test_both_prove_that_they_can_read_the_store(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        async with lines(tmp_path / "a") as (guest, host):
            assert all(await asyncio.gather(relay.enter(guest, "s"), relay.admit(host, "s")))
        async with lines(tmp_path / "b") as (guest, host):
            entering = asyncio.ensure_future(relay.enter(guest, "wrong"))
            assert not await relay.admit(host, "s")
            host.cut()
            assert not await entering
        async with lines(tmp_path / "c") as (guest, host):
            # Someone else at the address: what it says does not prove that it can read the store.
            entering = asyncio.ensure_future(relay.enter(guest, "s"))
            host.send(relay.Challenge(nonce="n"))
            entry: relay.GuestFrame | None = await host.receive(relay.guest_frames)
            assert isinstance(entry, relay.Enter)
            host.send(relay.Enough(proof="0" * 64))
            assert not await entering


async def test_a_proof_may_be_any_text(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        async with lines(tmp_path / "a") as (guest, host):
            entering = asyncio.ensure_future(relay.enter(guest, "s"))
            host.send(relay.Challenge(nonce="\u00e9"))
            await host.receive(relay.guest_frames)
            host.send(relay.Enough(proof="\u00e9"))
            assert not await entering
        async with lines(tmp_path / "b") as (guest, host):
            admitting = asyncio.ensure_future(relay.admit(host, "s"))
            guest.send(relay.Enter(proof="\u00e9", nonce="\u00e9"))
            assert not await admitting


async def test_what_is_not_understood_is_passed_over(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S), lines(tmp_path / "a") as (guest, host):
        host.send_line(b'{"f":"of tomorrow"}\n')
        host.send_line(b"\xff nonsense\n")
        host.send(relay.Stirred())
        assert await guest.receive(relay.host_frames) == relay.Stirred()
        host.cut()
        assert await guest.receive(relay.host_frames) is None
        guest.send(relay.Handed())  # into the void, quietly


async def test_who_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S), lines(tmp_path / "a") as (guest, host):
        line = relay.encoded(relay.Typing(conversation="x" * 100_000, on=True))
        for _ in range(2 * relay.UNSENT_BYTES_MAX // len(line) + 100):
            host.send_line(line)
        assert host._writer.is_closing()
        while await guest.receive(relay.guest_frames) is not None:
            pass


async def test_a_frame_larger_than_allowed_ends_the_connection(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S), lines(tmp_path / "a") as (guest, host):
        host.send_line(b"x" * (2 * relay.FRAME_BYTES_MAX) + b"\n")
        assert await guest.receive(relay.host_frames) is None


def test_every_event_travels_whole() -> None:
    events: list[model.Event] = [
        model.MessageChanged(
            id="m", conversation="c", status=model.SendStatus(state=model.SendState.RETRYING, retry=1)
        ),
        model.ConnectionChanged(state=model.ConnectionState.CONNECTED, latency_ms=1.5),
        model.ReceiptChanged(conversation="c", receipt=model.Receipt(user="u", read=2)),
        model.ConversationChanged(conversation=model.Conversation(id="c", title="t", members=("a",))),
        model.TypingChanged(conversation="c", user="u", on=True),
        model.AuthChanged(ok=True),
        model.PermanentFailure(id="m", conversation="c", reason=model.FailureReason.EXPIRED, text="t"),
    ]
    for event in events:
        frame = relay.told(event)
        assert isinstance(frame, relay.News)
        assert relay.event_of(frame) == event
    message = model.Message(id="m", conversation="c", sender="s", content="secret", sent_at=0.0, position=7)
    assert relay.told(model.MessageReceived(message=message)) == relay.Arrived(position=7)
    known = str(model.ConnectionChanged.name)
    for name, text in (("of tomorrow", "{}"), (known, '{"state":"of tomorrow"}'), (known, "nonsense")):
        assert relay.event_of(relay.News(name=name, event=msgspec.Raw(text))) is None


@pytest.mark.parametrize(
    "error",
    [
        errors.Unauthorized("no", hint="sign in"),
        errors.RateLimited("slow", retry_after_s=3.0),
        errors.QueueFull("full"),
        errors.InvalidArgument("bad"),
        errors.WhimbrelError("something"),
    ],
)
def test_errors_travel_with_their_kind(error: errors.WhimbrelError) -> None:
    again = relay.error_of(relay.failure_of(error))
    assert type(again) is type(error)
    assert (again.text, again.hint) == (error.text, error.hint)
    assert getattr(again, "retry_after_s", None) == getattr(error, "retry_after_s", None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(KeyRaced("m"), errors.StoreError), (Damage(Path("store.db"), "torn"), errors.StoreCorrupt)],
)
def test_an_error_of_a_module_travels_as_the_public_one(
    error: errors.WhimbrelError, kind: type[errors.WhimbrelError]
) -> None:
    again = relay.error_of(relay.failure_of(error))
    assert type(again) is kind
    assert again.text == error.text


def test_an_error_of_a_newer_version_is_an_error() -> None:
    again = relay.error_of(relay.Failure(code="of_tomorrow", text="t"))
    assert type(again) is errors.WhimbrelError
    assert str(again) == "t"


def test_frames_never_show_what_is_in_them() -> None:
    asking = relay.Ask(number=1, question=relay.SignIn(username="ann", password="a password"))
    assert "password" not in repr(asking)
    assert "password" not in repr(asking.question)
