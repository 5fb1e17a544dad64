"""A history that is replaced, through the engine: nothing of the old one is taken for the new one's."""

from __future__ import annotations

from tests.core.rig import Rig, delivered, sends
from whimbrel import protocol as p


def test_what_was_read_of_the_old_history_says_nothing_of_the_new_one() -> None:
    rig = Rig()
    link = rig.connect(p.Head(conversation="c1", epoch="e1", seq=0, members=("anna", "ben")))
    id = rig.send("mine")
    (send,) = sends(rig.take(link))
    rig.receive(link, delivered(send, 1, id))
    rig.send("next")
    in_flight = rig.engine.take_changes()  # the disk is slow: what comes now is written together
    assert in_flight is None
    rig.engine.receive(link, p.Receipts(conversation="c1", receipts=(("ben", 1, 1),)), rig.now)
    rig.engine.receive(link, p.Heads(heads=(p.Head(conversation="c1", epoch="e2", seq=1),)), rig.now)
    changes = rig.engine.take_changes()
    assert changes is not None
    assert changes.resets == ["c1"]
    assert changes.reads == {}
