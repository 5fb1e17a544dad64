"""What a person at the command line sees of a store that was damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.rig import home_of, serving

pytestmark = pytest.mark.timeout(600)


def test_it_is_said_once_and_what_waited_goes_out(tmp_path: Path) -> None:
    with serving(tmp_path / "server", "ann", "bob") as server:
        ann = home_of(tmp_path, "ann")
        ann.log_in(server.url, "ann").ok()
        ann.run("conversation", "create", "bob", "--id", "team").ok()
        ann.run("send", "team", "delivered").ok()
        server.stop()
        assert ann.run("send", "team", "waiting", "--timeout", "0.1").code == 3
        [store] = (ann.folder / "data").glob("whimbrel/stores/*/*.db")
        content = bytearray(store.read_bytes())
        content[:4096] = bytes(4096)
        store.write_bytes(content)
        shown = ann.run("outbox").ok()
        assert "waiting" in shown.out
        assert "the store was damaged" in shown.err
        [aside] = store.parent.glob("*.corrupt-*")
        assert aside.read_bytes() == content
        assert aside.name in shown.err
        assert "damaged" not in ann.run("outbox").ok().err
        server.start()
        ann.run("sync-once").ok()
        bob = home_of(tmp_path, "bob")
        bob.log_in(server.url, "bob").ok()
        lines = bob.run("tail", "team", "--no-follow").ok().out
        assert lines.count("waiting") == lines.count("delivered") == 1
