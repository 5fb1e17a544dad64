"""The bot's own tests, as its developer writes them: ``pytest examples/order_bot --storm-seeds 20``.

Run with ``ORDER_BOT=first`` they show the bug, and the seed that repeats it.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from examples.order_bot import first, fixed
from whimbrel.testing import MemoryServer, Storm

ORDERS = 15
KEY = b"the key of the bot's own store, "
BOT = first.OrderBot if os.environ.get("ORDER_BOT") == "first" else fixed.OrderBot


async def scenario(server: MemoryServer, storm: Storm, folder: Path, bot: type[first.OrderBot]) -> None:
    """A customer orders in a storm, which kills the bot now and then; each order is confirmed once."""
    storm.app(
        "bot",
        lambda: first.run(server.client("bot", folder / "bot.db", key=KEY), folder / "till.db", bot),
    )
    async with server.client("cara") as cara:
        counter = await cara.create_conversation("bot", id="counter")
        async with storm:
            for number in range(ORDERS):
                await counter.send(f"coffee {number}")
                await asyncio.sleep(storm.random.uniform(0, 30))

        def confirmed() -> list[str | None]:
            return [message.reply_to for message in server.messages("counter") if message.sender == "bot"]

        await storm.until(lambda: len(set(confirmed())) == ORDERS)
        orders = [message.id for message in server.messages("counter") if message.sender == "cara"]
        assert sorted(orders) == sorted(map(str, confirmed())), "each order is confirmed once"


@pytest.mark.storm(seeds=2)
async def test_each_order_is_confirmed_once(
    whimbrel_server: MemoryServer, storm: Storm, tmp_path: Path
) -> None:
    await scenario(whimbrel_server, storm, tmp_path, BOT)
