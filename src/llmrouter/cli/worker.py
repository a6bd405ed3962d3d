"""``llmrouter worker`` and ``llmrouter flush``: doing the work of a store, and asking for it."""

import logging
import signal
from typing import Annotated, Literal

import typer

from llmrouter._version import __version__
from llmrouter.cli.console import log_to_stderr, show
from llmrouter.cli.failures import InputError
from llmrouter.cli.options import (
    MEMORY,
    OTHER_KEY,
    StoreOption,
    connect,
    count_foreign,
    store_exists,
    store_url,
)
from llmrouter.cli.signals import Stop
from llmrouter.reports.formats import format_count
from llmrouter.router import Router
from llmrouter.settings import Settings

log = logging.getLogger("llmrouter.cli")


def worker(
    store: StoreOption = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="The least to log, to stderr.")
    ] = "info",
) -> None:
    """Sends what waits in a store, and collects the answers.

    It goes on until it is stopped. One process at a time works on a store; a second worker stands by,
    and takes over when the first one ends. SIGTERM or Ctrl-C ends it cleanly: a create that is under
    way is finished and recorded. What waits or is in flight stays in the store for the next worker.

    Exit codes: 0 stopped, 1 failed, 2 wrong usage or settings.
    """
    log_to_stderr(log_level, timed=True)
    settings = Settings()
    url = store_url(store, settings)
    if url.startswith(MEMORY):
        raise InputError(f"{url} lives in one process, which has its own worker; give --store disk:///folder")
    client = connect()
    log.info("llmrouter %s: worker of %s for %s", __version__, url, client.base_url)
    with Stop(signal.SIGTERM, signal.SIGINT) as stop, Router(client, store=url, settings=settings) as router:
        found = router.status()
        if not found.working:
            log.info("another process works on this store; this one stands by")
        if foreign := count_foreign(found):
            log.warning("%s %s", format_count(foreign, "request waits", "requests wait"), OTHER_KEY)
        stop.requested.wait()
        log.info("stopping; what is under way is finished first")
        router.close()
        log.info("stopped")


def flush(store: StoreOption = None) -> None:
    """Has everything that waits sent now, whatever its schedule.

    The process that works on the store does it within about a second; when there is none, the next one
    that is started does it. Needs no API key.
    """
    log_to_stderr("warning", timed=False)
    settings = Settings()
    url = store_url(store, settings)
    if not store_exists(url):
        show(f"There is no store at {url}: nothing waits.")
        return
    with Router(store=url, settings=settings, worker=False) as router:
        queued = router.status().queued
        router.flush()
    show(f"Asked for {format_count(queued, 'request')} in {url} to be sent now.")
