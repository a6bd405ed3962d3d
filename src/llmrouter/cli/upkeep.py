"""``llmrouter prune`` and ``llmrouter repair``: keeping a store in order."""

from datetime import timedelta
from typing import Annotated

import typer

from llmrouter.cli.console import log_to_stderr, show
from llmrouter.cli.failures import InputError
from llmrouter.cli.options import StoreOption, existing_store, store_exists, store_url
from llmrouter.domain.latency import parse_span
from llmrouter.reports.formats import format_count, format_span
from llmrouter.settings import Settings
from llmrouter.wiring import repair_store


def prune(
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN",
            help="Those that ended so long ago: 90s, 15m, 24h, 7d. By default the setting retention.",
        ),
    ] = None,
    undelivered: Annotated[
        bool, typer.Option("--undelivered", help="Also those whose answer nobody has picked up.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Forgets requests that have ended: their answers and their idempotency keys.

    The same request with the same key is sent and paid again after that. What has not ended is never
    touched. The process that works on a store does this every hour by the setting retention; this
    command is for other limits, while no process works on the store. Needs no API key.
    """
    log_to_stderr("warning", timed=False)
    span = None if older_than is None else _read_span(older_than)
    if not store_exists(url := store_url(store, Settings())):
        show(f"There is no store at {url}: nothing to prune.")
        return
    with existing_store(store) as (router, _):
        pruned = router.prune(span, undelivered=undelivered)
    age = format_span(span or Settings().retention)
    show(f"Forgot {format_count(pruned, 'request')} that ended more than {age} ago.")


def repair(store: StoreOption = None) -> None:
    """Repairs the damaged files of a store, where that loses nothing.

    No process may have the store open. Needs no API key.

    Exit codes: 0 done, 1 the store is in use, or cannot be repaired, 2 wrong usage or settings.
    """
    log_to_stderr("warning", timed=False)
    url = store_url(store, Settings())
    if not store_exists(url):
        raise InputError(f"there is no store at {url}")
    report = repair_store(url)
    if not report.rebuilt:
        show(f"Found no damage in {url} ({format_count(report.rows, 'row')}); nothing was changed.")
        return
    for problem in report.problems:
        show(f"Found: {problem}", verbatim=True)
    show(f"Rebuilt {url} with all of its {format_count(report.rows, 'row')}.")
    show(f"The damaged files are kept in {report.copy}; they hold prompts and answers.", verbatim=True)


def _read_span(text: str) -> timedelta:
    try:
        return parse_span(text)
    except ValueError as error:
        raise InputError(f"--older-than: {error}") from error
