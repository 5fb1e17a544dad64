"""When a failed message is tried again, and when its retries are used up.

Retries are counted per reason and in all; one budget bounds them over all conversations.
"""

from __future__ import annotations

from whimbrel.core.backoff import backoff_s
from whimbrel.core.budget import TokenBucket
from whimbrel.core.contract import Settings, Sources
from whimbrel.core.life import Entry
from whimbrel.core.rows import retries_allowed
from whimbrel.model import Attempt, FailureReason


class RetryPolicy:
    """Counts the failures of messages and says how long to wait."""

    def __init__(self, settings: Settings, sources: Sources) -> None:
        self._settings = settings
        self._sources = sources
        self._budget: TokenBucket | None = None

    def note(self, entry: Entry, reason: FailureReason, text: str) -> None:
        """Keep the attempt with the message; the text never holds content."""
        attempt = Attempt(at=self._sources.wall(), reason=reason, text=text[:200])
        entry.row.attempts = (*entry.row.attempts, attempt)[-self._settings.attempts_kept :]

    def failed(
        self, entry: Entry, reason: FailureReason, text: str, retry_after_s: float | None, now: float
    ) -> float | None:
        """Count one failed attempt; the seconds to wait, or None: its retries are used up."""
        settings, row = self._settings, entry.row
        row.reason = reason
        row.retry_count += 1
        row.last_retry_at = self._sources.wall()
        entry.counts[reason] = entry.counts.get(reason, 0) + 1
        self.note(entry, reason, text)
        allowed = retries_allowed(reason, settings)
        if entry.counts[reason] > allowed or row.retry_count > settings.retries_max:
            return None
        wait_s = backoff_s(
            row.retry_count,
            base_s=settings.backoff_base_s,
            factor=settings.backoff_factor,
            cap_s=settings.backoff_cap_s,
            spread=(1.0, 1.1),
            random=self._sources.random,
        )
        wait_s = max(wait_s, retry_after_s or 0.0)
        if self._budget is None:
            self._budget = TokenBucket(settings.retry_budget_per_s, settings.retry_budget, now)
        return wait_s + self._budget.reserve(now)
