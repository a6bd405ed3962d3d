"""What waits, what is in flight, and who works on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from llmrouter.domain.batches import RESULTS_KEPT, BatchState, is_overdue
from llmrouter.domain.reporting import HoldCause
from llmrouter.domain.turnaround import REMEMBERED
from llmrouter.reports.tallies import describe_tally
from llmrouter.reports.turnaround import describe_turnaround

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.blocks import Reason
    from llmrouter.domain.reporting import EngineReport, EngineView, Hold, LiveReport
    from llmrouter.domain.requests import Lane, Waiting
    from llmrouter.ports import Store
    from llmrouter.reports.tallies import TallyStatus
    from llmrouter.reports.turnaround import TurnaroundStatus

_STOPS_LIVE = frozenset({HoldCause.CREDENTIAL, HoldCause.SPENT})
"""What the API refuses a batch for, and a live call as well."""


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
    """When it said what is told here of its holds, problems and live calls; None: nothing yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogStatus:
    """What waits in one lane and latency class for one model."""

    latency: str
    lane_id: str
    model: str
    request_count: int
    body_bytes: int
    earliest_deadline_at: datetime
    served: bool
    """False: this process does not hold the lane's credential, so it leaves the lane waiting."""
    batch_only: bool
    """Whether it cannot go live: it asks for what only a batch can do."""
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
    """Whether its earliest deadline will pass before it may leave: it is paused, or its hold ends later
    and would stop live calls too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """An open batch, or requests that go live together: then its state is ESCALATING."""

    batch_id: str
    provider_batch_id: str | None
    latency: str
    model: str
    """Empty for one that was claimed by an earlier version."""
    state: BatchState
    request_count: int
    """Requests that it was made with."""
    deadline_at: datetime | None
    """The earliest of its requests; None for one that was claimed by an earlier version."""
    claimed_at: datetime
    created_at: datetime | None
    """By the API's clock."""
    expires_at: datetime | None
    served: bool
    """False: this process does not hold its credential, so it cannot collect it."""
    batch_only: bool
    """Whether its requests cannot go live: they ask for what only a batch can do."""
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
    reason: Reason | None
    """Of the last decision about its deadline; None when there was none."""
    insured: bool
    """False: the rate of live calls would not suffice for it as well."""
    recalled_at: datetime | None
    """When its requests were wanted back from the API, to go live."""
    escalated_at: datetime | None
    """When its requests went over to live calls, although it may still answer; of one that is
    ESCALATING, when it came to be."""
    raced: str | None
    """Of one that is ESCALATING: our id of the batch that may still answer its requests."""

    @property
    def escalating(self) -> bool:
        """Whether it is no batch at the API: its requests go live, each by itself."""
        return self.state is BatchState.ESCALATING


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
    live: LiveReport | None
    """What the engine says of live calls; None when nobody works, or it has not looked yet."""
    turnaround: tuple[TurnaroundStatus, ...]
    """How long batches take here: of all models, then of each with enough batches of its own."""
    tally: tuple[TallyStatus, ...]
    """What came of all requests so far, by latency class."""
    used_up: tuple[str, ...]
    """Classes whose own `max_escalation_usd` is used up today, by the settings of this process."""

    @property
    def queued(self) -> int:
        """Requests that wait to be flushed."""
        return sum(line.request_count for line in self.backlog)

    @property
    def in_batches(self) -> int:
        """Requests in open batches, those in doubt included; not those that went over to live calls.

        May count settled ones of a batch in reading.
        """
        return sum(batch.request_count for batch in self.api_batches if batch.escalated_at is None)

    @property
    def going_live(self) -> int:
        """Requests that go live, each by itself. May count those that were answered a moment ago."""
        return sum(batch.request_count for batch in self.batches if batch.escalating)

    @property
    def api_batches(self) -> tuple[BatchStatus, ...]:
        """Open batches but for those that are none at the API."""
        return tuple(batch for batch in self.batches if not batch.escalating)

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
    carries: Callable[[Lane], bool],
    own: EngineReport | None,
    budgets: Mapping[str, Decimal],
) -> RouterStatus:
    """The status as of now. Reads keys and batches, no bodies, no outcomes.

    Args:
        store: Where the work is.
        now: The present instant.
        working: Whether this process does the store's work.
        serves: Whether this process holds a lane's credential.
        carries: Whether a lane's requests can go live.
        own: What this process's own engine says; None when it has none.
        budgets: What escalations of single classes may cost a day, those without a limit left out.
    """
    view = store.engine()
    said = own if working else (view.report if view else None)
    holds = tuple(hold for hold in (said.holds if said else ()) if hold.until > now)
    paused = dict(store.paused())
    held = {hold.lane_id: hold for hold in holds}
    engine = _describe_engine(view, said, now, working=working)
    live = _live_now(said.live, now) if said and said.live and engine and not engine.silent else None
    opened, tally = store.open_batches(), store.tally()
    spent = {latency: one.live_usd.get(now.date(), Decimal(0)) for latency, one in tally.items()}
    return RouterStatus(
        at=now,
        working=working,
        engine=engine,
        backlog=tuple(
            describe_backlog(
                waiting,
                now,
                served=serves(waiting.lane),
                batch_only=not carries(waiting.lane),
                paused=waiting.latency in paused,
                hold=held.get(waiting.lane.lane_id),
                live_stopped=live is not None and live.hold is not None,
            )
            for waiting in store.waiting()
        ),
        batches=tuple(
            describe_batch(one, now, served=serves(one.lane), batch_only=not carries(one.lane))
            for one in opened
        ),
        holds=holds,
        paused=paused,
        # One that stands by can have problems, too: with taking the lease, say.
        problems={**(said.problems if said else {}), **(own.problems if own else {})},
        live=live,
        turnaround=describe_turnaround(store.closed_batches(REMEMBERED), opened, now),
        tally=describe_tally(tally, now.date()),
        used_up=tuple(name for name, most in budgets.items() if spent.get(name, Decimal(0)) >= most),
    )


def describe_backlog(
    waiting: Waiting,
    now: datetime,
    *,
    served: bool,
    batch_only: bool = False,
    paused: bool,
    hold: Hold | None,
    live_stopped: bool = False,
) -> BacklogStatus:
    """A line of the backlog.

    Args:
        waiting: What waits.
        now: The present instant.
        served: Whether this process holds its lane's credential.
        batch_only: Whether it cannot go live.
        paused: Whether its class is paused.
        hold: What holds its lane back; None when nothing does.
        live_stopped: Whether no live calls are made at present.
    """
    due = waiting.earliest_deadline_at
    stuck = hold is not None and (hold.cause in _STOPS_LIVE or live_stopped or batch_only)
    return BacklogStatus(
        latency=waiting.latency,
        lane_id=waiting.lane.lane_id,
        model=waiting.model,
        request_count=waiting.request_count,
        body_bytes=waiting.body_bytes,
        earliest_deadline_at=due,
        served=served,
        batch_only=batch_only,
        paused=paused,
        held_until=hold.until if hold else None,
        held_cause=hold.cause if hold else None,
        held_reason=hold.reason if hold else None,
        late=due <= now,
        will_miss=due > now and (paused or (stuck and hold is not None and due < hold.until)),
    )


def describe_batch(batch: Batch, now: datetime, *, served: bool, batch_only: bool = False) -> BatchStatus:
    """A batch, of which this process holds the credential or not, and which can go live or not."""
    return BatchStatus(
        batch_id=batch.batch_id,
        provider_batch_id=batch.provider_batch_id,
        latency=batch.latency,
        model=batch.model,
        state=batch.state,
        request_count=batch.request_count,
        deadline_at=batch.deadline_at,
        claimed_at=batch.claimed_at,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        served=served,
        batch_only=batch_only,
        in_doubt_at=batch.in_doubt_at,
        candidates=batch.candidates,
        cancel_wanted=batch.cancel_wanted,
        cancel_asked_at=batch.cancel_asked_at,
        overdue=is_overdue(batch, now),
        results_until=batch.created_at + RESULTS_KEPT if batch.created_at else None,
        reason=batch.reason,
        insured=batch.insured,
        recalled_at=batch.recalled_at,
        escalated_at=batch.escalated_at,
        raced=batch.raced,
    )


def _live_now(said: LiveReport, now: datetime) -> LiveReport:
    """What of the engine's last words about live calls still holds."""
    held = said.hold if said.hold_until is None or said.hold_until > now else None
    return replace(
        said,
        hold=held,
        hold_until=said.hold_until if held else None,
        waits_until=said.waits_until if said.waits_until and said.waits_until > now else None,
        uninsured=tuple(one for one in said.uninsured if one.deadline_at > now),
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
