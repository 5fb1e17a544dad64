"""The pytest plugin, loaded by its entry point; nothing of whimbrel is imported before a fixture is used.

Fixtures: ``whimbrel_server``, ``storm``, ``virtual_clock``, ``whimbrel_network``, ``fault_proxy``,
``whimbrel_world``. A test that uses one of them, and the async fixtures it uses, run on a virtual loop;
with ``@pytest.mark.real_time`` on an ordinary one, with real sockets. An ``async def`` test needs no other
plugin then; where pytest-asyncio is installed, both share one loop.

Seeds: a test with ``storm`` runs once for each seed: 1 by default, ``1 … n`` with
``@pytest.mark.storm(seeds=n)`` or ``--storm-seeds n``, a new one besides with ``--storm-fresh``, and only
that of ``--storm-seed``, which is what a failing test tells to repeat it.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import inspect
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from whimbrel.testing.memoryserver import MemoryServer
    from whimbrel.testing.proxy import FaultProxy
    from whimbrel.testing.storm import Storm
    from whimbrel.testing.virtualnet import VirtualNetwork
    from whimbrel.testing.virtualtime import VirtualClock
    from whimbrel.testing.world import World

WORLD = "whimbrel_world"
REAL_TIME = "real_time"
SEED_DEFAULT = 1
_PYTEST_ASYNCIO = "asyncio"
_RUNNER = "_function_scoped_runner"
"""The fixture by which pytest-asyncio makes the runner of one test."""

FRESH_SEED = "whimbrel_fresh_seed"

_world = pytest.StashKey["World"]()
_fresh_seed = pytest.StashKey[int]()


# --- fixtures ----------------------------------------------------------------------------------


@pytest.fixture
def storm_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run of the test."""
    return int(getattr(request, "param", SEED_DEFAULT))


@pytest.fixture
def whimbrel_world(request: pytest.FixtureRequest, storm_seed: int) -> Iterator[World]:
    """Everything below in one: ``World``."""
    try:
        from whimbrel.testing.world import World  # noqa: PLC0415 - costs nothing to those who do not use it
    except ModuleNotFoundError as error:
        pytest.fail(f"{error}: the fixtures need the extra, pip install 'whimbrel[testing]'", False)
    node: pytest.Item = request.node
    options = _storm_options(node)
    world = World(
        seed=storm_seed,
        virtual=node.get_closest_marker(REAL_TIME) is None,
        runner=_runner_of(request),
        **options,
    )
    with world:
        node.stash[_world] = world
        yield world
        del node.stash[_world]


@pytest.fixture
def whimbrel_server(whimbrel_world: World) -> MemoryServer:
    """A whole whimbrel server, in memory: ``MemoryServer``."""
    return whimbrel_world.server


@pytest.fixture
def storm(whimbrel_world: World) -> Storm:
    """Faults from a seed, to be entered with ``async with``: ``Storm``."""
    return whimbrel_world.storm


@pytest.fixture
def virtual_clock(whimbrel_world: World) -> VirtualClock:
    """The clock that jumps: ``VirtualClock``."""
    return whimbrel_world.clock


@pytest.fixture
def whimbrel_network(whimbrel_world: World) -> VirtualNetwork | FaultProxy:
    """What lies between clients and server, with faults: ``VirtualNetwork``, in real time ``FaultProxy``."""
    return whimbrel_world.network


@pytest.fixture
def fault_proxy(whimbrel_world: World) -> FaultProxy:
    """The TCP proxy before the server, for tests marked ``real_time``: ``FaultProxy``."""
    if whimbrel_world.virtual:
        pytest.fail("fault_proxy has real sockets: mark the test real_time, or use whimbrel_network", False)
    network: Any = whimbrel_world.network
    proxy: FaultProxy = network
    return proxy


# --- options, marks, seeds ---------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for seeds."""
    group = parser.getgroup("whimbrel")
    group.addoption("--storm-seed", type=int, default=None, help="run storms with this seed only")
    group.addoption("--storm-seeds", type=int, default=None, help="run each storm with the seeds 1 to N")
    group.addoption("--storm-fresh", action="store_true", help="run each storm with a new seed besides")


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marks; choose the fresh seed once, for all workers of a distributed run."""
    config.addinivalue_line(
        "markers",
        "storm(seeds=1, duration_s=..., faults=...): how many storms, how long in seconds, of which faults",
    )
    config.addinivalue_line("markers", "real_time: whimbrel's fixtures use real time and real sockets")
    if config.getoption("--storm-fresh"):
        given: dict[str, Any] = getattr(config, "workerinput", {})
        config.stash[_fresh_seed] = given.get(FRESH_SEED, int.from_bytes(os.urandom(4)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of a distributed run the fresh seed: all must collect the same tests."""
    if _fresh_seed in node.config.stash:
        node.workerinput[FRESH_SEED] = node.config.stash[_fresh_seed]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with a storm once for each seed."""
    if {"storm", "storm_seed"} <= set(metafunc.fixturenames):
        seeds = _seeds(metafunc.config, metafunc.definition)
        metafunc.parametrize("storm_seed", seeds, ids=[f"seed {seed}" for seed in seeds], indirect=True)


def _seeds(config: pytest.Config, item: pytest.Item) -> list[int]:
    chosen: int | None = config.getoption("--storm-seed")
    if chosen is not None:
        return [chosen]
    count: int | None = config.getoption("--storm-seeds")
    if count is None:
        count = int(_storm_mark(item).get("seeds", 1))
    if count < 1:
        raise pytest.UsageError("the number of storms is at least 1")
    fresh = config.stash.get(_fresh_seed, None)
    return [*range(SEED_DEFAULT, SEED_DEFAULT + count), *([] if fresh is None else [fresh])]


def _storm_mark(item: pytest.Item) -> dict[str, Any]:
    mark = item.get_closest_marker("storm")
    if mark is None:
        return {}
    unknown = set(mark.kwargs) - {"seeds", "duration_s", "faults"}
    if unknown or mark.args:
        raise pytest.UsageError("the mark storm takes seeds=, duration_s= and faults=, nothing else")
    return dict(mark.kwargs)


def _storm_options(item: pytest.Item) -> dict[str, Any]:
    return {name: value for name, value in _storm_mark(item).items() if name != "seeds"}


# --- the loop ----------------------------------------------------------------------------------


def _runner_of(request: pytest.FixtureRequest) -> asyncio.Runner | None:
    """Give pytest-asyncio's runner of this test, so that its async fixtures share the loop; None: none."""
    if not request.config.pluginmanager.hasplugin(_PYTEST_ASYNCIO):
        return None
    mark = request.node.get_closest_marker("asyncio")
    scope = mark.kwargs.get("loop_scope") if mark is not None else None
    scope = scope or request.config.getini("asyncio_default_test_loop_scope")
    if mark is not None and scope != "function":
        pytest.fail(f"whimbrel's fixtures need a loop of the test's own, not one per {scope}", False)
    runner: asyncio.Runner = request.getfixturevalue(_RUNNER)
    return runner


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """While pytest-asyncio makes the runner of a test in virtual time, a new loop is a virtual one."""
    if fixturedef.argname != _RUNNER or not _in_virtual_time(request):
        return (yield)
    from whimbrel.testing.virtualtime import VirtualLoop  # noqa: PLC0415 - as for the world

    before = asyncio.events.new_event_loop
    asyncio.events.new_event_loop = VirtualLoop
    try:
        return (yield)
    finally:
        asyncio.events.new_event_loop = before


def _in_virtual_time(request: pytest.FixtureRequest) -> bool:
    return WORLD in request.fixturenames and request.node.get_closest_marker(REAL_TIME) is None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test in its world, unless another plugin does."""
    world = pyfuncitem.stash.get(_world, None)
    if world is None or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    __tracebackhide__ = True
    names = inspect.signature(pyfuncitem.obj).parameters
    world.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the seed of a test that failed, how to repeat it, and what the storm did."""
    report = yield
    world = item.stash.get(_world, None)
    if world is not None and call.when == "call" and report.failed and (story := world.report()):
        command = f"repeat it: pytest {item.nodeid.split('[')[0]!r} --storm-seed {world.seed}"
        report.sections.append(("storm", f"{command}\n{story}"))
    return report
