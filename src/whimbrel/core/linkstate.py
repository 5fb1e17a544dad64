"""The states of the link and the transitions between them; ``core.link`` is the machine."""

from __future__ import annotations

import enum

from whimbrel.model import ConnectionState


class LinkState(enum.Enum):
    """The states of the link."""

    STOPPED = "stopped"
    OFFLINE = "offline"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    SUSPECT = "suspect"
    RECONNECTING = "reconnecting"


S = LinkState

TRANSITIONS: dict[LinkState, dict[str, LinkState]] = {
    S.STOPPED: {"start": S.CONNECTING, "start_unsigned": S.OFFLINE},
    S.OFFLINE: {"signed_in": S.CONNECTING, "stop": S.STOPPED},
    S.CONNECTING: {
        "welcomed": S.CONNECTED,
        "failed": S.RECONNECTING,
        "exhausted": S.STOPPED,
        "signed_out": S.OFFLINE,
        "stop": S.STOPPED,
    },
    S.CONNECTED: {
        "silent": S.SUSPECT,
        "lost": S.RECONNECTING,
        "signed_out": S.OFFLINE,
        "stop": S.STOPPED,
    },
    S.SUSPECT: {
        "answered": S.CONNECTED,
        "replaced": S.RECONNECTING,
        "lost": S.RECONNECTING,
        "signed_out": S.OFFLINE,
        "stop": S.STOPPED,
    },
    S.RECONNECTING: {
        "welcomed": S.CONNECTED,
        "exhausted": S.STOPPED,
        "signed_out": S.OFFLINE,
        "stop": S.STOPPED,
    },
}
"""The machine. A pair that is not here does not happen: it would be our own mistake."""

PUBLIC = {
    S.STOPPED: ConnectionState.STOPPED,
    S.OFFLINE: ConnectionState.OFFLINE,
    S.CONNECTING: ConnectionState.CONNECTING,
    S.CONNECTED: ConnectionState.CONNECTED,
    S.SUSPECT: ConnectionState.CONNECTED,
    S.RECONNECTING: ConnectionState.RECONNECTING,
}
"""How an app sees each state: a link under suspicion is still a link."""

PROBING = frozenset({S.CONNECTING, S.SUSPECT, S.RECONNECTING})
"""The states in which a connection is looked for."""
