"""One SQL statement over many rows at once.

Each run of a statement gives the interpreter's lock away and takes it back, and waits for whatever Python the
other threads are at. So rows are written in lots, by statements that are made for lots of a few sizes, and
prepared once each.

Both sides use it: the client's store and the server's ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import apsw

_LOTS = (64, 16, 4, 1)


def execute_in_lots(
    db: apsw.Connection | apsw.Cursor, statement: Callable[[int], str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Run ``statement(count)``, which takes the values of so many rows, until all are through, in order."""
    begin = 0
    for count in _LOTS:
        while len(rows) - begin >= count:
            db.execute(statement(count), list(chain.from_iterable(rows[begin : begin + count])))
            begin += count


def places(columns: int, rows: int) -> str:
    """The places of the values of so many rows: ``(?, ?), (?, ?)``."""
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)
