"""A coffee shop's bot, as one writes it first: it numbers every order and confirms it to the customer.

    python -m examples.order_bot.first http://127.0.0.1:8000 bot.db till.db

It survives restarts (the till and the store are files), and it works for months on good networks. It has a
bug, which a storm finds: see ``test_order_bot.py``. ``fixed.py`` is the same bot without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
from pathlib import Path

from whimbrel import Client, Credentials, DeliveryPending, Message

CONFIRM_WITHIN_S = 5.0
CONFIRM_TIMES = 3


class Till:
    """The orders of the day, in a file."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path)
        self._db.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, id UNIQUE, what)")

    def take(self, order: Message) -> int:
        """Give the order's number; the same number if it was taken before."""
        with self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO orders (id, what) VALUES (?, ?)", (order.id, order.content)
            )
        (number,) = self._db.execute("SELECT number FROM orders WHERE id = ?", (order.id,)).fetchone()
        return int(number)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class OrderBot:
    """Takes orders from every conversation it is a member of."""

    def __init__(self, client: Client, till: Till) -> None:
        self.client = client
        self.till = till

    async def work(self) -> None:
        """Take orders, one after the other, until the client closes."""
        async for event in self.client.events(consumer="orders"):
            order = event.message
            if isinstance(order.content, str) and order.sender != self.client.user:
                number = self.till.take(order)
                await self.confirm(order, f"Order {number} is coming: {order.content}")
            await event.done()  # not before: after a crash it is given to us again

    async def confirm(self, order: Message, text: str) -> None:
        """Tell the customer, and make sure that it arrives: without an answer in time, say it again."""
        for _ in range(CONFIRM_TIMES):
            message = await self.client.send(order.conversation, text, reply_to=order.id)
            with contextlib.suppress(DeliveryPending):
                await message.delivered(timeout=CONFIRM_WITHIN_S)
                return


async def run(client: Client, till_path: Path, bot: type[OrderBot] = OrderBot) -> None:
    """Be the bot until cancelled."""
    with contextlib.closing(Till(till_path)) as till:
        async with client:
            await bot(client, till).work()


if __name__ == "__main__":
    url, store, till_path = sys.argv[1:]
    signed_in_as = Credentials("bot", os.environ["BOT_PASSWORD"])
    asyncio.run(run(Client(url, store, signed_in_as), Path(till_path)))
