"""The client with none of the extras installed: it imports, keeps a message, and tells what waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import asyncio
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

EXTRAS = {"starlette", "uvicorn", "uvloop", "httptools", "joserfc", "keyring", "cyclopts", "rich"}


class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Absent())
import whimbrel


async def main() -> None:
    store = Path(sys.argv[1])
    credentials = whimbrel.Credentials("anna", "a password nobody checks")
    async with whimbrel.Client("http://127.0.0.1:9", store, credentials, key="file") as client:
        message = await client.send("c1", "kept without any extra")
        print(message.status.state, (await client.message(message.id)).content)
        print((await client.close(timeout=0)).pending)


asyncio.run(main())
"""


def test_the_client_needs_no_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path / "anna.db")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state, pending = done.stdout.splitlines()
    assert state in ("pending kept without any extra", "offline kept without any extra")
    assert pending == "1"
