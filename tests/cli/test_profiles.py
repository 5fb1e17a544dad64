"""Profiles and the paths they are kept under."""

import stat
from pathlib import Path

import pytest

from whimbrel.cli import profiles
from whimbrel.errors import InvalidArgument, StoreUnavailable

PROFILE = profiles.Profile(url="https://chat.example.org", user="ann", store="s.db", key="file")


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_saved_and_found_again(tmp_path: Path) -> None:
    assert profiles.load("default") is None
    profiles.save("default", PROFILE)
    profiles.save("bot", profiles.Profile(url="http://127.0.0.1:1", user="bot", store="b.db", insecure=True))
    assert profiles.load("default") == PROFILE
    file = tmp_path / "config" / "whimbrel" / "profiles" / "default.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    profiles.save("default", PROFILE)
    assert sorted(path.name for path in file.parent.iterdir()) == ["bot.json", "default.json"]
    profiles.remove("default")
    profiles.remove("default")
    assert profiles.load("default") is None


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65, "a b", "ä", "a\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgument):
        profiles.load(name)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "x"}', "\udcff"])
def test_damaged(text: str) -> None:
    profiles.save("default", PROFILE)
    profiles.path_of("default").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreUnavailable, match="damaged"):
        profiles.load("default")


def test_relative_folders_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert profiles.path_of("x") == tmp_path / "home" / ".config" / "whimbrel" / "profiles" / "x.json"
    assert profiles.server_data_path() == tmp_path / "home" / ".local" / "share" / "whimbrel" / "server"


@pytest.mark.parametrize("user", ["ann", "../../../etc/passwd", "..", "", "a/b", "x" * 500, "\x00"])
@pytest.mark.parametrize(
    "url", ["https://chat.example.org/../..", "http://127.0.0.1:8000", "http://[::1]:80"]
)
def test_a_store_stays_in_its_folder(tmp_path: Path, url: str, user: str) -> None:
    path = profiles.store_path(url, user)
    assert path.resolve() == path
    assert path.parent.parent == tmp_path / "data" / "whimbrel" / "stores"
    assert path.suffix == ".db"


def test_stores_are_apart() -> None:
    assert profiles.store_path("http://127.0.0.1:1", "ann") != profiles.store_path(
        "http://127.0.0.1:2", "ann"
    )
    assert profiles.store_path("http://127.0.0.1:1", "ann") != profiles.store_path(
        "http://127.0.0.1:1", "bob"
    )
    assert profiles.store_path("http://127.0.0.1:1", "Ann ") == profiles.store_path(
        "http://127.0.0.1:1", "ann"
    )
