"""Sends backlogs off: claims, packs and creates batches."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.batches import NONCE_CHARS, Batch, BatchState
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.scheduling import FlushReason
from llmrouter.engine.refusals import refused_answer
from llmrouter.errors import CreateRefusedError, CreateUnclearError, LeaseLostError, StoreBusyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmrouter.domain.requests import Waiting
    from llmrouter.domain.scheduling import Flush
    from llmrouter.errors import CreateError
    from llmrouter.ports import BatchApi, Clock, Lease, Store

_HOLD_FIRST = timedelta(seconds=15)
_HOLD_MOST = timedelta(minutes=15)
_DOUBLINGS = 10
_RETRY_AFTER_MOST = timedelta(days=1)
_NONCE_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"

log = logging.getLogger("llmrouter.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A lane that waits because the API refused its last batch."""

    lane_id: str
    until: datetime
    reason: str
    refusals: int
    """How many batches in a row it refused."""


class Flusher:
    """Turns what waits into batches at the API, each created once."""

    def __init__(self, store: Store, api: BatchApi, clock: Clock, limits: Mapping[str, BatchLimits]) -> None:
        """Makes a flusher.

        Args:
            store: Where the backlog is.
            api: Where it goes.
            clock: Tells when a batch was claimed.
            limits: The largest batch of each latency class.
        """
        self._store = store
        self._api = api
        self._clock = clock
        self._limits = limits
        self._suspects: dict[str, int] = {}
        self._failed_alone: set[str] = set()
        self._unrecorded: dict[str, Batch] = {}
        self._begun: set[str] = set()
        self.holds: dict[str, Hold] = {}

    def run_once(self, lease: Lease, flushes: Iterable[Flush]) -> int:
        """Sends these backlogs off; answers with the number of batches that were created.

        A lane whose credential this process does not hold, or that is held back after a refusal,
        is left waiting.

        Raises:
            LeaseLostError: Another process works on the store now.
        """
        self._record_again(lease)
        self._release_unsent(lease)
        created, failures = 0, []
        for flush in flushes:
            try:
                if self._may_go(flush.waiting):
                    created += self._send(lease, flush)
            except (LeaseLostError, StoreBusyError):
                raise
            except Exception as error:  # noqa: BLE001  (one lane's trouble is no other's)
                failures.append(error)
        for failure in failures:
            raise failure
        return created

    def _may_go(self, waiting: Waiting) -> bool:
        hold = self.holds.get(waiting.lane.lane_id)
        if hold is not None and self._clock.now() < hold.until:
            return False
        return self._api.serves(waiting.lane)

    def _send(self, lease: Lease, flush: Flush) -> int:
        waiting, created = flush.waiting, 0
        left = waiting.request_count
        while left > 0:
            limits = self._limit(waiting)
            if flush.reason is FlushReason.FULL and created and left < limits.max_requests:
                break
            batch = self._store.claim(
                lease,
                waiting,
                limits,
                batch_id=f"batch_{secrets.token_hex(10)}",
                nonce="".join(secrets.choice(_NONCE_ALPHABET) for _ in range(NONCE_CHARS)),
                now=self._clock.now(),
            )
            if batch is None:
                break
            if self._create(lease, batch, flush.reason):
                created += 1
                left -= batch.request_count
            if not self._may_go(waiting):
                break
        return created

    def _limit(self, waiting: Waiting) -> BatchLimits:
        limits = self._limits.get(waiting.latency) or BatchLimits()
        suspects = self._suspects.get(waiting.lane.lane_id)
        return (
            limits if suspects is None else replace(limits, max_requests=min(suspects, limits.max_requests))
        )

    def _create(self, lease: Lease, batch: Batch, reason: FlushReason) -> bool:
        """Creates a claimed batch once. True unless the API refused it."""
        known = {"batch_id": batch.batch_id, "lane": batch.lane.lane_id, "latency": batch.latency}
        self._begun.add(batch.batch_id)
        try:
            described = self._api.create(batch.lane, self._store.body(batch))
        except CreateRefusedError as refusal:
            self._take_back(lease, batch, refusal)
            return False
        except CreateUnclearError as unclear:
            log.warning("it is unclear whether the batch was created: %s", unclear, extra=known)
            self._record(lease, replace(batch, state=BatchState.IN_DOUBT))
            # Or else an outage would put batch after batch in doubt.
            self._hold_lane(batch.lane.lane_id, unclear)
            return True
        except BaseException:
            # Whatever it was, the create may have been under way.
            self._record(lease, replace(batch, state=BatchState.IN_DOUBT))
            raise
        created = replace(
            batch,
            state=BatchState.IN_FLIGHT,
            provider_batch_id=described.provider_batch_id,
            created_at=described.created_at,
            expires_at=described.expires_at,
        )
        self._record(lease, created)
        self.holds.pop(batch.lane.lane_id, None)
        self._failed_alone.discard(batch.lane.lane_id)
        self._suspects_passed(batch)
        log.info("created a batch of %d requests (%s)", batch.request_count, reason, extra=known)
        return True

    def _record(self, lease: Lease, batch: Batch) -> None:
        """Writes down what became of a create; keeps it for the next run if the store cannot now."""
        self._unrecorded[batch.batch_id] = batch
        self._store.update_batch(lease, batch)
        del self._unrecorded[batch.batch_id]
        self._begun.discard(batch.batch_id)

    def _record_again(self, lease: Lease) -> None:
        """Writes down what the store could not take at first, or what came while the lease was lost."""
        if not self._unrecorded:
            return
        unclear = {BatchState.CLAIMED, BatchState.IN_DOUBT}
        states = {batch.batch_id: batch.state for batch in self._store.open_batches()}
        for batch in list(self._unrecorded.values()):
            if states.get(batch.batch_id) in unclear:
                self._record(lease, batch)
            else:
                del self._unrecorded[batch.batch_id]

    def _release_unsent(self, lease: Lease) -> None:
        """Queues batches again that this lease has claimed, and whose create never began."""
        for batch in self._store.open_batches():
            if (
                batch.state is BatchState.CLAIMED
                and batch.fence == lease.fence
                and batch.batch_id not in self._begun
            ):
                log.warning("a batch was claimed, but not sent", extra={"batch_id": batch.batch_id})
                self._store.release(lease, batch.batch_id)

    def _take_back(self, lease: Lease, batch: Batch, refusal: CreateRefusedError) -> None:
        """Deals with a batch that the API refused as a whole.

        A refusal that blames the content is narrowed down: the same requests go again in halves,
        until the bad one stands alone and fails with the API's own error. Any other holds the lane
        back for a while: the next batch would fare no better.
        """
        self._begun.discard(batch.batch_id)
        lane_id = batch.lane.lane_id
        if refusal.blames_content and batch.request_count > 1:
            self._store.release(lease, batch.batch_id)
            self._suspects[lane_id] = (batch.request_count + 1) // 2
            log.warning("the API refused a batch; trying halves: %s", refusal, extra={"lane": lane_id})
        elif refusal.blames_content and lane_id not in self._failed_alone:
            self._failed_alone.add(lane_id)
            self._fail_alone(lease, batch, refusal)
        else:
            # Two refused in a row with nothing accepted between: it may not be the content after all.
            self._failed_alone.discard(lane_id)
            self._hold(lease, batch, refusal)

    def _fail_alone(self, lease: Lease, batch: Batch, refusal: CreateRefusedError) -> None:
        """Gives the only request of a refused batch the API's error."""
        request_id = next(self._store.unsettled(batch.batch_id))
        answer = refused_answer(request_id, refusal)
        self._store.settle(lease, batch.batch_id, [answer], self._clock.now())
        self._store.finish(lease, batch)
        self._suspects_passed(batch)
        log.warning("the API refused a request: %s", refusal, extra={"request_id": request_id})

    def _hold(self, lease: Lease, batch: Batch, refusal: CreateRefusedError) -> None:
        """Queues a refused batch again and lets its lane wait."""
        self._store.release(lease, batch.batch_id)
        self._hold_lane(batch.lane.lane_id, refusal)

    def _hold_lane(self, lane_id: str, error: CreateError) -> None:
        refusals = self.holds[lane_id].refusals + 1 if lane_id in self.holds else 1
        longer = min(_HOLD_FIRST * 2 ** min(refusals - 1, _DOUBLINGS), _HOLD_MOST)
        until = self._clock.now() + min(error.retry_after or longer, _RETRY_AFTER_MOST)
        self.holds[lane_id] = Hold(lane_id=lane_id, until=until, reason=str(error), refusals=refusals)
        log.warning("the lane waits until %s: %s", until.isoformat(), error, extra={"lane": lane_id})

    def _suspects_passed(self, batch: Batch) -> None:
        """After a part of a refused batch went well, the next one may be twice as large."""
        suspects = self._suspects.get(batch.lane.lane_id)
        if suspects is not None:
            limits = self._limits.get(batch.latency) or BatchLimits()
            if suspects * 2 >= limits.max_requests:
                del self._suspects[batch.lane.lane_id]
            else:
                self._suspects[batch.lane.lane_id] = suspects * 2
