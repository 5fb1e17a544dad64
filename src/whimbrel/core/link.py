"""The link: connecting, keeping it alive, noticing that it died, and getting it back.

One link is *active*: it greeted and was welcomed. Beside it there are at most two *attempts*. The
engine asks for what is due (``opens``, ``closes``, ``pings``) after every input.

Getting it back. After the loss of a healthy link the network is probed by connecting: every 0.2 s
at first, patiently later, for restarts and lifts are far more common than day-long outages. Two
attempts are out at most: an older one that may take its time (a slow network needs several round
trips), and a fresh one, replaced by a fresher one, that notices a network that just came back. An
explicit answer of the server (503, Retry-After, goaway) is obeyed at once.

Silence (``core.heartbeat``). When an answer is overdue, a second link is tried beside the first
(``suspect``): whichever answers first wins; if it is the old one, the deadline for this network
doubles.

One hello at a time: the newest hello owns the device at the server, so greeting on a second link
gives the first one up.
"""

from __future__ import annotations

from collections import Counter

from whimbrel.core.backoff import backoff_s
from whimbrel.core.contract import Fault, Settings, Sources
from whimbrel.core.heartbeat import Heartbeat
from whimbrel.core.linkstate import PROBING, PUBLIC, TRANSITIONS, LinkState
from whimbrel.model import ConnectionState, Quality

_PATIENCE_S = 3.0
_FRESH_S = 0.5
"""What a fresh attempt gets while no round trip was measured; an older one beside it may take longer."""
_ROUND_TRIPS = 5
"""What opening takes at most: TCP, TLS, the upgrade, and something to spare."""
_SETTLED_S = 60.0
"""A link that stood this long was not fought over."""
_EXPLICIT = frozenset({429, 502, 503, 504})


S = LinkState


class _Attempt:
    __slots__ = ("began", "greeted_at", "link", "until")

    def __init__(self, link: int, now: float, until: float) -> None:
        self.link = link
        self.began = now
        self.until = until
        self.greeted_at: float | None = None


class LinkMachine:
    """The state machine of the link; see the module."""

    def __init__(self, settings: Settings, sources: Sources) -> None:
        self._settings = settings
        self._random = sources.random
        self.state = S.STOPPED
        self.transitions: Counter[tuple[str, str]] = Counter()
        self.active: int | None = None
        self.spread_s = 0.0
        self.heartbeat = Heartbeat(settings)
        self.rtt = self.heartbeat.rtt
        self.cause = ""
        self.attempt = 0
        """Attempts since the last healthy link."""
        self.next_probe_at = 0.0
        self._attempts: list[_Attempt] = []
        self._next_link = 1
        self._lost_at = 0.0
        self._patience_s = _PATIENCE_S
        self._server_failures = 0
        self._server_at_fault = False
        self._replacements = 0
        self._unanswered = 0
        self._suspect_at = 0.0
        self._welcomed_at = 0.0
        self._goodbye: float | None = None
        self._not_before = 0.0
        """The server said so; only the app, who may know of another network, comes before that."""
        self._opens: list[int] = []
        self._closes: list[tuple[int, str]] = []

    # --- what the engine reads ---------------------------------------------------------------

    @property
    def public_state(self) -> ConnectionState:
        """The state as an app sees it."""
        return PUBLIC[self.state]

    @property
    def quality(self) -> Quality:
        """The quality of the link, as people see it."""
        standing = self.active is not None and self.state is not S.SUSPECT
        return self.rtt.quality(standing, self._settings)

    @property
    def changing(self) -> bool:
        """Whether there are links to open or to close."""
        return bool(self._opens or self._closes)

    def take_opens(self) -> list[int]:
        """Links to open now."""
        opens, self._opens = self._opens, []
        return opens

    def take_closes(self) -> list[tuple[int, str]]:
        """Links to close now, with the reason."""
        closes, self._closes = self._closes, []
        return closes

    def take_pings(self) -> list[int]:
        """Pings to send on the active link now."""
        return self.heartbeat.take()

    def next_deadline(self) -> float | None:
        """When ``handle_timer`` must be called at the latest."""
        if self.state is S.CONNECTED:
            return self.heartbeat.next_deadline()
        if self.state not in PROBING:
            return None
        due = min([self.next_probe_at, *(attempt.until for attempt in self._attempts)])
        return min(due, self._suspect_until()) if self.state is S.SUSPECT else due

    def knows(self, link: int) -> bool:
        """Whether the link is the active one or an attempt."""
        return link == self.active or self._find(link) is not None

    # --- inputs ------------------------------------------------------------------------------

    def start(self, now: float, *, signed_in: bool, again: bool = False) -> None:
        """Begin connecting; while it already tries, probe at once (network change, foreground).

        ``again``: nobody asked for it, the store failed; what the server said of coming back holds.
        """
        if not again:
            self._not_before = now
        self.heartbeat.factor = 1.0  # what was learned may be of another network
        if self.state is S.STOPPED:
            self.attempt = 0
            self._step("start" if signed_in else "start_unsigned")
            self._begin_search(max(now, self._not_before))
        elif self.state in PROBING:
            self._begin_search(now)
        elif self.state is S.CONNECTED:
            self.heartbeat.ping(now)
        self.handle_timer(now)

    def stop(self) -> None:
        """Close everything and stay away."""
        if self.state is not S.STOPPED:
            self._step("stop")
        self._close_all("stopped")

    def signed_in(self, now: float) -> None:
        """There are credentials (again)."""
        if self.state is S.OFFLINE:
            self._step("signed_in")
            self._begin_search(now)
            self.handle_timer(now)

    def signed_out(self, now: float) -> None:
        """There are no good credentials: no attempts until there are."""
        if self.state not in (S.STOPPED, S.OFFLINE):
            self._step("signed_out")
            self._close_all("signed out")

    def opened(self, link: int, now: float) -> bool:
        """A connection stands; True: greet on it now."""
        attempt = self._find(link)
        if attempt is None:
            self._closes.append((link, "not wanted"))
            return False
        for other in self._attempts:
            if other.greeted_at is not None:
                if now - other.greeted_at < self._greeting_s():
                    self._drop(attempt, "another link was greeted")
                    return False
                self._drop(other, "silent")
                self._unanswered += 1
                break
        if self.state is S.SUSPECT:
            self._give_up_active("silent")
            self._step("replaced")
        attempt.greeted_at = now
        attempt.until = now + self._settings.connect_patience_s
        return True

    def welcomed(self, link: int, now: float, spread_s: float) -> bool:
        """The server welcomed us on this link: it is active now. False: it is not wanted any more."""
        attempt = self._find(link)
        if attempt is None or self.state not in (S.CONNECTING, S.RECONNECTING):
            return False
        took_s = 0.0 if attempt.greeted_at is None else now - attempt.greeted_at
        late = self.rtt.srtt is not None and took_s > self.heartbeat.deadline_s
        if attempt.greeted_at is not None and not late:
            self.rtt.sample(took_s)
        self._attempts.remove(attempt)
        for other in list(self._attempts):
            self._drop(other, "another link won")
        self._step("welcomed")
        self.active = link
        self.spread_s = spread_s
        self.attempt = 0
        self.cause = ""
        self._patience_s = _PATIENCE_S
        self._server_failures = 0
        self._unanswered = 0
        self._goodbye = None
        self._not_before = self._welcomed_at = now
        self.heartbeat.begin(now)
        if late:  # a silence that is over says nothing of the way: ask again
            self.heartbeat.ping(now)
        return True

    def alive(self, link: int, now: float) -> None:
        """Bytes came on this link: any byte is life."""
        if link != self.active:
            return
        self.heartbeat.heard(now)
        if self.state is S.SUSPECT:
            self.heartbeat.answered_late(now)
            self._step("answered")
            for attempt in list(self._attempts):
                self._drop(attempt, "the old link answered")

    def sent(self, now: float) -> None:
        """Data that wants an answer went out on the active link."""
        self.heartbeat.sent(now)

    def pong(self, ping_id: int, now: float) -> None:
        """The answer to a ping."""
        self.heartbeat.pong(ping_id, now)

    def goaway(self, link: int, reconnect_in_s: float, now: float, reason: str) -> None:
        """The server says it goes, or that a newer link owns the device; it will close."""
        if link != self.active:
            return
        if reason == "replaced":
            # Another process uses this device: let each other be, more patiently each time.
            self._replacements = 1 if now - self._welcomed_at > _SETTLED_S else self._replacements + 1
            self._server_failures = self._replacements
            reconnect_in_s = max(reconnect_in_s, self._server_backoff_s(now))
        self._goodbye = self._not_before = now + reconnect_in_s
        self.cause = reason or "the server asked to come back later"
        self._lose_active(now)

    def lose(self, now: float, cause: str) -> None:
        """Give the active link up and look for another at once."""
        if self.active is not None:
            self.cause = cause
            self._lose_active(now)

    def closed(self, link: int, fault: Fault, now: float) -> None:
        """A link closed, or could not be opened."""
        if link == self.active:
            self.active = None
            self.cause = fault.text or fault.kind
            self._note_fault(fault, now)
            if self.state in (S.CONNECTED, S.SUSPECT):
                self._lost(now)
            self.handle_timer(now)
            return
        attempt = self._find(link)
        if attempt is None:
            return
        self._attempts.remove(attempt)
        self.cause = fault.text or fault.kind
        self._note_fault(fault, now)
        if self.state is S.CONNECTING:
            self._step("failed")
        if self._goodbye is not None:
            self.next_probe_at = max(self.next_probe_at, self._goodbye)
            self._goodbye = None
        self.handle_timer(now)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self.active is not None and self.state is S.CONNECTED:
            self._watch(now)
        if self.state is S.SUSPECT and now >= self._suspect_until():
            self._lose_active(now)
            return
        if self.state in PROBING:
            self._probe(now)

    # --- inside ------------------------------------------------------------------------------

    def _step(self, event: str) -> None:
        before = self.state
        self.state = TRANSITIONS[before][event]
        self.transitions[before.value, event] += 1

    def _find(self, link: int) -> _Attempt | None:
        for attempt in self._attempts:
            if attempt.link == link:
                return attempt
        return None

    def _drop(self, attempt: _Attempt, reason: str) -> None:
        self._attempts.remove(attempt)
        if attempt.link in self._opens:
            self._opens.remove(attempt.link)
        else:
            self._closes.append((attempt.link, reason))

    def _close_all(self, reason: str) -> None:
        for attempt in list(self._attempts):
            self._drop(attempt, reason)
        if self.active is not None:
            self._give_up_active(reason)

    def _give_up_active(self, reason: str) -> None:
        if self.active is not None:
            self._closes.append((self.active, reason))
            self.active = None
            self.heartbeat.pings.clear()

    def _lose_active(self, now: float) -> None:
        self._give_up_active("lost")
        self._lost(now)
        self.handle_timer(now)

    def _lost(self, now: float) -> None:
        self._step("lost")
        if not self._attempts:
            self._begin_search(max(now + self.spread_s * self._random(), self._not_before))
        if self._goodbye is not None:
            self.next_probe_at = max(self.next_probe_at, self._goodbye)
            self._goodbye = None

    def _begin_search(self, now: float) -> None:
        self._lost_at = now
        self.next_probe_at = now
        self._server_at_fault = False

    def _note_fault(self, fault: Fault, now: float) -> None:
        self._server_at_fault = fault.kind in ("refused", "http", "protocol")
        if fault.retry_after_s is not None or fault.status in _EXPLICIT or fault.kind == "protocol":
            self._server_failures += 1
            wait_s = max(fault.retry_after_s or 0.0, self._server_backoff_s(now))
            self._goodbye = self._not_before = now + wait_s

    def _server_backoff_s(self, now: float) -> float:
        return backoff_s(
            self._server_failures,
            base_s=self._settings.server_backoff_base_s,
            factor=2.0,
            cap_s=self._settings.server_backoff_cap_s,
            spread=(0.0, 1.0),
            random=self._random,
        )

    def _interval_s(self, now: float) -> float:
        settings = self._settings
        since = now - self._lost_at
        if since < settings.probe_fast_for_s:
            return settings.probe_fast_s
        if since < settings.probe_medium_until_s:
            return settings.probe_medium_s
        if not self._server_at_fault:
            return settings.probe_slow_s
        self._server_failures += 1
        return max(settings.probe_slow_s * 0.1, self._server_backoff_s(now))

    def _fresh_s(self) -> float:
        """How long a fresh attempt gets before a fresher one takes its place."""
        least_s = self.rtt.least_s
        if least_s is None:
            return _FRESH_S
        return max(self._settings.probe_fast_s, _ROUND_TRIPS * least_s)

    def _probe(self, now: float) -> None:
        for attempt in list(self._attempts):
            if now >= attempt.until:
                self._drop(attempt, "took too long")
                if attempt.greeted_at is None:
                    self._patience_s = min(self._patience_s * 2, self._settings.connect_patience_s)
        if now < self.next_probe_at:
            return
        greeting_s = self._greeting_s()
        if any(a.greeted_at is not None and now - a.greeted_at < greeting_s for a in self._attempts):
            self.next_probe_at = now + self._settings.probe_fast_s
            return
        limit = self._settings.connect_attempts_max
        if limit is not None and self.attempt >= limit and self.state is not S.SUSPECT:
            if self._attempts:  # the last ones may still get through
                self.next_probe_at = max(attempt.until for attempt in self._attempts)
                return
            self._step("exhausted")
            return
        if len(self._attempts) >= 2:
            newest = self._attempts[-1]
            stale_at = newest.began + self._fresh_s()
            if newest.greeted_at is None and now < stale_at:
                self.next_probe_at = stale_at
                return
            self._drop(newest, "a fresher attempt takes its place")
        patience_s = max(self._patience_s, 2 * self._fresh_s())
        self._attempts.append(_Attempt(self._next_link, now, now + patience_s))
        self._opens.append(self._next_link)
        self._next_link += 1
        self.attempt += 1
        self.next_probe_at = now + self._interval_s(now)

    def _suspect_until(self) -> float:
        """A link under suspicion is a link no longer than this: people are told the truth."""
        return self._suspect_at + 2 * self.heartbeat.deadline_s

    def _greeting_s(self) -> float:
        """How long a hello may go unanswered before a newer one replaces it: longer each time."""
        return min(
            self.heartbeat.deadline_s * float(2 ** min(self._unanswered, 4)),
            self._settings.connect_patience_s,
        )

    def _watch(self, now: float) -> None:
        if self.heartbeat.silent(now):
            self._step("silent")
            self.cause = "silence"
            self._suspect_at = now
            self._begin_search(now)
            return
        if now >= self.heartbeat.ping_due():
            self.heartbeat.ping(now)
