"""What somebody should know of, or do something about, a line each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain.batches import BatchState
from llmrouter.reports.formats import format_count, format_from_now, format_instant, format_span
from llmrouter.reports.reasons import because, is_hold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from llmrouter.domain.blocks import Reason
    from llmrouter.domain.reporting import LiveReport
    from llmrouter.reports.status import BacklogStatus, BatchStatus, RouterStatus


def warnings_of(status: RouterStatus) -> Iterator[str]:
    """All of them, those first that a person ends."""
    now = status.at
    for latency, since in status.paused.items():
        yield f"{latency} is paused, for {format_span(now - since)} now: llmrouter resume {latency}"
    for hold in status.holds:
        yield f"Lane {hold.lane_id[:8]} waits for {format_span(hold.until - now)} more: {hold.reason}"
    for line in merge_backlog(status.backlog):
        yield from _of_deadline(line, now)
    yield from _of_holds(status)
    if status.live is not None:
        yield from _of_live(status.live, now)
    doubtful = sum(batch.state is BatchState.IN_DOUBT for batch in status.batches)
    if doubtful:
        batches = format_count(doubtful, "batch is", "batches are")
        yield f"{batches} in doubt: perhaps created, so not sent again."
    for batch in status.batches:
        if batch.overdue and batch.results_until is not None:
            gone = format_instant(batch.results_until, now)
            yield f"{batch.provider_batch_id} is not collected; the API deletes its results at {gone}."
    for job, problem in status.problems.items():
        yield f"{job} failed, and is tried again: {problem}"


def merge_backlog(lines: Iterable[BacklogStatus]) -> list[BacklogStatus]:
    """The backlog with one line for each class and lane, whatever the models; earliest deadline first.

    A line that stands for several models has an empty one.
    """
    merged: dict[tuple[str, str], BacklogStatus] = {}
    for line in lines:
        known = merged.get((line.latency, line.lane_id))
        merged[line.latency, line.lane_id] = line if known is None else _join(known, line)
    return sorted(merged.values(), key=lambda line: line.earliest_deadline_at)


def _join(one: BacklogStatus, other: BacklogStatus) -> BacklogStatus:
    return replace(
        one,
        model="",
        request_count=one.request_count + other.request_count,
        body_bytes=one.body_bytes + other.body_bytes,
        earliest_deadline_at=min(one.earliest_deadline_at, other.earliest_deadline_at),
        late=one.late or other.late,
        will_miss=one.will_miss or other.will_miss,
    )


def _of_deadline(line: BacklogStatus, now: datetime) -> Iterator[str]:
    when = format_from_now(line.earliest_deadline_at, now)
    name = f"{line.latency} in lane {line.lane_id[:8]}"
    if line.late:
        yield f"{name}: a deadline has passed, {when}."
    elif line.will_miss:
        yield f"{name}: a deadline will pass, {when}, as it stands."


def _of_holds(status: RouterStatus) -> Iterator[str]:
    """What does not go live though it should, and what will not when it should."""
    stuck: dict[tuple[str, Reason], list[BatchStatus]] = {}
    for batch in status.batches:
        if batch.reason is not None and is_hold(batch.reason):
            stuck.setdefault((batch.latency, batch.reason), []).append(batch)
    for (latency, reason), batches in stuck.items():
        count = format_count(sum(batch.request_count for batch in batches), "request")
        due = min((batch.deadline_at for batch in batches if batch.deadline_at), default=None)
        when = f", due {format_from_now(due, status.at)}" if due else ""
        yield f"{count} of class {latency}{when}, should go live and cannot: {because(reason)}."
    for latency in status.used_up:
        yield f"{latency}: its max_escalation_usd is used up today; {_LATE}."


def _of_live(live: LiveReport, now: datetime) -> Iterator[str]:
    if live.hold is not None:
        until = f" before {format_instant(live.hold_until, now)}" if live.hold_until else ""
        yield f"Nothing goes live{until}: {because(live.hold)}; {_LATE}."
    if live.waits_until is not None:
        yield f"The API asks to wait with live calls for {format_span(live.waits_until - now)} more."
    for risk in live.uninsured:
        rate = f"{live.requests_per_minute or 0:,.0f} live requests a minute"
        yield (
            f"{format_count(risk.request_count, 'request')} of class {risk.latency} ({risk.model}), due"
            f" {format_from_now(risk.deadline_at, now)}, cannot be insured: {rate} do not suffice should"
            " their batches not be back in time."
        )


_LATE = "what no batch answers in time will be late"
