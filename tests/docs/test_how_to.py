"""The how-to pages are true: their tests run as they stand, in a project that has nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, blocks, text_of
from whimbrel.testing import MemoryServer, VirtualNetwork, plugin

PAGE = "docs/how-to/test-your-app.md"


def programs() -> list[str]:
    return blocks(text_of(PAGE), "python")


@pytest.mark.timeout(600)
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    for number, program in enumerate(programs()):
        (tmp_path / f"test_{number}.py").write_text(program, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:asyncio",
            "-q",
            "--storm-seeds",
            "1",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    tests = re.findall(r"^async def test_", "\n".join(programs()), re.MULTILINE)
    assert int(passed) == len(tests)


def test_what_the_page_names_is_there() -> None:
    text = text_of(PAGE)
    listed = re.findall(r"There are also (.+?)\.\n", text, re.DOTALL)
    for name in re.findall(r"`(\w+)`", listed[0]):
        assert hasattr(MemoryServer, name), name
    for name in ("offline", "online", "on", "during", "apply"):
        assert hasattr(VirtualNetwork, name)
    for option in set(re.findall(r"--storm-\w+", text)):
        assert f'"{option}"' in (ROOT / "src/whimbrel/testing/plugin.py").read_text(encoding="utf-8")
    for fixture in ("whimbrel_server", "whimbrel_network", "virtual_clock", "storm", "fault_proxy"):
        assert f"`{fixture}`" in text or f"{fixture}" in "".join(programs())
        assert hasattr(plugin, fixture)
    assert (ROOT / "examples" / "order_bot").is_dir()
