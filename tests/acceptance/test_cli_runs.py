from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from anthropic import Anthropic
from cli_support import make_request, wait_until, write_lines

import llmrouter
from llmrouter import Router, Settings
from llmrouter.cli import main
from llmrouter.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from cli_support import Cli


def runs_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["runs", *arguments])
    said = capsys.readouterr()
    assert (left.value.code, said.err) == (0, "")
    return said.out


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    found = json.loads(runs_here(capsys, "--json"))
    assert found["exists"] is True
    runs: list[dict[str, Any]] = found["runs"]
    return runs


@pytest.mark.usefixtures("here")
def test_without_a_store_or_a_run_there_is_nothing(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """And none is made by looking."""
    assert runs_here(capsys).startswith("There is no store at disk://")
    assert json.loads(runs_here(capsys, "--json")) == {"store": cli.store, "exists": False, "runs": []}
    with Anthropic(api_key="sandbox") as client, Router(client, store=cli.store, worker=False) as router:
        router.submit(make_request("a"), latency="daily", key="mine")
    assert runs_here(capsys) == "There are no runs in this store.\n"


@pytest.mark.usefixtures("here")
def test_a_run_of_a_script_is_listed_with_its_progress(
    cli: Cli, quick_api: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is answered, what failed and what waits: as text and as JSON, whatever it is called."""
    name = "eval:2026-11-20 [red]x\x1b[2J"
    settings = Settings(poll=0.05, classes={"daily": {"flush": 0.05}})
    client = Anthropic(base_url=cli.env["ANTHROPIC_BASE_URL"], api_key="sandbox", max_retries=0)
    with client, Router(client, store=cli.store, settings=settings) as router:
        wrapped = router.wrap(client)
        with llmrouter.latency("daily", run=name):
            for number in range(2):
                wrapped.messages.create(**make_request(f"{number}"))
            quick_api.faults.add(Fault(kind="item", error_type="invalid_request_error", count=1))
            with pytest.raises(Exception, match="invalid"):
                wrapped.messages.create(**make_request("bad"))
        done = router.runs()
    write_lines(cli.folder / "requests.jsonl", [make_request("a"), make_request("b"), make_request("c")])
    with Anthropic(api_key="sandbox") as other, Router(other, store=cli.store, worker=False) as router:
        router.submit(make_request("w"), latency="weekly", key=f"run:{name}:{'1' * 32}:1")
        (run,) = router.runs()
    assert (done[0].name, done[0].requests) == (name, 3)
    assert (run.requests, run.latencies) == (4, ("daily", "weekly"))

    (found,) = listed(capsys)
    began_at, answered_at = (datetime.fromisoformat(found.pop(f"{one}_at")) for one in _INSTANTS)
    assert timedelta(0) < answered_at - began_at < timedelta(minutes=1)
    assert found == {
        "name": name,
        "latencies": ["daily", "weekly"],
        "requests": 4,
        "queued": 1,
        "in_batches": 0,
        "answered": 2,
        "failed": 1,
        "canceled": 0,
    }
    text = runs_here(capsys)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if "eval:" in line)
    assert row.split("daily")[1].split()[:5] == ["4", "2", "1", "1", "0"]


_INSTANTS = ("first_accepted", "last_answered")


@pytest.mark.usefixtures("here")
def test_a_run_of_a_file_is_listed_too(
    cli: Cli, slow_api: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it is under way."""
    write_lines(cli.folder / "requests.jsonl", [make_request("a"), make_request("b"), make_request("c")])
    running = cli.start(
        "run", "requests.jsonl", "-o", "out.jsonl", "--latency", "daily", "--run", "file:night"
    )
    wait_until(lambda: slow_api.batches)
    wait_until(lambda: listed(capsys)[0]["in_batches"] == 3)
    (found,) = listed(capsys)
    assert (found["name"], found["requests"], found["last_answered_at"]) == ("file:night", 3, None)
    slow_api.clock.advance(timedelta(hours=1))
    assert running.end().code == 0
    (found,) = listed(capsys)
    assert (found["in_batches"], found["answered"]) == (0, 3)
