"""What a device knows of one log."""

from __future__ import annotations

from whimbrel.core.contract import ConversationRow
from whimbrel.core.log import Log


def test_the_row_it_was_made_of_stays_as_it_was() -> None:
    """A store in memory gives away the rows it keeps: what is not committed must not show in them."""
    row = ConversationRow(id="c", position=3)
    log = Log(row)
    log.row.position = 4
    assert (row.position, log.durable.position) == (3, 3)
