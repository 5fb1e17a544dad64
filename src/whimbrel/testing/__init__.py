"""Test your app through storms: a server in memory, time that jumps, a network with faults, a judge.

The pytest plugin gives these as fixtures (``docs/how-to/test-your-app.md``)::

    async def test_an_order_survives_the_tunnel(whimbrel_server, whimbrel_network):
        async with whimbrel_server.client("ann") as ann:
            orders = await ann.create_conversation(id="orders")
            whimbrel_network.offline()
            message = await orders.send("one coffee")
            await asyncio.sleep(3600)  # an hour in the tunnel takes no time
            whimbrel_network.online()
            await message.delivered(10)

The names here are the public ones; each is loaded when it is first used. Needs the extra ``testing``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whimbrel.testing.memoryserver import MemoryServer as MemoryServer
    from whimbrel.testing.proxy import FaultProxy as FaultProxy
    from whimbrel.testing.proxy_faults import ChunkLoss as ChunkLoss
    from whimbrel.testing.proxy_faults import DropAnswer as DropAnswer
    from whimbrel.testing.proxy_faults import HalfOpen as HalfOpen
    from whimbrel.testing.proxy_faults import Kill as Kill
    from whimbrel.testing.proxy_faults import Latency as Latency
    from whimbrel.testing.proxy_faults import LimitCapacity as LimitCapacity
    from whimbrel.testing.proxy_faults import Refuse as Refuse
    from whimbrel.testing.proxy_faults import Reset as Reset
    from whimbrel.testing.proxy_faults import Stall as Stall
    from whimbrel.testing.schedule import Schedule as Schedule
    from whimbrel.testing.storm import Storm as Storm
    from whimbrel.testing.storm import StormBroke as StormBroke
    from whimbrel.testing.stormplan import FAULT_KINDS as FAULT_KINDS
    from whimbrel.testing.stormplan import storm_plan as storm_plan
    from whimbrel.testing.virtualnet import VirtualNetwork as VirtualNetwork
    from whimbrel.testing.virtualtime import NothingHappens as NothingHappens
    from whimbrel.testing.virtualtime import TimeRanOut as TimeRanOut
    from whimbrel.testing.virtualtime import VirtualClock as VirtualClock
    from whimbrel.testing.virtualtime import VirtualLoop as VirtualLoop
    from whimbrel.testing.world import World as World

_HOMES = {
    "memoryserver": ("MemoryServer",),
    "proxy": ("FaultProxy",),
    "proxy_faults": (
        "ChunkLoss",
        "DropAnswer",
        "HalfOpen",
        "Kill",
        "Latency",
        "LimitCapacity",
        "Refuse",
        "Reset",
        "Stall",
    ),
    "schedule": ("Schedule",),
    "storm": ("Storm", "StormBroke"),
    "stormplan": ("FAULT_KINDS", "storm_plan"),
    "virtualnet": ("VirtualNetwork",),
    "virtualtime": ("NothingHappens", "TimeRanOut", "VirtualClock", "VirtualLoop"),
    "world": ("World",),
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]  # noqa: PLE0604 - built from the table, so that there is one


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
