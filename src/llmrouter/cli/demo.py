"""``llmrouter demo``: a day's mixed work through a router, in a few seconds, and what it came to."""

import json
import shutil
import signal
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import typer
from anthropic import Anthropic

from llmrouter.claude.prices import price_of
from llmrouter.cli.console import log_to_stderr, note, out, show
from llmrouter.cli.demo_job import DemoJob, account_of_books
from llmrouter.cli.demo_requests import DemoRequest, make_requests
from llmrouter.cli.failures import FAILED, INTERRUPTED
from llmrouter.cli.options import connect, require_sandbox
from llmrouter.cli.progress import Display
from llmrouter.cli.signals import Stop
from llmrouter.cli.tables import summary_table
from llmrouter.reports.formats import format_count, format_usd
from llmrouter.router import Router
from llmrouter.settings import Settings

_SEED = 6
"""With it, batches are like the real ones: of the first 60, six take over an hour, the longest 2.5 hours."""

_SPEED = 1200
_DEADLINE_SECONDS = {"hourly": 3600, "daily": 86_400, "weekly": 604_800}
_POLICY_SECONDS = {"margin_min": 300, "margin_max": 3600, "min_window": 900, "cancel_lead": 600, "ramp": 60}
"""Of the sandbox's time; margin and cancel lead leave room for this machine, whose looks take 2 min of it."""
_FLUSH_SECONDS = {"hourly": 0.1, "daily": 0.3, "weekly": 0.3}
_POLL_SECONDS = 0.1
_LIVE_CONCURRENCY = 256
"""A call is planned with seconds before the first was seen; here it takes milliseconds."""

_SUBMIT_SECONDS = 1.5
_TIMEOUT_SECONDS = 60
_MAX_TOKENS = 300
_LIVE_MAX_TOKENS = 60
_REQUESTS = 400
_LIVE_REQUESTS = 12


def demo(
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="How many requests. [default: 400, with --live 12]", show_default=False
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Against the real API, which costs money. Asks first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --live: do not ask.")] = False,
    model: Annotated[str, typer.Option(help="The model that answers.")] = "claude-haiku-4-5",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the store, and say where it is.")] = False,
) -> None:
    """Shows on some mixed requests what waiting saves.

    By default they go to a sandbox API on this machine, whose hour takes three seconds: no key, no cost. With
    --live they go to the real API, on the real schedules: a batch can take an hour, and a day at most.

    Exit codes: 0 all was answered and charged once, 1 it was not, 2 wrong usage, 130 stopped by Ctrl-C.
    """
    log_to_stderr("warning" if live else "error", timed=False)
    if live:
        count = requests or _LIVE_REQUESTS
        _demo_live(make_requests(count, model=model, max_tokens=_LIVE_MAX_TOKENS, seed=_SEED), yes, keep)
    else:
        count = requests or _REQUESTS
        _demo_sandbox(make_requests(count, model=model, max_tokens=_MAX_TOKENS, seed=_SEED), keep)


def _demo_sandbox(requests: Sequence[DemoRequest], keep: bool) -> None:
    require_sandbox()
    from llmrouter.sandbox import Sandbox, ScaledClock, Turnaround, params_hash  # noqa: PLC0415  (an extra)

    api = Sandbox(clock=ScaledClock(speed=_SPEED), turnaround=Turnaround.typical(seed=_SEED), seed=_SEED)
    with _StoreFolder(keep) as folder, api.serve() as server, Stop(signal.SIGINT) as stop:
        note(f"{format_count(len(requests), 'request')} to a sandbox API on {server.base_url}")
        with (
            Anthropic(api_key=server.api_key, base_url=server.base_url) as client,
            Router(client, store=folder.url, settings=_fast_settings()) as router,
            Display(line_every_seconds=1) as display,
        ):
            job = DemoJob(router, requests, stop, display, speed=_SPEED)
            done = job.run(pause_seconds=_SUBMIT_SECONDS / len(requests), timeout_seconds=_TIMEOUT_SECONDS)
            # A batch that a live call has overtaken is charged for when it ends.
            done = done and router.drain(_TIMEOUT_SECONDS)
            known_twice = sum(line.wasted + line.resent for line in router.status().tally)
        if not done and stop.requested.is_set():
            note("stopped")
            raise typer.Exit(INTERRUPTED)
        _print_table(job, f"Waits in simulated time (real seconds x {_SPEED:,}); real-time ones as measured.")
        submitted = {params_hash(request.params) for request in requests}
        answered = job.tally.done - job.tally.failed
        line, agree = account_of_books(
            submitted, answered, api.books.count_charges(), known_twice=known_twice
        )
        show(f"The sandbox's own books: {line}.")
        if known_twice:
            show(f"The router counted {known_twice:,}: a live call overtook its batch, to be in time.")
    if not (done and agree):
        note("error: that is not what it should be", style="red")
        raise typer.Exit(FAILED)


def _demo_live(requests: Sequence[DemoRequest], yes: bool, keep: bool) -> None:
    client = connect()
    settings = Settings()
    _say_what_it_costs(requests, client)
    if not yes:
        typer.confirm("Send them?", abort=True, err=True)
    # Until all is answered the store is kept, whatever happens: what is in flight is being paid for.
    with _StoreFolder(keep=True) as folder, Stop(signal.SIGINT) as stop:
        note("batches leave on the schedule of their class, and can take an hour or more")
        with (
            Router(client, store=folder.url, settings=settings) as router,
            Display(line_every_seconds=30) as display,
        ):
            job = DemoJob(router, requests, stop, display)
            done = job.run(pause_seconds=0, timeout_seconds=None)
        if not done:
            note(f"stopped: {job.tally.done:,} of {len(requests):,} answered, the others are safe. For them:")
            note(f"llmrouter worker --store {folder.url}", verbatim=True)
            raise typer.Exit(INTERRUPTED)
        folder.keep = keep
    _print_table(job, "")
    answered = job.tally.done - job.tally.failed
    show(f"{format_count(len(requests), 'request')} submitted, {answered:,} answered.")
    if answered < len(requests):
        note(f"error: {_name_errors(job)}", style="red")
        raise typer.Exit(FAILED)


def _say_what_it_costs(requests: Sequence[DemoRequest], client: Anthropic) -> None:
    most_usd = _most_usd(requests)
    costs = "at a price that is not known" if most_usd is None else f"for {format_usd(most_usd)} at most"
    model = requests[0].params["model"]
    note(f"{format_count(len(requests), 'request')} to {model} at {client.base_url}, {costs}")


def _most_usd(requests: Sequence[DemoRequest]) -> Decimal | None:
    """What they cost if all go live and answer at full length: a token is at least a byte."""
    total_usd = Decimal(0)
    for request in requests:
        usage = {
            "input_tokens": len(json.dumps(request.params).encode()),
            "output_tokens": request.params["max_tokens"],
        }
        message = {"model": request.params["model"], "usage": usage}
        price = price_of(message, processing="standard", at=datetime.now(UTC))
        if price is None:
            return None
        total_usd += price.list_usd
    return total_usd


def _fast_settings() -> Settings:
    """The usual classes, their time as fast as the sandbox's."""
    return Settings(
        classes={
            name: {"deadline": seconds / _SPEED, "flush": _FLUSH_SECONDS[name]}
            for name, seconds in _DEADLINE_SECONDS.items()
        },
        policy={name: seconds / _SPEED for name, seconds in _POLICY_SECONDS.items()},
        poll=_POLL_SECONDS,
        live_concurrency=_LIVE_CONCURRENCY,
    )


class _StoreFolder:
    """A folder for the store, gone at the end unless it is to be kept."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.path = Path(tempfile.mkdtemp(prefix="llmrouter-demo-"))
        self.url = f"disk://{self.path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.keep:
            note(f"the store is kept: llmrouter status --store {self.url}", verbatim=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)


def _print_table(job: DemoJob, caption: str) -> None:
    table = summary_table(job.rows(), job.tally.total())
    table.caption = caption
    table.caption_justify = "left"
    out.print(table)


def _name_errors(job: DemoJob) -> str:
    errors = job.tally.total().errors
    return ", ".join(f"{error_type} {number:,}" for error_type, number in errors.items())
