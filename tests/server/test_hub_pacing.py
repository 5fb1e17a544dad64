"""How the hub holds back: credits, slow consumers, receipts, typing, sync tokens, full queues."""

from __future__ import annotations

from tests.server.hub_rig import Client, Rig
from whimbrel import protocol as p
from whimbrel.server.hub import ServerSettings
from whimbrel.server.ledger import CreateConversation


def commit_of(token: str | None) -> int:
    assert token is not None
    return int(token.partition("@")[2])


def log_of(client: Client) -> list[int]:
    """All that the client can know of conversation c: what it was told, and what heads made it fetch."""
    known: set[int] = set()
    for item in client.read():
        if isinstance(item, p.Event | p.Delivered):
            known.add(item.seq)
        elif isinstance(item, p.Heads | p.Welcome):
            for head in item.heads:
                known.update(range(head.floor + 1, head.seq + 1))
    return sorted(known)


def test_a_user_has_credits_for_all_its_devices_together() -> None:
    rig = Rig(ServerSettings(rate_limit=10.0, rate_burst=5))
    rig.create("c", "ann", "bob")
    phone, tablet = rig.connect("ann"), rig.connect("ann", "ann-2")
    for n in range(1, 4):
        phone.send("c", "p", n)
        tablet.send("c", "t", n)
    rig.settle()
    assert [item.n for item in phone.read() if isinstance(item, p.Delivered)] == [1, 2, 3]
    (rejected,) = [item for item in tablet.read() if isinstance(item, p.Rejected)]
    assert (rejected.n, rejected.code, rejected.final) == (3, "rate_limited", False)
    rig.pass_time(rejected.retry_after_s or 0)
    tablet.send("c", "t", 3)
    assert [item.n for item in tablet.take(p.Delivered)] == [3]


def test_those_behind_a_rate_limited_send_do_not_pass_and_cost_no_credit() -> None:
    rig = Rig(ServerSettings(rate_limit=10.0, rate_burst=5))
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    for n in range(1, 11):
        ann.send("c", "x", n)
        rig.settle()
    rig.pass_time(0.9)
    ann.send("c", "x", 11)
    rig.settle()
    items = ann.read()
    assert [item.n for item in items if isinstance(item, p.Delivered)] == [1, 2, 3, 4, 5]
    assert [item.n for item in items if isinstance(item, p.Rejected)] == [6, 7, 8, 9, 10, 11]
    rig.pass_time(0.2)
    for n in range(6, 11):
        ann.send("c", "x", n)
    assert [item.n for item in ann.take(p.Delivered)] == [6, 7, 8, 9, 10]


def test_a_send_resolved_elsewhere_does_not_block_its_followers_for_ever() -> None:
    settings = ServerSettings(rate_limit=10.0, rate_burst=1)
    rig = Rig(settings)
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    ann.send("c", "x", 1)
    ann.send("c", "x", 2)
    ann.say(p.Void(conversation="c", stream=1, n=2, key="c 2"))
    rig.pass_time(1.0)
    ann.send("c", "x", 3)
    assert [item.n for item in ann.take(p.Delivered)] == [1, 3]


def test_welcome_tells_the_credits() -> None:
    rig = Rig(ServerSettings(rate_limit=10.0, rate_burst=5))
    (welcome,) = rig.connect("ann").take(p.Welcome)
    assert welcome.credits == p.Credits(rate=10.0, burst=5, available=5.0)
    (welcome,) = Rig().connect("ann").take(p.Welcome)
    assert welcome.credits.rate == 0.0


def test_a_slow_consumer_gets_heads_instead_and_loses_nothing() -> None:
    rig = Rig(ServerSettings(rate_limit=None, queue_items_max=20))
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    bob.read()
    for n in range(1, 101):
        ann.send("c", "x", n)
        rig.settle()
        ann.read()
    items = bob.read()
    assert [type(item) for item in items] == [p.Heads]
    assert isinstance(items[0], p.Heads)
    assert [(head.conversation, head.seq) for head in items[0].heads] == [("c", 101)]
    assert commit_of(items[0].sync) == rig.ledger.commit
    # Having caught up, it is pushed to again.
    ann.send("c", "y", 101)
    assert [event.seq for event in bob.take(p.Event)] == [102]


def test_what_a_slow_consumer_asked_for_is_never_dropped() -> None:
    rig = Rig(ServerSettings(rate_limit=None, queue_items_max=20))
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    for n in range(1, 41):
        ann.send("c", "x", n)
        if n == 10:
            bob.send("c", "mine", 1)
            bob.say(p.Fetch(conversation="c"))
        rig.settle()
        ann.read()
    kinds = [type(item) for item in bob.read()]
    assert kinds == [p.Welcome, p.Page, p.Delivered, p.Heads]


def test_a_slow_consumer_is_not_promised_what_was_dropped() -> None:
    rig = Rig(ServerSettings(rate_limit=None, queue_items_max=20))
    rig.create("c", "ann", "bob")
    rig.create("d", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    bob.read()
    ann.send("d", "only here", 1)
    rig.settle()
    rig.pass_time(2.0)  # a token for it is in the queue, and is dropped with it
    for n in range(1, 41):
        ann.send("c", "x", n)
        rig.settle()
    bob.say(p.Ping(id=7))
    items = bob.read()
    assert items[0] == p.Pong(id=7)
    assert isinstance(items[-1], p.Heads)
    assert {head.conversation: head.seq for head in items[-1].heads} == {"c": 41, "d": 2}


def test_whatever_a_client_reads_and_when_it_can_know_the_whole_log() -> None:
    for pause in range(1, 60, 7):
        rig = Rig(ServerSettings(rate_limit=None, queue_items_max=10))
        rig.create("c", "ann", "bob")
        ann, bob = rig.connect("ann"), rig.connect("bob")
        known: set[int] = set()
        for n in range(1, 101):
            ann.send("c", "x", n)
            rig.settle()
            rig.pass_time(0.3)
            if n % pause == 0:
                known.update(log_of(bob))
        known.update(log_of(bob))
        assert known == set(range(1, 102)), pause


def test_a_link_with_much_unread_or_unsettled_is_congested() -> None:
    rig = Rig(ServerSettings(rate_limit=None, queue_items_max=20, waiting_per_link_max=10))
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    ann.read()
    for n in range(1, 11):
        assert not rig.hub.congested(ann.link)
        ann.send("c", "x", n)
    assert rig.hub.congested(ann.link)
    rig.settle()
    assert not rig.hub.congested(ann.link)
    for _ in range(10):
        ann.say(p.Fetch(conversation="c"))
    assert rig.hub.congested(ann.link)
    ann.read()
    assert not rig.hub.congested(ann.link)


def test_a_flood_in_one_frame_is_refused_beyond_the_bound_and_not_kept() -> None:
    rig = Rig(ServerSettings(rate_limit=None, waiting_max=50))
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    for n in range(1, 201):
        ann.send("c", "x", n)
    assert rig.hub.waiting <= 100
    rig.settle()
    items = ann.read()
    delivered = [item.n for item in items if isinstance(item, p.Delivered)]
    refused = [item.n for item in items if isinstance(item, p.Rejected)]
    assert delivered + sorted(refused) == list(range(1, 201))
    assert refused


def test_receipts_go_to_the_others_merged_and_once_a_second() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob", "cat")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    for n in range(1, 11):
        ann.send("c", "x", n)
    rig.settle()
    ann.read(), bob.read()
    told: list[p.ServerItem] = []
    for seq in range(1, 11):
        bob.say(p.Received(conversation="c", seq=seq), p.Read(conversation="c", seq=seq - 1))
        rig.settle()
        rig.pass_time(0.1)
        told += [item for item in ann.read() if isinstance(item, p.Receipts)]
    rig.pass_time(1.0)
    told += [item for item in ann.read() if isinstance(item, p.Receipts)]
    assert told == [
        p.Receipts(conversation="c", receipts=(("bob", 1, 0),)),
        p.Receipts(conversation="c", receipts=(("bob", 10, 9),)),
    ]
    # To bob himself they are the answer: his device need not tell them again.
    assert [item for item in bob.read() if isinstance(item, p.Receipts)] == told


def test_no_sync_token_passes_over_a_receipt_that_was_held_back() -> None:
    rig = Rig(ServerSettings(rate_limit=None, receipt_interval_s=5.0, sync_interval_s=1.0))
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    ann.send("c", "x", 1)
    bob.say(p.Received(conversation="c", seq=1))
    rig.settle()
    rig.pass_time(1.5)
    ann.read()
    bob.say(p.Read(conversation="c", seq=2))
    rig.settle()
    held_back_at = rig.ledger.commit
    ann.send("c", "y", 2)
    rig.settle()
    rig.pass_time(1.5)
    tokens = [item.sync for item in ann.read() if isinstance(item, p.Heads)]
    assert all(commit_of(token) < held_back_at for token in tokens)
    rig.pass_time(5.0)
    items = ann.read()
    assert p.Receipts(conversation="c", receipts=(("bob", 2, 2),)) in items
    assert isinstance(items[-1], p.Heads)
    assert commit_of(items[-1].sync) == rig.ledger.commit


def test_a_large_room_is_told_a_few_receipts_at_a_time_each_in_its_turn() -> None:
    names = ["ann", "bob", "cat", "dan"]
    rig = Rig(ServerSettings(rate_limit=None, receipts_per_s_max=8.0, sync_interval_s=1.0))
    rig.create("c", *names)
    ann, *others = clients = [rig.connect(name) for name in names]
    ann.send("c", "x", 1)
    rig.settle()
    before = rig.ledger.commit
    for client in clients:
        client.say(p.Received(conversation="c", seq=2))
        rig.settle()
    ann.read()
    others[0].say(p.Read(conversation="c", seq=2))  # it keeps its turn, and what is told is the latest
    rig.settle()
    rounds = []
    count = 0
    for pause_s in (0.5, 1.0, 1.0):
        rig.pass_time(pause_s)
        items = ann.read()
        rounds.append(
            [receipt for item in items if isinstance(item, p.Receipts) for receipt in item.receipts]
        )
        count += len(rounds[-1])
        # No token promises a receipt that is still held back.
        left = len(names) - count
        assert all(
            commit_of(item.sync) <= before + count for item in items if isinstance(item, p.Heads) if left
        )
    # Eight a second, to four members, are two at a time.
    assert rounds == [[("ann", 2, 0), ("bob", 2, 2)], [("cat", 2, 0), ("dan", 2, 0)], []]
    rig.pass_time(1.0)
    assert commit_of([item.sync for item in others[0].read() if isinstance(item, p.Heads)][-1]) == before + 5


def test_a_receipt_in_its_own_time_is_told_to_who_resumes_with_any_token() -> None:
    rig = Rig(ServerSettings(rate_limit=None, receipt_interval_s=60.0))
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    token = ann.take(p.Welcome)[0].sync
    for n in range(1, 6):
        ann.send("c", "x", n)
        rig.settle()
        bob.say(p.Read(conversation="c", seq=n))
        rig.settle()
        rig.pass_time(1.5)
        told = [item for item in ann.read() if isinstance(item, p.Heads) and item.sync]
        token = told[-1].sync or "" if told else token
    (welcome,) = rig.connect("ann", sync=token).take(p.Welcome)
    assert ("bob", 5, 5) in welcome.heads[0].receipts


def test_a_token_follows_events_at_most_once_an_interval_and_an_idle_link_costs_nothing() -> None:
    rig = Rig(ServerSettings(rate_limit=None, sync_interval_s=1.0))
    rig.create("c", "ann", "bob")
    ann, bob, dan = rig.connect("ann"), rig.connect("bob"), rig.connect("dan")
    bob.read(), dan.read()
    for n in range(1, 21):
        ann.send("c", "x", n)
        rig.settle()
        rig.pass_time(0.1)
    rig.pass_time(2.0)
    items = bob.read()
    tokens = [item.sync for item in items if isinstance(item, p.Heads)]
    assert len(tokens) == 2
    assert commit_of(tokens[-1]) == rig.ledger.commit
    assert items[-1] == p.Heads(sync=tokens[-1])
    assert dan.read() == []
    rig.pass_time(60.0)
    assert bob.read() == []


def test_a_pong_goes_first_and_promises_only_what_went_before_it() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, bob = rig.connect("ann"), rig.connect("bob")
    bob.read()
    ann.send("c", "x", 1)
    rig.settle()
    bob.say(p.Ping(id=1))
    items = bob.read()
    assert items[0] == p.Pong(id=1)
    assert [type(item) for item in items] == [p.Pong, p.Event]
    bob.say(p.Ping(id=2))
    (pong,) = bob.read()
    assert isinstance(pong, p.Pong)
    assert (pong.id, commit_of(pong.sync)) == (2, rig.ledger.commit)
    bob.say(p.Ping(id=3))
    assert bob.read() == [p.Pong(id=3)]


def test_unread_pongs_do_not_pile_up() -> None:
    rig = Rig()
    ann = rig.connect("ann")
    ann.read()
    for id in range(1000):
        ann.say(p.Ping(id=id))
    assert [item.id for item in ann.read() if isinstance(item, p.Pong)] == [996, 997, 998, 999]


def test_typing_goes_to_the_others_here_and_is_bounded() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    ann, tablet, bob, dan = (
        rig.connect("ann"),
        rig.connect("ann", "ann-2"),
        rig.connect("bob"),
        rig.connect("dan"),
    )
    for client in (ann, tablet, bob, dan):
        client.read()
    for _ in range(100):
        ann.say(p.Typing(conversation="c"))
    dan.say(p.Typing(conversation="c"))
    assert bob.read() == [p.TypingOf(conversation="c", user="ann")] * 5
    assert ann.read() == tablet.read() == dan.read() == []


def test_pages_and_long_lists_of_heads_are_cut_to_what_a_frame_holds() -> None:
    rig = Rig(ServerSettings(rate_limit=None, item_bytes_max=20_000))
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    for n in range(1, 31):
        ann.send("c", "x" * 30_000, n)
    rig.settle()
    ann.read()
    since, pages, seqs = 0, 0, []
    while True:
        ann.say(p.Fetch(conversation="c", since=since))
        (page,) = ann.take(p.Page)
        assert len(p.encode(page)) < p.FRAME_BYTES_MAX
        if not page.events:
            break
        seqs += [event.seq for event in page.events]
        since = seqs[-1]
        pages += 1
    assert seqs == list(range(1, 32))
    assert pages > 1
    for index in range(200):
        rig.ledger.apply([_create(f"conversation-{index:03}")], rig.now)
    items = rig.connect("dan").read()
    assert all(len(p.encode(item)) <= 21_000 for item in items)
    assert isinstance(items[0], p.Welcome)
    assert (items[0].sync, items[0].complete) == ("", False)
    heads = [head for item in items if isinstance(item, p.Welcome | p.Heads) for head in item.heads]
    assert len(heads) == 200
    assert isinstance(items[-1], p.Heads)
    assert items[-1].sync


def _create(conversation: str) -> CreateConversation:
    return CreateConversation(user="dan", conversation=conversation, title="t" * 50, members=("ann", "dan"))


def test_a_listening_link_owns_no_device_and_hears_everything() -> None:
    rig = Rig()
    rig.create("c", "ann", "bob")
    rig.create("d", "ann", "bob")
    ann = rig.connect("ann")
    all_of_ann, only_d = rig.listen("ann"), rig.listen("ann", only="d")
    assert ann.closing is None
    (welcome,) = only_d.take(p.Welcome)
    assert [head.conversation for head in welcome.heads] == ["d"]
    all_of_ann.read()
    ann.send("c", "x", 1)
    rig.settle()
    assert [type(item) for item in ann.read()] == [p.Welcome, p.Delivered]
    assert [type(item) for item in all_of_ann.read()] == [p.Event]
    token = rig.hub.sync(all_of_ann.link)
    assert commit_of(token) == rig.ledger.commit
    assert rig.hub.sync(all_of_ann.link) is None
    assert only_d.read() == []
    rig.pass_time(500)
    assert all_of_ann.closing is None
    rig.hub.close(all_of_ann.link, rig.now)
    rig.connect("ann").send("d", "y", 1)
    rig.settle()
    (welcome,) = rig.listen("ann", sync=token).take(p.Welcome)
    assert [head.conversation for head in welcome.heads] == ["d"]


def test_too_many_links_of_one_user_are_turned_away() -> None:
    rig = Rig(ServerSettings(links_per_user_max=2))
    clients = [rig.connect("ann", f"ann-{index}") for index in range(3)]
    assert [client.closing for client in clients] == [None, None, "rate_limited"]


def test_calls_cost_credits_and_listing_none() -> None:
    rig = Rig(ServerSettings(rate_limit=1.0, rate_burst=2))
    ann = rig.connect("ann")
    for number in range(4):
        ann.say(p.Call(id=f"{number}", op="create", conversation=f"c{number}"))
    ann.say(p.Call(id="list", op="list"))
    codes = {answer.id: answer.code for answer in ann.take(p.Answer)}
    assert codes == {"0": "", "1": "", "2": "rate_limited", "3": "rate_limited", "list": ""}
    assert [info.id for info in rig.ledger.conversations("ann")] == ["c0", "c1"]
    rig.pass_time(1.0)
    ann.say(p.Call(id="again", op="create", conversation="c2"))
    assert [answer.code for answer in ann.take(p.Answer)] == [""]


def test_voids_have_a_generous_rate_of_their_own() -> None:
    rig = Rig(ServerSettings(rate_limit=1.0, rate_burst=2))
    rig.create("c", "ann", "bob")
    ann = rig.connect("ann")
    for n in range(1, 23):
        ann.say(p.Void(conversation="c", stream=1, n=n, key=f"c {n}"))
    rig.settle()
    items = ann.read()
    assert [item.n for item in items if isinstance(item, p.Voided)] == list(range(1, 21))
    rejected = [item for item in items if isinstance(item, p.Rejected)]
    assert [(item.n, item.code, item.final) for item in rejected] == [
        (21, "rate_limited", False),
        (22, "rate_limited", False),
    ]
    # They cost none of the credits for sends.
    rig.pass_time(rejected[0].retry_after_s or 0)
    ann.say(p.Void(conversation="c", stream=1, n=21, key="c 21"))
    ann.send("c", "x", 22)
    ann.send("c", "x", 23)
    assert [item.n for item in ann.take(p.Delivered)] == [22, 23]
