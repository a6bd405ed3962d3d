"""Throws away what nobody needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.ports import Lease, Store

_AT_ONCE = 500
"""Requests dropped in one transaction: others wait for it no longer than for any other write."""


class Janitor:
    """Drops the bodies of settled requests: their prompts are not needed, only their outcomes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run_once(self, lease: Lease) -> int:
        """Drops all there are; answers with how many."""
        dropped = 0
        while at_once := self._store.sweep(lease, _AT_ONCE):
            dropped += at_once
        return dropped
