"""What a simulated world is built of: the parts that an ablation replaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from whimbrel.core.contract import Settings
from whimbrel.server.settings import ServerSettings
from whimbrel.testing.simclient import Client
from whimbrel.testing.simdisk import Disk
from whimbrel.testing.simledger import LedgerDisk
from whimbrel.testing.simplan import SimPlan
from whimbrel.testing.simserver import Server

__all__ = ["Parts"]

T = TypeVar("T")


def _as_it_is(thing: T) -> T:
    return thing


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One world's parts."""

    client: type[Client] = Client
    disk: type[Disk] = Disk
    ledger_disk: type[LedgerDisk] = LedgerDisk
    server: type[Server] = Server
    settings: Callable[[Settings], Settings] = _as_it_is
    server_settings: Callable[[ServerSettings], ServerSettings] = _as_it_is
    plan: Callable[[SimPlan], SimPlan] = _as_it_is
    """What a storm must hold besides for the safeguard to matter."""
    says: str = ""
    """What is wrong with it."""
    judge: str = ""
    """The check that must notice, among others perhaps."""
