"""``llmrouter run``: the requests of a file, answered into another."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from anthropic import Anthropic

from llmrouter.claude.encoding import encode
from llmrouter.claude.lanes import Lanes
from llmrouter.cli.console import err, log_to_stderr, note
from llmrouter.cli.failures import FAILED, INTERRUPTED
from llmrouter.cli.jsonl import STDIN, Line, RequestFile
from llmrouter.cli.options import Invocation, StoreOption, connect, store_url
from llmrouter.cli.progress import Display
from llmrouter.cli.results import Results, check_output
from llmrouter.cli.run_job import RunJob, RunPlan, default_name
from llmrouter.cli.signals import Stop
from llmrouter.cli.tables import summary_table
from llmrouter.domain.latency import REAL_TIME
from llmrouter.reports.formats import format_count
from llmrouter.reports.reasons import name_causes
from llmrouter.router import Router
from llmrouter.routing import Routing
from llmrouter.settings import Settings

_LINE_EVERY_SECONDS = 10.0
_NAMED_ERRORS = 5


def run(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL, a request in each line; - reads standard input.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Where the results go.")],
    latency: Annotated[
        str,
        typer.Option(
            metavar="CLASS",
            help="How long it may take: real-time, hourly, daily, weekly, or a class of your settings.",
        ),
    ] = "daily",
    name: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="NAME",
            help="Name of the run: what a run of this name has paid for is not paid for again."
            " By default it follows from FILE and CLASS.",
        ),
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the call site, for the reports.")
    ] = None,
    store: StoreOption = None,
    worker: Annotated[
        bool,
        typer.Option(
            "--worker/--no-worker",
            help="Whether to work on the store, too, or to leave that to another process.",
        ),
    ] = True,
) -> None:
    """Answers the requests of a file.

    A line of FILE is a Messages request, or {"custom_id": ..., "params": {...}} around one. All lines
    are checked before any is sent. OUT gets a line for each, in the same order, in the shape of the
    results of a batch: {"custom_id": ..., "result": {...}}. It is written at the end, all at once.

    Ctrl-C stops the waiting and nothing else: the requests are safe in the store. The same command goes
    on where it was, and pays for nothing twice. A line that was changed is a new request; equal lines
    are each sent, and each paid for.

    Exit codes: 0 all succeeded, 1 some failed (OUT is written), 2 wrong usage, settings or input, 130
    stopped by Ctrl-C.
    """
    log_to_stderr("warning", timed=False)
    settings = Settings()
    if latency != REAL_TIME:
        Routing(settings.latency_classes()).batch_class(latency)
    target = check_output(output, file)
    client = connect()
    with RequestFile(file) as requests:
        plan = RunPlan(
            name=name or default_name(target if str(file) == STDIN else file, latency),
            store_url=store_url(store, settings),
            latency=latency,
            site=site or f"run:{'stdin' if str(file) == STDIN else file.stem}",
            total=requests.check(_Checker(client, latency)),
            at_once=settings.real_time_threads,
        )
        with Results(target, plan.total) as results, Stop(signal.SIGINT) as stop:
            with Router(client, store=plan.store_url, settings=settings, worker=worker) as router:
                finished = _work(plan, router, requests, results, stop, context.obj)
            if not finished:
                if not plan.durable:
                    _keep_what_came(results, target, output)
                raise typer.Exit(INTERRUPTED)
            results.write()
        _report(results, plan, output)


class _Checker:
    """Looks at one request without sending it."""

    def __init__(self, client: Anthropic, latency: str) -> None:
        self._lanes = Lanes(client, b"any")
        self._batch = latency != REAL_TIME

    def __call__(self, line: Line) -> None:
        encoded = encode(line.params, batch=self._batch)
        if self._batch:
            self._lanes.lane_for(encoded.headers)


def _work(
    plan: RunPlan,
    router: Router,
    requests: RequestFile,
    results: Results,
    stop: Stop,
    invocation: Invocation,
) -> bool:
    """Submits and waits; False when it was stopped first."""
    if not plan.durable:
        note(
            "note: these requests are not stored; if this stops, it cannot go on where it was", style="yellow"
        )
    with Display(line_every_seconds=_LINE_EVERY_SECONDS) as display:
        job = RunJob(plan, router, results, stop, display)
        job.submit(requests)
        if job.submitted == plan.total and plan.durable:
            known = f", {job.known:,} of them answered before" if job.known else ""
            note(f"{format_count(plan.total, 'request')} in {plan.store_url}{known}")
        finished = job.wait()
    if not finished:
        _say_how_to_go_on(plan, job, invocation)
    return finished


def _say_how_to_go_on(plan: RunPlan, job: RunJob, invocation: Invocation) -> None:
    waiting = job.submitted - job.done
    if plan.durable:
        safe = f"{format_count(waiting, 'request is', 'requests are')} safe in {plan.store_url}"
        how = ", with the same input" if STDIN in invocation.arguments else ""
        note(f"stopped: {safe}, {job.done:,} answered. To go on{how}:")
        note(invocation.command_line(), verbatim=True)
    elif waiting:
        note(f"stopping: {format_count(waiting, 'request')} under way will be answered first")


def _keep_what_came(results: Results, target: Path, output: Path) -> None:
    """Keeps the answers of a run that cannot be resumed: they are paid for."""
    partial = target.with_name(f"{target.name}.partial")
    count = results.tally.done
    if count:
        results.write(partial)
    where = f"in {output.with_name(partial.name)}; " if count else ""
    note(f"stopped: {format_count(count, 'answer')} came, {where}the same command begins anew")


def _report(results: Results, plan: RunPlan, output: Path) -> None:
    rows = results.tally.rows()
    if rows:
        err.print(summary_table(rows))
    total = results.tally.total()
    if total.escalated_count:
        live = format_count(total.escalated_count, "request")
        note(f"{live} went live at the full price, to be in time")
    if total.missed:
        missed = format_count(sum(total.missed.values()), "deadline")
        note(f"missed: {missed} ({name_causes(total.missed)})", style="yellow")
    if total.unpriced_count:
        note(f"{format_count(total.unpriced_count, 'answer')} of unknown price not counted", style="yellow")
    note(f"{format_count(plan.total, 'result')} in {output}")
    if total.errors:
        named = [f"{error_type} {number:,}" for error_type, number in total.errors.items()]
        note(
            f"failed: {total.failed_count:,} of {plan.total:,} ({', '.join(named[:_NAMED_ERRORS])})",
            style="red",
        )
        raise typer.Exit(FAILED)
