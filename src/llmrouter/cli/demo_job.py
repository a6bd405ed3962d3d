"""Sending the demo's requests through a router, and counting how they fare."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmrouter.cli.demo_requests import LATENCIES
from llmrouter.cli.outcomes import finished_of, result_of
from llmrouter.domain.latency import REAL_TIME
from llmrouter.errors import RouterClosedError
from llmrouter.reports.formats import format_count, format_span
from llmrouter.reports.summary import SummaryRow, Tally

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from rich.console import RenderableType

    from llmrouter.cli.demo_requests import DemoRequest
    from llmrouter.cli.progress import Display
    from llmrouter.cli.signals import Stop
    from llmrouter.futures import MessageFuture
    from llmrouter.router import Router

_LOOK_SECONDS = 0.1


class DemoJob:
    """All requests of a demo on their way.

    Attributes:
        tally: What they came to so far; waits for batches are in simulated time.
        problem: What kept an answer from being counted; None as long as all is well.
    """

    def __init__(
        self,
        router: Router,
        requests: Sequence[DemoRequest],
        stop: Stop,
        display: Display,
        *,
        speed: float = 1,
    ) -> None:
        """Makes a job.

        Args:
            router: Takes the requests.
            requests: In the order to send.
            stop: Says when to end before the end.
            display: Shows how far it is.
            speed: Simulated seconds in a real one.
        """
        self._router = router
        self._requests = requests
        self._stop = stop
        self._display = display
        self._speed = speed
        self._began = monotonic()
        self._lock = threading.Lock()
        self._moved = threading.Event()
        self.tally = Tally()
        self.problem: Exception | None = None

    def run(self, *, pause_seconds: float, timeout_seconds: float | None) -> bool:
        """Sends everything, and waits for every answer; False when it was stopped, or took too long.

        Args:
            pause_seconds: Between two requests.
            timeout_seconds: For all of it; None waits as long as it takes.

        Raises:
            Exception: An answer could not be counted.
        """
        for request in self._requests:
            if self._stop.requested.is_set():
                return False
            began = monotonic()
            future = self._router.submit(request.params, latency=request.latency, site=request.site)
            self._count(future, began)
            sleep(pause_seconds)
            self._show()
        while self.tally.done < len(self._requests):
            late = timeout_seconds is not None and monotonic() - self._began > timeout_seconds
            if late or self._stop.requested.is_set():
                return False
            self._moved.wait(_LOOK_SECONDS)
            self._moved.clear()
            if self.problem is not None:
                raise self.problem
            self._show()
        return True

    def rows(self) -> dict[str, SummaryRow]:
        """The summary by latency class, from the shortest to the longest."""
        found = self.tally.rows()
        return {latency: found[latency] for latency in LATENCIES if latency in found}

    def _count(self, future: MessageFuture, began: float) -> None:
        future.add_done_callback(lambda _: self._take(future, began))

    def _take(self, future: MessageFuture, began: float) -> None:
        # What is raised in a callback ends in a log; whoever waits must hear of it.
        try:
            if future.outcome is None and isinstance(future.exception(), RouterClosedError):
                return
            finished = finished_of(future, result_of(future), timedelta(seconds=monotonic() - began))
            if future.latency != REAL_TIME:
                finished = replace(finished, waited=finished.waited * self._speed)
            with self._lock:
                self.tally.add(finished)
        except Exception as error:  # noqa: BLE001  (whoever waits raises it)
            self.problem = error
        self._moved.set()

    def _show(self) -> None:
        if not self._display.due:
            return
        flying = format_count(len(self._router.status().api_batches), "batch", "batches")
        line = f"{self.tally.done:,} of {len(self._requests):,} answered, {flying} in flight"
        if self._speed != 1:
            line += f", {format_span(timedelta(seconds=(monotonic() - self._began) * self._speed))} simulated"
        self._display.show(line, self._draw(line))

    def _draw(self, line: str) -> RenderableType:
        with self._lock:
            done = {latency: row.request_count for latency, row in self.tally.rows().items()}
        bars = Table.grid(padding=(0, 1))
        for latency in LATENCIES:
            total = sum(request.latency == latency for request in self._requests)
            count = done.get(latency, 0)
            bars.add_row(
                latency, ProgressBar(total=max(1, total), completed=count, width=40), f"{count}/{total}"
            )
        return Group(bars, Text(line))


def account_of_books(
    submitted: set[str], answered: int, charged: Counter[str], *, known_twice: int = 0
) -> tuple[str, bool]:
    """What the sandbox's books say of a demo, in one line, and whether they agree with it.

    Args:
        submitted: Hashes of the requests, each different.
        answered: Futures that came back with a message.
        charged: How often the sandbox charged for each hash.
        known_twice: Answers that the router itself counts as paid twice, certainly or perhaps.
    """
    twice = sum(times - 1 for times in charged.values())
    agree = charged.keys() == submitted and answered == len(submitted) and twice <= known_twice
    line = (
        f"{len(submitted):,} submitted, {answered:,} answered,"
        f" {len(charged.keys() & submitted):,} charged, {f'{twice:,}' if twice else 'none'} twice"
    )
    foreign = len(charged.keys() - submitted)
    return (f"{line}, and {foreign:,} that were never submitted" if foreign else line), agree
