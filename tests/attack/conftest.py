"""One attacked server for all tests of a worker; it must come out of each of them unharmed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.rig import Attacked, attacked_server, unharmed

PATIENCE_S = 3.0
"""What the server of these tests waits for headers, bodies and greetings; 10 s by default."""


def _impatient(folder: Path) -> contextlib.AbstractContextManager[Attacked]:
    return attacked_server(
        folder,
        headers_within_s=PATIENCE_S,
        server={"rate_limit": None, "greet_within_s": PATIENCE_S},
        http={"body_within_s": PATIENCE_S},
    )


@pytest.fixture(scope="session")
def attacked_by_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """One process for many tests: what one left behind, the next meets."""
    with _impatient(tmp_path_factory.mktemp("attacked")) as attacked:
        yield attacked


@pytest.fixture
def attacked(attacked_by_all: Attacked) -> Iterator[Attacked]:
    """The server, which after the test answers, and has logged nothing but what it may."""
    before = len(attacked_by_all.complaints())
    yield attacked_by_all
    unharmed(attacked_by_all, before)


@pytest.fixture
def attacked_afresh(tmp_path: Path) -> Iterator[Attacked]:
    """A process for this test alone, whose memory nobody has used before."""
    with _impatient(tmp_path) as attacked:
        yield attacked
        unharmed(attacked)
