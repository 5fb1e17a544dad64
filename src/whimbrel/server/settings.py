"""Every number of the hub; the defaults are those of the specification."""

from __future__ import annotations

import msgspec

from whimbrel import protocol as p


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How much the hub takes from whom, and when it gives up on a link."""

    # credits
    rate_limit: float | None = 10.0
    """Messages/s of one user over all its devices; ``None``: unlimited."""
    rate_burst: int = 100
    rate_retry_s_min: float = 1.0
    """A refused sender is told to wait at least so long, lest it comes back for one credit."""
    hole_kept_s: float = 30.0
    """How long after that those behind the refused number are still refused without asking the ledger."""
    buckets_max: int = 10_000
    # batches
    batch_operations_max: int = 2_000
    batch_bytes_max: int = 8 * 1024 * 1024
    waiting_max: int = 20_000
    """Operations waiting over all links; beyond, every link is congested and HTTP calls are refused."""
    waiting_bytes_max: int = 64 * 1024 * 1024
    """Of content, likewise."""
    waiting_per_link_max: int = 1_000
    """In operations; a large one counts as many, one for each KiB."""
    unavailable_retry_s: float = 1.0
    """How long after a failed batch the next one is tried, and what the refused are told."""
    send_accepted: bool = False
    """Say ``Accepted`` before ``Delivered``; embedded, both would come together."""
    # a link's output
    queue_items_max: int = 1_000
    queue_bytes_max: int = 1024 * 1024
    item_bytes_max: int = p.FRAME_BYTES_MAX // 2
    """How large a page, or the heads of one item, may get; below what a receiver takes as one frame."""
    pongs_max: int = 4
    # pacing
    receipt_interval_s: float = 1.0
    receipts_per_s_max: float = 10_000.0
    """How many receipts one conversation may cost, all members together: in a larger one some wait longer."""
    sync_interval_s: float = 5.0
    """A busy link gets a sync token so often, or with its next pong."""
    typing_burst: int = 5
    typing_per_s: float = 2.0
    # links
    greet_within_s: float = 10.0
    silent_after_s: float = 120.0
    """A link from which nothing came for so long is dead; clients ping every 10 s."""
    expiry_grace_s: float = 30.0
    renew_interval_s: float = 1.0
    """A link may bring one new access token in so long; they are good for minutes."""
    links_max: int = 10_000
    links_per_user_max: int = 50
    status_numbers_max: int = 1_000
    reconnect_spread_s: float = 0.0
    """Told in ``Welcome``: over how long clients spread their reconnections."""
    members_cached_max: int = 10_000
    limits: p.Limits = p.Limits()
