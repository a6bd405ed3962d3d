"""Cancels batches at the API: those of which nobody wants an answer, and those that are too slow."""

from __future__ import annotations

import logging
import threading
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

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 2.0, 60.0

log = logging.getLogger("llmrouter.engine")


class Canceller:
    """Asks the API once for each batch whose requests were all given up, or are wanted back.

    What the batch has answered by then was paid for, and is handed over. When its results are collected,
    the rest ends as canceled, or is sent another way.
    """

    def __init__(self, store: Store, api: BatchApi, clock: Clock) -> None:
        self._store = store
        self._api = api
        self._clock = clock
        self._failed: dict[str, tuple[float, float]] = {}
        """Until when a batch is left alone, by the monotonic clock, and for how many seconds; by its id."""
        self.stopping = threading.Event()
        """Set: the cancel under way is finished, and no other asked for."""

    def run_once(self, lease: Lease) -> int:
        """Cancels those there are; answers with their number."""
        wanted = [
            batch
            for batch in self._store.open_batches()
            if (batch.cancel_wanted or batch.recalled_at is not None)
            and batch.cancel_asked_at is None
            and batch.state is BatchState.IN_FLIGHT
            and self._api.serves(batch.lane)
        ]
        names = {batch.batch_id for batch in wanted}
        self._failed = {name: wait for name, wait in self._failed.items() if name in names}
        return sum(
            self._cancel(lease, batch)
            for batch in wanted
            if not (self.stopping.is_set() or self._waits(batch))
        )

    def _waits(self, batch: Batch) -> bool:
        wait = self._failed.get(batch.batch_id)
        return wait is not None and self._clock.monotonic() < wait[0]

    def _wait(self, batch: Batch) -> None:
        """Leaves a batch alone whose cancel failed: twice as long each time."""
        _, before = self._failed.get(batch.batch_id, (0.0, _FIRST_WAIT_SECONDS / 2))
        seconds = min(2 * before, _LONGEST_WAIT_SECONDS)
        self._failed[batch.batch_id] = self._clock.monotonic() + seconds, seconds

    def _cancel(self, lease: Lease, batch: Batch) -> bool:
        known = {"batch_id": batch.batch_id, "latency": batch.latency}
        try:
            self._api.cancel(batch.lane, batch.provider_batch_id or "")
        except anthropic.APIError as error:
            self._wait(batch)
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
