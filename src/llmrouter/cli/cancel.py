"""``llmrouter cancel``: giving requests up."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmrouter.cli.console import log_to_stderr, note, show
from llmrouter.cli.failures import FAILED, InputError
from llmrouter.cli.options import StoreOption, existing_store
from llmrouter.cli.run_job import default_name, find_run
from llmrouter.domain.batches import Canceled
from llmrouter.reports.formats import format_count
from llmrouter.router import Router
from llmrouter.settings import Settings


def cancel(
    request_ids: Annotated[
        list[str] | None, typer.Argument(metavar="REQUEST_ID", help="The requests, by their ids.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Those whose idempotency key matches a shell pattern: 'nightly-*'."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Those that are in a batch, by llmrouter's id of it or the API's."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Those of a run of llmrouter run: by the name it was given, or by its FILE"
            " (its OUT, where FILE was standard input).",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreOption = None,
) -> None:
    """Gives requests up that have no answer yet.

    Those that wait in the queue are canceled at once, and cost nothing. Those in a batch are canceled
    unless the API answers them first, which is paid for; a batch of which nothing else is left is
    canceled at the API, by the process that works on the store. Asks first when there are several, on a
    terminal. Needs no API key.

    Exit codes: 0 done, 1 some of the given ids are not in the store, or there was an error, 2 wrong
    usage or settings.
    """
    log_to_stderr("warning", timed=False)
    if [bool(request_ids), key is not None, batch is not None, run is not None].count(True) != 1:
        raise InputError("give either request ids, --key, --batch or --run")
    with existing_store(store) as (router, _):
        chosen = list(dict.fromkeys(request_ids or [])) or _find(router, key, batch, run)
        if len(chosen) > 1 and not yes and sys.stdin.isatty():
            typer.confirm(f"Give up {format_count(len(chosen), 'request')}?", abort=True, err=True)
        done = router.cancel(chosen)
    _report(done)
    unknown = len(chosen) - done.canceled - done.asked - done.settled
    if unknown and request_ids:
        note(f"error: {unknown:,} of {format_count(len(chosen), 'id')} not in this store", style="red")
        raise typer.Exit(FAILED)


def _find(router: Router, key: str | None, batch: str | None, run: str | None) -> Sequence[str]:
    return router.find(key=key, batch=batch) if run is None else _find_run(router, run)


def _find_run(router: Router, run: str) -> Sequence[str]:
    """Requests of a run by its name, and by the name that follows from its file and any class."""
    names = [run, *(default_name(Path(run), latency) for latency in Settings().latency_classes())]
    return list(dict.fromkeys(request_id for name in names for request_id in find_run(router, name)))


def _report(done: Canceled) -> None:
    if done.canceled or not (done.asked or done.settled):
        show(f"Canceled {format_count(done.canceled, 'request')} in the queue.")
    if done.asked:
        show(f"Gave up {format_count(done.asked, 'request')} in batches, unless the API answers first.")
    if done.settled:
        show(f"{format_count(done.settled, 'request')} had ended already.")
