"""A status as a person reads it, at most 80 columns wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from llmrouter.cli.console import show
from llmrouter.cli.options import OTHER_KEY, count_foreign
from llmrouter.cli.tables import new_table
from llmrouter.domain.batches import BatchState
from llmrouter.reports.formats import (
    format_bytes,
    format_count,
    format_from_now,
    format_span,
    format_usd,
)
from llmrouter.reports.reasons import because, name_causes
from llmrouter.reports.warnings import merge_backlog, warnings_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from rich.table import Table

    from llmrouter.domain.blocks import Reason
    from llmrouter.reports.status import BacklogStatus, BatchStatus, RouterStatus
    from llmrouter.reports.turnaround import TurnaroundStatus

_NUMBERS = frozenset({"requests", "size", "by batch", "live", "missed", "wasted", "resent", "live today"})
_WRAPPED = frozenset({"batch at the API", "why", "missed because"})


def show_status(url: str, found: RouterStatus, *, has_key: bool) -> None:
    """Prints it.

    Args:
        url: Of the store.
        found: What was found there.
        has_key: Whether there is an API key, so that lanes of another one can be told.
    """
    show(f"Store {url}", verbatim=True)
    show(_where_requests_are(found))
    show(_who_works(found))
    for line in _turnaround_lines(found):
        show(Text(line))
    if found.backlog:
        _show_backlog(found)
    if found.api_batches:
        _show_batches(found)
    if found.going_live:
        _show_going_live(found)
    for line in _live_lines(found):
        show(Text(line))
    if any(line.eventful for line in found.tally):
        _show_tally(found)
    for warning in warnings_of(found):
        show(Text(warning, style="bold red"))
    if has_key and (foreign := count_foreign(found)):
        show(f"{format_count(foreign, 'request waits', 'requests wait')} {OTHER_KEY}.")


def _where_requests_are(found: RouterStatus) -> str:
    line = (
        f"{format_count(found.queued, 'request')} queued, {found.in_batches:,} in"
        f" {format_count(len(found.api_batches), 'open batch', 'open batches')}"
    )
    return f"{line}, {found.going_live:,} going live" if found.going_live else line


def _who_works(found: RouterStatus) -> Text:
    engine = found.engine
    if engine is None:
        said = "No process works on this store"
    elif engine.silent:
        said = f"{engine.holder} works on this store no more, since {format_from_now(engine.until, found.at)}"
    else:
        said = f"{engine.holder} works on this store"
    if found.unattended:
        return Text(f"{said}: start llmrouter worker.", style="bold red")
    return Text(f"{said}.")


def _turnaround_lines(found: RouterStatus) -> Iterator[str]:
    """How long batches take, once there are any."""
    whole, *models = found.turnaround
    if not whole.ended and not found.api_batches:
        return
    yield _turnaround_line(whole, "your batches")
    for one in models:
        if one.ended < whole.ended:
            yield _turnaround_line(one, f"those of {one.model}")


def _turnaround_line(one: TurnaroundStatus, whose: str) -> str:
    seen = format_count(one.ended, "batch", "batches")
    evidence = f"so far a guess: {seen}" if one.guess else seen
    half = f"half within {format_span(one.p50)}"
    return f"90 % of {whose} are back within {format_span(one.p90)}, {half} ({evidence})"


def _table(title: str, *columns: str) -> Table:
    table = new_table(title)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=name not in _WRAPPED)
    return table


def _show_backlog(found: RouterStatus) -> None:
    table = _table("Backlog", "class", "lane", "requests", "size", "earliest deadline", "")
    for line in merge_backlog(found.backlog):
        table.add_row(*_backlog_cells(line, found.at), style="bold red" if line.late else "")
    show(table)


def _backlog_cells(line: BacklogStatus, now: datetime) -> tuple[str, ...]:
    return (
        line.latency,
        line.lane_id[:8],
        f"{line.request_count:,}",
        format_bytes(line.body_bytes),
        format_from_now(line.earliest_deadline_at, now),
        ", ".join(_why_waiting(line, now)),
    )


def _why_waiting(line: BacklogStatus, now: datetime) -> Iterator[str]:
    if line.late:
        yield "late"
    if line.paused:
        yield "paused"
    if line.held_until is not None:
        yield f"held for {format_span(line.held_until - now)}"


def _show_batches(found: RouterStatus) -> None:
    table = _table("Open batches", "state", "class", "requests", "batch at the API", "claimed", "expires")
    for batch in found.api_batches:
        table.add_row(*_batch_cells(batch, found.at), style=_batch_style(batch))
    show(table)


def _batch_cells(batch: BatchStatus, now: datetime) -> tuple[str, ...]:
    return (
        _batch_state(batch),
        batch.latency,
        f"{batch.request_count:,}",
        batch.provider_batch_id or _candidates(batch),
        format_from_now(batch.claimed_at, now),
        format_from_now(batch.expires_at, now),
    )


def _batch_state(batch: BatchStatus) -> str:
    if batch.overdue:
        return "overdue"
    if batch.escalated_at:
        return "raced"
    if batch.cancel_wanted or batch.recalled_at:
        return "canceling" if batch.cancel_asked_at else "to cancel"
    return batch.state.value.replace("_", " ")


def _candidates(batch: BatchStatus) -> str:
    if not batch.candidates:
        return "not known"
    return format_count(len(batch.candidates), "may be it", "may be it")


def _batch_style(batch: BatchStatus) -> str:
    return "bold red" if batch.state is BatchState.IN_DOUBT or batch.overdue else ""


@dataclass(slots=True)
class _Going:
    """What goes live of one class for one reason."""

    requests: int = 0
    since: datetime | None = None
    due: datetime | None = None


def _show_going_live(found: RouterStatus) -> None:
    table = _table("Escalating: each request goes live", "class", "requests", "since", "due", "why")
    for (latency, reason), going in _going_live(found).items():
        table.add_row(
            latency,
            f"{going.requests:,}",
            format_from_now(going.since, found.at),
            format_from_now(going.due, found.at),
            because(reason) if reason else "",
        )
    show(table)


def _going_live(found: RouterStatus) -> dict[tuple[str, Reason | None], _Going]:
    """By class and reason, each with the earliest of its instants."""
    rows: dict[tuple[str, Reason | None], _Going] = {}
    for batch in found.batches:
        if batch.escalating:
            row = rows.setdefault((batch.latency, batch.reason), _Going())
            row.requests += batch.request_count
            row.since = _earlier(row.since, batch.escalated_at)
            row.due = _earlier(row.due, batch.deadline_at)
    return rows


def _live_lines(found: RouterStatus) -> Iterator[str]:
    """What live calls do at present."""
    live = found.live
    if live is None:
        return
    if live.going or live.under_way:
        calls = format_count(live.under_way, "call is", "calls are")
        rate = (
            "" if live.requests_per_minute is None else f", at about {live.requests_per_minute:,.0f} a minute"
        )
        waiting = format_count(live.going, "request has", "requests have")
        yield f"{waiting} no live answer yet; {calls} under way{rate}"
    if live.storm:
        yield "No batch comes back at present: what has a short window goes live early"


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((instant for instant in (one, other) if instant is not None), default=None)


def _show_tally(found: RouterStatus) -> None:
    table = _table(
        "So far", "class", "by batch", "live", "missed", "wasted", "resent", "live today", "missed because"
    )
    for line in found.tally:
        if line.eventful:
            table.add_row(
                line.latency,
                f"{line.by_batch:,}",
                f"{line.escalated:,}",
                f"{sum(line.missed.values()):,}",
                f"{line.wasted:,}",
                f"{line.resent:,}",
                format_usd(line.escalation_usd_today),
                name_causes(line.missed),
            )
    show(table)
