"""``llmrouter status``: what waits, what is in flight, and what is wrong."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from anthropic import Anthropic
from rich.text import Text

from llmrouter.cli.console import log_to_stderr, show
from llmrouter.cli.options import OTHER_KEY, StoreOption, count_foreign, store_exists, store_url
from llmrouter.cli.tables import new_table
from llmrouter.domain.batches import BatchState
from llmrouter.reports.formats import format_bytes, format_count, format_instant, format_span
from llmrouter.reports.status import BacklogStatus, BatchStatus, RouterStatus
from llmrouter.router import Router
from llmrouter.settings import Settings

_NUMBERS = ("requests", "size")


def status(
    store: StoreOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As one JSON object, for programs: see docs/status.md.")
    ] = False,
) -> None:
    """Shows what waits in the store, what is in flight, who works on it, and what is wrong.

    Needs no API key, and changes nothing.
    """
    log_to_stderr("warning", timed=False)
    settings = Settings()
    url = store_url(store, settings)
    if not store_exists(url):
        _show_no_store(url, as_json)
        return
    client = Anthropic()
    with Router(client, store=url, settings=settings, worker=False) as router:
        found = router.status()
    if as_json:
        known = {
            "queued": found.queued,
            "in_batches": found.in_batches,
            "unattended": found.unattended,
            **asdict(found),
        }
        _show_json({"store": url, "exists": True, **known})
    else:
        _show_text(url, found, has_key=bool(client.api_key))


def _show_no_store(url: str, as_json: bool) -> None:
    if as_json:
        _show_json({"store": url, "exists": False})
    else:
        show(f"There is no store at {url}; the first request makes one.")


def _show_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, default=_plain, indent=2))


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _show_text(url: str, found: RouterStatus, *, has_key: bool) -> None:
    show(f"Store {url}", verbatim=True)
    show(
        f"{format_count(found.queued, 'request')} queued, {found.in_batches:,} in"
        f" {format_count(len(found.batches), 'open batch', 'open batches')}"
    )
    show(_who_works(found))
    if found.backlog:
        _show_backlog(found)
    if found.batches:
        _show_batches(found)
    for warning in _warnings(found):
        show(Text(warning, style="bold red"))
    if has_key and (foreign := count_foreign(found)):
        show(f"{format_count(foreign, 'request waits', 'requests wait')} {OTHER_KEY}.")


def _who_works(found: RouterStatus) -> Text:
    engine = found.engine
    if engine is None:
        said = "No process works on this store"
    elif engine.silent:
        said = f"{engine.holder} works on this store no more, since {_from_now(engine.until, found.at)}"
    else:
        said = f"{engine.holder} works on this store"
    if found.unattended:
        return Text(f"{said}: start llmrouter worker.", style="bold red")
    return Text(f"{said}.")


def _warnings(found: RouterStatus) -> Iterator[str]:
    """What somebody should know of, or do something about, a line each."""
    now = found.at
    for latency, since in found.paused.items():
        yield f"{latency} is paused, for {format_span(now - since)} now: llmrouter resume {latency}"
    for hold in found.holds:
        yield f"Lane {hold.lane_id[:8]} waits for {format_span(hold.until - now)} more: {hold.reason}"
    for line in found.backlog:
        yield from _deadline_warning(line, now)
    doubtful = sum(batch.state is BatchState.IN_DOUBT for batch in found.batches)
    if doubtful:
        batches = format_count(doubtful, "batch is", "batches are")
        yield f"{batches} in doubt: perhaps created, so not sent again."
    for batch in found.batches:
        if batch.overdue and batch.results_until is not None:
            gone = format_instant(batch.results_until, now)
            yield f"{batch.provider_batch_id} is not collected; the API deletes its results at {gone}."
    for job, problem in found.problems.items():
        yield f"{job} failed, and is tried again: {problem}"


def _deadline_warning(line: BacklogStatus, now: datetime) -> Iterator[str]:
    when = _from_now(line.earliest_deadline_at, now)
    if line.late:
        yield f"{_name(line)}: a deadline has passed, {when}."
    elif line.will_miss:
        yield f"{_name(line)}: a deadline will pass, {when}, as it stands."


def _name(line: BacklogStatus) -> str:
    return f"{line.latency} in lane {line.lane_id[:8]}"


def _show_backlog(found: RouterStatus) -> None:
    table = new_table("Backlog")
    for name in ("class", "lane", "requests", "size", "earliest deadline", ""):
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=True)
    for line in sorted(found.backlog, key=lambda line: line.earliest_deadline_at):
        table.add_row(*_backlog_cells(line, found.at), style="bold red" if line.late else "")
    show(table)


def _backlog_cells(line: BacklogStatus, now: datetime) -> tuple[str, ...]:
    return (
        line.latency,
        line.lane_id[:8],
        f"{line.request_count:,}",
        format_bytes(line.body_bytes),
        _from_now(line.earliest_deadline_at, now),
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
    table = new_table("Open batches")
    for name in ("state", "class", "requests", "batch at the API", "claimed", "expires"):
        table.add_column(
            name, justify="right" if name in _NUMBERS else "left", no_wrap=name != "batch at the API"
        )
    for batch in found.batches:
        table.add_row(*_batch_cells(batch, found.at), style=_batch_style(batch))
    show(table)


def _batch_cells(batch: BatchStatus, now: datetime) -> tuple[str, ...]:
    return (
        _batch_state(batch),
        batch.latency,
        f"{batch.request_count:,}",
        batch.provider_batch_id or _candidates(batch),
        _from_now(batch.claimed_at, now),
        _from_now(batch.expires_at, now),
    )


def _batch_state(batch: BatchStatus) -> str:
    if batch.overdue:
        return "overdue"
    if batch.cancel_wanted:
        return "canceling" if batch.cancel_asked_at else "to cancel"
    return batch.state.value.replace("_", " ")


def _candidates(batch: BatchStatus) -> str:
    if not batch.candidates:
        return "not known"
    return format_count(len(batch.candidates), "may be it", "may be it")


def _batch_style(batch: BatchStatus) -> str:
    return "bold red" if batch.state is BatchState.IN_DOUBT or batch.overdue else ""


def _from_now(instant: datetime | None, now: datetime) -> str:
    if instant is None:
        return ""
    if instant < now:
        return f"{format_span(now - instant)} ago"
    return f"in {format_span(instant - now)}"
