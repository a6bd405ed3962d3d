"""What waits, what is in flight, and who works on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain.batches import RESULTS_KEPT, is_overdue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from llmrouter.domain.batches import Batch, BatchState
    from llmrouter.domain.reporting import EngineReport, EngineView, Hold, HoldCause
    from llmrouter.domain.requests import Lane, Waiting
    from llmrouter.ports import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The process that works on the store."""

    holder: str
    """``host:pid:token``."""
    until: datetime
    """When its lease runs out unless it prolongs it, as it does every few seconds."""
    silent: bool
    """Whether it has let its lease run out: it hangs, was stopped, or its machine is gone."""
    working_here: bool
    """Whether it is this process."""
    said_at: datetime | None
    """When it said what is told here of its holds and problems; None when it has said nothing yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogStatus:
    """What waits in one lane and latency class."""

    latency: str
    lane_id: str
    request_count: int
    body_bytes: int
    earliest_deadline_at: datetime
    served: bool
    """False: this process does not hold the lane's credential, so it leaves the lane waiting."""
    paused: bool
    """Whether its class is paused: nothing of it leaves before it is resumed."""
    held_until: datetime | None
    """The API did not take the lane's last batch: nothing of it is sent before then."""
    held_cause: HoldCause | None
    held_reason: str | None
    """The API's own words, or what came instead of them."""
    late: bool
    """Whether its earliest deadline has passed."""
    will_miss: bool
    """Whether its earliest deadline will pass before it may leave: its hold ends later, or it is paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """An open batch."""

    batch_id: str
    provider_batch_id: str | None
    latency: str
    state: BatchState
    request_count: int
    claimed_at: datetime
    created_at: datetime | None
    """By the API's clock."""
    expires_at: datetime | None
    served: bool
    """False: this process does not hold its credential, so it cannot collect it."""
    in_doubt_at: datetime | None
    """Since when it is in doubt, or was."""
    candidates: tuple[str, ...]
    """While it is in doubt: the API's batches that may be it. Their results will tell."""
    cancel_wanted: bool
    """Whether all requests that are still in it were given up."""
    cancel_asked_at: datetime | None
    """When the API was asked to cancel it."""
    overdue: bool
    """Whether its results should have been collected long ago: an alarm."""
    results_until: datetime | None
    """When the API deletes its results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStatus:
    """Where the work on a store stands."""

    at: datetime
    working: bool
    """Whether this process does the store's work; another one may."""
    engine: EngineStatus | None
    """Who does; None when nobody does."""
    backlog: tuple[BacklogStatus, ...]
    batches: tuple[BatchStatus, ...]
    holds: tuple[Hold, ...]
    """Lanes that are held back, those included of which nothing waits."""
    paused: Mapping[str, datetime]
    """Latency classes that are paused, and since when."""
    problems: Mapping[str, str]
    """What went wrong in the engine, last time it tried, by job."""

    @property
    def queued(self) -> int:
        """Requests that wait to be flushed."""
        return sum(line.request_count for line in self.backlog)

    @property
    def in_batches(self) -> int:
        """Requests in open batches, those in doubt included. May count settled ones of a batch in reading."""
        return sum(batch.request_count for batch in self.batches)

    @property
    def unattended(self) -> bool:
        """Whether there is work that nobody does: a worker is to be started."""
        nobody = self.engine is None or self.engine.silent
        return nobody and bool(self.backlog or self.batches)


def describe(
    store: Store,
    now: datetime,
    *,
    working: bool,
    serves: Callable[[Lane], bool],
    own: EngineReport | None,
) -> RouterStatus:
    """The status as of now. Reads keys and batches, no bodies.

    Args:
        store: Where the work is.
        now: The present instant.
        working: Whether this process does the store's work.
        serves: Whether this process holds a lane's credential.
        own: What this process's own engine says; None when it has none.
    """
    view = store.engine()
    said = own if working else (view.report if view else None)
    holds = tuple(hold for hold in (said.holds if said else ()) if hold.until > now)
    paused = dict(store.paused())
    held = {hold.lane_id: hold for hold in holds}
    return RouterStatus(
        at=now,
        working=working,
        engine=_describe_engine(view, said, now, working=working),
        backlog=tuple(
            describe_backlog(
                waiting,
                now,
                served=serves(waiting.lane),
                paused=waiting.latency in paused,
                hold=held.get(waiting.lane.lane_id),
            )
            for waiting in store.waiting()
        ),
        batches=tuple(describe_batch(one, now, served=serves(one.lane)) for one in store.open_batches()),
        holds=holds,
        paused=paused,
        # One that stands by can have problems, too: with taking the lease, say.
        problems={**(said.problems if said else {}), **(own.problems if own else {})},
    )


def describe_backlog(
    waiting: Waiting, now: datetime, *, served: bool, paused: bool, hold: Hold | None
) -> BacklogStatus:
    """A line of the backlog.

    Args:
        waiting: What waits.
        now: The present instant.
        served: Whether this process holds its lane's credential.
        paused: Whether its class is paused.
        hold: What holds its lane back; None when nothing does.
    """
    due = waiting.earliest_deadline_at
    return BacklogStatus(
        latency=waiting.latency,
        lane_id=waiting.lane.lane_id,
        request_count=waiting.request_count,
        body_bytes=waiting.body_bytes,
        earliest_deadline_at=due,
        served=served,
        paused=paused,
        held_until=hold.until if hold else None,
        held_cause=hold.cause if hold else None,
        held_reason=hold.reason if hold else None,
        late=due <= now,
        will_miss=due > now and (paused or (hold is not None and due < hold.until)),
    )


def describe_batch(batch: Batch, now: datetime, *, served: bool) -> BatchStatus:
    """An open batch, of which this process holds the credential or not."""
    return BatchStatus(
        batch_id=batch.batch_id,
        provider_batch_id=batch.provider_batch_id,
        latency=batch.latency,
        state=batch.state,
        request_count=batch.request_count,
        claimed_at=batch.claimed_at,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        served=served,
        in_doubt_at=batch.in_doubt_at,
        candidates=batch.candidates,
        cancel_wanted=batch.cancel_wanted,
        cancel_asked_at=batch.cancel_asked_at,
        overdue=is_overdue(batch, now),
        results_until=batch.created_at + RESULTS_KEPT if batch.created_at else None,
    )


def _describe_engine(
    view: EngineView | None, said: EngineReport | None, now: datetime, *, working: bool
) -> EngineStatus | None:
    if view is None:
        return None
    return EngineStatus(
        holder=view.holder,
        until=view.until,
        silent=view.until <= now,
        working_here=working,
        said_at=said.at if said else None,
    )
