"""The plugin as a user meets it: in a project of its own, with and without pytest-asyncio.

Most run in this process, where modules loaded by the inner run are forgotten after it. What it needs is
loaded here, once: extension modules do not bear to be loaded twice.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from whimbrel.testing import MemoryServer, World

QUIET = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly")
ALONE = (*QUIET, "-p", "no:asyncio")
INI = """
[pytest]
filterwarnings = error
asyncio_default_fixture_loop_scope = function
"""
ALONE_INI = "[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n"


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    with World() as world:
        world.run(connect(world.server))


async def connect(server: MemoryServer) -> None:
    async with server.client("ann") as ann:
        await ann.connected(10)


ONE_ORDER = """
import asyncio

async def test_one_order(whimbrel_server, virtual_clock):
    async with whimbrel_server.client("ann") as ann:
        orders = await ann.create_conversation(id="orders")
        await (await orders.send("one coffee")).delivered(10)
        await asyncio.sleep(60)
    assert [message.content for message in whimbrel_server.messages("orders")] == ["one coffee"]
    assert 60 <= virtual_clock.passed_s < 70
"""


def test_a_test_needs_nothing_but_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makeini(ALONE_INI)
    pytester.makepyfile(ONE_ORDER)
    pytester.runpytest_inprocess(*ALONE).assert_outcomes(passed=1)


ASYNC_FIXTURE = """
import asyncio
import pytest
import pytest_asyncio

@pytest_asyncio.fixture
async def ann(whimbrel_server):
    async with whimbrel_server.client("ann") as client:
        yield client
        await asyncio.sleep(60)

@MARK
async def test_it(ann, virtual_clock):
    assert asyncio.get_running_loop().clock is virtual_clock
    await ann.connected(10)
    await asyncio.sleep(60)
"""


@pytest.mark.parametrize("mark", ["pytest.mark.asyncio", "pytest.mark.timeout(60)"])
@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_async_fixtures_of_pytest_asyncio_share_the_loop(
    pytester: pytest.Pytester, mark: str, mode: str
) -> None:
    pytester.makeini(f"{INI}asyncio_mode = {mode}\n")
    pytester.makepyfile(ASYNC_FIXTURE.replace("MARK", mark))
    pytester.runpytest_inprocess(*QUIET).assert_outcomes(passed=1)


def test_a_shared_loop_is_refused_in_words(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.asyncio(loop_scope="module")
        async def test_it(virtual_clock): ...
        """
    )
    result = pytester.runpytest_inprocess(*QUIET)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*need a loop of the test's own, not one per module*"])


def test_other_tests_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makeini(f"{INI}asyncio_mode = auto\n")
    pytester.makepyfile(
        """
        import asyncio, time
        import pytest

        @pytest.fixture
        def storm():
            return "the user's own"

        async def test_real_loop():
            assert type(asyncio.get_running_loop()).__name__ != "VirtualLoop"

        def test_own_fixture(storm):
            assert storm == "the user's own"
        """
    )
    pytester.runpytest_inprocess(*QUIET, "--storm-seeds", "3").assert_outcomes(passed=2)


def test_a_deadlock_is_told_and_does_not_hang(pytester: pytest.Pytester) -> None:
    pytester.makeini(ALONE_INI)
    pytester.makepyfile(
        """
        import asyncio

        async def test_waits(virtual_clock):
            await asyncio.Event().wait()  # for ever

        async def test_waits_beside_a_client(whimbrel_server, whimbrel_network, virtual_clock):
            virtual_clock.limit_s = 600
            async with whimbrel_server.client("ann"):
                whimbrel_network.offline()
                await asyncio.Event().wait()
        """
    )
    result = pytester.runpytest_inprocess(*ALONE)
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    assert "NothingHappens: nothing is ready" in text
    assert "TimeRanOut: 600 s of virtual time passed" in text
    assert re.search(r"test_a_deadlock\w+\.py:4 \(test_waits\).*  <- the test", text)


STORMY = """
import asyncio
import pytest

@pytest.mark.storm(duration_s=20, faults=("cut", "slow"), seeds=2)
async def test_it(whimbrel_server, storm):
    async with whimbrel_server.client("ann") as ann:
        orders = await ann.create_conversation(id="orders")
        async with storm:
            for number in range(5):
                await orders.send(number)
                await asyncio.sleep(storm.random.random())
        assert storm.seed != FAILING
"""


def test_seeds_come_from_mark_and_options(pytester: pytest.Pytester) -> None:
    pytester.makeini(ALONE_INI)
    pytester.makepyfile(STORMY.replace("FAILING", "2"))
    result = pytester.runpytest_inprocess(*ALONE)
    result.assert_outcomes(passed=1, failed=1)
    (told,) = re.findall(r"repeat it: pytest '([^']+)' --storm-seed 2", result.stdout.str())
    result.stdout.fnmatch_lines(["*storm 2 begins, for 20 s"])
    again = pytester.runpytest_inprocess(*ALONE, told, "--storm-seed", "2")
    again.assert_outcomes(failed=1)
    pytester.runpytest_inprocess(*ALONE, "--storm-seeds", "1").assert_outcomes(passed=1)
    fresh = pytester.runpytest_inprocess(*ALONE, "--storm-fresh", "--storm-seeds", "1", "-v")
    fresh.assert_outcomes(passed=2)


def test_workers_of_a_distributed_run_agree_on_the_fresh_seed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(ALONE_INI)
    pytester.makepyfile(STORMY.replace("FAILING", "None"))
    plugins = ("-p", "whimbrel.testing.plugin", "-p", "xdist.plugin", "-p", "no:cacheprovider")
    options = (*plugins, "-n", "2", "--storm-fresh")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=3)


def test_a_wrong_mark_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeini(ALONE_INI)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.storm(minutes=3)
        async def test_it(storm): ...
        """
    )
    result = pytester.runpytest_inprocess(*ALONE)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*takes seeds=, duration_s= and faults=, nothing else*"])


def test_the_same_test_runs_in_real_time_over_sockets(pytester: pytest.Pytester) -> None:
    pytester.makeini(ALONE_INI)
    pytester.makepyfile(
        STORMY.replace("duration_s=20", "duration_s=1.5")
        .replace("seeds=2", "seeds=1")
        .replace("FAILING", "9")
        + """
pytestmark = pytest.mark.real_time

async def test_the_proxy_stands_before_the_server(whimbrel_server, fault_proxy):
    assert str(fault_proxy.port) in whimbrel_server.url
    async with whimbrel_server.client("ann") as ann:
        await ann.connected(30)
        assert fault_proxy.counters.connections > 0
"""
    )
    pytester.runpytest_inprocess(*ALONE).assert_outcomes(passed=2)


def test_what_needs_the_other_kind_of_time_is_refused_in_words(pytester: pytest.Pytester) -> None:
    pytester.makeini(ALONE_INI)
    pytester.makepyfile(
        """
        import asyncio
        import pytest

        def test_proxy(fault_proxy): ...

        @pytest.mark.real_time
        def test_clock(virtual_clock): ...

        async def test_process(virtual_clock):
            with pytest.raises(RuntimeError, match="real_time"):
                await asyncio.create_subprocess_exec("true")
        """
    )
    result = pytester.runpytest_inprocess(*ALONE)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*mark the test real_time*", "*there is no virtual time here*"])


def test_loading_the_plugin_loads_nothing_else() -> None:
    program = (
        "import sys, pytest\n"
        "before = set(sys.modules)\n"
        "import whimbrel.testing.plugin\n"
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('whimbrel')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["whimbrel", "whimbrel.testing", "whimbrel.testing.plugin"]
