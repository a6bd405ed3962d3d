"""Throws away what nobody needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

    from llmrouter.ports import Clock, Lease, Store

_AT_ONCE = 500
"""Requests dropped in one transaction: others wait for it no longer than for any other write."""

_PRUNED_AT_ONCE = 5_000


class Janitor:
    """Drops bodies of settled requests, and in the end everything of them."""

    def __init__(self, store: Store, clock: Clock, retention: timedelta) -> None:
        """Makes a janitor.

        Args:
            store: What it cleans.
            clock: Tells the age of answers.
            retention: How long an answer is kept after it was settled, once somebody has it.
        """
        self._store = store
        self._clock = clock
        self._retention = retention

    def run_once(self, lease: Lease) -> int:
        """Drops the bodies of settled requests: their prompts are not needed; answers with how many."""
        dropped = 0
        while at_once := self._store.sweep(lease, _AT_ONCE):
            dropped += at_once
        return dropped

    def prune(self, lease: Lease, older_than: timedelta | None = None, *, undelivered: bool = False) -> int:
        """Forgets requests that were answered long ago; answers with how many.

        Args:
            lease: Of the engine.
            older_than: Since they were settled; by default the retention.
            undelivered: Also those whose answer nobody has picked up.
        """
        before = self._clock.now() - (self._retention if older_than is None else older_than)
        pruned = 0
        while at_once := self._store.prune(lease, before, _PRUNED_AT_ONCE, undelivered=undelivered):
            pruned += at_once
        return pruned
