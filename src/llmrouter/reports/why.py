"""Why a request has no answer yet, or how it got one, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Hold
from llmrouter.domain.latency import CronLine, LatencyClass
from llmrouter.domain.ledger import miss_cause
from llmrouter.domain.requests import OutcomeKind, RequestState, RequestView, Route
from llmrouter.reports.formats import format_count, format_instant, format_span
from llmrouter.reports.reasons import because, is_hold, why_missed

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.domain.reporting import LiveReport
    from llmrouter.domain.requests import Outcome
    from llmrouter.reports.status import BacklogStatus, BatchStatus, RouterStatus

_NOT_INSURED = (
    "the rate of live calls does not suffice for it as well: it is late if no batch answers it in time"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of a request, and of the work that it waits for. No prompt and no answer."""

    request: RequestView
    status: RouterStatus
    latency: LatencyClass | None
    """Its class; None when the settings have it no more."""
    danger_at: datetime
    """Its deadline less its margin: it goes live at or before then, unless it is answered."""
    has_credential: bool
    """Whether this process has a credential at all; one that has none tells nothing of lanes."""
    batch: BatchStatus | None = None
    """The batch it is in, or the one that answered it."""
    raced: BatchStatus | None = None
    """While it goes live: the batch that may answer it first."""
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


# In the queue


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
    if since is None:
        batch_only = any(line.batch_only for line in lines)
        reasons += _insurance(case, {line.model for line in lines}, batch_only=batch_only)
    if request.attempts:
        tried = format_count(request.attempts, "batch", "batches")
        reasons.append(f"it was in {tried} before, without an answer")
    return reasons


def _held(lines: list[BacklogStatus], now: datetime) -> list[str]:
    """What holds back the lane, whose lines these are: each is held by the same."""
    return [
        f"the API did not take the last batch of its lane ({line.held_cause}: {line.held_reason}),"
        f" which is tried again at {format_instant(line.held_until, now)}"
        for line in lines[:1]
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


# Whether it goes live in time


def _insurance(case: Case, models: set[str], *, batch_only: bool) -> list[str]:
    """By when a request goes live if no batch answers it, or why it does not, as far as that is known.

    Args:
        case: The request.
        models: That it may be for.
        batch_only: Whether it cannot go live.
    """
    request, status = case.request, case.status
    live = status.live
    if live is None or request.deadline_at <= status.at:
        return []
    hold = _hold(case, batch_only=batch_only)
    if hold is not None:
        until = _until(live, status.at) if hold is live.hold else ""
        return [
            f"it cannot go live{until}, because {because(hold)}: it is late if no batch answers it in time"
        ]
    risks = [
        risk
        for risk in live.uninsured
        if risk.latency == request.latency
        and risk.model in models
        and risk.deadline_at <= request.deadline_at
    ]
    if risks and len(models) == 1:
        return [_NOT_INSURED]
    if risks:
        count = sum(risk.request_count for risk in risks)
        return [f"{format_count(count, 'request')} of its class cannot be insured, perhaps this one too"]
    if case.danger_at > status.at:
        latest = format_instant(case.danger_at, status.at)
        return [f"if no batch answers it in time, it goes live at the latest at {latest}"]
    return [f"its deadline is in danger, with {format_span(request.deadline_at - status.at)} left"]


def _hold(case: Case, *, batch_only: bool) -> Hold | None:
    """What keeps a request from going live, as far as it can be told before its last moment."""
    if batch_only:
        return Hold.BATCH_ONLY
    if case.request.latency in case.status.used_up:
        return Hold.BUDGET
    return case.status.live.hold if case.status.live else None


def _until(live: LiveReport, now: datetime) -> str:
    return f" before {format_instant(live.hold_until, now)}" if live.hold_until else ""


# In a batch


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
        case BatchState.ESCALATING:
            return [*_escalating(case, batch), *_nobody(case.status)]
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
    now = case.status.at
    since = format_instant(batch.created_at or batch.claimed_at, now)
    reasons = [f"is in flight in {batch.provider_batch_id}, created {since}"]
    if batch.expires_at is not None and batch.expires_at > now:
        reasons.append(f"the API ends that at the latest at {format_instant(batch.expires_at, now)}")
    reasons += _prospects(case, batch)
    if batch.overdue and batch.results_until is not None:
        gone = format_instant(batch.results_until, now)
        reasons.append(f"its results were not collected for long, and the API deletes them at {gone}")
    if case.has_credential and not batch.served:
        reasons.append("this process does not hold its credential, and leaves it to one that does")
    return reasons


def _prospects(case: Case, batch: BatchStatus) -> list[str]:
    """What becomes of a request in flight before its batch ends by itself."""
    now, request = case.status.at, case.request
    if batch.cancel_wanted:
        asked = (
            f"the API was asked to at {format_instant(batch.cancel_asked_at, now)}"
            if batch.cancel_asked_at
            else "the API will be asked to"
        )
        return [f"all that is left of it was canceled, and {asked}"]
    if request.given_up:
        return ["it was canceled, and ends so unless the API answers it first"]
    if batch.recalled_at is not None:
        return _recalled(batch, batch.recalled_at, now)
    if batch.reason is not None and is_hold(batch.reason):
        return [f"it should go live and cannot, because {because(batch.reason)}", *_in_danger(case)]
    if not batch.insured:
        return [_NOT_INSURED]
    return _insurance(case, {batch.model}, batch_only=batch.batch_only) or _in_danger(case)


def _in_danger(case: Case) -> list[str]:
    now, due = case.status.at, case.request.deadline_at
    if not case.danger_at <= now < due:
        return []
    return [f"its deadline is in danger, with {format_span(due - now)} left"]


def _recalled(batch: BatchStatus, recalled_at: datetime, now: datetime) -> list[str]:
    why_then = f", because {because(batch.reason)}" if batch.reason and not is_hold(batch.reason) else ""
    asked = (
        f"the API was asked to cancel its batch at {format_instant(batch.cancel_asked_at, now)}"
        if batch.cancel_asked_at
        else "the API will be asked to cancel its batch"
    )
    return [
        f"it was asked back at {format_instant(recalled_at, now)}{why_then}",
        f"{asked}; what that has not answered is sent another way",
    ]


def _escalating(case: Case, batch: BatchStatus) -> list[str]:
    """A call for it is under way or waits for its turn; whether it has begun is not told by the store."""
    status, now = case.status, case.status.at
    since = format_instant(batch.escalated_at or batch.claimed_at, now)
    held = is_hold(batch.reason)
    why_then = f", because {because(batch.reason)}" if batch.reason and not held else ""
    hold = batch.reason if held else _hold(case, batch_only=batch.batch_only)
    turn = f"it cannot for now, because {because(hold)}" if hold else _turn(status)
    reasons = [f"goes live since {since}{why_then}", turn]
    if not batch.insured:
        reasons.append("the rate of live calls does not suffice for it as well: it comes after the others")
    reasons += _race(case, batch)
    if case.request.given_up:
        reasons.append("it was canceled, and ends so unless it is answered first")
    if case.has_credential and not batch.served:
        reasons.append("this process does not hold its credential, and leaves it to one that does")
    return reasons


def _turn(status: RouterStatus) -> str:
    live, now = status.live, status.at
    turn = "its call is under way, or waits for its turn"
    if live is None:
        return turn
    if live.waits_until is not None:
        return f"{turn}; the API asked to wait with calls until {format_instant(live.waits_until, now)}"
    if live.requests_per_minute is not None:
        return f"{turn} among {live.going:,} at about {live.requests_per_minute:,.0f} a minute"
    return turn


def _race(case: Case, batch: BatchStatus) -> list[str]:
    if batch.raced is None:
        return []
    name = (case.raced.provider_batch_id if case.raced else None) or batch.raced
    return [f"batch {name} may still answer it first, and the other answer would be paid in vain"]


# With its outcome


def _settled(case: Case) -> str:
    request, outcome, now = case.request, case.outcome, case.status.at
    if outcome is None:
        return f"{request.request_id} has just got its outcome; ask again."
    where = _where(case, outcome)
    ending = _ending(outcome.kind, case.error)
    said = f"{request.request_id} {ending}{where} at {format_instant(outcome.settled_at, now)}"
    reasons = [f"{said}{_how_it_came(outcome)}"]
    if outcome.attempts > 1:
        reasons.append(f"it was in {outcome.attempts} batches")
    if outcome.kind is not OutcomeKind.CANCELED:
        reasons.append(_in_time(outcome))
    return f"{'; '.join(reasons)}."


def _where(case: Case, outcome: Outcome) -> str:
    if outcome.route is Route.ESCALATED:
        return " live"
    if outcome.batch_id is None:
        return ""
    known = case.batch.provider_batch_id if case.batch else None
    return f" in batch {known or outcome.batch_id}"


def _how_it_came(outcome: Outcome) -> str:
    """Why it went live, or was to."""
    if outcome.reason is None or is_hold(outcome.reason) or outcome.withdrawn:
        return ""
    if outcome.route is Route.ESCALATED:
        return f", because {because(outcome.reason)}"
    return f"; it was to go live, because {because(outcome.reason)}, and its batch answered first"


def _in_time(outcome: Outcome) -> str:
    late = outcome.settled_at - outcome.deadline_at
    cause = miss_cause(outcome)
    if cause is None:
        return "that was in time"
    return f"that was {format_span(late)} after its deadline: {why_missed(cause)}"


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
