"""A server with two users, and the home of one of them, for whoever asks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.rig import Home, Server, home_of, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "server", "ann", "bob") as server:
        yield server


@pytest.fixture
def ann(tmp_path: Path, server: Server) -> Home:
    home = home_of(tmp_path, "ann")
    home.log_in(server.url, "ann", "--key-file-plain").ok()
    home.run("conversation", "create", "bob", "--id", "team").ok()
    return home
