"""Several processes on one store: who enqueues, while another one flushes.

In a round they enqueue as fast as they can, which makes them wait for each other; in the next one at
a pace, as applications do.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
from array import array
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.harness import Child, Report, Size, interleave, per_second, say, scratch, seconds
from benchmarks.sink import serve

_PRODUCERS = 4
_FLUSH_EVERY_SECONDS = 0.5
_PROBE_EVERY_SECONDS = 0.02
_MEET_SECONDS = 60.0
_PACES = {"at once": 0.0, "paced": 0.01}
"""Seconds between the beginnings of two submits of a process; 0: as fast as it can."""

_P99_SECONDS = {"at once": 0.05, "paced": 0.02}
"""The goals for the 99th percentile of a submit."""


def enqueue(folder: str, url: str, meet: str, name: str, span: float, pace: float) -> dict[str, Any]:
    """Submits for some seconds; answers with how many, how long each took and what went wrong."""
    requests = [load.request(place, 1_000) for place in range(1_000)]
    took, errors, futures = array("d"), [], []
    with load.router(folder, url=url) as router:
        router.submit(requests[0], latency="daily")
        end_at = _meet(meet, name) + span
        while (now := time.monotonic()) < end_at:
            start = time.perf_counter()
            try:
                futures.append(router.submit(requests[len(futures) % 1_000], latency="daily"))
            except Exception as error:  # noqa: BLE001  (counted: none is the goal)
                errors.append(f"{type(error).__name__}: {error}")
            took.append(time.perf_counter() - start)
            if pace:
                time.sleep(max(0.0, now + pace - time.monotonic()))
    return {"count": len(futures), "took": list(took), "errors": errors}


def flush(folder: str, url: str, meet: str, name: str, span: float) -> dict[str, Any]:
    """Flushes again and again; answers with the batches it created and what went wrong."""
    errors = []
    with load.router(folder, url=url, worker=True) as router:
        end_at = _meet(meet, name) + span
        while time.monotonic() < end_at:
            try:
                router.flush()
            except Exception as error:  # noqa: BLE001  (counted too)
                errors.append(f"{type(error).__name__}: {error}")
            errors.extend(router.status().problems.values())
            time.sleep(_FLUSH_EVERY_SECONDS)
        router.flush()
        status = router.status()
    sent = {"batches": len(status.batches), "sent": status.in_batches, "left": status.queued}
    return {**sent, "errors": errors}


def probe(folder: str, meet: str, name: str, span: float) -> float:
    """The longest that a synced commit on a file of its own takes meanwhile: what the machine adds."""
    worst = 0.0
    with closing(sqlite3.connect(Path(folder) / "probe.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE probe (body BLOB)")
        end_at = _meet(meet, name) + span
        while time.monotonic() < end_at:
            start = time.perf_counter()
            db.execute("INSERT INTO probe VALUES (?)", (bytes(1_000),))
            worst = max(worst, time.perf_counter() - start)
            time.sleep(_PROBE_EVERY_SECONDS)
    return worst


def _meet(folder: str, name: str) -> float:
    """Says that this process is ready, waits until all are; answers with the time."""
    (Path(folder) / name).touch()
    _wait_for(folder, ["go"])
    return time.monotonic()


def _wait_for(folder: str, names: list[str]) -> None:
    give_up_at = time.monotonic() + _MEET_SECONDS
    while not all((Path(folder) / name).exists() for name in names):
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"{', '.join(names)}: not all of them came")
        time.sleep(0.001)


def run(size: Size) -> Report:
    """Runs them all at once, some rounds of each pace."""
    report = Report("3. Four processes enqueue, a fifth flushes")
    span = size.pick(6.0, 1.0)

    def measure(name: str) -> dict[str, Any]:
        say(f"processes: {name}, {span:.0f} s")
        return _summary(*_run_once(span, _PACES[name]), span)

    found = interleave(list(_PACES), measure, size.pick(3, 1))
    report.values |= found
    for name, rounds in found.items():
        _compare(report, name, rounds)
    errors = [error for rounds in found.values() for one in rounds for error in one["errors"]]
    report.add("errors", str(len(errors)), "of all rounds", None, "none", not errors)
    report.notes.extend(f"error: {error}" for error in dict.fromkeys(errors))
    return report


def _run_once(span: float, pace: float) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    with scratch() as folder, scratch() as meet, serve(meet) as url:
        shared = {"folder": str(folder), "url": url, "meet": str(meet), "span": span}
        flusher = Child(flush, name="flusher", **shared)
        prober = Child(probe, folder=str(meet), meet=str(meet), name="prober", span=span)
        names = [f"producer-{number}" for number in range(_PRODUCERS)]
        producers = [Child(enqueue, name=name, pace=pace, **shared) for name in names]
        _wait_for(str(meet), [*names, "flusher", "prober"])
        (meet / "go").touch()
        served = [producer.result() for producer in producers]
        return served, flusher.result(), prober.result()


def _summary(
    served: list[dict[str, Any]], flushed: dict[str, Any], probed: float, span: float
) -> dict[str, Any]:
    took = sorted(one for producer in served for one in producer["took"])
    counts = [producer["count"] for producer in served]
    return {
        "counts": counts,
        "rate": sum(counts) / span,
        "worst_seconds": took[-1],
        "p50_seconds": took[len(took) // 2],
        "p99_seconds": took[int(len(took) * 0.99)],
        "p999_seconds": took[int(len(took) * 0.999)],
        "errors": [error for process in [*served, flushed] for error in process["errors"]],
        "flushed": flushed,
        "probe_worst_seconds": probed,
    }


def _compare(report: Report, name: str, rounds: list[dict[str, Any]]) -> None:
    def median(value: str) -> float:
        return statistics.median(one[value] for one in rounds)

    p99, worst = median("p99_seconds"), max(one["worst_seconds"] for one in rounds)
    goal = _P99_SECONDS[name]
    beside = f"median: {seconds(median('p50_seconds'))}, 99.9th: {seconds(median('p999_seconds'))}"
    report.add(
        f"one submit, {name}, 99th percentile", seconds(p99), beside, None, f"< {seconds(goal)}", p99 < goal
    )
    probed = max(one["probe_worst_seconds"] for one in rounds)
    beside = f"worst synced commit of raw SQLite elsewhere: {seconds(probed)}"
    report.add("  worst of all rounds", seconds(worst), beside, None, "< 0.5 s", worst < 0.5)
    least, most = (sum(pick(one["counts"]) for one in rounds) for pick in (min, max))
    batches = sum(one["flushed"]["batches"] for one in rounds)
    served = f"most served: {most:,}; {per_second(median('rate'))} in all, {batches} batches"
    report.at_least("  submits of the least served", f"{least:,}", served, least / most, 0.5)
