from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic
from cli_support import make_request, read_lines, wait_until, write_lines

from llmrouter import Router, Settings
from llmrouter.cli import main

if TYPE_CHECKING:
    from cli_support import Cli

    from llmrouter.sandbox import Sandbox


def enqueue(cli: Cli, *keys: str, latency: str = "weekly") -> list[str]:
    """Puts requests into the store; nobody works on it."""
    with Anthropic(api_key="sandbox") as client, Router(client, store=cli.store, worker=False) as router:
        futures = router.submit_many([make_request(key) for key in keys], latency=latency, keys=keys)
        return [future.request_id for future in futures]


def left_in(cli: Cli) -> int:
    with Anthropic(api_key="sandbox") as client, Router(client, store=cli.store, worker=False) as router:
        return router.status().queued


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


@pytest.mark.usefixtures("here")
def test_requests_are_canceled_by_id(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an API key; a second time they have ended already."""
    first, second, _ = enqueue(cli, "a", "b", "c")
    assert run_here(capsys, "cancel", first) == (0, "Canceled 1 request in the queue.\n", "")
    assert run_here(capsys, "cancel", first, second, second) == (
        0,
        "Canceled 1 request in the queue.\n1 request had ended already.\n",
        "",
    )
    assert left_in(cli) == 1


@pytest.mark.usefixtures("here")
def test_ids_that_are_not_in_the_store_fail(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are canceled all the same."""
    (known,) = enqueue(cli, "a")
    code, out, err = run_here(capsys, "cancel", known, "req_unknown")
    assert (code, out) == (1, "Canceled 1 request in the queue.\n")
    assert err == "error: 1 of 2 ids not in this store\n"


@pytest.mark.usefixtures("here")
def test_requests_are_canceled_by_their_keys(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell pattern; one that matches nothing is no failure."""
    enqueue(cli, "nightly-1", "nightly-2", "other")
    assert run_here(capsys, "cancel", "--key", "nightly-*")[:2] == (0, "Canceled 2 requests in the queue.\n")
    assert run_here(capsys, "cancel", "--key", "nightly-*")[:2] == (0, "Canceled 0 requests in the queue.\n")
    assert left_in(cli) == 1


@pytest.mark.usefixtures("here")
def test_a_batch_that_is_not_known_is_named(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """It is wrong input."""
    enqueue(cli, "a")
    code, _, err = run_here(capsys, "cancel", "--batch", "msgbatch_x")
    assert (code, err) == (2, "error: the store has no batch 'msgbatch_x'\n")


def test_a_batch_is_canceled_at_the_api(cli: Cli, slow_api: Sandbox) -> None:
    """By whoever works on the store: nothing of it is paid."""
    settings = Settings(classes={"weekly": {"flush": 0.05}}, poll=0.05)
    with (
        Anthropic(base_url=cli.env["ANTHROPIC_BASE_URL"], api_key="sandbox") as client,
        Router(client, store=cli.store, settings=settings) as router,
    ):
        futures = router.submit_many([make_request("a"), make_request("b")], latency="weekly")
        wait_until(lambda: slow_api.batches)
        (batch_id,) = slow_api.batches
        wait_until(lambda: router.status().batches and router.status().batches[0].provider_batch_id)
        ended = cli.run("cancel", "--batch", batch_id)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out == "Gave up 2 requests in batches, unless the API answers first.\n"
        wait_until(lambda: slow_api.books.calls["batches.cancel"])
        slow_api.clock.advance(timedelta(minutes=1))
        wait_until(lambda: all(future.cancelled() for future in futures))
    assert slow_api.books.count_charges() == {}


@pytest.mark.parametrize("by", ["file", "name", "output"])
def test_a_run_is_canceled(cli: Cli, slow_api: Sandbox, by: str) -> None:
    """By its file or its name, and none of another run's; the same command then tells of it."""
    cli.env["LLMROUTER_CLASSES__HOURLY__FLUSH"] = cli.env["LLMROUTER_CLASSES__DAILY__FLUSH"] = "0 0 1 1 *"
    cli.env["LLMROUTER_CLASSES__HOURLY__DEADLINE"] = cli.env["LLMROUTER_CLASSES__DAILY__DEADLINE"] = "800d"
    write_lines(cli.folder / "in.jsonl", [make_request(f"number {n}") for n in range(3)])
    name = () if by == "file" else ("--run", "night*ly")
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--latency", "hourly", *name]
    if by == "output":
        text = (cli.folder / "in.jsonl").read_text()
        command = ["run", "-", "-o", "out.jsonl", "--no-worker"]
    for arguments in (["run", "in.jsonl", "-o", "b.jsonl", "--run", "night*ly:2"], command):
        process = subprocess.Popen(
            [sys.executable, "-m", "llmrouter", *arguments],
            cwd=cli.folder,
            env=cli.env,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        if "-" in arguments:
            process.stdin.write(text)
        process.stdin.close()
        while "3 requests in disk://" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        process.stderr.close()
        assert process.wait(30) == 130
    assert left_in(cli) == 6

    which = {"file": "in.jsonl", "name": "night*ly", "output": "out.jsonl"}[by]
    ended = cli.run("cancel", "--run", which)
    assert (ended.code, ended.out) == (0, "Canceled 3 requests in the queue.\n"), ended.err
    assert left_in(cli) == 3
    if by == "file":
        again = cli.run(*command)
        assert again.code == 1
        assert "failed: 3 of 3 (canceled 3)" in again.err
        assert [line["result"]["type"] for line in read_lines(cli.folder / "out.jsonl")] == ["canceled"] * 3
    assert slow_api.books.count_charges() == {}


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 0)])
def test_a_terminal_is_asked_first(cli: Cli, answer: str, code: int) -> None:
    """When it is about more than one request; ``--yes`` answers."""
    ids = enqueue(cli, "a", "b")
    command = [sys.executable, "-m", "llmrouter", "cancel", *ids]
    if not answer:
        command.append("--yes")
    person, terminal = pty.openpty()
    try:
        os.write(person, answer.encode())
        ended = subprocess.run(
            command, cwd=cli.folder, env=cli.env, stdin=terminal, capture_output=True, timeout=30, check=False
        )
    finally:
        os.close(person)
        os.close(terminal)
    assert ended.returncode == code, shlex.join(command)
    assert ("Give up 2 requests?" in ended.stderr.decode()) == bool(answer)
    assert ("stopped: nothing was done" in ended.stderr.decode()) == (code == 1)
    assert left_in(cli) == (2 if code else 0)
