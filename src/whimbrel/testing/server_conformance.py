"""What every whimbrel server must do, as tests to inherit from. Needs what runs ``async def`` tests.

Subclass ``ServerConformance`` in a test file as ``Test…`` and define the fixture ``stage`` (a
``ServerStage``); it may serve many tests, since each uses users and conversations of its own. The real
server in a process of its own, over sockets, and ``MemoryServer`` on a virtual network run the same tests.
What a server keeps over a crash, whom it lets in, and how fast, is inherited from
``server_conformance_life``.
"""

from __future__ import annotations

from whimbrel import protocol as p
from whimbrel.model import message_id
from whimbrel.testing.server_conformance_life import LifeConformance, created, send
from whimbrel.testing.server_speaker import ServerStage, Speaker


class ServerConformance(LifeConformance):
    """Everything a server must do."""

    # --- sending -------------------------------------------------------------------------------

    async def test_a_message_is_delivered_to_everyone_who_should_have_it(self, stage: ServerStage) -> None:
        ann, ben, room = await created(stage, "sending", "ann", "ben")
        phone = await Speaker(stage, ann.name, 2).sign_in()
        async with ann.line() as sender, phone.line() as other, ben.line() as member:
            for line in (sender, other, member):
                await line.next(p.Welcome)
            await sender.say(send(room, 1, body="hello"))
            delivered = await sender.next(p.Delivered, p.Rejected)
            assert isinstance(delivered, p.Delivered)
            assert (delivered.n, delivered.seq) == (1, 2)
            assert delivered.id == message_id(ann.device, "key 1")
            for line in (other, member):
                event = await line.next(p.Event)
                assert (event.id, event.seq, event.epoch) == (delivered.id, delivered.seq, delivered.epoch)
                assert (event.sender, event.body, event.kind) == (ann.name, "hello", "message")
            # For the sending link the confirmation stands for the event.
            assert not [item for item in await sender.until_pong(1) if isinstance(item, p.Event)]

    async def test_a_repeat_gets_the_same_answer_and_writes_nothing(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "repeat", "ann", "ben")
        async with ann.line() as line:
            await line.say(send(room, 1))
            first = await line.next(p.Delivered)
            await line.say(send(room, 1), send(room, 1))
            assert await line.next(p.Delivered) == first
            assert await line.next(p.Delivered) == first
            await line.say(p.Fetch(conversation=room))
            assert (await line.next(p.Page)).head == first.seq

    async def test_a_number_is_settled_once_whatever_is_offered_again(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "conflict", "ann", "ben")
        async with ann.line() as line:
            await line.say(send(room, 1, body="this"))
            await line.next(p.Delivered)
            await line.say(send(room, 1, body="that"))
            rejected = await line.next(p.Rejected)
            assert (rejected.n, rejected.code) == (1, "conflict")

    async def test_numbers_come_in_order(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "order", "ann", "ben")
        async with ann.line() as line:
            await line.say(send(room, 3))
            assert (await line.next(p.OutOfOrder)).expected == 1
            await line.say(*(send(room, n) for n in range(1, 21)))
            delivered = [await line.next(p.Delivered) for _ in range(20)]
            assert [(one.n, one.seq) for one in delivered] == [(n, n + 1) for n in range(1, 21)]

    async def test_streams_and_conversations_count_apart(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "streams", "ann", "ben")
        async with ann.line() as line:
            await line.say(send(room, 1, stream=1, key="a"), send(room, 1, stream=2, key="b"))
            assert {(await line.next(p.Delivered)).stream for _ in range(2)} == {1, 2}

    async def test_a_void_number_lets_those_behind_it_go_on(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "void", "ann", "ben")
        void = p.Void(conversation=room, stream=1, n=1, key="key 1")
        async with ann.line() as line:
            await line.say(void, send(room, 2), void, send(room, 1))
            assert (await line.next(p.Voided, p.Delivered, p.Rejected)) == p.Voided(
                conversation=room, stream=1, n=1, reason="cancelled"
            )
            assert (await line.next(p.Delivered)).n == 2
            assert (await line.next(p.Voided)).n == 1
            assert (await line.next(p.Voided)).n == 1

    async def test_it_tells_what_became_of_numbers(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "status", "ann", "ben")
        async with ann.line() as line:
            await line.say(send(room, 1), p.Status(conversation=room, stream=1, numbers=(1, 2)))
            first = await line.next(p.Delivered)
            assert await line.next(p.Delivered) == first
            assert (await line.next(p.OutOfOrder)).expected == 2

    async def test_http_and_websocket_count_the_same_numbers(self, stage: ServerStage) -> None:
        ann, _, room = await created(stage, "http", "ann", "ben")
        path = f"/api/conversations/{room}/messages/buffered"
        body = {"stream": 1, "n": 1, "key": "key 1", "body": "x"}
        answer = await ann.post(path, body)
        assert answer.status_code == 200, answer.text
        async with ann.line() as line:
            await line.say(send(room, 1), send(room, 2))
            delivered = await line.next(p.Delivered)
            assert (delivered.id, delivered.seq) == (answer.json()["server_id"], answer.json()["seq"])
            await line.next(p.Delivered)
        again = await ann.post(path, {"stream": 1, "n": 2, "key": "key 2", "body": "x"})
        assert (again.status_code, again.json()["seq"]) == (200, 3)
        ahead = await ann.post(path, {"stream": 1, "n": 9, "key": "key 9", "body": "x"})
        assert (ahead.status_code, ahead.json()["code"], ahead.json()["expected"]) == (409, "out_of_order", 3)
        assert ahead.headers["content-type"] == "application/problem+json"

    # --- reading -------------------------------------------------------------------------------

    async def test_the_log_is_read_in_pages_without_gaps(self, stage: ServerStage) -> None:
        ann, ben, room = await created(stage, "pages", "ann", "ben")
        async with ann.line() as line:
            await line.say(*(send(room, n) for n in range(1, 8)))
            for _ in range(7):
                await line.next(p.Delivered)
        seqs: list[int] = []
        async with ben.line() as line:
            while True:
                await line.say(p.Fetch(conversation=room, since=len(seqs), limit=3))
                page = await line.next(p.Page)
                assert (page.head, page.floor, page.since) == (8, 0, len(seqs))
                seqs += [event.seq for event in page.events]
                if len(page.events) < 3:
                    break
        assert seqs == list(range(1, 9))
        answer = await ben.get(f"/api/conversations/{room}/messages", since=6, limit=10)
        assert [event["seq"] for event in answer.json()["messages"]] == [7, 8]
        answer = await ben.get(f"/api/conversations/{room}/messages", before=4, limit=2)
        assert sorted(event["seq"] for event in answer.json()["messages"]) == [2, 3]

    async def test_a_stranger_cannot_tell_whether_it_exists(self, stage: ServerStage) -> None:
        _, _, room = await created(stage, "stranger", "ann", "ben")
        eve = await Speaker(stage, "stranger-eve").sign_in()
        answers = []
        async with eve.line() as line:
            await line.next(p.Welcome)
            for conversation in (room, "no-such-conversation"):
                await line.say(p.Fetch(conversation=conversation), send(conversation, 1))
                refused, rejected = await line.next(p.Error), await line.next(p.Rejected)
                status = (await eve.get(f"/api/conversations/{conversation}/messages")).status_code
                answers.append((refused.code, rejected.code, rejected.final, status))
        assert answers == [("not_found", "not_found", True, 404)] * 2

    async def test_resuming_tells_what_changed_and_only_that(self, stage: ServerStage) -> None:
        ann, ben, room = await created(stage, "resume", "ann", "ben")
        async with ann.line() as line:
            await line.say(p.Call(id="c", op="create", conversation=f"{room}-quiet", members=(ben.name,)))
            await line.next(p.Answer)
        async with ben.line() as line:
            welcome = await line.next(p.Welcome)
            assert welcome.complete
            assert {head.conversation for head in welcome.heads} == {room, f"{room}-quiet"}
        async with ann.line() as line:
            await line.say(send(room, 1))
            await line.next(p.Delivered)
        async with ben.line(sync=welcome.sync) as line:
            again = await line.next(p.Welcome)
            assert not again.complete
            assert [(head.conversation, head.seq) for head in again.heads] == [(room, 2)]
            assert again.history == welcome.history
        async with ben.line(sync="made up") as line:
            assert (await line.next(p.Welcome)).complete

    # --- members, receipts, typing -------------------------------------------------------------

    async def test_who_joins_sees_from_then_on_and_who_leaves_nothing_more(self, stage: ServerStage) -> None:
        ann, ben, room = await created(stage, "members", "ann", "ben")
        eve = await Speaker(stage, "members-eve").sign_in()
        async with ann.line() as line, eve.line() as joining:
            await line.say(send(room, 1))
            await line.next(p.Delivered)
            await joining.next(p.Welcome)
            await line.say(p.Call(id="add", op="add", conversation=room, user=eve.name))
            assert (await line.next(p.Answer)).code == ""
            assert (await joining.next(p.Heads)).heads[0].conversation == room
            await joining.say(p.Fetch(conversation=room))
            page = await joining.next(p.Page)
            assert page.floor == 2
            assert [event.kind for event in page.events] == ["member"]
            await line.say(p.Call(id="out", op="remove", conversation=room, user=eve.name))
            assert (await line.next(p.Answer)).code == ""
            await line.say(send(room, 2, body="without eve"))
            await line.next(p.Delivered)
            seen = await joining.until_pong(5)
            assert not [item for item in seen if isinstance(item, p.Event) and item.body == "without eve"]
        assert (await eve.get(f"/api/conversations/{room}")).status_code == 404
        members = await ben.get(f"/api/conversations/{room}/members")
        assert members.json() == {"members": [ann.name, ben.name]}

    async def test_a_conversation_made_again_is_the_same_one(self, stage: ServerStage) -> None:
        ann, ben, room = await created(stage, "made", "ann", "ben")
        async with ann.line() as line:
            for members, code in (((ben.name,), ""), ((), "conflict"), (("made-nobody",), "not_found")):
                call = p.Call(id=f"{code} again", op="create", conversation=room, title="T", members=members)
                await line.say(call)
                answer = await line.next(p.Answer)
                assert (answer.id, answer.code) == (call.id, code)

    async def test_receipts_reach_the_others_and_never_go_back(self, stage: ServerStage) -> None:
        ann, ben, room = await created(stage, "receipts", "ann", "ben")
        async with ann.line() as sender, ben.line() as reader:
            await sender.say(send(room, 1), send(room, 2))
            await sender.next(p.Delivered)
            await sender.next(p.Delivered)
            await reader.say(p.Read(conversation=room, seq=3), p.Received(conversation=room, seq=1))
            told = await sender.next(p.Receipts)
            assert (told.conversation, told.receipts) == (room, ((ben.name, 3, 3),))
        path = f"/api/conversations/{room}/receipts"
        merged = await ben.post(path, {"received": 2, "read": 1})
        assert merged.json() == {"received": 3, "read": 3}

    async def test_typing_reaches_the_others(self, stage: ServerStage) -> None:
        ann, ben, room = await created(stage, "typing", "ann", "ben")
        async with ann.line() as line, ben.line() as other:
            await other.next(p.Welcome)
            await line.say(p.Typing(conversation=room, on=True))
            told = await other.next(p.TypingOf)
            assert (told.conversation, told.user, told.on) == (room, ann.name, True)
