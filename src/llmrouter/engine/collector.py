"""Looks after open batches, reads their results and settles them."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import groupby, islice
from typing import TYPE_CHECKING

import anthropic

from llmrouter.domain.batches import (
    PASSING_ERRORS,
    Answer,
    Batch,
    BatchState,
    ProcessingStatus,
    ProviderBatch,
    ResultLine,
    request_id_of,
)
from llmrouter.domain.requests import OutcomeKind
from llmrouter.domain.scheduling import poll_interval
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
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        """Makes a collector.

        Args:
            store: Where the batches are.
            api: Where their results are.
            clock: Tells a batch's age.
            fixed_poll: Look at every batch in each run; else the less often the older it is.
            max_attempts: Batches that a request may be in before a passing error is its outcome.
            on_settled: Called after each settle, so that waiting futures can be looked after.
        """
        self._store = store
        self._api = api
        self._clock = clock
        self._fixed = fixed_poll
        self._max_attempts = max_attempts
        self._on_settled = on_settled
        self._looked_at: dict[str, datetime] = {}
        self._reads: Counter[str] = Counter()
        self._short_since: dict[str, datetime] = {}

    def run_once(self, lease: Lease) -> int:
        """Polls the batches whose turn it is, and collects those that ended.

        What goes wrong with one batch is raised when the others have been looked at.

        Returns:
            How many batches were collected whole.

        Raises:
            LeaseLostError: Another process works on the store now.
        """
        now = self._clock.now()
        due = [
            batch
            for batch in self._store.open_batches()
            if batch.state is BatchState.IN_FLIGHT
            and self._api.serves(batch.lane)
            and self._is_due(batch, now)
        ]
        collected, failures = 0, []
        for _, members in groupby(sorted(due, key=_origin), key=_origin):
            batches = list(members)
            for batch, described in self._describe(batches, now):
                if described.status is ProcessingStatus.ENDED:
                    try:
                        collected += self._collect(lease, batch, described)
                    except (LeaseLostError, StoreBusyError):
                        raise
                    except Exception as error:  # noqa: BLE001  (it would keep the others from their answers)
                        failures.append(error)
        for failure in failures:
            raise failure
        return collected

    def _is_due(self, batch: Batch, now: datetime) -> bool:
        looked_at = self._looked_at.get(batch.batch_id)
        if looked_at is None or self._fixed:
            return True
        return now - looked_at >= poll_interval(now - (batch.created_at or batch.claimed_at))

    def _describe(self, batches: list[Batch], now: datetime) -> Iterator[tuple[Batch, ProviderBatch]]:
        wanted = {batch.provider_batch_id or "": batch.created_at or batch.claimed_at for batch in batches}
        for batch in batches:
            self._looked_at[batch.batch_id] = now
        try:
            found = self._api.describe(batches[0].lane, wanted)
        except anthropic.APIError as error:
            log.warning("could not ask for %d batches: %s", len(batches), _brief(error))
            return
        for batch in batches:
            if batch.provider_batch_id in found:
                yield batch, found[batch.provider_batch_id]

    def _collect(self, lease: Lease, batch: Batch, described: ProviderBatch) -> bool:
        """Settles what the results say; False when they have to be read again."""
        known = {"batch_id": batch.batch_id, "latency": batch.latency}
        lines = _Counted(self._api.results(batch.lane, described.provider_batch_id))
        try:
            self._settle_all(lease, batch, self._answers(batch, lines))
        except anthropic.APIError as error:
            log.warning("could not read the results: %s", _brief(error), extra=known)
            return False
        if next(iter(self._store.unsettled(batch.batch_id)), None) is not None:
            if not self._is_missing(batch, short=lines.count < described.request_count):
                log.warning("the results lack some requests; they will be read again", extra=known)
                return False
            self._settle_all(lease, batch, self._missing(batch))
        self._store.finish(lease, replace(batch, ended_at=described.ended_at))
        for kept in (self._reads, self._looked_at, self._short_since):
            kept.pop(batch.batch_id, None)
        log.info("collected a batch of %d requests", batch.request_count, extra=known)
        return True

    def _is_missing(self, batch: Batch, *, short: bool) -> bool:
        """Whether what the results lack will not come: after some readings, and hours if they are cut."""
        self._reads[batch.batch_id] += 1
        now = self._clock.now()
        since = self._short_since.setdefault(batch.batch_id, now) if short else now - SHORT_PATIENCE
        return self._reads[batch.batch_id] >= MAX_READS and now - since >= SHORT_PATIENCE

    def _settle_all(self, lease: Lease, batch: Batch, answers: Iterator[Answer]) -> None:
        while chunk := list(_chunk(answers)):
            settled = self._store.settle(lease, batch.batch_id, chunk, self._clock.now())
            if settled.unknown:
                log.warning("%d results are of no request in the batch", settled.unknown)
            self._on_settled()

    def _answers(self, batch: Batch, lines: Iterable[ResultLine]) -> Iterator[Answer]:
        for line in lines:
            request_id = request_id_of(line.custom_id, batch.nonce)
            if request_id is None:
                log.warning("a result of batch %s is of no request of ours", batch.batch_id)
                continue
            yield Answer(
                request_id=request_id,
                kind=line.kind or OutcomeKind.ERRORED,
                raw=line.raw,
                retry=self._passes(line) and self._may_retry(batch, request_id),
            )

    def _missing(self, batch: Batch) -> Iterator[Answer]:
        """What to do with requests that the results never mention."""
        for request_id in list(self._store.unsettled(batch.batch_id)):
            yield Answer(
                request_id=request_id,
                kind=OutcomeKind.ERRORED,
                raw=b"",
                retry=self._may_retry(batch, request_id),
            )

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


class _Counted:
    """Lines, and how many there were."""

    def __init__(self, lines: Iterable[ResultLine]) -> None:
        self._lines = lines
        self.count = 0

    def __iter__(self) -> Iterator[ResultLine]:
        for line in self._lines:
            self.count += 1
            yield line


def _chunk(answers: Iterator[Answer]) -> Iterator[Answer]:
    total = 0
    for answer in islice(answers, SETTLE_REQUESTS):
        yield answer
        total += len(answer.raw)
        if total >= SETTLE_BYTES:
            return


def _origin(batch: Batch) -> tuple[str, ...]:
    """Batches that one list call can show together."""
    workspace = dict(batch.lane.headers).get("anthropic-workspace-id", "")
    return batch.lane.base_url, batch.lane.credential, workspace, batch.lane.endpoint


def _brief(error: anthropic.APIError) -> str:
    """An error without what it says of content."""
    status = getattr(error, "status_code", None)
    return type(error).__name__ if status is None else f"{type(error).__name__} ({status})"
