"""The link machine: probing, deadlines, the second link, goaway, explicit answers."""

from __future__ import annotations

import itertools
import random

from whimbrel.core.contract import Fault, Settings, Sources
from whimbrel.core.link import LinkMachine
from whimbrel.core.linkstate import LinkState
from whimbrel.model import Quality


class Rig:
    def __init__(self, settings: Settings | None = None, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.settings = settings or Settings()
        self.link = LinkMachine(self.settings, Sources(random=rng.random, wall=lambda: 0.0))
        self.now = 0.0
        self.opens: list[tuple[float, int]] = []
        self.closes: list[int] = []
        self.pings: list[tuple[float, int]] = []
        self.refuse: Fault | None = None
        """When set, every attempt fails at once with this."""

    @property
    def state(self) -> LinkState:
        return self.link.state

    def drain(self) -> None:
        for _ in range(100):
            opens = self.link.take_opens()
            self.closes.extend(link for link, _ in self.link.take_closes())
            self.pings.extend((self.now, ping) for ping in self.link.take_pings())
            self.opens.extend((self.now, link) for link in opens)
            if not opens or self.refuse is None:
                return
            for link in opens:
                self.link.closed(link, self.refuse, self.now)
        raise AssertionError("the link spins")

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(100_000):
            due = self.link.next_deadline()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.link.handle_timer(self.now)
            self.drain()
        else:
            raise AssertionError("the link spins")
        self.now = until

    def connect(self, rtt_s: float = 0.02) -> int:
        self.refuse = None
        self.link.start(self.now, signed_in=True)
        self.drain()
        for _ in range(100):
            if self.opens and self.opens[-1][1] not in self.closes:
                break
            self.run(0.1)
        link = self.opens[-1][1]
        assert self.link.opened(link, self.now)
        self.now += rtt_s
        assert self.link.welcomed(link, self.now, 0.0)
        self.drain()
        return link

    def pong(self) -> None:
        # In this order: bytes come first, what they say is read then.
        assert self.link.active is not None
        self.link.alive(self.link.active, self.now)
        self.link.pong(self.pings[-1][1], self.now)


REFUSED = Fault(kind="refused", text="connection refused")
UNREACHABLE = Fault(kind="network", text="no route")


def intervals(rig: Rig, start: float, end: float) -> list[float]:
    times = [at for at, _ in rig.opens if start <= at <= end]
    return [round(b - a, 3) for a, b in itertools.pairwise(times)]


def test_after_a_loss_it_probes_fast_then_patiently() -> None:
    rig = Rig()
    link = rig.connect()
    rig.refuse = UNREACHABLE
    lost = rig.now
    rig.link.closed(link, Fault(kind="network", text="reset"), rig.now)
    rig.drain()
    rig.run(120)
    assert rig.opens[1][0] == lost
    assert set(intervals(rig, lost, lost + 9.9)) == {0.2}
    assert set(intervals(rig, lost + 10.3, lost + 59)) == {0.5}
    assert set(intervals(rig, lost + 61, lost + 119)) == {1.0}


def test_a_server_at_fault_for_long_is_given_room_with_jitter() -> None:
    rig = Rig()
    link = rig.connect()
    rig.refuse = REFUSED
    lost = rig.now
    rig.link.closed(link, REFUSED, rig.now)
    rig.drain()
    rig.run(600)
    late = intervals(rig, lost + 200, lost + 600)
    assert max(late) <= 30.0
    assert len(set(late)) == len(late)
    assert len(late) < 120


def test_an_explicit_answer_is_obeyed_at_once() -> None:
    rig = Rig()
    link = rig.connect()
    rig.link.closed(link, Fault(kind="network", text="reset"), rig.now)
    rig.drain()
    attempt = rig.opens[-1][1]
    rig.link.closed(attempt, Fault(kind="http", status=503, retry_after_s=7.0), rig.now)
    rig.drain()
    before = len(rig.opens)
    began = rig.now
    rig.run(6.9)
    assert len(rig.opens) == before
    rig.run(0.2)
    assert len(rig.opens) == before + 1
    assert rig.opens[-1][0] >= began + 7.0


def test_an_explicit_answer_holds_when_the_suspect_link_is_given_up() -> None:
    rig = Rig()
    rig.connect()
    rig.link.sent(rig.now)
    while rig.state is LinkState.CONNECTED:
        rig.run(0.1)
    states = [rig.state]
    rig.link.closed(rig.opens[-1][1], Fault(kind="http", status=503, retry_after_s=60.0), rig.now)
    rig.drain()
    before, told = len(rig.opens), rig.now
    rig.run(59.0)
    states.append(rig.state)
    assert states == [LinkState.SUSPECT, LinkState.RECONNECTING]
    assert len(rig.opens) == before
    rig.run(2.0)
    assert rig.opens[before][0] >= told + 60.0


def test_an_explicit_answer_holds_over_a_failure_of_the_store_and_not_against_the_app() -> None:
    for again in (True, False):
        rig = Rig()
        link = rig.connect()
        rig.link.closed(link, Fault(kind="http", status=503, retry_after_s=60.0), rig.now)
        rig.drain()
        before = len(rig.opens)
        rig.link.stop()
        rig.link.start(rig.now, signed_in=True, again=again)
        rig.drain()
        assert (len(rig.opens) == before) is again


def test_goaway_is_obeyed() -> None:
    rig = Rig()
    link = rig.connect()
    rig.link.goaway(link, 4.0, rig.now, "shutdown")
    rig.drain()
    assert link in rig.closes
    assert rig.state == LinkState.RECONNECTING
    before = len(rig.opens)
    rig.run(3.9)
    assert len(rig.opens) == before
    rig.run(0.2)
    assert len(rig.opens) == before + 1


def test_idle_links_are_pinged_every_ten_seconds() -> None:
    rig = Rig()
    rig.connect()
    for _ in range(5):
        rig.run(10)
        rig.pong()
    assert len(rig.pings) == 5
    assert rig.state == LinkState.CONNECTED


def test_after_a_quiet_minute_pings_are_rarer_until_something_happens() -> None:
    rig = Rig(Settings(ping_idle_after_s=55.0, ping_idle_s=15.0))
    link = rig.connect()
    began = rig.now

    def quiet(seconds: float) -> list[float]:
        """When it pings meanwhile; every ping is answered."""
        first = answered = len(rig.pings)
        until = rig.now + seconds
        while rig.now < until:
            rig.run(1)
            if len(rig.pings) > answered:
                rig.pong()
                answered += 1
        return [round(at - began) for at, _ in rig.pings[first:]]

    assert quiet(130) == [10, 20, 30, 40, 50, 60, 75, 90, 105, 120]
    rig.link.alive(link, rig.now)  # somebody wrote
    assert quiet(35) == [131, 141, 151, 161]
    rig.link.sent(rig.now)  # so did we
    rig.link.alive(link, rig.now)
    assert quiet(20) == [176, 176, 186]


def test_silence_tries_a_second_link_beside_the_first() -> None:
    rig = Rig()
    link = rig.connect()
    rig.link.sent(rig.now)
    rig.run(1.3)
    assert len(rig.pings) == 1
    rig.run(1.3)
    assert rig.state == LinkState.SUSPECT
    assert link not in rig.closes
    second = rig.opens[-1][1]
    assert second != link
    assert rig.link.opened(second, rig.now)
    rig.drain()
    assert link in rig.closes
    assert rig.link.welcomed(second, rig.now, 0.0)
    assert rig.link.active == second


def test_if_the_old_link_answers_after_all_the_deadline_doubles() -> None:
    rig = Rig()
    link = rig.connect()
    rig.link.sent(rig.now)
    rig.run(2.6)
    assert rig.state == LinkState.SUSPECT
    rig.link.alive(link, rig.now)
    rig.drain()
    assert rig.opens[-1][1] in rig.closes
    rig.link.sent(rig.now)
    states = []
    for seconds in (0.0, 4.9, 0.2):
        rig.run(seconds)
        states.append(rig.state.value)
    assert states == ["connected", "connected", "suspect"]


def test_never_more_than_two_attempts_are_out() -> None:
    rig = Rig()
    link = rig.connect()
    rig.link.closed(link, Fault(kind="network"), rig.now)
    rig.drain()
    for _ in range(300):
        rig.run(0.1)
        out = {link for _, link in rig.opens[1:]} - set(rig.closes)
        assert len(out) <= 2


def test_a_network_that_comes_back_is_noticed_by_a_fresh_attempt() -> None:
    rig = Rig()
    link = rig.connect()
    rig.link.closed(link, Fault(kind="network"), rig.now)
    rig.drain()
    rig.run(7.0)
    back = rig.now
    rig.run(0.3)
    assert any(at >= back for at, _ in rig.opens)


def test_a_slow_network_gets_time_to_answer() -> None:
    """Every step of connecting takes 2.5 s: fresh attempts are replaced, the patient one gets through."""
    rig = Rig()
    link = rig.connect()
    rig.link.closed(link, Fault(kind="network"), rig.now)
    rig.drain()
    for _ in range(400):
        rig.run(0.1)
        ripe = [link for at, link in rig.opens[1:] if rig.now - at >= 2.5 and rig.link.knows(link)]
        if ripe:
            assert rig.link.opened(ripe[0], rig.now)
            break
    else:
        raise AssertionError("no attempt was given 2.5 s")
    rig.run(2.4)
    assert rig.link.welcomed(ripe[0], rig.now, 0.0)


def test_only_one_hello_is_out() -> None:
    rig = Rig()
    link = rig.connect()
    rig.link.closed(link, Fault(kind="network"), rig.now)
    rig.drain()
    rig.run(0.5)
    first, second = [link for _, link in rig.opens if rig.link.knows(link)][:2]
    assert rig.link.opened(first, rig.now)
    assert not rig.link.opened(second, rig.now)


def test_attempts_can_be_limited() -> None:
    rig = Rig(Settings(connect_attempts_max=5))
    rig.refuse = REFUSED
    rig.link.start(rig.now, signed_in=True)
    rig.drain()
    rig.run(60)
    assert rig.state == LinkState.STOPPED
    assert len(rig.opens) == 5
    assert rig.link.cause == "connection refused"


def test_without_credentials_there_is_no_attempt() -> None:
    rig = Rig()
    rig.link.start(rig.now, signed_in=False)
    rig.drain()
    rig.run(60)
    assert rig.state == LinkState.OFFLINE
    assert rig.opens == []
    rig.link.signed_in(rig.now)
    rig.drain()
    assert len(rig.opens) == 1


def test_a_spread_asked_for_by_the_server_is_kept() -> None:
    firsts = set()
    for seed in range(20):
        rig = Rig(seed=seed)
        rig.link.start(rig.now, signed_in=True)
        rig.drain()
        link = rig.opens[-1][1]
        rig.link.opened(link, rig.now)
        rig.link.welcomed(link, rig.now, 5.0)
        rig.link.closed(link, Fault(kind="network"), rig.now)
        rig.run(6)
        firsts.add(round(rig.opens[1][0], 2))
    assert len(firsts) > 15
    assert max(firsts) <= 5.0


def test_quality_has_hysteresis() -> None:
    rig = Rig()
    rig.connect(rtt_s=0.09)
    seen = []
    for srtt in (0.09, 0.11, 0.13, 0.11, 0.09, 0.9):
        rig.link.rtt.srtt = srtt
        seen.append(rig.link.quality.value)
    assert seen == ["excellent", "excellent", "good", "good", "excellent", "poor"]
    rig.link.stop()
    assert rig.link.quality is Quality.OFFLINE


def test_while_data_flows_the_round_trip_is_measured_every_two_seconds() -> None:
    rig = Rig()
    rig.connect()
    for _ in range(100):
        rig.run(0.1)
        rig.link.sent(rig.now)
        rig.drain()
        if rig.pings:
            rig.pong()
    assert 4 <= len(rig.pings) <= 5


def test_a_network_that_became_slow_is_noticed_soon() -> None:
    rig = Rig()
    rig.connect(rtt_s=0.03)
    rig.link.rtt.sample(1.6)
    rig.link.rtt.sample(1.6)
    assert rig.link.quality is Quality.POOR


def test_a_server_slow_to_welcome_is_given_more_time_each_time() -> None:
    rig = Rig()
    rig.link.start(rig.now, signed_in=True)
    rig.drain()
    greeted: dict[int, float] = {}
    for _ in range(1200):
        rig.run(0.05)
        for at, link in rig.opens:
            if (
                rig.link.knows(link)
                and link not in greeted
                and rig.now - at >= 0.05
                and rig.link.opened(link, rig.now)
            ):
                greeted[link] = rig.now
        for link, at in list(greeted.items()):
            if rig.link.knows(link) and rig.now - at >= 4.0 and rig.link.welcomed(link, rig.now, 0.0):
                assert len(greeted) < 10
                return
    raise AssertionError("never connected")


def test_suspicion_ends() -> None:
    rig = Rig()
    link = rig.connect()
    rig.refuse = UNREACHABLE
    rig.link.sent(rig.now)
    rig.run(8.0)
    assert rig.state == LinkState.RECONNECTING
    assert link in rig.closes


def test_the_deadline_shrinks_again_when_answers_come_in_time() -> None:
    rig = Rig(Settings(ping_idle_s=10.0))
    rig.connect()
    rig.link.heartbeat.factor = 12.0
    for _ in range(12):
        rig.run(10)
        rig.pong()
    assert rig.link.heartbeat.factor == 1.0


def test_the_limit_of_attempts_holds_where_nothing_answers() -> None:
    rig = Rig(Settings(connect_attempts_max=5))
    rig.link.start(rig.now, signed_in=True)
    rig.drain()
    rig.run(120)
    assert len(rig.opens) == 5
    assert rig.state == LinkState.STOPPED


def test_a_welcome_that_was_held_up_measures_nothing() -> None:
    """A hello sent into a silence is answered when that is over: the way is as short as before."""
    rig = Rig()
    link = rig.connect()
    rig.link.closed(link, UNREACHABLE, rig.now)
    rig.drain()
    held_up = rig.opens[-1][1]
    assert rig.link.opened(held_up, rig.now)
    rig.now += 9.0
    assert rig.link.welcomed(held_up, rig.now, 0.0)
    rig.drain()
    assert rig.link.heartbeat.deadline_s == rig.settings.dead_after_s
    assert rig.pings[-1][0] == rig.now, "it is measured again, at once"
    rig.now += 0.02
    rig.pong()
    # The next loss is answered as fast as the first: an attempt a moment, not one in half a minute.
    rig.link.closed(held_up, UNREACHABLE, rig.now)
    rig.drain()
    began_s, before = rig.now, len(rig.opens)
    rig.run(5.0)
    assert len(rig.opens) - before >= 5.0 / rig.settings.probe_fast_s - 2, (began_s, rig.opens[before:])


def test_an_answer_that_was_held_up_measures_nothing() -> None:
    rig = Rig()
    rig.connect()
    rig.link.sent(rig.now)
    rig.run(2 * rig.settings.dead_after_s)
    assert rig.state == LinkState.SUSPECT
    held_up = rig.pings[-1][1]
    assert rig.link.active is not None
    rig.link.alive(rig.link.active, rig.now)
    rig.link.pong(held_up, rig.now)
    rig.drain()
    assert rig.link.transitions["suspect", "answered"] == 1
    assert rig.pings[-1] == (rig.now, held_up + 1), "it is measured again, at once"
    rig.now += 0.02
    rig.pong()
    assert rig.link.rtt.srtt is not None
    assert rig.link.rtt.srtt < 0.1
    assert rig.link.heartbeat.deadline_s < 2 * rig.settings.dead_after_s


def test_before_anything_was_measured_a_fresh_attempt_is_made_often() -> None:
    rig = Rig()
    rig.link.start(rig.now, signed_in=True)
    rig.drain()
    rig.run(5.0)
    times = [at for at, _ in rig.opens]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 0.5 + 1e-9
