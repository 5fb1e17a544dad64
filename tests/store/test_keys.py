"""Where keys live: found again, never plain unasked, refused when changed."""

import base64
import json
import stat
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from whimbrel.errors import InvalidArgument, StoreInUse, StoreKeyError
from whimbrel.store import keys, sealing
from whimbrel.store.files import ProcessLock
from whimbrel.store.keys import PASSPHRASE_VARIABLE, KeyPlace, forget_key, key_path, open_key
from whimbrel.store.sqlite import SqliteStore

WORDS = "correct horse"


class KeyStore:
    """What a desktop's key store does, for a test that has none; ``keyring`` itself calls it."""

    priority: float = 5

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, name: str) -> str | None:
        if self.locked:
            raise RuntimeError("locked")
        return self.entries.get((service, name))

    def set_password(self, service: str, name: str, password: str) -> None:
        if self.locked:
            raise RuntimeError("locked")
        self.entries[(service, name)] = password

    def delete_password(self, service: str, name: str) -> None:
        del self.entries[(service, name)]


@pytest.fixture(autouse=True)
def bare_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """No passphrase in the environment, and the key store that every headless system has: none."""
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    import keyring.core  # noqa: PLC0415 - after the environment says which backend

    keyring.core.init_backend()


@pytest.fixture
def key_store(monkeypatch: pytest.MonkeyPatch) -> KeyStore:
    import keyring  # noqa: PLC0415 - after the environment says which backend

    backend = KeyStore()
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    return backend


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def make_store(store: Path, key: bytes) -> None:
    SqliteStore(store, key).close()


# --- none --------------------------------------------------------------------------------------


def test_without_a_place_the_three_ways_are_named(store: Path) -> None:
    with pytest.raises(StoreKeyError) as caught:
        open_key(store)
    for way in ("whimbrel[keyring]", PASSPHRASE_VARIABLE, "key='file'"):
        assert way in caught.value.hint
    assert not key_path(store).exists()
    with pytest.raises(StoreKeyError):
        open_key(store, place="keyring")
    with pytest.raises(StoreKeyError):
        open_key(store, prompt=lambda new: None)


def test_an_existing_store_never_gets_a_new_key(store: Path, key_store: KeyStore) -> None:
    make_store(store, bytes(32))
    ways: tuple[dict[str, Any], ...] = ({}, {"passphrase": WORDS}, {"place": "file"}, {"place": "passphrase"})
    for options in ways:
        with pytest.raises(StoreKeyError, match="missing"):
            open_key(store, **options)
    assert not key_path(store).exists()
    assert key_store.entries == {}


def test_unknown_places_and_empty_passphrases_are_refused(store: Path) -> None:
    with pytest.raises(InvalidArgument):
        open_key(store, place="cloud")
    with pytest.raises(InvalidArgument):
        open_key(store, passphrase="")


# --- sealed ------------------------------------------------------------------------------------


def test_a_sealed_key_is_found_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = open_key(store, passphrase=WORDS)
    assert len(key) == 32
    assert open_key(store, passphrase=WORDS) == key
    asked: list[bool] = []

    def prompt(new: bool) -> str:
        asked.append(new)
        return WORDS

    assert open_key(store, prompt=prompt) == key
    assert asked == [False]
    monkeypatch.setenv(PASSPHRASE_VARIABLE, WORDS)
    assert open_key(store) == key
    content = key_path(store).read_bytes()
    assert key not in content
    assert base64.b64encode(key) not in content
    assert stat.S_IMODE(key_path(store).stat().st_mode) == 0o600
    assert [file.name for file in store.parent.iterdir() if file.suffix == ".part"] == []


def test_the_prompt_says_that_a_passphrase_is_chosen(store: Path) -> None:
    asked: list[bool] = []

    def prompt(new: bool) -> str:
        asked.append(new)
        return WORDS

    key = open_key(store, prompt=prompt)
    assert asked == [True]
    assert open_key(store, passphrase=WORDS) == key


def test_the_same_words_composed_otherwise_open_it(store: Path) -> None:
    assert open_key(store, passphrase="caf\u00e9") == open_key(store, passphrase="cafe\u0301")


def test_a_wrong_or_missing_passphrase(store: Path) -> None:
    open_key(store, passphrase=WORDS)
    before = key_path(store).read_bytes()
    with pytest.raises(StoreKeyError, match="does not open") as caught:
        open_key(store, passphrase="other words")
    assert "other words" not in str(caught.value)
    with pytest.raises(StoreKeyError, match="needs its passphrase"):
        open_key(store)
    assert key_path(store).read_bytes() == before


def test_the_parameters_are_strong_and_in_the_file(store: Path) -> None:
    open_key(store, passphrase=WORDS)
    content = json.loads(key_path(store).read_text())
    assert content["kdf"] == "argon2id"
    assert content["memory_kib"] >= 64 * 1024
    assert content["rounds"] >= 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", 2),
        ("rounds", 10**9),
        ("lanes", 2),
        ("memory_kib", 16),
        ("memory_kib", 10**9),
        ("salt", base64.b64encode(bytes(16)).decode()),
        ("salt", ""),
        ("nonce", base64.b64encode(bytes(12)).decode()),
        ("nonce", ""),
        ("box", base64.b64encode(bytes(48)).decode()),
        ("box", ""),
        ("kdf", "md5"),
        ("version", 2),
        ("key", "plain"),
        ("key", "open"),
    ],
)
def test_a_changed_file_is_refused(store: Path, field: str, value: Any) -> None:
    small = sealing.seal(bytes(32), WORDS, rounds=1, memory_kib=64)
    sealing.write_key_file(key_path(store), small)
    assert open_key(store, passphrase=WORDS) == bytes(32)
    content = json.loads(key_path(store).read_text())
    assert content[field] != value
    key_path(store).write_text(json.dumps({**content, field: value}))
    with pytest.raises(StoreKeyError):
        open_key(store, passphrase=WORDS)


def test_every_flipped_bit_of_the_box_is_found(store: Path) -> None:
    small = sealing.seal(bytes(32), WORDS, rounds=1, memory_kib=64)
    for place in range(len(small.box)):
        box = bytearray(small.box)
        box[place] ^= 1
        with pytest.raises(StoreKeyError):
            sealing.unseal(msgspec.structs.replace(small, box=bytes(box)), WORDS, store)


def test_two_programs_make_one_key(store: Path) -> None:
    lock = ProcessLock(store)
    try:
        with pytest.raises(StoreInUse):
            open_key(store, passphrase=WORDS)
    finally:
        lock.release()
    assert not key_path(store).exists()


# --- plain -------------------------------------------------------------------------------------


def test_a_plain_file_only_by_name(store: Path) -> None:
    key = open_key(store, place="file")
    assert open_key(store, place=KeyPlace.FILE) == key
    assert stat.S_IMODE(key_path(store).stat().st_mode) == 0o600
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"passphrase": WORDS},
        {"place": "keyring"},
        {"place": "passphrase"},
    )
    for options in ways:
        with pytest.raises(StoreKeyError, match="plain"):
            open_key(store, **options)


def test_a_plain_file_that_others_may_read_is_refused(store: Path) -> None:
    open_key(store, place="file")
    key_path(store).chmod(0o640)
    with pytest.raises(StoreKeyError, match="others may read"):
        open_key(store, place="file")


def test_a_sealed_key_is_not_replaced_by_a_plain_one(store: Path) -> None:
    open_key(store, passphrase=WORDS)
    with pytest.raises(StoreKeyError, match="sealed"):
        open_key(store, place="file", passphrase=WORDS)


# --- the key store of the system ---------------------------------------------------------------


def test_the_key_store_has_one_entry_for_each_store(tmp_path: Path, key_store: KeyStore) -> None:
    first = open_key(tmp_path / "a.db")
    second = open_key(tmp_path / "b.db")
    assert first != second
    make_store(tmp_path / "a.db", first)
    assert open_key(tmp_path / "a.db") == first
    assert open_key(tmp_path / "a.db", passphrase=WORDS) == first
    assert open_key(tmp_path / "b.db", place="keyring") == second
    assert sorted(name for _, name in key_store.entries) == [str(tmp_path / "a.db"), str(tmp_path / "b.db")]
    assert not key_path(tmp_path / "a.db").exists()


def test_a_passphrase_given_for_a_new_store_is_used(store: Path, key_store: KeyStore) -> None:
    key = open_key(store, passphrase=WORDS)
    assert key_store.entries == {}
    assert open_key(store, passphrase=WORDS) == key


def test_a_locked_key_store_of_an_existing_store_says_so(store: Path, key_store: KeyStore) -> None:
    make_store(store, open_key(store))
    key_store.locked = True
    with pytest.raises(StoreKeyError, match="did not answer") as caught:
        open_key(store)
    assert "unlock" in caught.value.hint


def test_a_locked_key_store_is_none_for_a_new_store(store: Path, key_store: KeyStore) -> None:
    key_store.locked = True
    key = open_key(store, prompt=lambda new: WORDS)
    assert open_key(store, passphrase=WORDS) == key


def test_a_key_store_that_forgets_is_not_used(
    store: Path, key_store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(service: str, name: str, password: str) -> None:
        return None

    monkeypatch.setattr(key_store, "set_password", forget)
    with pytest.raises(StoreKeyError):
        open_key(store)


def test_a_backend_that_is_not_recommended_is_not_used(store: Path, key_store: KeyStore) -> None:
    key_store.priority = 0.5  # what plain files have
    with pytest.raises(StoreKeyError):
        open_key(store)
    assert key_store.entries == {}


def test_a_damaged_entry_is_refused(store: Path, key_store: KeyStore) -> None:
    open_key(store)
    for text in ("AAAA", "no base64!", ""):
        key_store.entries = {(keys.SERVICE, str(store)): text}
        with pytest.raises(StoreKeyError, match="damaged"):
            open_key(store)


def test_without_the_extra_there_is_no_key_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(StoreKeyError):
        open_key(store)
    assert len(open_key(store, passphrase=WORDS)) == 32


def test_forgetting_removes_the_key_from_where_it_is(tmp_path: Path, key_store: KeyStore) -> None:
    open_key(tmp_path / "a.db")
    open_key(tmp_path / "b.db", place="file")
    forget_key(tmp_path / "a.db")
    forget_key(tmp_path / "b.db")
    forget_key(tmp_path / "never.db")
    assert key_store.entries == {}
    assert not key_path(tmp_path / "b.db").exists()
