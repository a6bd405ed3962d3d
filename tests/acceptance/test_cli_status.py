from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic
from cli_support import MODEL, make_request, wait_until

from llmrouter import Router, Settings
from llmrouter.cli import main
from llmrouter.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from cli_support import Cli


def test_what_waits_and_what_is_in_flight(cli: Cli, slow_api: Sandbox) -> None:
    """Backlog by class, open batches, and those in doubt, as text and as JSON."""
    client = Anthropic(base_url=cli.env["ANTHROPIC_BASE_URL"], api_key="sandbox", max_retries=0)
    settings = Settings(classes={"daily": {"flush": 0.05}, "hourly": {"flush": 0.05}})
    slow_api.faults.add(Fault(kind="drop", endpoint="batches.create", accepted=True))
    with client, Router(client, store=cli.store, settings=settings) as router:
        router.submit_many([make_request(f"in doubt {n}") for n in range(3)], latency="hourly")
        wait_until(lambda: any(batch.state == "in_doubt" for batch in router.status().batches))
        router.submit_many([make_request(f"in flight {n}") for n in range(2)], latency="daily")
        wait_until(lambda: any(batch.state == "in_flight" for batch in router.status().batches))
    with client, Router(client, store=cli.store, worker=False) as router:
        router.submit(make_request("waits"), latency="weekly")

    text = cli.run("status", env={"ANTHROPIC_API_KEY": ""})
    assert (text.code, text.err) == (0, "")
    assert "1 request queued, 5 in 2 open batches" in text.out
    assert "1 batch is in doubt: perhaps created, so not sent again." in text.out
    assert "No process works on this store: start llmrouter worker." in text.out
    words = [line.split() for line in text.out.splitlines()]
    assert any(line[0] == "weekly" and line[2] == "1" for line in words if line)
    assert any(line[:4] == ["in", "doubt", "hourly", "3"] for line in words)
    assert any(line[:4] == ["in", "flight", "daily", "2"] for line in words)
    assert max(len(line) for line in text.out.splitlines()[1:]) <= 80

    found = json.loads(cli.run("status", "--json").out)
    assert (found["exists"], found["working"], found["queued"], found["in_batches"]) == (True, False, 1, 5)
    assert sorted(batch["state"] for batch in found["batches"]) == ["in_doubt", "in_flight"]
    assert found["backlog"][0]["latency"] == "weekly"
    assert (found["engine"], found["unattended"]) == (None, True)
    assert (found["going_live"], found["live"], found["used_up"]) == (0, None, [])
    assert {line["model"] for line in (*found["backlog"], *found["batches"])} == {MODEL}
    (turnaround,) = found["turnaround"]
    assert (turnaround["model"], turnaround["ended"], turnaround["guess"]) == (None, 0, True)
    assert 0 < turnaround["p50"] < turnaround["p90"]
    (doubtful,) = (batch for batch in found["batches"] if batch["state"] == "in_doubt")
    assert doubtful["in_doubt_at"]
    assert set(doubtful["candidates"]) <= set(slow_api.batches)


def test_what_is_wrong_is_told(cli: Cli, slow_api: Sandbox) -> None:
    """Who works, what is paused or held back, what will be late: also as JSON, and within 80 columns."""
    slow_api.faults.add(
        Fault(
            kind="status",
            status=401,
            endpoint="batches.create",
            headers={"retry-after": "600"},
            message="invalid x-api-key, which is told at some length so that it does not fit in a line",
            count=None,
        )
    )
    running = cli.start("worker")
    running.wait_for("this process works on the store now")
    with (
        Anthropic(base_url=cli.env["ANTHROPIC_BASE_URL"], api_key="sandbox") as client,
        Router(client, store=cli.store, worker=False) as router,
    ):
        router.submit(make_request("held"), latency="daily")
        router.pause("weekly")
        router.submit(make_request("paused"), latency="weekly", deadline=timedelta(minutes=5))
        wait_until(lambda: router.status().holds)
    text = cli.run("status").out
    found = json.loads(cli.run("status", "--json").out)

    assert re.search(r"^\S+:\d+:\w+ works on this store\.$", text, flags=re.MULTILINE)
    assert re.search(
        r"^weekly is paused, for [\d.]+ s now: llmrouter resume weekly$", text, flags=re.MULTILINE
    )
    assert re.search(r"^weekly .* paused, held for 10 min *$", text, flags=re.MULTILINE)
    assert re.search(r"^Lane \w{8} waits for .* more: ", text, flags=re.MULTILINE)
    assert "invalid x-api-key" in " ".join(text.split())
    assert re.search(
        r"^weekly in lane \w{8}: a deadline will pass, in .*, as it stands\.$", text, re.MULTILINE
    )
    assert max(len(line) for line in text.splitlines()[1:]) <= 80
    assert (found["engine"]["working_here"], found["unattended"]) == (False, False)
    assert list(found["paused"]) == ["weekly"]
    (hold,) = found["holds"]
    assert hold["cause"] == "credential"
    lines = {line["latency"]: line for line in found["backlog"]}
    assert (lines["weekly"]["paused"], lines["weekly"]["will_miss"]) == (True, True)
    assert lines["daily"]["held_until"] == hold["until"]


@pytest.mark.usefixtures("here")
def test_requests_of_another_key_are_told_of(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a worker that has it."""
    with Anthropic(api_key="another") as client, Router(client, store=cli.store, worker=False) as router:
        router.submit(make_request("waits"), latency="weekly")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "mine")
    with pytest.raises(SystemExit):
        main(["status"])
    assert "1 request waits for a worker that has another API key" in capsys.readouterr().out
