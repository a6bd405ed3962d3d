from __future__ import annotations

import re
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic
from cli_support import wait_until

from llmrouter import Router
from llmrouter.cli.demo_job import account_of_books

if TYPE_CHECKING:
    from cli_support import Cli

    from llmrouter.sandbox import Sandbox

LATENCIES = ("real-time", "hourly", "daily", "weekly")


def rows_of(table: str) -> dict[str, list[str]]:
    lines = (line.split() for line in table.splitlines())
    return {line[0]: line[1:] for line in lines if line and line[0] in (*LATENCIES, "total")}


def test_the_demo_shows_a_table_and_proves_it(cli: Cli) -> None:
    """Every class has its row; by the sandbox's books each was charged; a kept store is named.

    What a live call and a batch both answered is charged twice; the router has counted it.
    """
    ended = cli.run("demo", "--requests", "200", "--keep")
    assert ended.code == 0, ended.err
    rows = rows_of(ended.out)
    assert [int(rows[latency][0]) for latency in LATENCIES] == [20, 40, 120, 20]
    assert rows["real-time"][1] == "live"
    assert rows["daily"][-2:] == ["50", "%"]
    assert rows["total"][0] == "200"
    assert "simulated time" in ended.out
    books = re.search(
        r"books: 200 submitted, 200 answered, 200 charged, (none|\d+) twice\.$", ended.out, re.MULTILINE
    )
    assert books is not None, ended.out
    assert (books[1] == "none") or "a live call overtook its batch" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    url = ended.err.partition("llmrouter status --store ")[2].split()[0]
    with Router(Anthropic(api_key="any"), store=url, worker=False) as router:
        assert (router.status().queued, router.status().in_batches) == (0, 0)


def test_ctrl_c_ends_the_demo(cli: Cli) -> None:
    """It leaves without a traceback, and without its folder."""
    running = cli.start("demo", "--requests", "100000")
    running.wait_for("100,000 requests to a sandbox API on")
    running.send(signal.SIGINT)
    ended = running.end()
    assert (ended.code, ended.err.splitlines()[-1]) == (130, "stopped")
    assert "Traceback" not in ended.err
    assert list(cli.folder.iterdir()) == []


def test_what_the_router_itself_counts_twice_is_no_surprise() -> None:
    """The proof allows as much as that, and no more."""
    charged = Counter(["a", "a", "b"])
    assert account_of_books({"a", "b"}, 2, charged, known_twice=1)[1]
    assert not account_of_books({"a", "b"}, 2, Counter(["a", "a", "a", "b"]), known_twice=1)[1]


@pytest.mark.parametrize(
    ("answered", "charged", "line"),
    [
        (2, ["a", "b"], "2 submitted, 2 answered, 2 charged, none twice"),
        (1, ["a", "b"], "2 submitted, 1 answered, 2 charged, none twice"),
        (2, ["a"], "2 submitted, 2 answered, 1 charged, none twice"),
        (2, ["a", "a", "b"], "2 submitted, 2 answered, 2 charged, 1 twice"),
        (
            2,
            ["a", "b", "c"],
            "2 submitted, 2 answered, 2 charged, none twice, and 1 that were never submitted",
        ),
    ],
)
def test_the_proof_fails_when_the_books_do_not_agree(answered: int, charged: list[str], line: str) -> None:
    """Each request answered, each charged, none twice, and no other: or else the demo fails."""
    said, agree = account_of_books({"a", "b"}, answered, Counter(charged))
    assert said == line
    assert agree == (line == "2 submitted, 2 answered, 2 charged, none twice")


def test_the_live_demo_asks_before_it_pays(cli: Cli, quick_api: Sandbox) -> None:
    """It names the most that it can cost; where nobody says yes, nothing is sent."""
    ended = cli.run("demo", "--live", stdin=b"n\n")
    assert ended.code == 1
    assert "12 requests to claude-haiku-4-5 at http://127.0.0.1" in ended.err
    assert "for $0.0" in ended.err
    assert ended.err.rstrip().endswith("stopped: nothing was done")
    assert not quick_api.books.calls


def test_the_live_demo_does_the_same_against_the_api_of_the_environment(cli: Cli, quick_api: Sandbox) -> None:
    """All classes, each request paid once, within the bound that was named."""
    ended = cli.run("demo", "--live", stdin=b"y\n")
    assert ended.code == 0, ended.err
    assert set(rows_of(ended.out)) == {*LATENCIES, "total"}
    assert "12 requests submitted, 12 answered." in ended.out
    assert list(quick_api.books.count_charges().values()) == [1] * 12


def test_a_stopped_live_demo_keeps_what_is_paid_for(cli: Cli, slow_api: Sandbox) -> None:
    """Its store outlives it, and it says how to collect the answers."""
    running = cli.start("demo", "--live", "--yes")
    wait_until(lambda: slow_api.batches)
    running.send(signal.SIGINT)
    ended = running.end()
    assert ended.code == 130
    assert "Traceback" not in ended.err
    url = ended.err.partition("llmrouter worker --store ")[2].split()[0]
    with Router(Anthropic(api_key="any"), store=url, worker=False) as router:
        status = router.status()
    assert 1 <= status.queued + status.in_batches <= 11
