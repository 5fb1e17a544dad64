"""The token through the engine: renewed on a standing link, asked for when a message is refused."""

from __future__ import annotations

import msgspec

from tests.core.rig import Rig, head, of_kind
from whimbrel import protocol as p
from whimbrel.core import contract as c
from whimbrel.model import Attempt, FailureReason


def test_a_token_that_came_between_hello_and_welcome_is_told_on_the_link() -> None:
    rig = Rig()
    rig.engine.submit(c.SetToken(token="old", expires_in_s=900.0), rig.now)
    rig.engine.submit(c.Connect(), rig.now)
    rig.settle()
    link = rig.opened.pop()
    rig.engine.opened(link, rig.now)
    rig.settle()
    rig.engine.submit(c.SetToken(token="new", expires_in_s=900.0), rig.now)
    rig.receive(link, rig.welcome(head()))
    (auth,) = of_kind(rig.take(link), p.Auth)
    assert isinstance(auth, p.Auth)
    assert auth.token == "new"


def test_a_message_refused_for_its_token_asks_for_a_new_one_and_uses_no_attempt() -> None:
    rig = Rig()
    link = rig.connect(head())
    id = rig.send("a")
    rig.take(link)
    before = rig.refreshes
    rig.receive(link, p.Rejected(conversation="c1", stream=1, n=1, code="unauthorized"))
    assert rig.refreshes == before + 1
    row = rig.store.row(id)
    assert row is not None
    assert row.retry_count == 0


def test_a_reason_of_a_newer_version_reads_as_unknown() -> None:
    attempt = msgspec.json.decode(b'{"at":1.0,"reason":"from_the_future"}', type=Attempt)
    assert attempt.reason is FailureReason.UNKNOWN


def test_after_sleep_a_link_is_asked_whether_it_lives_and_a_stopped_client_stays_stopped() -> None:
    rig = Rig()
    link = rig.connect()
    rig.engine.submit(c.WokeUp(), rig.now)
    rig.settle()
    assert [type(item) for item in rig.take(link)] == [p.Ping]
    assert rig.engine.link.active == link
    rig.engine.submit(c.Disconnect(), rig.now)
    rig.engine.submit(c.WokeUp(), rig.now)
    rig.settle()
    assert rig.engine.connection(rig.now).state == "stopped"
