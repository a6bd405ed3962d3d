from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from anthropic import Anthropic
from cli_support import Cli, Ended, make_request, read_lines, wait_until, write_lines

from llmrouter import Router
from llmrouter.domain.blocks import Reason
from llmrouter.sandbox import Fault, Sandbox, params_hash

if TYPE_CHECKING:
    from cli_support import Running

    from llmrouter.reports.status import BatchStatus

HOUR = timedelta(hours=1)


def text_of(line: dict[str, Any]) -> str:
    text: str = line["result"]["message"]["content"][0]["text"]
    return text


def assert_answers(line: dict[str, Any], request: dict[str, Any]) -> None:
    """The sandbox begins each answer with the hash of what was asked."""
    assert text_of(line).startswith(f"[{params_hash(request)[:12]}]")


def assert_paid_once(sandbox: Sandbox, requests: int) -> None:
    assert set(sandbox.books.count_charges().values()) == {1}
    assert len(sandbox.books.charges) == requests


def start_run(cli: Cli, count: int = 5) -> Running:
    write_lines(cli.folder / "requests.jsonl", [make_request(f"number {n}") for n in range(count)])
    return cli.start("run", "requests.jsonl", "-o", "results.jsonl")


def again(cli: Cli) -> Ended:
    return cli.run("run", "requests.jsonl", "-o", "results.jsonl")


def test_lines_are_answered_in_their_order(cli: Cli, quick_api: Sandbox) -> None:
    """Both shapes of lines, blank ones, a byte order mark and equal lines: a result for each request."""
    requests = [make_request(f"question {n}, wörldly") for n in range(7)]
    lines: list[Any] = [
        {"custom_id": f"mine/{n}", "params": request} if n % 2 else request
        for n, request in enumerate(requests)
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in [*lines, lines[0]])
    (cli.folder / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())

    ended = cli.run("run", "in.jsonl", "-o", "out.jsonl", "--latency", "hourly", "--site", "nightly")

    assert ended.code == 0, ended.err
    results = read_lines(cli.folder / "out.jsonl")
    names = ["line-1", "mine/1", "line-5", "mine/3", "line-9", "mine/5", "line-13", "line-15"]
    assert [line["custom_id"] for line in results] == names
    for line, request in zip(results, [*requests, requests[0]], strict=True):
        assert line["result"]["type"] == "succeeded"
        assert_answers(line, request)
    # The equal lines are two requests, each paid for.
    assert len(quick_api.books.charges) == 8
    assert "8 results in out.jsonl" in ended.err
    assert all(len(line) <= 80 for line in ended.err.splitlines() if "disk://" not in line)


def test_the_same_command_pays_for_nothing_twice(cli: Cli, quick_api: Sandbox) -> None:
    """When it has finished, it only reads the answers; a line that was changed is a new request."""
    start_run(cli).end()
    first = (cli.folder / "results.jsonl").read_bytes()
    ended = again(cli)
    assert (ended.code, (cli.folder / "results.jsonl").read_bytes()) == (0, first)
    assert "5 of them answered before" in ended.err
    assert_paid_once(quick_api, 5)

    # The same requests in another layout, and one that is new.
    changed = [dict(reversed(make_request(f"number {n}").items())) for n in (0, 1, 2, 9, 4)]
    (cli.folder / "requests.jsonl").write_text(
        "".join(json.dumps(line, indent=None) + " \r\n" for line in changed)
    )
    ended = again(cli)
    assert ended.code == 0
    assert_paid_once(quick_api, 6)


def test_a_run_keeps_its_latency_class(cli: Cli, quick_api: Sandbox) -> None:
    """The same name with another class is refused, by line; nothing is sent."""
    write_lines(cli.folder / "in.jsonl", [make_request("a")])
    run = ("run", "in.jsonl", "-o", "out.jsonl", "--run", "nightly", "--latency")
    assert cli.run(*run, "daily").code == 0
    ended = cli.run(*run, "hourly")
    assert ended.code == 2
    assert ended.error.startswith("in.jsonl:1: key: ")
    assert "run 'nightly' had it with another latency class" in ended.error
    assert_paid_once(quick_api, 1)


def test_ctrl_c_loses_nothing_and_says_how_to_go_on(cli: Cli, slow_api: Sandbox) -> None:
    """The command that it prints goes on with the batch that is under way."""
    running = start_run(cli)
    running.wait_for("5 requests in disk://")
    wait_until(lambda: slow_api.batches)
    running.send(signal.SIGINT)
    ended = running.end()
    assert ended.code == 130
    assert "Traceback" not in ended.err
    stopped, command = ended.err.splitlines()[-2:]
    assert stopped == f"stopped: 5 requests are safe in {cli.store}, 0 answered. To go on:"
    assert not (cli.folder / "results.jsonl").exists()

    program = "python -m llmrouter "
    assert command.startswith(program)
    slow_api.clock.advance(HOUR)
    ended = cli.run(*shlex.split(command.removeprefix(program)))
    assert ended.code == 0, ended.err
    assert len(read_lines(cli.folder / "results.jsonl")) == 5
    assert len(slow_api.batches) == 1
    assert_paid_once(slow_api, 5)


@pytest.mark.parametrize("when", ["queued", "in flight"])
def test_a_killed_run_pays_for_nothing_twice(cli: Cli, slow_api: Sandbox, when: str) -> None:
    """The same command goes on, whether the batch was created before the kill or not."""
    if when == "queued":
        cli.env |= {
            "LLMROUTER_CLASSES__DAILY__FLUSH": "0 3 * * *",
            "LLMROUTER_CLASSES__DAILY__DEADLINE": "7d",
        }
    running = start_run(cli)
    running.wait_for("5 requests in disk://")
    if when == "in flight":
        wait_until(lambda: slow_api.books.calls["batches.retrieve"])
    running.send(signal.SIGKILL)
    assert running.end().code == -signal.SIGKILL
    assert len(slow_api.batches) == (when == "in flight")

    cli.env["LLMROUTER_CLASSES__DAILY__FLUSH"] = "0.1"
    resumed = cli.start("run", "requests.jsonl", "-o", "results.jsonl")
    resumed.wait_for("5 requests in disk://")
    wait_until(lambda: slow_api.batches)
    slow_api.clock.advance(HOUR)
    assert resumed.end().code == 0
    assert len(read_lines(cli.folder / "results.jsonl")) == 5
    assert_paid_once(slow_api, 5)


def test_a_failed_request_fails_the_command_and_not_the_others(cli: Cli, quick_api: Sandbox) -> None:
    """OUT has the API's own error in its place; the exit code and the last line tell of it."""
    bad = make_request("never answered", model="no-such-model")
    quick_api.faults.add(
        Fault(
            kind="item", model="no-such-model", error_type="not_found_error", message="model: no-such-model"
        )
    )
    write_lines(
        cli.folder / "in.jsonl", [make_request("a"), {"custom_id": "bad", "params": bad}, make_request("b")]
    )
    ended = cli.run("run", "in.jsonl", "-o", "out.jsonl")
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "failed: 1 of 3 (not_found_error 1)"
    results = read_lines(cli.folder / "out.jsonl")
    assert [line["result"]["type"] for line in results] == ["succeeded", "errored", "succeeded"]
    assert results[1]["custom_id"] == "bad"
    assert results[1]["result"]["error"]["error"]["type"] == "not_found_error"


def test_requests_come_from_standard_input(cli: Cli, quick_api: Sandbox) -> None:
    """The same lines piped in again are the same run."""
    text = "".join(json.dumps(make_request(f"piped {n}")) + "\n" for n in range(3))
    for _ in range(2):
        ended = cli.run("run", "-", "-o", "out.jsonl", stdin=text)
        assert ended.code == 0, ended.err
    assert len(read_lines(cli.folder / "out.jsonl")) == 3
    assert_paid_once(quick_api, 3)


def test_real_time_requests_go_live(cli: Cli, quick_api: Sandbox) -> None:
    """They are answered at once, and errors of the API have the shape of batch results."""
    quick_api.faults.add(Fault(kind="status", status=400, model="bad", message="no"))
    requests = [make_request("a"), make_request("b", model="bad"), make_request("c")]
    write_lines(cli.folder / "in.jsonl", requests)
    ended = cli.run("run", "in.jsonl", "-o", "out.jsonl", "--latency", "real-time")
    assert ended.code == 1
    assert "these requests are not stored" in ended.err
    first, bad, last = read_lines(cli.folder / "out.jsonl")
    assert_answers(first, requests[0])
    assert_answers(last, requests[2])
    assert bad["result"]["type"] == "errored"
    assert bad["result"]["error"]["error"] == {"type": "invalid_request_error", "message": "no"}
    assert {charge.route for charge in quick_api.books.charges} == {"live"}


def test_ctrl_c_keeps_the_real_time_answers_that_came(cli: Cli) -> None:
    """They are paid for, and could not be had again; what is under way is waited for."""
    may_answer = threading.Event()

    def reply(params: Any) -> str:
        if "slow" in params["messages"][0]["content"]:
            may_answer.wait(30)
        return "answered"

    sandbox = Sandbox(reply=reply)
    with sandbox.serve() as server:
        cli.use(server.base_url)
        write_lines(cli.folder / "in.jsonl", [make_request("slow"), make_request("quick")])
        running = cli.start("run", "in.jsonl", "-o", "out.jsonl", "--latency", "real-time")
        wait_until(lambda: sandbox.books.calls["messages.create"] == 2)
        running.send(signal.SIGINT)
        running.wait_for("stopping: [12] requests? under way")
        may_answer.set()
        ended = running.end()
    assert ended.code == 130
    assert "stopped: 2 answers came, in out.jsonl.partial" in ended.err
    assert [text_of(line) for line in read_lines(cli.folder / "out.jsonl.partial")] == ["answered"] * 2
    assert not (cli.folder / "out.jsonl").exists()


def test_a_terminal_shows_how_far_it_is(cli: Cli, slow_api: Sandbox) -> None:
    """Counts, batches in flight and spend, in place."""
    write_lines(cli.folder / "in.jsonl", [make_request(f"number {n}") for n in range(5)])
    terminal, screen = pty.openpty()
    command = [sys.executable, "-m", "llmrouter", "run", "in.jsonl", "-o", "out.jsonl"]
    with subprocess.Popen(
        command, cwd=cli.folder, env={**cli.env, "TERM": "xterm"}, stdout=subprocess.DEVNULL, stderr=screen
    ) as process:
        os.close(screen)
        shown = b""
        while b"5 in 1 batch in flight" not in shown:
            shown += os.read(terminal, 1000)
        slow_api.clock.advance(HOUR)
        threading.Thread(target=_drain, args=(terminal,), daemon=True).start()
        assert process.wait(30) == 0
    assert b"0/5" in shown
    assert b"0 done, 0 failed" in shown
    assert b"spent $0" in shown


def _drain(terminal: int) -> None:
    try:
        while os.read(terminal, 1000):
            pass
    except OSError:  # The other end is closed.
        os.close(terminal)


def never_flush(cli: Cli, deadline: str) -> None:
    """A class of its own that leaves once a year, so that only its deadline gets it anywhere."""
    cli.env |= {
        "LLMROUTER_CLASSES__SOON__DEADLINE": deadline,
        "LLMROUTER_CLASSES__SOON__FLUSH": "0 0 1 1 *",
    }


def test_what_has_no_time_for_a_batch_goes_live_and_is_priced_so(cli: Cli, quick_api: Sandbox) -> None:
    """The summary says how many went live; they are answered, and paid once."""
    never_flush(cli, "10m")
    write_lines(cli.folder / "in.jsonl", [make_request(f"number {n}") for n in range(3)])
    ended = cli.run("run", "in.jsonl", "-o", "out.jsonl", "--latency", "soon")

    assert ended.code == 0, ended.err
    assert "3 requests went live at the full price, to be in time" in ended.err
    assert "missed" not in ended.err
    (row,) = (line.split() for line in ended.err.splitlines() if line.startswith("soon "))
    assert (row[1:3], row[-3] == row[-2]) == (["3", "live"], True)
    assert_paid_once(quick_api, 3)
    assert [charge.route for charge in quick_api.books.charges] == ["live"] * 3
    tallied = json.loads(cli.run("status", "--json").out)["tally"]
    assert [(line["latency"], line["by_batch"], line["escalated"]) for line in tallied] == [("soon", 0, 3)]


def test_a_missed_deadline_is_told_with_its_cause(cli: Cli, slow_api: Sandbox) -> None:
    """Here nothing may go live: the budget is nought, and the batch comes too late."""
    never_flush(cli, "1s")
    cli.env["LLMROUTER_MAX_ESCALATION_USD"] = "0"
    write_lines(cli.folder / "in.jsonl", [make_request("late")])
    running = cli.start("run", "in.jsonl", "-o", "out.jsonl", "--latency", "soon")
    wait_until(lambda: slow_api.batches)
    with Router(Anthropic(api_key="sandbox"), store=cli.store, worker=False) as router:
        wait_until(lambda: [is_stuck(batch) for batch in router.status().batches] == [True])
    slow_api.clock.advance(HOUR)
    ended = running.end()

    assert ended.code == 0, ended.err
    assert "missed: 1 deadline (1 budget)" in ended.err
    assert len(read_lines(cli.folder / "out.jsonl")) == 1


def is_stuck(batch: BatchStatus) -> bool:
    """Whether it is late, and was to go live and could not."""
    late = batch.deadline_at is not None and batch.deadline_at < datetime.now(UTC)
    return late and batch.reason is Reason.BUDGET
