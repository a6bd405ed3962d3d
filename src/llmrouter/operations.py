"""What the owner of a store does: look at it, and tell those who work on it what to do."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.batches import Canceled
from llmrouter.domain.latency import REAL_TIME
from llmrouter.domain.reporting import EngineReport
from llmrouter.domain.requests import OutcomeKind, RequestState
from llmrouter.errors import (
    InvalidRequestError,
    LeaseLostError,
    SettingsError,
    StoreBusyError,
    UnknownLatencyError,
    UnknownRequestError,
)
from llmrouter.reports.status import describe, describe_batch
from llmrouter.reports.why import Case, why, why_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import date

    from llmrouter.domain.requests import Lane, Outcome, RequestView
    from llmrouter.domain.runs import RunProgress
    from llmrouter.domain.traffic import TrafficRow
    from llmrouter.engine.lease import LeaseKeeper
    from llmrouter.lifetime import Lifetime
    from llmrouter.ports import Clock, Lease
    from llmrouter.reports.status import BatchStatus, RouterStatus
    from llmrouter.wiring import Parts

_DRAIN_LOOK_SECONDS = 0.05
_DRAIN_FLUSH_SECONDS = 1.0
_CANCELED_AT_ONCE = 5_000
"""Requests canceled in one transaction: others wait for it no longer than for any other write."""

_LONGEST = timedelta(days=36_525)


class Operations:
    """Looks at a store and steers the work on it, whichever process does it."""

    def __init__(self, parts: Parts, lifetime: Lifetime) -> None:
        self._parts = parts
        self._store = parts.store
        self._lifetime = lifetime
        self._worker = lifetime.worker

    def traffic(self, since: date | None) -> list[TrafficRow]:
        """See `Router.traffic`."""
        if self._parts.observer is not None:
            self._parts.observer.flush()
        return self._store.traffic(since)

    def flush(self, *, wait: bool = True) -> int:
        """See `Router.flush`; without ``wait`` for the creates the answer is 0."""
        if self._worker is not None:
            return self._worker.flush(wait=wait)
        self._store.request_flush()
        return 0

    def drain(self, timeout: float | None) -> bool:
        """See `Router.drain`."""
        give_up_at = None if timeout is None else time.monotonic() + timeout
        flushed_at = None
        store = self._store
        while True:
            self._lifetime.check_open()
            flying, waiting = store.open_batches(), store.waiting()
            # Looked at twice: between two looks a request can go from the queue into a batch, or back.
            if not flying and not waiting and not store.open_batches():
                return True
            now = time.monotonic()
            if give_up_at is not None and now >= give_up_at:
                return False
            if waiting and (
                flushed_at is None or (now - flushed_at >= _DRAIN_FLUSH_SECONDS and self._may_leave())
            ):
                self.flush(wait=False)
                flushed_at = now
            time.sleep(_DRAIN_LOOK_SECONDS)

    def status(self) -> RouterStatus:
        """See `Router.status`."""
        worker, now = self._worker, self._parts.clock.now()
        own = None
        if worker is not None:
            holds = tuple(worker.holds.values())
            own = EngineReport(at=now, holds=holds, problems=dict(worker.problems), live=worker.live)
        working = worker is not None and worker.working
        classes = self._parts.settings.classes.items()
        return describe(
            self._store,
            now,
            working=working,
            serves=self._serves,
            carries=self._parts.carries,
            own=own,
            budgets={
                name: one.max_escalation_usd for name, one in classes if one.max_escalation_usd is not None
            },
        )

    def why(self, request_id: str) -> str:
        """See `Router.why`."""
        view = self._store.find(request_id)
        if view is None:
            raise UnknownRequestError(why_unknown(request_id))
        status = self.status()
        margin = self._parts.settings.margin
        outcome = self._outcome(view)
        batch = self._batch(outcome.batch_id if outcome else view.batch_id, status)
        return why(
            Case(
                request=view,
                status=status,
                latency=self._parts.routing.classes.get(view.latency),
                danger_at=view.deadline_at - margin.of(view.deadline_at - view.accepted_at),
                has_credential=self._has_credential(),
                batch=batch,
                raced=self._batch(batch.raced if batch else None, status),
                outcome=outcome,
                error=self._error_name(outcome),
            )
        )

    def find(self, *, key: str | None, batch: str | None) -> list[str]:
        """See `Router.find`."""
        if (key is None) == (batch is None):
            raise TypeError("give either a key or a batch")
        if key is not None:
            return list(self._store.find_keys(key))
        found = self._store.find_batch(batch or "")
        if found is None:
            raise UnknownRequestError(f"the store has no batch {batch!r}")
        return list(self._store.unsettled(found.batch_id))

    def runs(self) -> list[RunProgress]:
        """See `Router.runs`."""
        return self._store.runs()

    def cancel(self, request_ids: str | Iterable[str] | None, key: str | None, batch: str | None) -> Canceled:
        """See `Router.cancel`."""
        if [request_ids, key, batch].count(None) != 2:
            raise TypeError("give either request_ids, a key or a batch")
        if request_ids is None:
            given = self.find(key=key, batch=batch)
        else:
            given = [request_ids] if isinstance(request_ids, str) else list(dict.fromkeys(request_ids))
        done = [
            self._store.cancel(
                given[place : place + _CANCELED_AT_ONCE], self._parts.clock.now(), in_batches=True
            )
            for place in range(0, len(given), _CANCELED_AT_ONCE)
        ]
        return Canceled(
            canceled=sum(one.canceled for one in done),
            asked=sum(one.asked for one in done),
            settled=sum(one.settled for one in done),
        )

    def pause(self, latency: str) -> None:
        """See `Router.pause`."""
        self._check_class(latency, (line.latency for line in self._store.waiting()))
        self._store.pause(latency, self._parts.clock.now())

    def resume(self, latency: str) -> bool:
        """See `Router.resume`."""
        self._check_class(latency, self._store.paused())
        return self._store.resume(latency)

    def prune(self, older_than: timedelta | None, *, undelivered: bool) -> int:
        """See `Router.prune`."""
        if older_than is not None and not timedelta(0) <= older_than <= _LONGEST:
            raise InvalidRequestError("older_than", "should be a span from nothing to a hundred years")
        if self._worker is not None:
            pruned = self._worker.prune(older_than, undelivered=undelivered)
            if pruned is not None:
                return pruned
        engine = self._parts.engine(on_settled=lambda: None)
        with _leased(engine.keeper, engine.clock) as lease:
            return engine.janitor.prune(lease, older_than, undelivered=undelivered)

    def _may_leave(self) -> bool:
        """Whether a flush would send anything: to ask for one ends holds, and is no thing for a loop."""
        status = self.status()
        return any(
            not line.paused and line.held_until is None and (line.served or not status.working)
            for line in status.backlog
        )

    def _check_class(self, latency: str, known: Iterable[str]) -> None:
        """Refuses an unknown class; one that is gone from the settings may still be in the store."""
        if latency == REAL_TIME:
            raise UnknownLatencyError("latency", "real-time requests do not wait: there is nothing to pause")
        if latency not in list(known):
            self._parts.routing.batch_class(latency)

    def _outcome(self, view: RequestView) -> Outcome | None:
        if view.state is not RequestState.SETTLED:
            return None
        return next(iter(self._store.outcomes([view.request_id])), None)

    def _batch(self, batch_id: str | None, status: RouterStatus) -> BatchStatus | None:
        found = self._store.find_batch(batch_id) if batch_id is not None else None
        if found is None:
            return None
        served, batch_only = self._serves(found.lane), not self._parts.carries(found.lane)
        return describe_batch(found, status.at, served=served, batch_only=batch_only)

    def _error_name(self, outcome: Outcome | None) -> str | None:
        if outcome is None or outcome.kind is not OutcomeKind.ERRORED:
            return None
        return type(self._parts.decode(outcome)).__name__

    def _serves(self, lane: Lane) -> bool:
        try:
            return self._parts.lanes.serves(lane)
        except SettingsError:  # There is no credential at all.
            return False

    def _has_credential(self) -> bool:
        try:
            self._parts.lanes.lane_for({})
        except SettingsError:
            return False
        return True


@contextlib.contextmanager
def _leased(keeper: LeaseKeeper, clock: Clock) -> Iterator[Lease]:
    """Takes a free lease for the length of a block, and prolongs it as long as that takes.

    Raises:
        StoreBusyError: A process works on the store.
    """
    lease = keeper.run_once(clock.now())
    if lease is None:
        raise StoreBusyError(
            "another process works on this store, and prunes it every hour by itself, by its setting"
            " retention; for other limits, stop it first"
        )
    try:
        with keeper.prolonging(clock):
            yield lease
    except LeaseLostError as error:
        raise StoreBusyError(f"another process has begun to work on this store: {error}") from error
    finally:
        keeper.release()
