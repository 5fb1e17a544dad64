"""Both ledgers keep the promises of the port."""

from pathlib import Path

import pytest

from whimbrel.server.ledger import Ledger
from whimbrel.server.ledger_memory import MemoryLedger, MemoryState
from whimbrel.server.ledger_sqlite import SqliteLedger
from whimbrel.testing.ledger_conformance import LedgerConformance


class TestMemoryLedger(LedgerConformance):
    @pytest.fixture(autouse=True)
    def states(self) -> None:
        self._states: dict[Path, MemoryState] = {}

    def make(self, path: Path) -> Ledger:
        ledger = MemoryLedger(self._states.get(path))
        self._states[path] = ledger.state
        return ledger


class TestSqliteLedger(LedgerConformance):
    def make(self, path: Path) -> Ledger:
        return SqliteLedger(path, b"k" * 32)
