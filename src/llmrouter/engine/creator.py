"""Creates a claimed batch once, and writes down what became of it, whatever becomes of it.

This is where requests could be paid twice. Before the create the intent is on disk (CLAIMED). A
clear answer is recorded as a fact, even by a process that has lost its lease meanwhile; a clear
refusal is the caller's to deal with; everything else leaves the batch IN_DOUBT for the reconciler.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import anthropic

from llmrouter import failpoints
from llmrouter.domain.batches import Batch, BatchState
from llmrouter.engine.origins import brief
from llmrouter.errors import (
    CreateError,
    CreateRefusedError,
    CreateUnclearError,
    LeaseLostError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from llmrouter.domain.batches import ProviderBatch
    from llmrouter.ports import BatchApi, BatchBody, Clock, Lease, Store

CREATE_WITHIN = timedelta(hours=1)
"""The end of a body goes out at most so long after its claim: it bounds when a batch in doubt can have
been created. Enough for 256 MB at 0.6 Mbit/s."""

_TRY_STRAYS_EVERY = timedelta(seconds=10)

log = logging.getLogger("llmrouter.engine")


class Creator:
    """Creates batches, from any number of threads."""

    def __init__(self, store: Store, api: BatchApi, clock: Clock) -> None:
        self._store = store
        self._api = api
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._unrecorded: dict[str, Batch] = {}
        self._strays: dict[str, Batch] = {}
        self._strays_tried_at = clock.monotonic()

    def under_way(self) -> Collection[str]:
        """Batches that this process is claiming, creating or has not yet been able to record."""
        with self._lock:
            return frozenset(self._under_way)

    def begin(self, batch_id: str) -> None:
        """Call it before the claim: from then on the batch is nobody else's to tidy up."""
        with self._lock:
            self._under_way.add(batch_id)

    def drop(self, batch_id: str) -> None:
        """The claim came to nothing, or a refusal has been dealt with."""
        with self._lock:
            self._under_way.discard(batch_id)

    def create(self, lease: Lease, batch: Batch) -> CreateError | None:
        """Creates a batch; None when it is in flight.

        Returns:
            `CreateRefusedError`: nothing was created; the batch is still CLAIMED.
            `CreateUnclearError`: the batch is IN_DOUBT.

        Raises:
            LeaseLostError: Another process works on the store now. Nothing was created, or it is
                recorded as far as it is known.
            StoreError: The store cannot record it now; `tidy` will.
        """
        failpoints.reach("claimed")
        known = {"batch_id": batch.batch_id, "lane": batch.lane.lane_id, "latency": batch.latency}
        try:
            described = self._api.create(batch.lane, self._guarded(lease, batch))
        except CreateRefusedError as refusal:
            return refusal
        except CreateUnclearError as unclear:
            log.warning("it is unclear whether the batch was created: %s", unclear.brief, extra=known)
            self._record(lease, self._in_doubt(batch))
            return unclear
        except BaseException:
            # Whatever it was, the create may have been under way.
            self._record(lease, self._in_doubt(batch))
            raise
        failpoints.reach("created")
        self._record(lease, in_flight(batch, described))
        failpoints.reach("recorded")
        return None

    def tidy(self, lease: Lease | None) -> None:
        """Writes down what could not be written before, and takes back what was never sent.

        Args:
            lease: None when another process works on the store: facts can still be recorded.
        """
        with self._lock:
            unrecorded, strays = list(self._unrecorded.values()), list(self._strays.values())
        for batch in unrecorded:
            if batch.state is BatchState.IN_FLIGHT or (lease is not None and lease.fence == batch.fence):
                self._record(lease, batch)
            elif lease is not None:
                self._recorded(batch)  # Whoever had a lease in between has put it in doubt.
        if self._clock.monotonic() - self._strays_tried_at >= _TRY_STRAYS_EVERY.total_seconds():
            for batch in strays:
                self._cancel_stray(batch)
        if lease is not None:
            self._release_unsent(lease)

    def _guarded(self, lease: Lease, batch: Batch) -> BatchBody:
        def check() -> None:
            self._store.check_lease(lease)
            if self._clock.now() - batch.claimed_at > CREATE_WITHIN or self._clock.monotonic() > give_up_at:
                raise CreateRefusedError(f"the batch was not created: it took longer than {CREATE_WITHIN}")
            self._check_not_raced(batch)

        give_up_at = self._clock.monotonic() + CREATE_WITHIN.total_seconds()
        self._check_not_raced(batch)
        return _GuardedBody(self._store.body(batch), check)

    def _check_not_raced(self, batch: Batch) -> None:
        """Refuses a batch whose requests have gone live: all would be paid twice, and bodies may be gone."""
        stored = self._store.find_batch(batch.batch_id)
        if stored is not None and stored.escalated_at is not None:
            raise CreateRefusedError("the batch was not created: its requests have gone live")

    def _in_doubt(self, batch: Batch) -> Batch:
        return replace(batch, state=BatchState.IN_DOUBT, in_doubt_at=self._clock.now())

    def _record(self, lease: Lease | None, batch: Batch) -> None:
        """Writes down what became of a create; keeps it for `tidy` if the store cannot now."""
        try:
            if batch.state is BatchState.IN_FLIGHT:
                if not self._store.record_created(batch):
                    self._keep_stray(batch)
            elif lease is not None:
                self._store.update_batch(lease, batch)
        except LeaseLostError:
            self._recorded(batch)
            raise
        except BaseException:
            with self._lock:
                self._unrecorded[batch.batch_id] = batch
            raise
        self._recorded(batch)

    def _recorded(self, batch: Batch) -> None:
        with self._lock:
            self._unrecorded.pop(batch.batch_id, None)
            self._under_way.discard(batch.batch_id)

    def _keep_stray(self, batch: Batch) -> None:
        log.error(
            "batch %s was given up while its create was under way, and exists at the API all the same:"
            " its requests may have been sent again; it will be canceled",
            batch.provider_batch_id,
            extra={"batch_id": batch.batch_id},
        )
        with self._lock:
            self._strays[batch.batch_id] = batch
        self._cancel_stray(batch)

    def _cancel_stray(self, batch: Batch) -> None:
        """Cancels a batch whose requests have left it, so that as little as can be is paid for it."""
        self._strays_tried_at = self._clock.monotonic()
        try:
            self._api.cancel(batch.lane, batch.provider_batch_id or "")
        except anthropic.APIError as error:
            log.warning("could not cancel batch %s yet: %s", batch.provider_batch_id, brief(error))
            if self._clock.now() < (batch.expires_at or batch.claimed_at + timedelta(days=1)):
                return
        with self._lock:
            self._strays.pop(batch.batch_id, None)

    def _release_unsent(self, lease: Lease) -> None:
        """Queues batches again that this lease has claimed, and whose create never began."""
        claimed = [batch for batch in self._store.open_batches() if _is_claimed(batch, lease)]
        under_way = self.under_way()
        for batch in (one for one in claimed if one.batch_id not in under_way):
            # Its create may have ended since it was read as claimed: it is in doubt now, perhaps.
            now = self._store.find_batch(batch.batch_id)
            if now is not None and _is_claimed(now, lease):
                log.warning("a batch was claimed, but not sent", extra={"batch_id": batch.batch_id})
                self._store.release(lease, batch.batch_id)


class _GuardedBody:
    """A body whose end goes out only while its lease lasts.

    A process may be stopped for hours between the claim and the create, or in the middle of it. What
    lacks its end creates nothing at the API, so the lease is looked at before the first and before
    the last piece: no later moment is left to look at it.
    """

    def __init__(self, body: BatchBody, check: Callable[[], None]) -> None:
        self._body = body
        self._check = check
        self.content_length = body.content_length

    def __iter__(self) -> Iterator[bytes]:
        self._check()
        pieces = iter(self._body)
        held = next(pieces, b"")
        for piece in pieces:
            yield held
            held = piece
        failpoints.reach("sending")
        self._check()
        yield held


def _is_claimed(batch: Batch, lease: Lease) -> bool:
    return batch.state is BatchState.CLAIMED and batch.fence == lease.fence


def in_flight(batch: Batch, described: ProviderBatch) -> Batch:
    """A batch that the API has."""
    return replace(
        batch,
        state=BatchState.IN_FLIGHT,
        provider_batch_id=described.provider_batch_id,
        created_at=described.created_at,
        expires_at=described.expires_at,
        candidates=(),
    )
