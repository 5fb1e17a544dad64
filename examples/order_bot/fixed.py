"""The coffee shop's bot without the bug.

What was wrong: a message that is not delivered in time is not lost, it waits. Saying it again makes a second
message, and the customer gets both; so does a crash between ``send()`` and ``event.done()``. What helps: one
key for one confirmation. Sent again under its key, it is the same message, for ever; and that it arrives is
not the bot's business but the outbox's.
"""

from __future__ import annotations

from examples.order_bot import first
from whimbrel import Message


class OrderBot(first.OrderBot):
    """Takes orders, and confirms each once."""

    async def confirm(self, order: Message, text: str) -> None:
        """Tell the customer."""
        await self.client.send(order.conversation, text, key=f"confirm-{order.id}", reply_to=order.id)
