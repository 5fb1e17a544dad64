"""One test's world: a loop, a network, a server and a storm, each made when it is first asked for.

The pytest plugin makes one per test; by hand it serves scripts, and tests that try many seeds::

    with World(seed=7) as world:
        world.run(scenario(world.server, world.storm))

``virtual``: time jumps and the network is in memory. Otherwise time is real, the server listens on a socket
of the loopback, and a ``FaultProxy`` stands before it.

While it is open, the module ``random`` follows the seed, so that retries spread in the same way each time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from whimbrel.server.settings import ServerSettings
from whimbrel.testing.memoryserver import MemoryServer
from whimbrel.testing.proxy import FaultProxy
from whimbrel.testing.storm import Storm
from whimbrel.testing.stormplan import FAULT_KINDS
from whimbrel.testing.virtualnet import VirtualNetwork
from whimbrel.testing.virtualtime import VirtualClock, VirtualLoop

__all__ = ["World"]

T = TypeVar("T")

VIRTUAL_STORM_S: Final = 300.0
REAL_STORM_S: Final = 5.0


class World:
    """See the module. A context manager; it must not be entered from inside a running loop."""

    def __init__(
        self,
        *,
        seed: int = 1,
        virtual: bool = True,
        runner: asyncio.Runner | None = None,
        settings: ServerSettings | None = None,
        duration_s: float | None = None,
        faults: Sequence[str] = FAULT_KINDS,
    ) -> None:
        """``runner``: an open one to run on, with a ``VirtualLoop`` if ``virtual``; by default its own.

        ``settings``: the server's. ``duration_s`` and ``faults``: the storm's.
        """
        self.seed = seed
        self.virtual = virtual
        self._runner = runner
        self._own_runner: asyncio.Runner | None = None
        self._settings = settings
        self._duration_s = duration_s
        self._faults = faults
        self._server: MemoryServer | None = None
        self._proxy: FaultProxy | None = None
        self._storm: Storm | None = None
        self._chance: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"<World {self.seed} in {'virtual' if self.virtual else 'real'} time>"

    def __enter__(self) -> Self:
        if self._runner is None:
            factory = (lambda: VirtualLoop(seed=self.seed)) if self.virtual else None
            self._runner = self._own_runner = asyncio.Runner(loop_factory=factory)
        if self.virtual:
            self.virtual_loop.network.reseed(self.seed)
        self._chance = random.getstate()
        random.seed(self.seed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self._close())
        finally:
            random.setstate(self._chance)
            if self._own_runner is not None:
                self._own_runner.close()
                self._own_runner = self._runner = None

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this world, to its end. Not from inside: raises ``RuntimeError`` there."""
        __tracebackhide__ = True
        assert self._runner is not None, "the world is open"
        if _is_running():
            main.close()
            raise RuntimeError("server and storm are made before the loop runs: ask for them outside")
        return self._runner.run(main)

    @property
    def virtual_loop(self) -> VirtualLoop:
        """The loop. Raises ``RuntimeError`` in real time."""
        loop = self._runner.get_loop() if self._runner is not None else None
        if not isinstance(loop, VirtualLoop):
            raise RuntimeError("there is no virtual time here")
        return loop

    @property
    def clock(self) -> VirtualClock:
        """The clock. Raises ``RuntimeError`` in real time."""
        return self.virtual_loop.clock

    @property
    def server(self) -> MemoryServer:
        """The server, up and running."""
        if self._server is None:
            self._server = MemoryServer(settings=self._settings)
            self.run(self._server.start())
            if not self.virtual:
                self.run(self._put_proxy_before(self._server))
        return self._server

    @property
    def network(self) -> VirtualNetwork | FaultProxy:
        """What is between clients and the server; has faults."""
        if self.virtual:
            return self.virtual_loop.network
        assert self.server is not None
        assert self._proxy is not None
        return self._proxy

    @property
    def storm(self) -> Storm:
        """The storm, which has not begun."""
        if self._storm is None:
            duration_s = VIRTUAL_STORM_S if self.virtual else REAL_STORM_S
            self._storm = Storm(
                self.seed,
                self.server,
                self.network,
                duration_s=self._duration_s if self._duration_s is not None else duration_s,
                faults=self._faults,
            )
            self._storm.witness.begin()
        return self._storm

    def report(self) -> str:
        """What happened, for a person; empty if there was no storm."""
        return self._storm.report() if self._storm is not None else ""

    async def _put_proxy_before(self, server: MemoryServer) -> None:
        self._proxy = FaultProxy("127.0.0.1", server.port, seed=self.seed)
        await self._proxy.__aenter__()
        server.front_port = self._proxy.port

    async def _close(self) -> None:
        if self._storm is not None:
            self._storm.witness.end()
            await self._storm.aclose()
        elif self._proxy is not None:
            self._proxy.calm()
        elif self.virtual:
            self.virtual_loop.network.calm()
        if self._server is not None:
            await self._server.aclose()
        if self._proxy is not None:
            await self._proxy.aclose()


def _is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
