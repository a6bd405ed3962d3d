"""Looks after open batches, reads their results and settles them."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import groupby, islice
from typing import TYPE_CHECKING

import anthropic

from llmrouter import failpoints
from llmrouter.domain.batches import (
    PASSING_ERRORS,
    RESULTS_KEPT,
    UNCOLLECTED_ALARM,
    Answer,
    Batch,
    BatchState,
    ProcessingStatus,
    ProviderBatch,
    ResultLine,
    is_overdue,
    request_id_of,
)
from llmrouter.domain.blocks import Leftover, Reason
from llmrouter.domain.requests import OutcomeKind
from llmrouter.domain.scheduling import poll_interval
from llmrouter.engine.origins import brief, origin
from llmrouter.engine.unanswered import missing_answer
from llmrouter.errors import LeaseLostError, StoreBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from llmrouter.ports import BatchApi, Clock, Lease, Store

SETTLE_REQUESTS = 2_000
SETTLE_BYTES = 4_000_000
"""One settle takes about so much: it bounds memory, and how long others wait for the store."""

MAX_READS = 3
"""How often an ended batch's results are read before what is missing in them counts as unanswered."""

SHORT_PATIENCE = timedelta(hours=6)
"""How long results with fewer lines than the batch had requests count as cut, not as lacking some.

What is sent again though its answer was only cut off is paid twice: better late than that.
"""

_DELETED_AFTER = timedelta(seconds=30)
_GONE_AFTER = timedelta(days=1)
_ABSENT_PATIENCE = timedelta(hours=3)
"""How long the API must not have a batch before that can be for ever."""

_LOOK_COUNTS_FOR = timedelta(minutes=10)

log = logging.getLogger("llmrouter.engine")


class Collector:
    """One poller for all open batches."""

    def __init__(
        self,
        store: Store,
        api: BatchApi,
        clock: Clock,
        *,
        fixed_poll: bool,
        max_attempts: int,
        delete_after_collect: bool = False,
        on_settled: Callable[[], None] = lambda: None,
        leftover: Callable[[Batch], Leftover] = lambda _: Leftover.BATCH,
    ) -> None:
        """Makes a collector.

        Args:
            store: Where the batches are.
            api: Where their results are.
            clock: Tells a batch's age.
            fixed_poll: Look at every batch in each run; else the less often the older it is.
            max_attempts: Batches that a request may be in before a passing error is its outcome.
            delete_after_collect: Delete a batch at the API when all its results are stored.
            on_settled: Called after each settle, so that waiting futures can be looked after.
            leftover: Says where the requests go that a batch did not answer.
        """
        self._store = store
        self._api = api
        self._clock = clock
        self._fixed = fixed_poll
        self._max_attempts = max_attempts
        self._delete = delete_after_collect
        self._on_settled = on_settled
        self._leftover = leftover
        self._looked_at: dict[str, float] = {}
        self._absent: dict[str, _Watch] = {}
        self._short: dict[str, _Watch] = {}
        self._alarmed_at: dict[str, float] = {}
        self._reads: Counter[str] = Counter()
        self._missing_since: dict[str, float] = {}
        """Since when the API does not name batches of which all is settled."""
        self._read_whole: dict[str, int] = {}
        """Batches all of whose results are stored, but which could not be closed yet: wasted answers."""

    def run_once(self, lease: Lease) -> int:
        """Polls the batches whose turn it is, and collects those that ended.

        What goes wrong with one batch is raised when the others have been looked at.

        Returns:
            How many batches were collected whole.

        Raises:
            LeaseLostError: Another process works on the store now.
        """
        due = [
            batch
            for batch in self._store.open_batches()
            if batch.state is BatchState.IN_FLIGHT and self._api.serves(batch.lane) and self._is_due(batch)
        ]
        collected, failures = 0, []
        for _, members in groupby(sorted(due, key=origin), key=origin):
            batches = list(members)
            for batch, described in self._describe(batches):
                try:
                    collected += self._look_after(lease, batch, described)
                except (LeaseLostError, StoreBusyError):
                    raise
                except Exception as error:  # noqa: BLE001  (it would keep the others from their answers)
                    failures.append(error)
        for failure in failures:
            raise failure
        return collected

    def _is_due(self, batch: Batch) -> bool:
        looked_at = self._looked_at.get(batch.batch_id)
        if looked_at is None or self._fixed:
            return True
        age = self._clock.now() - (batch.created_at or batch.claimed_at)
        return self._clock.monotonic() - looked_at >= poll_interval(age).total_seconds()

    def _describe(self, batches: list[Batch]) -> Iterator[tuple[Batch, ProviderBatch | None]]:
        """What the API says of each; None for one that it does not name."""
        wanted = {batch.provider_batch_id or "": batch.created_at or batch.claimed_at for batch in batches}
        for batch in batches:
            self._looked_at[batch.batch_id] = self._clock.monotonic()
        try:
            found = self._api.describe(batches[0].lane, wanted)
        except anthropic.APIError as error:
            log.warning("could not ask for %d batches: %s", len(batches), brief(error))
            return
        failpoints.reach("polling")
        for batch in batches:
            yield batch, found.get(batch.provider_batch_id or "")

    def _look_after(self, lease: Lease, batch: Batch, described: ProviderBatch | None) -> bool:
        """Does what is to be done with one batch now. True when it was collected whole."""
        if batch.batch_id in self._read_whole:
            return self._finish(lease, replace(batch, wasted=self._read_whole[batch.batch_id]), described)
        if described is None:
            if self._was_deleted(batch):
                return self._finish(lease, batch, None)
            ends_at = batch.expires_at or (batch.created_at or batch.claimed_at) + timedelta(days=1)
            return self._is_gone(batch, ends_at) and self._give_up(lease, batch)
        self._alarm(batch)
        if described.status is ProcessingStatus.ENDED:
            return self._collect(lease, batch, described)
        self._absent.pop(batch.batch_id, None)
        return False

    def _collect(self, lease: Lease, batch: Batch, described: ProviderBatch) -> bool:
        """Settles what the results say; False when they have to be read again."""
        known = {"batch_id": batch.batch_id, "latency": batch.latency}
        read = _Reading(goes_live=self._leftover(batch) is Leftover.LIVE)
        try:
            lines = self._api.results(batch.lane, described.provider_batch_id)
            wasted = self._settle_all(lease, batch, self._answers(batch, lines, read))
        except anthropic.APIError as error:
            log.warning("could not read the results: %s", brief(error), extra=known)
            kept_until = (batch.created_at or batch.claimed_at) + RESULTS_KEPT
            return self._is_gone(batch, kept_until) and self._give_up(lease, batch)
        self._absent.pop(batch.batch_id, None)
        if read.going:
            self._let_go(lease, batch, read.going)
        if read.failed:
            self._let_fail(lease, batch, read.failed)
        if not self._is_settled(batch) or (read.lines < batch.request_count and self._is_raced(batch)):
            if not self._is_missing(batch):
                log.warning("the results lack some requests; they will be read again", extra=known)
                return False
            self._settle_all(lease, batch, self._missing(batch, retry=True))
        self._read_whole[batch.batch_id] = wasted
        return self._finish(lease, replace(batch, wasted=wasted), described)

    def _let_go(self, lease: Lease, batch: Batch, going: set[str]) -> None:
        """Lets requests go live that their batch did not answer, and that have no time for another one."""
        if going.issuperset(self._store.unsettled(batch.batch_id)):
            self._store.escalate_batch(
                lease,
                batch.batch_id,
                into=f"batch_{secrets.token_hex(10)}",
                reason=batch.reason or Reason.LITTLE_LEFT,
                insured=batch.insured,
                now=self._clock.now(),
            )
            failpoints.reach("escalating")
            log.info("%d requests of a batch go live", len(going), extra={"batch_id": batch.batch_id})
        # What is still there was given up; or some lines are missing, and the others wait for the escalator.
        again = (Answer(request_id=one, kind=OutcomeKind.CANCELED, raw=b"", retry=True) for one in going)
        self._settle_all(lease, batch, again)

    def _let_fail(self, lease: Lease, batch: Batch, failed: list[Answer]) -> None:
        """Ends requests that have failed too often, but for those that have gone live meanwhile."""
        left = {*self._store.unsettled(batch.batch_id)}
        self._settle_all(lease, batch, (answer for answer in failed if answer.request_id in left))

    def _is_settled(self, batch: Batch) -> bool:
        return next(iter(self._store.unsettled(batch.batch_id)), None) is None

    def _was_deleted(self, batch: Batch) -> bool:
        """Whether a process ended between the deletion of a batch that the API does not name and its end.

        All of it is settled then. One that was not deleted may be missing for a moment.
        """
        if not self._is_settled(batch) or self._is_raced(batch):
            return False
        now = self._clock.monotonic()
        missing = now - self._missing_since.setdefault(batch.batch_id, now)
        return self._delete or missing >= _DELETED_AFTER.total_seconds()

    def _is_raced(self, batch: Batch) -> bool:
        """Whether its requests have just gone over to live calls: its answers still count."""
        stored = self._store.find_batch(batch.batch_id)
        return stored is not None and stored.escalated_at is not None

    def _finish(self, lease: Lease, batch: Batch, described: ProviderBatch | None) -> bool:
        """Closes a batch all of whose results are stored; deletes it at the API first, where that is set."""
        failpoints.reach("settled")
        known = {"batch_id": batch.batch_id, "latency": batch.latency}
        if self._delete:
            if batch.wasted:  # Or it would be forgotten if this process ended after the deletion.
                self._store.update_batch(lease, batch)
            try:
                self._api.delete(batch.lane, batch.provider_batch_id or "")
            except anthropic.APIError as error:
                log.warning("could not delete a collected batch yet: %s", brief(error), extra=known)
                return False
            failpoints.reach("deleting")
        ended_at = described.ended_at if described else None
        self._store.finish(lease, replace(batch, ended_at=ended_at or self._clock.now()))
        self._read_whole.pop(batch.batch_id, None)
        self._missing_since.pop(batch.batch_id, None)
        for kept in (self._reads, self._looked_at, self._short, self._absent, self._alarmed_at):
            kept.pop(batch.batch_id, None)
        log.info("collected a batch of %d requests", batch.request_count, extra=known)
        return True

    def _is_gone(self, batch: Batch, until: datetime) -> bool:
        """Notes that a batch or its results were not there; whether they will never be.

        A single 404 says nothing (docs/api.md), and the machine's clock may be wrong: so it takes hours
        of them.

        Args:
            batch: Of which the API has no answers.
            until: When it may not have them any more, because the batch was deleted or is too old.
        """
        now = self._clock.monotonic()
        absent = self._absent.setdefault(batch.batch_id, _Watch(now)).look(now)
        return absent >= _ABSENT_PATIENCE and self._clock.now() >= until + _GONE_AFTER

    def _give_up(self, lease: Lease, batch: Batch) -> bool:
        """Ends what is left of a batch that is gone. It is not sent again: it may have been paid for."""
        log.error(
            "batch %s is gone at the API, and answers with it: its requests fail",
            batch.provider_batch_id,
            extra={"batch_id": batch.batch_id},
        )
        self._settle_all(lease, batch, self._missing(batch, retry=False))
        return self._finish(lease, batch, None)

    def _alarm(self, batch: Batch) -> None:
        """Says once a day that the results of a batch were not collected, as long as they still can be."""
        now = self._clock.monotonic()
        day = timedelta(days=1).total_seconds()
        if is_overdue(batch, self._clock.now()) and now - self._alarmed_at.get(batch.batch_id, -day) >= day:
            self._alarmed_at[batch.batch_id] = now
            log.error(
                "the results of batch %s were not collected in %d days; the API keeps them for %d",
                batch.provider_batch_id,
                UNCOLLECTED_ALARM.days,
                RESULTS_KEPT.days,
                extra={"batch_id": batch.batch_id},
            )

    def _is_missing(self, batch: Batch) -> bool:
        """Whether what the results lack will not come: after hours, and some readings."""
        self._reads[batch.batch_id] += 1
        now = self._clock.monotonic()
        short = self._short.setdefault(batch.batch_id, _Watch(now)).look(now)
        return short >= SHORT_PATIENCE and self._reads[batch.batch_id] >= MAX_READS

    def _settle_all(self, lease: Lease, batch: Batch, answers: Iterator[Answer]) -> int:
        """Answers with how many of them were wasted."""
        wasted = 0
        while chunk := list(_chunk(answers)):
            settled = self._store.settle(lease, batch.batch_id, chunk, self._clock.now())
            wasted += settled.wasted
            if settled.unknown:
                log.warning("%d results are of no request in the batch", settled.unknown)
            failpoints.reach("half-settled")
            self._on_settled()
        return wasted

    def _answers(self, batch: Batch, lines: Iterable[ResultLine], read: _Reading) -> Iterator[Answer]:
        """The answers of some lines, but for those that `read` takes."""
        for line in lines:
            request_id = request_id_of(line.custom_id, batch.nonce)
            if request_id is None:
                log.warning("a result of batch %s is of no request of ours", batch.batch_id)
                continue
            read.lines += 1
            passes = self._passes(line)
            if passes and read.goes_live:
                read.going.add(request_id)
                continue
            # What was recalled here did not fail, however often that was.
            recalled = batch.recalled_at is not None and line.kind is OutcomeKind.CANCELED
            answer = Answer(
                request_id=request_id,
                kind=line.kind or OutcomeKind.ERRORED,
                raw=line.raw,
                retry=passes and (recalled or self._may_retry(batch, request_id)),
            )
            if passes and not answer.retry:
                read.failed.append(answer)
            else:
                yield answer

    def _missing(self, batch: Batch, *, retry: bool) -> Iterator[Answer]:
        """Answers for requests that the results never mention."""
        for request_id in list(self._store.unsettled(batch.batch_id)):
            yield missing_answer(request_id, retry=retry and self._may_retry(batch, request_id))

    def _passes(self, line: ResultLine) -> bool:
        """Whether the same request may fare better in the next batch."""
        match line.kind:
            case OutcomeKind.EXPIRED | OutcomeKind.CANCELED:
                return True
            case OutcomeKind.ERRORED:
                return line.error_type in PASSING_ERRORS
            case _:
                return False

    def _may_retry(self, batch: Batch, request_id: str) -> bool:
        return batch.attempts.get(request_id, 0) + 1 < self._max_attempts


@dataclass(slots=True)
class _Reading:
    """What a reading of results came to, besides answers."""

    goes_live: bool
    """Whether what must be sent again goes live."""
    lines: int = 0
    """Of requests of the batch."""
    going: set[str] = field(default_factory=set)
    """Requests that go live."""
    failed: list[Answer] = field(default_factory=list)
    """Of requests that were in too many batches: their outcomes, unless something else became of them."""


@dataclass(slots=True)
class _Watch:
    """For how long something was seen, look after look. Hours in which nobody looked count little."""

    looked_at: float
    seen: timedelta = timedelta(0)

    def look(self, now: float) -> timedelta:
        """It is seen now; answers with the time in all."""
        self.seen += min(timedelta(seconds=now - self.looked_at), _LOOK_COUNTS_FOR)
        self.looked_at = now
        return self.seen


def _chunk(answers: Iterator[Answer]) -> Iterator[Answer]:
    total = 0
    for answer in islice(answers, SETTLE_REQUESTS):
        yield answer
        total += len(answer.raw)
        if total >= SETTLE_BYTES:
            return
