"""``llmrouter pause`` and ``llmrouter resume``: holding a latency class back."""

from typing import Annotated

import typer

from llmrouter.cli.console import log_to_stderr, show
from llmrouter.cli.options import StoreOption, existing_store
from llmrouter.reports.formats import format_count

ClassArgument = Annotated[
    str, typer.Argument(metavar="CLASS", help="hourly, daily, weekly, or a class of your settings.")
]


def pause(latency: ClassArgument, store: StoreOption = None) -> None:
    """Leaves a latency class in the queue until it is resumed.

    Requests of it are still accepted, and what is in flight is still collected. Whichever process works
    on the store obeys, also one that is started later. Deadlines pass meanwhile: llmrouter status tells
    of those. Needs no API key.
    """
    log_to_stderr("warning", timed=False)
    with existing_store(store) as (router, url):
        router.pause(latency)
        waiting = sum(line.request_count for line in router.status().backlog if line.latency == latency)
    show(f"Paused {latency} in {url}: {format_count(waiting, 'request waits', 'requests wait')}.")


def resume(latency: ClassArgument, store: StoreOption = None) -> None:
    """Lets a latency class go on that was paused. Needs no API key."""
    log_to_stderr("warning", timed=False)
    with existing_store(store) as (router, url):
        resumed = router.resume(latency)
    show(f"Resumed {latency} in {url}." if resumed else f"{latency} was not paused in {url}.")
