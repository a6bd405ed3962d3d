"""Why a request has no answer yet, or how it got one, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from llmrouter.domain.batches import BatchState
from llmrouter.domain.latency import CronLine, LatencyClass
from llmrouter.domain.requests import OutcomeKind, RequestState, RequestView
from llmrouter.reports.formats import format_count, format_instant, format_span

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.domain.requests import Outcome
    from llmrouter.reports.status import BacklogStatus, BatchStatus, RouterStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of a request, and of the work that it waits for. No prompt and no answer."""

    request: RequestView
    status: RouterStatus
    latency: LatencyClass | None
    """Its class; None when the settings have it no more."""
    danger_at: datetime
    """From then on its deadline is in danger, unless it is answered."""
    has_credential: bool
    """Whether this process has a credential at all; one that has none tells nothing of lanes."""
    batch: BatchStatus | None = None
    """The batch it is in, or the one that answered it."""
    outcome: Outcome | None = None
    error: str | None = None
    """Name of the exception that its future raises."""


def why(case: Case) -> str:
    """What a request waits for and until when, or how it ended."""
    match case.request.state:
        case RequestState.QUEUED:
            return f"{_subject(case)} waits in the queue: {'; '.join(_queued_reasons(case))}."
        case RequestState.CLAIMED:
            return f"{_subject(case)} {'; '.join(_batch_reasons(case))}."
        case RequestState.SETTLED:
            return _settled(case)
        case never:
            assert_never(never)


def why_unknown(request_id: str) -> str:
    """The sentence for a request that the store does not have."""
    if request_id.startswith("live_"):
        return f"{request_id} was a real-time request: those are not stored"
    return f"the store has no request {request_id!r}: it is in another store, or it was pruned"


def _subject(case: Case) -> str:
    request, now = case.request, case.status.at
    due = "was due" if request.deadline_at <= now else "due"
    return f"{request.request_id} ({request.latency}, {due} {format_instant(request.deadline_at, now)})"


def _queued_reasons(case: Case) -> list[str]:
    request, status = case.request, case.status
    lines = [
        line for line in status.backlog if (line.latency, line.lane_id) == (request.latency, request.lane_id)
    ]
    reasons = []
    since = status.paused.get(request.latency)
    if since is not None:
        reasons.append(
            f"its class is paused since {format_instant(since, status.at)};"
            f" llmrouter resume {request.latency} ends that"
        )
    reasons += _held(lines, status.at)
    if case.has_credential and lines and not any(line.served for line in lines):
        reasons.append(
            "this process does not hold the credential of its lane, and leaves it to one that does"
        )
    reasons += _nobody(status)
    if not reasons:
        reasons.append(_next_flush(case.latency))
    if request.attempts:
        tried = format_count(request.attempts, "batch", "batches")
        reasons.append(f"it was in {tried} before, without an answer")
    return reasons


def _held(lines: list[BacklogStatus], now: datetime) -> list[str]:
    return [
        f"the API did not take the last batch of its lane ({line.held_cause}: {line.held_reason}),"
        f" which is tried again at {format_instant(line.held_until, now)}"
        for line in lines
        if line.held_until is not None
    ]


def _next_flush(latency: LatencyClass | None) -> str:
    if latency is None:
        return "its class is not in the settings here; a worker sends such requests at once"
    schedule = latency.flush
    when = (
        f"at {schedule.line!r}" if isinstance(schedule, CronLine) else f"every {format_span(schedule.every)}"
    )
    return (
        f"it leaves with the next flush of its class ({when}), or earlier when a batch is full or its"
        " deadline asks for it"
    )


def _nobody(status: RouterStatus) -> list[str]:
    engine = status.engine
    if engine is None:
        return ["no process works on this store; llmrouter worker starts one"]
    if engine.silent:
        since = format_instant(engine.until, status.at)
        return [f"the process that works on this store ({engine.holder}) is silent since {since}"]
    return []


def _batch_reasons(case: Case) -> list[str]:
    batch, now = case.batch, case.status.at
    if batch is None:
        return ["is on its way from one place to another; ask again"]
    match batch.state:
        case BatchState.CLAIMED:
            since = format_instant(batch.claimed_at, now)
            return [f"is in a batch that is being created since {since}", *_nobody(case.status)]
        case BatchState.IN_DOUBT:
            return [*_in_doubt(batch, now), *_nobody(case.status)]
        case BatchState.IN_FLIGHT:
            return [*_in_flight(case, batch), *_nobody(case.status)]
        case BatchState.ENDED | BatchState.RELEASED:
            return ["has just left its batch; ask again"]
        case never:
            assert_never(never)


def _in_doubt(batch: BatchStatus, now: datetime) -> list[str]:
    since = format_instant(batch.in_doubt_at or batch.claimed_at, now)
    reasons = [f"is in a batch in doubt since {since}: perhaps created, so it is not sent again meanwhile"]
    if batch.candidates:
        may = format_count(
            len(batch.candidates), "batch at the API may be it", "batches at the API may be it"
        )
        reasons.append(f"{may}, and the results will tell")
    else:
        reasons.append("when the API lists none that may be it for the grace time, it is queued again")
    if not batch.served:
        reasons.append("that is for a process with its credential to find out")
    return reasons


def _in_flight(case: Case, batch: BatchStatus) -> list[str]:
    now, request = case.status.at, case.request
    since = format_instant(batch.created_at or batch.claimed_at, now)
    reasons = [f"is in flight in {batch.provider_batch_id}, created {since}"]
    if batch.expires_at is not None and batch.expires_at > now:
        reasons.append(f"the API ends that at the latest at {format_instant(batch.expires_at, now)}")
    if batch.cancel_asked_at is not None:
        asked = format_instant(batch.cancel_asked_at, now)
        reasons.append(f"all that is left of it was canceled, and the API was asked to at {asked}")
    elif batch.cancel_wanted:
        reasons.append("all that is left of it was canceled, and the API will be asked to")
    elif request.given_up:
        reasons.append("it was canceled, and ends so unless the API answers it first")
    elif case.danger_at <= now < request.deadline_at:
        reasons.append(f"its deadline is in danger, with {format_span(request.deadline_at - now)} left")
    if batch.overdue and batch.results_until is not None:
        gone = format_instant(batch.results_until, now)
        reasons.append(f"its results were not collected for long, and the API deletes them at {gone}")
    if case.has_credential and not batch.served:
        reasons.append("this process does not hold its credential, and leaves it to one that does")
    return reasons


def _settled(case: Case) -> str:
    request, outcome, now = case.request, case.outcome, case.status.at
    if outcome is None:
        return f"{request.request_id} has just got its outcome; ask again."
    where = ""
    if outcome.batch_id is not None:
        known = case.batch.provider_batch_id if case.batch else None
        where = f" in batch {known or outcome.batch_id}"
    ending = _ending(outcome.kind, case.error)
    reasons = [f"{request.request_id} {ending}{where} at {format_instant(outcome.settled_at, now)}"]
    if outcome.attempts > 1:
        reasons.append(f"it was in {outcome.attempts} batches")
    if outcome.kind is not OutcomeKind.CANCELED:
        late = outcome.settled_at - outcome.deadline_at
        in_time = outcome.settled_at <= outcome.deadline_at
        reasons.append("that was in time" if in_time else f"that was {format_span(late)} after its deadline")
    return f"{'; '.join(reasons)}."


def _ending(kind: OutcomeKind, error: str | None) -> str:
    match kind:
        case OutcomeKind.SUCCEEDED:
            return "was answered"
        case OutcomeKind.ERRORED:
            return f"failed with {error or 'an error'}"
        case OutcomeKind.CANCELED:
            return "was canceled"
        case OutcomeKind.EXPIRED:
            return "expired"
        case never:
            assert_never(never)
