"""``llmrouter runs``: how far the runs in a store have come."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from anthropic import Anthropic
from rich.table import Table
from rich.text import Text

from llmrouter.cli.console import log_to_stderr, show
from llmrouter.cli.options import StoreOption, store_exists, store_url
from llmrouter.cli.tables import new_table
from llmrouter.domain.runs import RunProgress
from llmrouter.reports.formats import format_from_now
from llmrouter.router import Router
from llmrouter.settings import Settings

_NUMBERS = ("requests", "answered", "failed", "queued", "in\nbatches")


def runs(
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object, for programs.")] = False,
) -> None:
    """Shows how far each run has come, the one that began last first.

    A run is a block `llmrouter.latency(..., run=NAME)`, or a `llmrouter run`. Counted are its requests of
    every time it was started, as long as their answers are kept. Needs no API key, and changes nothing.
    """
    log_to_stderr("warning", timed=False)
    settings = Settings()
    url = store_url(store, settings)
    exists, found = store_exists(url), list[RunProgress]()
    if exists:
        with Router(Anthropic(), store=url, settings=settings, worker=False) as router:
            found = router.runs()
    if as_json:
        _show_json({"store": url, "exists": exists, "runs": [_fields(run) for run in found]})
    elif found:
        show(_table(found, datetime.now(UTC)))
    else:
        show("There are no runs in this store." if exists else f"There is no store at {url}.")


def _fields(run: RunProgress) -> dict[str, object]:
    return {"requests": run.requests, **asdict(run)}


def _show_json(content: dict[str, object]) -> None:
    typer.echo(json.dumps(content, default=datetime.isoformat, indent=2))


def _table(found: list[RunProgress], now: datetime) -> Table:
    table = new_table()
    table.add_column("run", overflow="fold", min_width=12)
    table.add_column("class", overflow="fold")
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("began")
    table.add_column("last answer")
    for run in found:
        numbers = (run.requests, run.answered, run.failed + run.canceled, run.queued, run.in_batches)
        table.add_row(
            Text(_printable(run.name)),
            Text("\n".join(run.latencies)),
            *(f"{number:,}" for number in numbers),
            format_from_now(run.first_accepted_at, now),
            format_from_now(run.last_answered_at, now),
        )
    return table


def _printable(name: str) -> str:
    """A name as it can be shown: it could steer the terminal."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in name)
