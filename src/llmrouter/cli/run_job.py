"""Submitting a file of requests, and waiting for their answers."""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmrouter.cli.console import note
from llmrouter.cli.failures import InputError
from llmrouter.cli.options import MEMORY, OTHER_KEY, count_foreign
from llmrouter.domain.batches import BatchState
from llmrouter.domain.latency import REAL_TIME
from llmrouter.errors import InvalidRequestError, KeyConflictError
from llmrouter.reports.formats import format_count, format_usd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from llmrouter.cli.jsonl import Line, RequestFile
    from llmrouter.cli.progress import Display
    from llmrouter.cli.results import Results
    from llmrouter.cli.signals import Stop
    from llmrouter.reports.status import RouterStatus
    from llmrouter.router import Router

CHUNK_REQUESTS = 1000
CHUNK_BYTES = 16_000_000
"""Requests are submitted in pieces of about so much: it bounds memory, and each piece is one transaction."""

_LOOK_SECONDS = 0.1
_STATUS_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run is to do."""

    name: str
    """The run's name: with the same one, what was paid for is not paid for again."""
    store_url: str
    latency: str
    site: str
    total: int
    """How many requests there are."""
    at_once: int
    """Requests of the real-time class that may be under way, about."""

    @property
    def durable(self) -> bool:
        """Whether its requests outlive the process."""
        return self.latency != REAL_TIME and not self.store_url.startswith(MEMORY)

    def key(self, line: Line) -> str:
        """The idempotency key of a request: of its place in the run, and of what it says."""
        return f"run:{self.name}:{line.index}:{_digest(line.params)}"


def default_name(path: Path, latency: str) -> str:
    """The name of a run that was given none: it stays the same for the same command.

    Args:
        path: Of its requests; of what comes from standard input, of its results.
        latency: Its class.
    """
    resolved = path.expanduser().resolve()
    digest = hashlib.sha256(f"{resolved}\n{latency}".encode()).hexdigest()
    return f"{resolved.stem}-{latency}-{digest[:8]}"


def find_run(router: Router, name: str) -> list[str]:
    """Ids of a run's requests that have no outcome yet, by the keys that `RunPlan.key` gives."""
    prefix = f"run:{glob.escape(name)}:"
    found = router.find(key=f"{prefix}*:*")
    # The name of another run may begin with this one and a colon.
    others = set(router.find(key=f"{prefix}*:*:*")) if found else set()
    return [request_id for request_id in found if request_id not in others]


class RunJob:
    """One run of a file of requests through a router."""

    def __init__(self, plan: RunPlan, router: Router, results: Results, stop: Stop, display: Display) -> None:
        self._plan = plan
        self._router = router
        self._results = results
        self._stop = stop
        self._display = display
        self._status: RouterStatus | None = None
        self._status_at = 0.0
        self._warned: set[str] = set()
        self.submitted = 0
        """Requests that were submitted so far."""
        self.known = 0
        """Those of them that had been answered before."""

    @property
    def done(self) -> int:
        """Requests that have ended."""
        return self._results.tally.done

    def submit(self, requests: RequestFile) -> None:
        """Submits all of them, unless asked to stop.

        Raises:
            InputError: A line cannot be accepted after all.
            StoreError: The store could not take them.
        """
        most = CHUNK_REQUESTS if self._plan.latency != REAL_TIME else min(CHUNK_REQUESTS, self._plan.at_once)
        for chunk in _chunks(requests.lines(), most):
            if not self._wait_for_room():
                return
            self._submit_chunk(requests, chunk)
            self._show()

    def wait(self) -> bool:
        """Waits until every request has ended; False when asked to stop first.

        Raises:
            OSError: An answer could not be kept.
        """
        self._status = None  # It may be from before the last request was submitted.
        while not self._results.wait(_LOOK_SECONDS):
            if self._stop.requested.is_set():
                return False
            self._show()
        return True

    def _wait_for_room(self) -> bool:
        """Real-time calls wait for those before them; others go to the store. False: asked to stop."""
        while self._plan.latency == REAL_TIME and self.submitted - self.done > self._plan.at_once:
            if self._stop.requested.is_set():
                return False
            self._results.wait(_LOOK_SECONDS)
            self._show()
        return not self._stop.requested.is_set()

    def _submit_chunk(self, requests: RequestFile, chunk: list[Line]) -> None:
        try:
            futures = self._router.submit_many(
                [line.params for line in chunk],
                latency=self._plan.latency,
                site=self._plan.site,
                keys=[self._plan.key(line) for line in chunk],
            )
        except KeyConflictError as error:
            where = requests.blame(chunk[error.index or 0].number, error)
            raise InputError(
                f"{where}: run {self._plan.name!r} had it with another latency class; give that one again,"
                " or another name with --run"
            ) from error
        except InvalidRequestError as error:
            raise requests.blame(chunk[error.index or 0].number, error) from error
        self.submitted += len(chunk)
        self.known += sum(future.done() for future in futures if future.latency != REAL_TIME)
        for line, future in zip(chunk, futures, strict=True):
            self._results.expect(line, future)

    def _show(self) -> None:
        if not self._display.due:
            return
        if self._status is None or monotonic() - self._status_at >= _STATUS_SECONDS:
            self._status = self._router.status()
            self._status_at = monotonic()
            self._warn(self._status)
        line = _describe(self._plan, self._results, self.submitted, self._status)
        self._display.show(line, _draw(line, self.done, self._plan.total))

    def _warn(self, status: RouterStatus) -> None:
        """Says once what keeps requests waiting, as far as the engine's log does not."""
        texts = {
            batch.batch_id: f"it is unclear whether batch {batch.batch_id} was created; its"
            f" {format_count(batch.request_count, 'request')} are not sent again"
            for batch in status.batches
            if batch.state is BatchState.IN_DOUBT
        }
        foreign = count_foreign(status)
        if foreign:
            texts[OTHER_KEY] = f"{format_count(foreign, 'request waits', 'requests wait')} {OTHER_KEY}"
        for cause in texts.keys() - self._warned:
            self._warned.add(cause)
            note(f"warning: {texts[cause]}", style="yellow")


def _describe(plan: RunPlan, results: Results, submitted: int, status: RouterStatus) -> str:
    """Where the requests of a run are, in one line; the counts add up to the total.

    The store knows what is in batches, whoever submitted it: where others use it too, that is more
    than is this run's.
    """
    tally = results.tally
    waiting = submitted - tally.done
    words = [f"{tally.done - tally.failed:,} done", f"{tally.failed:,} failed"]
    if plan.latency == REAL_TIME:
        words.append(f"{waiting:,} under way")
    else:
        words += _describe_waiting(waiting, status, submitting=submitted < plan.total)
    if submitted < plan.total:
        words.append(f"{plan.total - submitted:,} to submit")
    spent = f"spent {format_usd(tally.paid_usd)}"
    if tally.unpriced:
        spent += f" and {format_count(tally.unpriced, 'unknown price')}"
    return f"{plan.total:,}: {', '.join(words)}; {spent}"


def _describe_waiting(waiting: int, status: RouterStatus, *, submitting: bool) -> list[str]:
    in_batches = min(waiting, status.in_batches)
    going_live = min(waiting - in_batches, status.going_live)
    queued = waiting - in_batches - going_live
    if not submitting:
        # What the store has neither queued nor in a batch has been answered, and is on its way here.
        queued = min(queued, status.queued)
    doubtful = sum(batch.state is BatchState.IN_DOUBT for batch in status.batches)
    where = f"{doubtful} in doubt" if doubtful else "in flight"
    batches = format_count(len(status.api_batches), "batch", "batches")
    words = [f"{in_batches:,} in {batches} {where}", f"{queued:,} queued"]
    if going_live:
        words.append(f"{going_live:,} going live")
    reading = waiting - in_batches - going_live - queued
    return [*words, f"{reading:,} being read"] if reading else words


def _draw(line: str, done: int, total: int) -> RenderableType:
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=total, completed=done, width=40), f"{done:,}/{total:,}")
    return Group(bar, Text(line.partition(": ")[2]))


def _chunks(lines: Iterable[Line], most: int) -> Iterator[list[Line]]:
    chunk: list[Line] = []
    size_bytes = 0
    for line in lines:
        chunk.append(line)
        size_bytes += line.size_bytes
        if len(chunk) >= most or size_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def _digest(params: dict[str, Any]) -> str:
    """SHA-256 of a request, however its line is spaced and its fields are ordered."""
    return hashlib.sha256(json.dumps(params, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
