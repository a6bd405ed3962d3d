from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

from cli_support import Cli, make_request, read_lines, wait_until, write_lines

from llmrouter import Router
from llmrouter.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    import pytest

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (DEBUG|INFO|WARNING|ERROR) \S")


def enqueue(cli: Cli, monkeypatch: pytest.MonkeyPatch, *texts: str, latency: str = "daily") -> None:
    """Puts requests into the store, from another process than the worker's."""
    for name in ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, cli.env[name])
    with Router(store=cli.store, worker=False) as router:
        router.submit_many([make_request(text) for text in texts], latency=latency)


def test_sigterm_lets_a_create_end(cli: Cli, slow_api: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch that is being created is recorded, the lease is given back, and the exit code is 0."""
    slow_api.faults.add(Fault(kind="delay", endpoint="batches.create", seconds=0.5, accepted=True))
    enqueue(cli, monkeypatch, "a", "b")
    running = cli.start("worker")
    wait_until(lambda: slow_api.batches)
    running.send(signal.SIGTERM)
    ended = running.end()
    assert ended.code == 0
    lines = ended.err.splitlines()
    assert all(LOG_LINE.match(line) for line in lines), ended.err
    assert lines[-1].endswith("INFO stopped")
    (batch,) = json.loads(cli.run("status", "--json").out)["batches"]
    assert (batch["state"], batch["provider_batch_id"]) == ("in_flight", *slow_api.batches)


def test_a_run_can_leave_the_work_to_a_worker(cli: Cli, quick_api: Sandbox) -> None:
    """``run --no-worker`` only submits and waits; a second worker stands by; Ctrl-C ends both well."""
    running = cli.start("worker")
    running.wait_for("INFO this process works on the store now")
    second = cli.start("worker", "--log-level", "info")
    second.wait_for("another process works on this store; this one stands by")
    write_lines(cli.folder / "in.jsonl", [make_request(f"number {n}") for n in range(3)])
    ended = cli.run("run", "in.jsonl", "-o", "out.jsonl", "--no-worker")
    assert ended.code == 0, ended.err
    assert len(read_lines(cli.folder / "out.jsonl")) == 3
    assert len(quick_api.books.charges) == 3
    for each in (second, running):
        each.send(signal.SIGINT)
        assert each.end().code == 0


def test_flush_has_the_worker_send_what_waits(
    cli: Cli, slow_api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the schedule of the class says."""
    cli.env["LLMROUTER_CLASSES__WEEKLY__FLUSH"] = "0 3 * * *"
    running = cli.start("worker")
    running.wait_for("this process works on the store now")
    enqueue(cli, monkeypatch, "a", "b", latency="weekly")
    ended = cli.run("flush")
    assert (ended.code, ended.out) == (0, f"Asked for 2 requests in {cli.store} to be sent now.\n")
    wait_until(lambda: slow_api.batches)
    running.send(signal.SIGTERM)
    assert running.end().code == 0
