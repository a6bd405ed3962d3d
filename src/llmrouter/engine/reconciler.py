"""Finds out what became of creates without a clear answer, without ever guessing.

A batch is IN_DOUBT when its create timed out, broke off or failed in the API, or when its process
died in between. Its requests are neither sent again nor given up. The API's list shows batches
without their custom_ids, so those that may be it (created about then, of the same size, of no other
batch of this store) are candidates, and the results of a candidate tell: each custom_id ends in the
nonce of the claim. One that carries it is adopted; one that carries another is out, whoever made it.
When no candidate has been listed for the grace time, the batch was not created.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import TYPE_CHECKING

import anthropic

from llmrouter import failpoints
from llmrouter.domain.batches import (
    RESULTS_KEPT,
    Batch,
    BatchState,
    ProcessingStatus,
    ProviderBatch,
    nonce_of,
)
from llmrouter.domain.scheduling import poll_interval
from llmrouter.engine.creator import in_flight
from llmrouter.engine.origins import brief, origin
from llmrouter.engine.unanswered import missing_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from llmrouter.domain.requests import Lane
    from llmrouter.ports import BatchApi, Clock, Lease, Store

CLOCKS_DIFFER_BY = timedelta(minutes=10)
"""How far the API's clock and the machine's may be apart without either of them saying so."""

_MARGIN = timedelta(days=1)
_LINES_READ = 20
_READS_OF_SHORT = 10
_SET_BY = timedelta(seconds=5)
_ZERO = datetime(1970, 1, 1, tzinfo=UTC)

log = logging.getLogger("llmrouter.engine")


@dataclass(slots=True)
class _Search:
    """What this process has seen of a batch in doubt. Times are of the monotonic clock."""

    looked_first: float
    """When the API was first able to say that there is no candidate, or that there are some."""
    looked_last: float
    listed_at: datetime
    """The same as `looked_first`, by the API's clock: what was created later cannot be it."""
    unread: dict[str, float] = field(default_factory=dict)
    """Candidates whose results have not said whose they are: when each was last listed, by the API's id."""


class Reconciler:
    """Puts what a dead process left behind in doubt, and settles what is in doubt."""

    def __init__(
        self,
        store: Store,
        api: BatchApi,
        clock: Clock,
        *,
        grace: timedelta,
        under_way: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """Makes a reconciler.

        Args:
            store: Where the batches are.
            api: Where they may be.
            clock: The machine's.
            grace: How long the API is asked before what it does not list counts as not created.
            under_way: Batches whose create this process may still be waiting for.
        """
        self._store = store
        self._api = api
        self._clock = clock
        self._grace = grace
        self._under_way = under_way
        self._searches: dict[str, _Search] = {}
        self._nonces: dict[str, frozenset[str]] = {}
        """Of candidates whose results were read, those of the first lines, by the API's id."""
        self._reads: Counter[str] = Counter()
        """How often those of a candidate were read in vain, or only in part."""
        self._offsets = [self._offset()]
        """What was between the machine's two clocks: it changes when somebody sets the one on the wall."""

    def note_clock(self) -> None:
        """Looks whether somebody has set the machine's clock. Needs no lease."""
        if abs(self._offset() - self._offsets[-1]) > _SET_BY:
            self._offsets.append(self._offset())

    def mark_orphans(self, lease: Lease) -> int:
        """Puts batches in doubt whose process ended while it created them; answers with how many."""
        orphans = [
            batch
            for batch in self._store.open_batches()
            if batch.state is BatchState.CLAIMED
            and batch.fence < lease.fence
            and batch.batch_id not in self._under_way()
        ]
        for batch in orphans:
            doubtful = replace(batch, state=BatchState.IN_DOUBT, in_doubt_at=self._clock.now())
            self._store.update_batch(lease, doubtful)
            log.warning("a process ended while it created a batch", extra={"batch_id": batch.batch_id})
            failpoints.reach("doubted")
        return len(orphans)

    def run_once(self, lease: Lease) -> int:
        """Looks for the batches in doubt at the API; answers with how many are in doubt no more.

        What goes wrong at the API is logged, and tried again.

        Raises:
            LeaseLostError: Another process works on the store now.
        """
        self.note_clock()
        self.mark_orphans(lease)
        doubtful = [
            batch
            for batch in self._store.open_batches()
            if batch.state is BatchState.IN_DOUBT
            and batch.batch_id not in self._under_way()
            and self._api.serves(batch.lane)
        ]
        for gone in self._searches.keys() - {batch.batch_id for batch in doubtful}:
            del self._searches[gone]
        if not doubtful:
            self._nonces.clear()
            self._reads.clear()
        due = sorted((batch for batch in doubtful if self._is_due(batch)), key=origin)
        settled = 0
        for _, members in groupby(due, key=origin):
            batches = list(members)
            try:
                settled += self._look_for(lease, batches)
            except anthropic.APIError as error:
                log.warning("could not look for %d batches in doubt: %s", len(batches), brief(error))
        return settled

    def _is_due(self, batch: Batch) -> bool:
        """Every time within the grace time, then the less often the longer its candidates take."""
        search = self._searches.get(batch.batch_id)
        if search is None:
            return True
        now = self._clock.monotonic()
        age = timedelta(seconds=now - search.looked_first)
        return age <= self._grace * 2 or now - search.looked_last >= poll_interval(age).total_seconds()

    def _look_for(self, lease: Lease, batches: list[Batch]) -> int:
        """Looks for batches of one workspace: one listing serves them all."""
        began, now, lane = self._clock.monotonic(), self._clock.now(), batches[0].lane
        since = min(self._earliest(batch, now, now) for batch in batches)
        listing = self._api.listed(lane, since)
        api_now = listing.listed_at or now
        earliest = {batch.batch_id: self._earliest(batch, now, api_now) for batch in batches}
        if min(earliest.values()) < since:
            listing = self._api.listed(lane, min(earliest.values()))
        latest = (listing.listed_at or now) + CLOCKS_DIFFER_BY  # The time of an answer is in whole seconds.
        for batch in batches:
            self._searches.setdefault(batch.batch_id, _Search(began, began, latest)).looked_last = began
        known = self._store.known_batches([one.provider_batch_id for one in listing.batches])
        strangers = [one for one in listing.batches if one.provider_batch_id not in known]
        candidates = {
            batch.batch_id: [one for one in strangers if self._fits(batch, one, earliest[batch.batch_id])]
            for batch in batches
        }
        for one in {one.provider_batch_id: one for found in candidates.values() for one in found}.values():
            self._read_nonce(lane, one)
        owners = {nonce: one for one in strangers for nonce in self._nonces.get(one.provider_batch_id, ())}
        settled = 0
        for batch in batches:
            if batch.nonce in owners:
                self._adopt(batch, owners[batch.nonce])
                settled += 1
            else:
                age = self._age(batch, min(now, api_now), own=batch.fence == lease.fence)
                settled += self._decide(lease, batch, candidates[batch.batch_id], began, age)
        return settled

    def _fits(self, batch: Batch, stranger: ProviderBatch, earliest: datetime) -> bool:
        latest = self._searches[batch.batch_id].listed_at + self._grace
        same_size = stranger.request_count == batch.request_count
        return same_size and earliest <= stranger.created_at <= latest

    def _decide(
        self, lease: Lease, batch: Batch, candidates: list[ProviderBatch], now: float, age: timedelta
    ) -> bool:
        """What to do with a batch whose results were not found. True when it is in doubt no more."""
        search = self._searches[batch.batch_id]
        # Those whose results could be read are another's, or it would have been found by them.
        left = tuple(one.provider_batch_id for one in candidates if one.provider_batch_id not in self._nonces)
        search.unread.update(dict.fromkeys(left, now))
        for read in search.unread.keys() & self._nonces.keys():
            del search.unread[read]
        if left != batch.candidates:
            self._store.update_batch(lease, replace(batch, candidates=left))
            log.info("batch %s may be any of %d at the API", batch.batch_id, len(left))
        grace = self._grace.total_seconds()
        if age >= RESULTS_KEPT + _MARGIN and now - search.looked_first >= grace:
            return self._give_up(lease, batch)
        if age >= RESULTS_KEPT - CLOCKS_DIFFER_BY:
            return False  # The list may leave it out for its age; soon nobody can tell.
        if now - max([search.looked_first, *search.unread.values()]) < grace:
            return False
        return self._release(lease, batch)

    def _read_nonce(self, lane: Lane, candidate: ProviderBatch) -> None:
        """Reads whose results a candidate has that has ended; what cannot be read is read again.

        One line would do, but for lines of requests that nobody knows.
        """
        provider_batch_id = candidate.provider_batch_id
        if provider_batch_id in self._nonces or candidate.status is not ProcessingStatus.ENDED:
            return
        try:
            with contextlib.closing(self._api.results(lane, provider_batch_id)) as lines:
                found = [nonce_of(line.custom_id) for line in islice(lines, _LINES_READ)]
        except anthropic.APIError as error:
            log.warning("could not read the results of %s: %s", provider_batch_id, brief(error))
            return
        self._reads[provider_batch_id] += bool(found)
        # Results of somebody else's may lack lines for ever.
        if found and (
            len(found) >= min(_LINES_READ, candidate.request_count)
            or self._reads[provider_batch_id] >= _READS_OF_SHORT
        ):
            self._nonces[provider_batch_id] = frozenset(found)

    def _offset(self) -> timedelta:
        return self._clock.now() - _ZERO - timedelta(seconds=self._clock.monotonic())

    def _age(self, batch: Batch, now: datetime, *, own: bool) -> timedelta:
        """How old a claim is at least: one of this process's own by any of the clocks that it has known."""
        set_by = min(offset - self._offsets[-1] for offset in self._offsets) if own else timedelta(0)
        return now - batch.claimed_at + set_by

    def _earliest(self, batch: Batch, now: datetime, api_now: datetime) -> datetime:
        """When the API can have created a batch at the earliest, by the API's clock.

        Of its claim the machine's clock tells, as it was then. That may have been right; or as far
        off as it is now; or as it was at any time since this process began.
        """
        if batch.claimed_at > now + CLOCKS_DIFFER_BY:
            return api_now - RESULTS_KEPT  # The clock was set back since, nobody knows how far.
        ages = [now + (offset - self._offsets[-1]) - batch.claimed_at for offset in self._offsets]
        return min(batch.claimed_at, *(api_now - age for age in ages)) - CLOCKS_DIFFER_BY

    def _adopt(self, batch: Batch, found: ProviderBatch) -> None:
        self._store.record_created(in_flight(batch, found))
        failpoints.reach("adopted")
        log.info(
            "batch %s was in doubt; it is %s, as its results say", batch.batch_id, found.provider_batch_id
        )

    def _release(self, lease: Lease, batch: Batch) -> bool:
        count = self._store.release(lease, batch.batch_id)
        log.info("batch %s was in doubt; it was not created: %d wait again", batch.batch_id, count)
        return True

    def _give_up(self, lease: Lease, batch: Batch) -> bool:
        """Ends a batch in doubt that is too old to be listed. It may have been paid for, so it ends here."""
        known = {"batch_id": batch.batch_id}
        log.error("a batch is in doubt for longer than the API keeps any: its requests fail", extra=known)
        lost = [
            missing_answer(request_id, retry=False) for request_id in self._store.unsettled(batch.batch_id)
        ]
        self._store.settle(lease, batch.batch_id, lost, self._clock.now())
        self._store.finish(lease, replace(batch, candidates=(), ended_at=self._clock.now()))
        return True
