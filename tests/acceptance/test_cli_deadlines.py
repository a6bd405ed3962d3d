"""Deadlines kept by a real worker process, against an API whose time runs faster.

A minute of the sandbox is a second or less here; what the router's settings name in minutes is
shortened likewise. What was paid, the sandbox's own books say.
"""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cli_support import Cli, make_request, wait_until

from llmrouter import Router, Settings
from llmrouter.domain.requests import OutcomeKind, Route
from llmrouter.sandbox import Sandbox, ScaledClock, Turnaround
from llmrouter.stores.disk import DiskStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from llmrouter.domain.ledger import Tally
    from llmrouter.domain.requests import Outcome
    from llmrouter.futures import MessageFuture

pytestmark = pytest.mark.timeout(280)

NEVER = Turnaround.fixed(timedelta(hours=24))


class Day:
    """A sandbox in a hurry, a worker process, and an application that enqueues."""

    def __init__(self, cli: Cli, tmp_path: Path, *, speed: float, **options: Any) -> None:
        self.cli = cli
        self.speed = speed
        self.sandbox = Sandbox(clock=ScaledClock(speed=speed), **options)
        self.server = self.sandbox.serve()
        self._folder = tmp_path / "store"

    def __enter__(self) -> Day:
        self.server.start()
        self.cli.use(self.server.base_url)
        self.cli.env["LLMROUTER_STORE"] = f"disk://{self._folder}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()

    def seconds(self, **span: float) -> str:
        """A span of the sandbox's time in real seconds, as a setting."""
        return str(timedelta(**span).total_seconds() / self.speed)

    def set(self, **values: str) -> None:
        """Settings of every process, by variable."""
        self.cli.env |= {f"LLMROUTER_{name}": value for name, value in values.items()}

    def application(self, monkeypatch: pytest.MonkeyPatch) -> Router:
        """A router in this process that only enqueues and awaits."""
        for name, value in self.cli.env.items():
            if name.startswith(("ANTHROPIC_", "LLMROUTER_")):
                monkeypatch.setenv(name, value)
        return Router(settings=Settings(), worker=False)

    def tally(self) -> Tally:
        """What the store counted."""
        store = DiskStore(self._folder)
        try:
            return store.tally()
        finally:
            store.close()

    def charged(self) -> Counter[int]:
        """How many requests were charged how often."""
        return Counter(self.sandbox.books.count_charges().values())


def outcomes(futures: Sequence[MessageFuture]) -> list[Outcome]:
    """How they ended, when all have."""
    found = []
    for future in futures:
        future.exception(timeout=240)
        assert future.outcome is not None
        found.append(future.outcome)
    return found


def late(found: Sequence[Outcome]) -> int:
    return sum(one.settled_at > one.deadline_at for one in found)


@pytest.fixture
def pressing(cli: Cli, tmp_path: Path) -> Iterator[Day]:
    """Batches that never come back, 1,000 live requests a minute, and four seconds for a minute."""
    with Day(cli, tmp_path, speed=15, turnaround=NEVER, requests_per_minute=1_000) as day:
        day.set(
            LIVE_REQUESTS_PER_MINUTE=str(1_000 * day.speed),
            POLICY__MIN_WINDOW="1s",
            POLICY__MARGIN_MIN="3s",
            POLICY__CANCEL_LEAD="2s",
            POLICY__RAMP=day.seconds(minutes=1),
            CLASSES__HOURLY__DEADLINE=day.seconds(minutes=15),
            CLASSES__SOON__DEADLINE="12s",
            CLASSES__SOON__FLUSH="0.1",
        )
        yield day


def test_five_thousand_due_in_the_same_minute(pressing: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1,000 a minute they take five: they begin early enough, and keep to the limit."""
    worker = pressing.cli.start("worker")
    worker.wait_for("this process works on the store now")
    with pressing.application(monkeypatch) as router:
        # A few that go live first: from them it learns how long a call takes.
        first = router.submit_many([make_request(f"first {n}") for n in range(40)], latency="soon")
        assert late(outcomes(first)) == 0
        many = router.submit_many([make_request(f"number {n}") for n in range(5_000)], latency="hourly")
        found = outcomes(many)
    assert {one.kind for one in found} == {OutcomeKind.SUCCEEDED}
    routes = Counter(one.route for one in found)
    assert routes[Route.ESCALATED] >= 4_800, "the others were done before their batch was canceled"
    assert all(one.insured for one in found)
    assert late(found) == 0
    assert pressing.charged() == {1: 5_040}
    calls = pressing.sandbox.books.calls["messages.create"]
    assert calls <= 5_040 * 1.02, "refused calls are calls, too"
    counted = pressing.tally()["hourly"]
    assert (counted.settled, counted.missed) == (routes, {})
    assert (counted.resent, counted.wasted) == (0, 0)
    worker.send(signal.SIGTERM)
    assert worker.end().code == 0


def test_a_worker_killed_in_the_middle_of_an_escalation(
    pressing: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one goes on where it was: what was under way is made again and counted, nothing else."""
    worker = pressing.cli.start("worker")
    with pressing.application(monkeypatch) as router:
        futures = router.submit_many([make_request(f"number {n}") for n in range(600)], latency="soon")
        wait_until(lambda: pressing.sandbox.books.calls["messages.create"] >= 150)
        worker.kill()
        paid = sum(pressing.charged().values())
        assert 0 < paid < 600
        second = pressing.cli.start("worker")
        found = outcomes(futures)
    assert {one.kind for one in found} == {OutcomeKind.SUCCEEDED}
    charged = pressing.charged()
    counted = pressing.tally()["soon"]
    assert set(charged) <= {1, 2}
    assert charged[1] + charged[2] == 600
    assert charged[2] <= counted.resent <= 32
    assert counted.settled == {Route.ESCALATED: 600}
    assert counted.wasted == 0
    second.send(signal.SIGTERM)
    assert second.end().code == 0


def test_a_day_with_an_outage_in_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches stand still for four hours: what is due then goes live, the rest waits for half the price."""
    with Day(cli, tmp_path, speed=720, turnaround=Turnaround.typical(seed=7)) as day:
        day.set(
            LIVE_REQUESTS_PER_MINUTE="60000",
            LIVE_CONCURRENCY="64",
            POLICY__MIN_WINDOW=day.seconds(minutes=15),
            POLICY__MARGIN_MIN=day.seconds(minutes=20),
            POLICY__MARGIN_MAX=day.seconds(minutes=60),
            POLICY__CANCEL_LEAD=day.seconds(minutes=6),
            POLICY__RAMP="1ms",
            CLASSES__HOURLY__DEADLINE=day.seconds(hours=1),
            CLASSES__DAILY__DEADLINE=day.seconds(hours=14),
            POLL="0.05",
        )
        outage = day.sandbox.add_outage(timedelta(hours=4), after=timedelta(hours=3))
        worker = cli.start("worker")
        worker.wait_for("this process works on the store now")
        hourly: list[MessageFuture] = []
        daily: list[MessageFuture] = []
        pause = threading.Event()
        with day.application(monkeypatch) as router:
            for number in range(120):  # Ten hours, one every five minutes.
                hourly.append(router.submit(make_request(f"hourly {number}"), latency="hourly"))
                daily.append(router.submit(make_request(f"daily {number}"), latency="daily"))
                pause.wait(float(day.seconds(minutes=5)))
            by_hour, by_day = outcomes(hourly), outcomes(daily)
        assert {one.kind for one in (*by_hour, *by_day)} == {OutcomeKind.SUCCEEDED}
        # The machine is busy, and an hour is five seconds.
        assert late(by_hour) <= len(by_hour) * 0.02
        assert late(by_day) == 0
        routes = Counter(one.route for one in by_hour)
        assert routes[Route.ESCALATED] >= 30, "the hours of the outage"
        assert routes[Route.BATCH] >= 40, "the other hours"
        assert Counter(one.route for one in by_day)[Route.BATCH] >= 118
        charged = day.charged()
        counted = day.tally()
        wasted = sum(one.wasted for one in counted.values())
        assert (charged[1] + charged[2], set(charged) - {1, 2}) == (240, set())
        assert charged[2] == wasted <= 24, "what was paid twice was known to be a race"
        assert outage.until_at < day.sandbox.clock.now()
        status = json.loads(cli.run("status", "--json").out)
        assert [line["escalated"] for line in status["tally"] if line["latency"] == "hourly"] == [
            routes[Route.ESCALATED]
        ]
        worker.send(signal.SIGTERM)
        assert worker.end().code == 0
