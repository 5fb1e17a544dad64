"""Safeguards switched off, one at a time, to show that the checkers would notice.

Each ablation replaces a part of the simulated world by one that breaks a rule whimbrel depends on; production
code has no switch for it. A simulator that finds nothing with a safeguard gone proves nothing with it there:
for each ablation, a seed within the first 200 must fail, and the judge named here must be among those that
notice. What the parts do is in `ablations_client`, `ablations_server` and `ablations_ledger`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from whimbrel.core.contract import Settings
from whimbrel.server.settings import ServerSettings
from whimbrel.testing import ablations_client as clients
from whimbrel.testing import ablations_ledger as ledgers
from whimbrel.testing import ablations_server as servers
from whimbrel.testing.simparts import Parts
from whimbrel.testing.simplan import SimPlan

__all__ = ["ABLATIONS", "Parts"]


def _changed(**fields: object) -> Callable[[Settings], Settings]:
    return lambda settings: msgspec.structs.replace(settings, **fields)


def _served(**fields: object) -> Callable[[ServerSettings], ServerSettings]:
    return lambda settings: msgspec.structs.replace(settings, **fields)


def _restored(plan: SimPlan) -> SimPlan:
    """Storms in which the server is restored from an old backup."""
    return msgspec.structs.replace(plan, fault_kinds=("server_restored", "cut", "crash_any_time"))


def _repeating(plan: SimPlan) -> SimPlan:
    """Storms in which what was sent comes again, late, behind what took it back."""
    kinds = ("duplicated", "held_up", "flapping", "answer_lost", "swallowed")
    return msgspec.structs.replace(plan, fault_kinds=kinds, faults=40, moves_share=0.0)


def _leaking(plan: SimPlan) -> SimPlan:
    """Storms in which links live on and lose some of what they carry."""
    return msgspec.structs.replace(plan, fault_kinds=("swallowed", "held_down", "cut"), faults=40)


def _cutting(plan: SimPlan) -> SimPlan:
    """Storms in which links are lost again and again."""
    return msgspec.structs.replace(plan, fault_kinds=("cut", "reset", "crash_any_time"), faults=40)


def _crowding(plan: SimPlan) -> SimPlan:
    """Storms in which much is said to those whose links take little."""
    kinds = ("narrow", "held_down", "stall")
    return msgspec.structs.replace(plan, fault_kinds=kinds, faults=60, burst_share=1.0)


def _stumbling(plan: SimPlan) -> SimPlan:
    """Storms in which the server cannot take many messages, and retries have a small budget."""
    settings = Settings(
        retry_budget=1.0, retry_budget_per_s=0.1, backoff_base_s=0.2, resume_failed_every_s=2.0
    )
    return msgspec.structs.replace(
        plan, fault_kinds=("poison",), faults=30, tight_share=0.0, settings=settings
    )


ABLATIONS: Final[dict[str, Parts]] = {
    # --- on disk before it is told
    "send_before_commit": Parts(
        client=clients.EagerClient,
        disk=clients.EagerDisk,
        says="messages leave before key and number are on disk",
        judge="nothing_lost",
    ),
    "receipt_before_commit": Parts(
        client=clients.client_of(clients.HastyReceipts),
        says="what is not on disk is reported as received",
        judge="no_lie_about_reading",
    ),
    "failed_commit_kept": Parts(
        client=clients.CarelessClient, says="a failed commit is taken for a good one", judge="seen_by_all"
    ),
    "position_apart": Parts(
        disk=clients.TornDisk,
        says="positions are stored in another transaction than the entries they cover",
        judge="seen_by_all",
    ),
    "ack_before_commit": Parts(
        server=servers.EagerServer,
        ledger_disk=servers.EagerLedgerDisk,
        says="the server answers before its commit",
        judge="nothing_lost",
    ),
    # --- numbers, keys, voids
    "numbers_unchecked": Parts(
        ledger_disk=ledgers.UncheckedLedgerDisk,
        says="the ledger does not look at the numbers of messages",
        judge="order_kept",
    ),
    "keys_forgotten": Parts(
        ledger_disk=ledgers.KeylessLedgerDisk,
        plan=_restored,
        says="a message offered in a new stream is not found by its key",
        judge="logs_whole",
    ),
    "voids_forgotten": Parts(
        ledger_disk=ledgers.VoidlessLedgerDisk,
        plan=_repeating,
        says="a void is confirmed and not kept",
        judge="no_lie",
    ),
    "withdrawn_alone": Parts(
        client=clients.client_of(clients.Unasked),
        says="a cancel or expiry in flight is final without the server's word",
        judge="no_lie",
    ),
    # --- out again, until it is settled
    "not_sent_again": Parts(
        client=clients.client_of(clients.Onward),
        says="a new link goes on where the lost one stopped",
        judge="drained",
    ),
    "never_asked_after": Parts(
        client=clients.client_of(clients.Trusting),
        says="a number without an answer is not asked after",
        judge="drained",
    ),
    "failed_left_alone": Parts(
        settings=_changed(auto_resume=False),
        says="what failed is not taken up again by itself",
        judge="drained",
    ),
    "silence_unnoticed": Parts(
        client=clients.client_of(clients.Deaf), says="a dead link is taken for a quiet one", judge="drained"
    ),
    # --- without spinning
    "no_backoff": Parts(
        client=clients.client_of(clients.Impatient),
        settings=_changed(
            backoff_base_s=0.0, retries_server_error=10**6, retries_max=10**6, retry_budget_per_s=0.0
        ),
        plan=_stumbling,
        says="a failed attempt is repeated at once",
        judge="no_spinning",
    ),
    "budget_ignored": Parts(
        plan=_stumbling,
        settings=_changed(retry_budget_per_s=0.0),
        says="retries have no budget",
        judge="within_budget",
    ),
    "pause_ignored": Parts(
        client=clients.client_of(clients.Unpaused),
        says="the server's rate limit pauses nothing",
        judge="world_sound",
    ),
    "retry_after_ignored": Parts(
        client=clients.client_of(clients.Disobedient),
        says="a server that says when to come back is asked before",
        judge="world_sound",
    ),
    "refresh_many_times": Parts(
        client=clients.client_of(clients.Greedy),
        says="a token is asked for again while it is being asked for",
        judge="no_spinning",
    ),
    "wall_clock_deadlines": Parts(
        client=clients.WallClockClient, says="deadlines are kept on the wall clock", judge="drained"
    ),
    # --- receiving
    "gaps_ignored": Parts(client=clients.IncuriousClient, says="gaps are never fetched", judge="drained"),
    "fetched_once": Parts(
        settings=_changed(fetch_timeout_s=1e9),
        plan=_leaking,
        says="a page that does not come is not asked for again",
        judge="drained",
    ),
    "repeats_told_again": Parts(
        client=clients.client_of(clients.Repetitive),
        says="an entry that comes again is told again",
        judge="lives_in_order",
    ),
    "floor_ignored": Parts(
        client=clients.client_of(clients.Floorless),
        says="who joined late waits for what was before",
        judge="drained",
    ),
    "buffer_unbounded": Parts(
        settings=_changed(out_of_order_max=10**6),
        says="what lies beyond a gap is kept without a bound",
        judge="world_sound",
    ),
    "outbox_unbounded": Parts(
        settings=_changed(outbox_messages_max=10**6), says="the outbox has no bound", judge="world_sound"
    ),
    "receipts_overwritten": Parts(
        ledger_disk=ledgers.OverwrittenReceipts,
        says="the last receipt counts, not the furthest",
        judge="no_lie_about_reading",
    ),
    "epoch_ignored": Parts(
        client=clients.client_of(clients.Timeless),
        plan=_restored,
        says="a history that was replaced is taken for the old one",
        judge="seen_by_all",
    ),
    "own_not_offered_again": Parts(
        client=clients.client_of(clients.Forgetful),
        plan=_restored,
        says="what a lost history had is not offered to the new one",
        judge="nothing_lost",
    ),
    # --- the server
    "read_before_subscribing": Parts(
        server=servers.server_of(servers.LateHub),
        says="heads are read before the link is subscribed",
        judge="receipts_arrived",
    ),
    "hello_owns_nothing": Parts(
        server=servers.server_of(servers.SharingHub),
        says="a new link of a device leaves the old one open",
        judge="world_sound",
    ),
    "slow_consumer_forgotten": Parts(
        server=servers.server_of(servers.DroppingHub),
        server_settings=_served(queue_items_max=2, queue_bytes_max=300, receipt_interval_s=0.3),
        plan=_crowding,
        says="news for a slow link is dropped without a word",
        judge="receipts_arrived",
    ),
    "token_before_receipts": Parts(
        server=servers.server_of(servers.OverpromisingHub),
        server_settings=_served(sync_interval_s=0.2, receipt_interval_s=5.0),
        plan=_cutting,
        says="a sync token promises receipts that were not told",
        judge="receipts_arrived",
    ),
    "members_unchecked": Parts(
        ledger_disk=ledgers.OpenLedgerDisk, says="anybody may write anywhere", judge="logs_whole"
    ),
}
"""By the name that `--ablation` takes."""
