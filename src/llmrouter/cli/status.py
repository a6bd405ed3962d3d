"""``llmrouter status``: what waits, what is in flight, and what is wrong."""

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from anthropic import Anthropic

from llmrouter.cli.console import log_to_stderr, show
from llmrouter.cli.options import StoreOption, store_exists, store_url
from llmrouter.cli.status_text import show_status
from llmrouter.router import Router
from llmrouter.settings import Settings


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
            "going_live": found.going_live,
            "unattended": found.unattended,
            **asdict(found),
        }
        _show_json({"store": url, "exists": True, **known})
    else:
        show_status(url, found, has_key=bool(client.api_key))


def _show_no_store(url: str, as_json: bool) -> None:
    if as_json:
        _show_json({"store": url, "exists": False})
    else:
        show(f"There is no store at {url}; the first request makes one.")


def _show_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, default=_plain, indent=2))


def _plain(value: object) -> str | float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.isoformat() if isinstance(value, datetime) else str(value)
