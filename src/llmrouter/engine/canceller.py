"""Cancels batches at the API that nobody wants an answer of any more."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import anthropic

from llmrouter import failpoints
from llmrouter.domain.batches import OPEN_STATES, BatchState
from llmrouter.engine.origins import brief
from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from llmrouter.domain.batches import Batch
    from llmrouter.ports import BatchApi, Clock, Lease, Store

log = logging.getLogger("llmrouter.engine")


class Canceller:
    """Asks the API once for each batch whose requests were all given up.

    What the batch has answered by then was paid for, and is handed over; the rest ends as canceled
    when its results are collected.
    """

    def __init__(self, store: Store, api: BatchApi, clock: Clock) -> None:
        self._store = store
        self._api = api
        self._clock = clock

    def run_once(self, lease: Lease) -> int:
        """Cancels those there are; answers with their number."""
        return sum(
            self._cancel(lease, batch)
            for batch in self._store.open_batches()
            if batch.cancel_wanted
            and batch.cancel_asked_at is None
            and batch.state is BatchState.IN_FLIGHT
            and self._api.serves(batch.lane)
        )

    def _cancel(self, lease: Lease, batch: Batch) -> bool:
        known = {"batch_id": batch.batch_id, "latency": batch.latency}
        try:
            self._api.cancel(batch.lane, batch.provider_batch_id or "")
        except anthropic.APIError as error:
            log.warning("could not cancel a batch yet: %s", brief(error), extra=known)
            return False
        failpoints.reach("canceling")
        self._note(lease, replace(batch, cancel_asked_at=self._clock.now()))
        log.info("asked the API to cancel a batch of %d requests", batch.request_count, extra=known)
        return True

    def _note(self, lease: Lease, batch: Batch) -> None:
        try:
            self._store.update_batch(lease, batch)
        except StoreError:
            stored = self._store.find_batch(batch.batch_id)
            if stored is None or stored.state in OPEN_STATES:
                raise
            # It had ended, and was collected meanwhile.
