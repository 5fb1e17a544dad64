"""What every whimbrel server must do for those who come, come too fast, come again, and after a crash.

The other half of ``server_conformance``, which inherits from here.
"""

from __future__ import annotations

import asyncio

from whimbrel import protocol as p
from whimbrel.testing.server_speaker import Line, ServerStage, Speaker


async def created(stage: ServerStage, test: str, *names: str) -> tuple[Speaker, Speaker, str]:
    """Two users of this test alone, and a conversation of theirs with one entry: its creation."""
    first, second = [await Speaker(stage, f"{test}-{name}").sign_in() for name in names]
    room = f"room-{test}"
    body = {"id": room, "title": "T", "members": [second.name]}
    answer = await first.post("/api/conversations", body)
    assert answer.status_code == 201, answer.text
    return first, second, room


def send(conversation: str, n: int, *, stream: int = 1, key: str | None = None, body: str = "x") -> p.Send:
    """A message of this number."""
    return p.Send(conversation=conversation, stream=stream, n=n, key=key or f"key {n}", body=body)


class LifeConformance:
    """Signing in, links, credits, crashes."""

    # --- signing in ----------------------------------------------------------------------------

    async def test_it_says_that_it_is_there(self, stage: ServerStage) -> None:
        answer = await Speaker(stage, "nobody").get("/api/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")

    async def test_only_the_right_password_signs_in(self, stage: ServerStage) -> None:
        stage.user("password-ann")
        speaker = Speaker(stage, "password-ann")
        for name in ("password-ann", "password-unknown"):
            body = {"username": name, "password": "not the password", "device": speaker.device}
            answer = await speaker.post("/api/auth/login", body)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")

    async def test_a_device_belongs_to_one_user(self, stage: ServerStage) -> None:
        ann = await Speaker(stage, "device-ann").sign_in()
        ben = stage.user("device-ben")
        body = {"username": ben.username, "password": ben.password, "device": ann.device}
        assert (await Speaker(stage, "x").post("/api/auth/login", body)).status_code == 409

    async def test_refresh_tokens_rotate_and_reuse_ends_the_session(self, stage: ServerStage) -> None:
        ann = await Speaker(stage, "refresh-ann").sign_in()
        first = {"refresh_token": ann.refresh_token}
        ann.keep(await ann.post("/api/auth/refresh", first))
        lost = await ann.post("/api/auth/refresh", first)
        assert lost.status_code == 200, (
            "the answer may have been lost: the old one is good until its successor is"
        )
        successor = {"refresh_token": ann.refresh_token}
        assert (await ann.post("/api/auth/refresh", successor)).status_code in (200, 401)
        assert (await ann.post("/api/auth/refresh", first)).status_code == 401
        assert (await ann.post("/api/auth/refresh", successor)).status_code == 401

    async def test_without_a_token_there_is_nothing(self, stage: ServerStage) -> None:
        speaker = Speaker(stage, "nobody")
        answer = await speaker.get("/api/conversations")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        async with speaker.silent_line() as line:
            await line.say(p.Hello(token="made up"))  # noqa: S106 - it is none
            assert (await line.next(p.Error)).code == "unauthorized"
            assert await line.closed() == 1008

    # --- links ---------------------------------------------------------------------------------

    async def test_hello_comes_first(self, stage: ServerStage) -> None:
        async with Speaker(stage, "nobody").silent_line() as line:
            await line.say(send("anywhere", 1))
            assert (await line.next(p.Error)).code == "unauthorized"
            assert await line.closed() == 1008

    async def test_the_newest_hello_owns_the_device(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "replaced", "ann", "ben")
        async with ann.line() as older:
            await older.next(p.Welcome)
            async with ann.line() as newer:
                await newer.next(p.Welcome)
                assert (await older.next(p.Goaway)).reason == "replaced"
                assert await older.closed() == 1008
                await newer.say(send(room, 1))
                assert (await newer.next(p.Delivered)).n == 1

    async def test_what_it_does_not_know_costs_nothing_else(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "unknown", "ann", "ben")
        async with ann.line() as line:
            known = p.encode(send(room, 1)).decode()
            await line.say_raw(f'[{{"t":"from the future","x":1}},{known}]')
            assert (await line.next(p.Delivered)).n == 1
            await line.say(p.Ping(id=7))
            assert (await line.next(p.Pong)).id == 7

    async def test_what_is_no_frame_ends_the_link(self, stage: ServerStage) -> None:
        ann = await Speaker(stage, "frame-ann").sign_in()
        async with ann.line() as line:
            await line.next(p.Welcome)
            await line.say_raw("this is no array of items")
            assert (await line.next(p.Error)).code == "protocol"
            assert await line.closed() == 1002

    async def test_goodbye_closes(self, stage: ServerStage) -> None:
        ann = await Speaker(stage, "bye-ann").sign_in()
        async with ann.line() as line:
            await line.next(p.Welcome)
            await line.say(p.Bye())
            assert await line.closed() == 1000

    async def test_a_fresh_token_renews_a_standing_link(self, stage: ServerStage) -> None:
        ann = await Speaker(stage, "renew-ann").sign_in()
        eve = await Speaker(stage, "renew-eve").sign_in()
        async with ann.line() as line:
            await line.next(p.Welcome)
            ann.keep(await ann.post("/api/auth/refresh", {"refresh_token": ann.refresh_token}))
            await line.say(p.Auth(token=ann.token))
            assert not [item for item in await line.until_pong(1) if isinstance(item, p.Error)]
            await asyncio.sleep(1.1)  # more than one a second are too many
            await line.say(p.Auth(token=eve.token))
            assert (await line.next(p.Error)).code == "unauthorized"

    # --- how fast ------------------------------------------------------------------------------

    async def test_too_fast_is_told_and_nothing_passes_the_one_refused(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "credits", "ann", "ben")
        async with ann.line() as line:
            burst = (await line.next(p.Welcome)).credits.burst
            await line.say(*(send(room, n) for n in range(1, burst + 21)))
            outcomes = [await line.next(p.Delivered, p.Rejected, p.OutOfOrder) for _ in range(burst + 20)]
            delivered = [item.n for item in outcomes if isinstance(item, p.Delivered)]
            refused = [item for item in outcomes if isinstance(item, p.Rejected)]
            assert delivered == list(range(1, len(delivered) + 1)), "nothing overtakes"
            assert refused, "more than the burst was sent at once"
            assert {item.code for item in refused} == {"rate_limited"}
            wait_s = refused[0].retry_after_s
            assert wait_s is not None
            assert not refused[0].final
            await asyncio.sleep(wait_s + 0.1)
            await line.say(send(room, refused[0].n))
            assert (await line.next(p.Delivered)).n == len(delivered) + 1

    # --- a crash -------------------------------------------------------------------------------

    async def test_a_crash_loses_nothing_that_was_delivered(self, stage: ServerStage) -> None:
        ann, ben, room = await created(stage, "crash", "ann", "ben")
        async with ann.line() as line, ben.line() as other:
            welcome = await other.next(p.Welcome)
            await line.say(send(room, 1), send(room, 2))
            first, second = await line.next(p.Delivered), await line.next(p.Delivered)
            stage.crash()
            await self._gone(line)
        await stage.start()
        async with ann.line() as line:
            again = await line.next(p.Welcome)
            assert again.history == welcome.history
            await line.say(send(room, 1), send(room, 2), send(room, 3))
            assert await line.next(p.Delivered) == first
            assert await line.next(p.Delivered) == second
            assert (await line.next(p.Delivered)).seq == second.seq + 1
        async with ben.line(sync=welcome.sync) as line:
            resumed = await line.next(p.Welcome)
            assert not resumed.complete, "the token of before the crash is still good"
            assert [head.seq for head in resumed.heads if head.conversation == room] == [second.seq + 1]

    async def _gone(self, line: Line) -> None:
        assert await line.closed() in (1000, 1001, 1006, 1011, 1012)
