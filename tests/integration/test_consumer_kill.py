"""Durable consumers in processes that are killed, handler and ``done()`` apart: all is handed out, in order.

At least once, each under an id that stays; and exactly once for a handler that keeps the id in the
transaction of what it does.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from tests.client.real_server import LIMIT_S, PASSWORD
from tests.integration.bot import Halt, Work, steps, totals
from tests.integration.programs import Book, Program
from tests.integration.rig import ANNA, stage, until
from tests.rounds import Rounds
from whimbrel import Client

PER_LIFE = 6
"""Messages between two kills."""
BEHIND_CI, BEHIND = 600, 10_000
STEPS = ("got", "half", "handled", "done", "any")


def encoded(work: Work) -> list[str]:
    return [msgspec.json.encode(work).decode()]


async def until_halted(folder: Path, consumer: str, life: int) -> None:
    """Wait until this life hangs where it was told to."""
    book = Book(folder / f"{consumer}.steps")
    await until(lambda: book.last().startswith(f"{life} halted "))


def check_steps(folder: Path, consumer: str) -> list[str]:
    """Assert the order of all that was handed out, over all lives; gives the ids in the order of arrival."""
    ids: dict[int, str] = {}
    life_before, got_before, handled, done = -1, 0, 0, 0
    for life, step, position, id in steps(folder, consumer):
        assert ids.setdefault(position, id) == id, "an entry changed its id or its place"
        if step == "got":
            if life == life_before:
                assert position == got_before + 1, "an entry was skipped, or came twice in one life"
            else:
                # Right behind what is done for good; that done() returned may not have been written down.
                assert done < position <= handled + 1, "the wrong entry after a restart"
            life_before, got_before = life, position
        elif step == "handled":
            handled = max(handled, position)
        elif step == "done":
            assert position == done + 1 or position == handled
            done = max(done, position)
    assert sorted(ids) == list(range(1, len(ids) + 1))
    return [ids[position] for position in sorted(ids)]


async def entries(client: Client, conversation: str) -> list[str]:
    """The ids of the whole log, by seq, as another member has it."""
    found: list[str] = []
    after = 0
    while page := await client.conversation(conversation).messages(after=after, limit=1_000):
        found += [message.id for message in page]
        assert page[-1].seq is not None, "asked for before all was delivered"
        after = page[-1].seq
    return found


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", ["fixed", "fresh"])
async def test_killed_between_handler_and_done_every_entry_is_handled_and_counted_once(
    which: str, rounds: Rounds, tmp_path: Path
) -> None:
    rng = random.Random(5 if which == "fixed" else rounds.fresh_seed())
    lives = rounds.of(ci=len(STEPS) if which == "fixed" else 3, soak=300)
    async with stage(tmp_path) as (server, _, conversation), Client(server.url, None, ANNA) as anna:
        work = Work(url=server.url, user="ben", password=PASSWORD, folder=str(tmp_path))
        async with Program("integration/bot.py", [], Book(tmp_path / "bot.steps")) as bot:
            sent = 0
            for life in range(lives):
                step = STEPS[life % len(STEPS)]
                # "any": at any instant, opening the store and signing in among them.
                halt = None if step == "any" else Halt(step=step, after=rng.randrange(PER_LIFE))
                bot.arguments = encoded(msgspec.structs.replace(work, life=life, halt=halt))
                await bot.start()
                if rng.random() < 0.3:
                    await server.kill()
                    await server.start()
                for _ in range(PER_LIFE):
                    sent += 1
                    await anna.send(conversation, f"order {sent}")
                if halt is None:
                    await asyncio.sleep(rng.random() * 1.2)
                else:
                    await until_halted(tmp_path, "bot", life)
                await bot.kill()
            assert await anna.flush(LIMIT_S) == 0
            log = await entries(anna, conversation)
            bot.arguments = encoded(msgspec.structs.replace(work, life=lives, until=len(log)))
            await bot.start()
            await bot.ended()
    assert check_steps(tmp_path, "bot") == log
    count, careful, careless = totals(tmp_path, "bot")
    assert count == len(log)
    assert careful == sum(range(1, sent + 1))
    handled = [id for _, step, _, id in steps(tmp_path, "bot") if step == "handled"]
    assert len(handled) > len(set(handled)), "nothing was ever handled twice: the kills missed"
    assert careless >= careful
    rounds.figure(f"kills of a bot between handler and done(), {which} seed", bot.kills, "kills")
    rounds.figure(
        f"entries a bot's own transaction counted wrongly, {which} seed",
        count - len(log),
        "entries",
        target=0,
    )


@pytest.mark.timeout(120)
async def test_consumers_by_different_names_go_on_alone_and_a_late_one_begins_at_the_oldest(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (server, _, conversation), Client(server.url, None, ANNA) as anna:
        for number in range(1, 21):
            await anna.send(conversation, f"order {number}")
        assert await anna.flush(LIMIT_S) == 0
        log = await entries(anna, conversation)
        work = Work(
            url=server.url,
            user="ben",
            password=PASSWORD,
            folder=str(tmp_path),
            consumers=("slow", "fast"),
            halt=Halt(step="handled", after=3),
        )
        async with Program("integration/bot.py", encoded(work), Book(tmp_path / "slow.steps")) as bot:
            await bot.start()
            # One hangs in its handler; the other does not wait for it.
            fast = Book(tmp_path / "fast.steps")
            await until(lambda: fast.last() == f"0 done {len(log)} {log[-1]}")
            await until_halted(tmp_path, "slow", 0)
            assert totals(tmp_path, "slow")[0] == 4
            await bot.kill()
            bot.arguments = encoded(
                msgspec.structs.replace(
                    work, life=1, consumers=("slow", "fast", "late"), halt=None, until=len(log)
                )
            )
            await bot.start()
            await bot.ended()
    for consumer in ("slow", "fast", "late"):
        assert check_steps(tmp_path, consumer) == log
        count, careful, _ = totals(tmp_path, consumer)
        assert (count, careful) == (len(log), sum(range(1, 21)))
    assert [position for life, _, position, _ in steps(tmp_path, "fast") if life == 1] == []
    again = [position for life, step, position, _ in steps(tmp_path, "slow") if (life, step) == (1, "got")]
    assert again == list(range(4, len(log) + 1))


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_consumer_far_behind_catches_up_over_kills_and_restarts_of_the_server(
    rounds: Rounds, tmp_path: Path
) -> None:
    """The bot has never run; the log is long; it and the server are killed on the way."""
    count = rounds.of(ci=BEHIND_CI, soak=BEHIND)
    async with stage(tmp_path) as (server, _, conversation), Client(server.url, None, ANNA) as anna:
        for start in range(0, count, 500):
            numbers = range(start + 1, min(start + 500, count) + 1)
            await asyncio.gather(*(anna.send(conversation, f"order {number}") for number in numbers))
        assert await anna.flush(LIMIT_S) == 0
        log = await entries(anna, conversation)
        work = Work(
            url=server.url,
            user="ben",
            password=PASSWORD,
            folder=str(tmp_path),
            halt=Halt(step="handled", after=count // 3),
        )
        async with Program("integration/bot.py", encoded(work), Book(tmp_path / "bot.steps")) as bot:
            await bot.start()
            await until(lambda: bot.book.last() != "")
            await server.kill()
            await server.start()
            await until_halted(tmp_path, "bot", 0)
            await bot.kill()
            bot.arguments = encoded(msgspec.structs.replace(work, life=1, halt=None, until=len(log)))
            await bot.start()
            await bot.ended()
    assert check_steps(tmp_path, "bot") == log
    assert totals(tmp_path, "bot")[:2] == (len(log), sum(range(1, count + 1)))
    rounds.figure("entries a new consumer was behind, and was handed without a gap", len(log), "entries")
