"""The tables of transitions: every pair is walked, and what is not in a table cannot happen."""

from __future__ import annotations

import pytest

from whimbrel.core.contract import MessageRow, Settings, Sources
from whimbrel.core.life import TRANSITIONS as LIFE
from whimbrel.core.life import Entry
from whimbrel.core.link import LinkMachine
from whimbrel.core.linkstate import PUBLIC, LinkState
from whimbrel.core.linkstate import TRANSITIONS as LINK
from whimbrel.core.outbox import Outbox
from whimbrel.model import SendState

SOURCES = Sources(random=lambda: 0.5, wall=lambda: 0.0)
EVENTS = sorted({event for row in LIFE.values() for event in row})
LINK_EVENTS = sorted({event for row in LINK.values() for event in row})


@pytest.mark.parametrize("state", list(LIFE))
@pytest.mark.parametrize("event", EVENTS)
def test_every_pair_of_a_message(state: SendState, event: str) -> None:
    outbox = Outbox(Settings(), SOURCES, lambda entry, before: None)
    entry = Entry(MessageRow(id="m", conversation="c", state=state), durable=True, left=True)
    if event in LIFE[state]:
        outbox._step(entry, event)
        assert entry.row.state is LIFE[state][event]
        assert outbox.transitions[state.value, event] == 1
    else:
        with pytest.raises(KeyError):
            outbox._step(entry, event)
        assert entry.row.state is state


@pytest.mark.parametrize("state", list(LinkState))
@pytest.mark.parametrize("event", LINK_EVENTS)
def test_every_pair_of_the_link(state: LinkState, event: str) -> None:
    link = LinkMachine(Settings(), SOURCES)
    link.state = state
    if event in LINK[state]:
        link._step(event)
        assert link.state is LINK[state][event]
    else:
        with pytest.raises(KeyError):
            link._step(event)
        assert link.state is state


def test_delivered_is_the_end_and_every_other_state_can_reach_it() -> None:
    assert LIFE[SendState.DELIVERED] == {}
    for state in set(LIFE) - {SendState.DELIVERED, SendState.CANCELLED}:
        assert "deliver" in LIFE[state]


def test_every_state_of_the_link_has_a_public_name_and_a_way_to_stop() -> None:
    assert set(PUBLIC) == set(LinkState) == set(LINK)
    for state in set(LinkState) - {LinkState.STOPPED}:
        assert LINK[state]["stop"] is LinkState.STOPPED
