"""``llmrouter status``: what waits, what is in flight."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from anthropic import Anthropic
from rich.text import Text

from llmrouter.cli.console import log_to_stderr, show
from llmrouter.cli.formats import format_bytes, format_count, format_span
from llmrouter.cli.options import OTHER_KEY, StoreOption, count_foreign, store_exists, store_url
from llmrouter.cli.tables import new_table
from llmrouter.domain.batches import BatchState
from llmrouter.reports.status import BacklogStatus, BatchStatus, RouterStatus
from llmrouter.router import Router
from llmrouter.settings import Settings


def status(
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object, for programs.")] = False,
) -> None:
    """Shows what waits in the store, and what is in flight.

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
        known = {"queued": found.queued, "in_batches": found.in_batches, **asdict(found)}
        _show_json({"store": url, "exists": True, **known})
    else:
        _show_text(url, found)
        foreign = count_foreign(found)
        if foreign and client.api_key:
            show(f"{format_count(foreign, 'request waits', 'requests wait')} {OTHER_KEY}.")
        show("This command does not work on the store: llmrouter worker does, or an application's Router.")


def _show_no_store(url: str, as_json: bool) -> None:
    if as_json:
        _show_json({"store": url, "exists": False})
    else:
        show(f"There is no store at {url}; the first request makes one.")


def _show_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, default=_plain, indent=2))


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _show_text(url: str, found: RouterStatus) -> None:
    show(f"Store {url}", verbatim=True)
    doubtful = sum(batch.state is BatchState.IN_DOUBT for batch in found.batches)
    show(
        f"{format_count(found.queued, 'request')} queued, {found.in_batches:,} in"
        f" {format_count(len(found.batches), 'open batch', 'open batches')}"
    )
    if found.backlog:
        _show_backlog(found)
    if found.batches:
        _show_batches(found)
    if doubtful:
        batches = format_count(doubtful, "batch is", "batches are")
        show(Text(f"{batches} in doubt: perhaps created, so not sent again.", style="bold red"))


def _show_backlog(found: RouterStatus) -> None:
    table = new_table("Backlog")
    for name in ("class", "lane", "requests", "size", "earliest deadline"):
        table.add_column(name, justify="right" if name in ("requests", "size") else "left", no_wrap=True)
    for line in sorted(found.backlog, key=lambda line: line.earliest_deadline_at):
        table.add_row(*_backlog_cells(line, found.at))
    show(table)


def _backlog_cells(line: BacklogStatus, now: datetime) -> tuple[str, ...]:
    return (
        line.latency,
        line.lane_id[:8],
        f"{line.request_count:,}",
        format_bytes(line.body_bytes),
        _from_now(line.earliest_deadline_at, now),
    )


def _show_batches(found: RouterStatus) -> None:
    table = new_table("Open batches")
    for name in ("state", "class", "requests", "batch at the API", "claimed", "expires"):
        table.add_column(
            name, justify="right" if name == "requests" else "left", no_wrap=name != "batch at the API"
        )
    for batch in found.batches:
        table.add_row(*_batch_cells(batch, found.at), style=_batch_style(batch))
    show(table)


def _batch_cells(batch: BatchStatus, now: datetime) -> tuple[str, ...]:
    return (
        batch.state.value.replace("_", " "),
        batch.latency,
        f"{batch.request_count:,}",
        batch.provider_batch_id or "not known",
        _from_now(batch.claimed_at, now),
        _from_now(batch.expires_at, now),
    )


def _batch_style(batch: BatchStatus) -> str:
    return "bold red" if batch.state is BatchState.IN_DOUBT else ""


def _from_now(instant: datetime | None, now: datetime) -> str:
    if instant is None:
        return ""
    if instant < now:
        return f"{format_span(now - instant)} ago"
    return f"in {format_span(instant - now)}"
