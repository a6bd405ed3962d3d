"""Settles what a process left unclear when it ended."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain.batches import BatchState

if TYPE_CHECKING:
    from llmrouter.ports import Lease, Store

log = logging.getLogger("llmrouter.engine")


class Reconciler:
    """Finds intents whose create has no answer.

    A batch that is still CLAIMED under an older lease belongs to a process that ended between the
    intent and the answer: it was created, perhaps. Its requests are neither sent again nor given
    up; `Router.status` shows it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def run_once(self, lease: Lease) -> int:
        """Marks such batches as in doubt; answers with how many it found."""
        orphans = [
            batch
            for batch in self._store.open_batches()
            if batch.state is BatchState.CLAIMED and batch.fence < lease.fence
        ]
        for batch in orphans:
            self._store.update_batch(lease, replace(batch, state=BatchState.IN_DOUBT))
            log.warning("a process ended while it created a batch", extra={"batch_id": batch.batch_id})
        return len(orphans)
