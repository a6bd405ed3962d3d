"""Several processes on one store: who enqueues, while another one flushes."""

from __future__ import annotations

import sqlite3
import time
from array import array
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.harness import Child, Report, Size, per_second, say, scratch, seconds
from benchmarks.sink import serve

_PRODUCERS = 4
_FLUSH_EVERY_SECONDS = 0.5
_PROBE_EVERY_SECONDS = 0.02
_MEET_SECONDS = 60.0


def enqueue(folder: str, url: str, meet: str, name: str, span: float) -> dict[str, Any]:
    """Submits for some seconds; answers with how many, how long each took and what went wrong."""
    requests = [load.request(place, 1_000) for place in range(1_000)]
    took, errors, futures = array("d"), [], []
    with load.router(folder, url=url) as router:
        router.submit(requests[0], latency="daily")
        end_at = _meet(meet, name) + span
        while time.monotonic() < end_at:
            start = time.perf_counter()
            try:
                futures.append(router.submit(requests[len(futures) % 1_000], latency="daily"))
            except Exception as error:  # noqa: BLE001  (counted: none is the goal)
                errors.append(f"{type(error).__name__}: {error}")
            took.append(time.perf_counter() - start)
    return {"count": len(futures), "took": list(took), "errors": errors}


def flush(folder: str, url: str, meet: str, name: str, span: float) -> dict[str, Any]:
    """Flushes again and again; answers with the batches it created and what went wrong."""
    errors = []
    with load.router(folder, url=url, worker=True) as router:
        end_at = _meet(meet, name) + span
        while time.monotonic() < end_at:
            try:
                router.flush()
            except Exception as error:  # noqa: BLE001
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
    """Runs them all at once."""
    report = Report("3. Four processes enqueue, a fifth flushes")
    span = size.pick(10.0, 1.0)
    say(f"processes: {span:.0f} s")
    with scratch() as folder, scratch() as meet, serve(meet) as url:
        shared = {"folder": str(folder), "url": url, "meet": str(meet), "span": span}
        flusher = Child(flush, name="flusher", **shared)
        prober = Child(probe, folder=str(meet), meet=str(meet), name="prober", span=span)
        names = [f"producer-{number}" for number in range(_PRODUCERS)]
        producers = [Child(enqueue, name=name, **shared) for name in names]
        _wait_for(str(meet), [*names, "flusher", "prober"])
        (meet / "go").touch()
        served = [producer.result() for producer in producers]
        flushed, probed = flusher.result(), prober.result()
    _compare(report, span, served, flushed, probed)
    return report


def _compare(
    report: Report, span: float, served: list[dict[str, Any]], flushed: dict[str, Any], probed: float
) -> None:
    took = sorted(one for producer in served for one in producer["took"])
    counts = [producer["count"] for producer in served]
    errors = [error for process in [*served, flushed] for error in process["errors"]]
    worst, p99 = took[-1], took[int(len(took) * 0.99)]
    report.values |= {
        "counts": counts,
        "worst_seconds": [max(producer["took"]) for producer in served],
        "p50_seconds": took[len(took) // 2],
        "p99_seconds": p99,
        "p999_seconds": took[int(len(took) * 0.999)],
        "errors": errors,
        "flushed": flushed,
        "probe_worst_seconds": probed,
    }
    total = f"{sum(counts):,} submits, {per_second(sum(counts) / span)}; {flushed['batches']} batches"
    report.add("errors", str(len(errors)), total, None, "none", not errors)
    beside = f"a synced commit of raw SQLite elsewhere: {seconds(probed)}"
    report.add("worst wait of a submit", seconds(worst), beside, None, "< 0.5 s", worst < 0.5)
    report.add("wait of a submit, 99th percentile", seconds(p99), f"median: {seconds(took[len(took) // 2])}")
    served_text = f"{min(counts):,}", f"most served: {max(counts):,}"
    report.at_least("submits of the least served", *served_text, min(counts) / max(counts), 0.5)
    for error in dict.fromkeys(errors):
        report.notes.append(f"error: {error}")
