"""A backlog of up to a million requests: what one more costs, and what reopening it costs."""

from __future__ import annotations

import shutil
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import load
from benchmarks.harness import (
    Meter,
    Report,
    Size,
    in_process,
    interleave,
    median_ratio,
    megabytes,
    say,
    scratch,
    seconds,
)

if TYPE_CHECKING:
    from pathlib import Path

_BODY_BYTES = 1_000
_BLOCK = 200
_OPEN_SECONDS = 2.0


def enqueue_each(folders: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Seconds of one `submit` into each store: blocks of some, taken in turn."""
    requests = [load.request(place, _BODY_BYTES) for place in range(_BLOCK)]
    with ExitStack() as stack:
        routers = {name: stack.enter_context(load.router(folder)) for name, folder in folders.items()}
        futures = []

        def measure(name: str) -> float:
            submit, start = routers[name].submit, time.perf_counter()
            for request in requests:
                futures.append(submit(request, latency="daily"))  # noqa: PERF401  (as a caller would)
            return (time.perf_counter() - start) / _BLOCK

        interleave(list(routers), measure, 1)
        return interleave(list(routers), measure, rounds)


def reopen(folder: str, expected: int) -> dict[str, float]:
    """Opens a filled store and asks for its status, which knows the backlog."""
    meter = Meter()
    with load.router(folder) as router:
        opened = meter.lap()
        queued = router.status().queued
        taken = meter.stop()
        assert queued == expected, queued
    return {**taken, "open_seconds": opened}


@dataclass(frozen=True, slots=True)
class _Store:
    """A store with a backlog."""

    what: str
    folder: Path
    count: int
    must_be_quick: bool


def run(size: Size) -> Report:
    """Grows one store and keeps a copy of it at each size; fills another in company."""
    report = Report("6. Backlog of 1 kB requests")
    small, middle, goal, large = size.pick((1_000, 100_000, 200_000, 1_000_000), (100, 1_000, 2_000, 5_000))
    with scratch() as folder:
        stores = _grow(folder, (small, middle, goal, large), goal)
        say(f"backlog: filling {goal:,} by submit_many")
        many = _Store(f"{goal:,}, by submit_many", folder / "many", goal, must_be_quick=True)
        in_process(
            load.fill_by_submit_many,
            folder=str(many.folder),
            url=load.NOBODY,
            count=goal,
            body_bytes=_BODY_BYTES,
        )
        found = interleave([*stores, many], _reopen, size.pick(3, 1))
        say("backlog: enqueue into each")
        chosen = {f"{store.count:,}": str(store.folder) for store in stores if store.count != goal}
        took = in_process(enqueue_each, folders=chosen, rounds=size.pick(10, 2))
    report.values |= {"reopen": {store.what: each for store, each in found.items()}, "enqueue_seconds": took}
    _compare_enqueue(report, took)
    for store, each in found.items():
        _compare_reopen(report, store, each)
    report.notes.append(
        "Stores by submit are filled with the rows that it writes, a row a request, but 1,000 of them in a"
        " commit. Their files are in the page cache when they are reopened."
    )
    return report


def _grow(folder: Path, counts: tuple[int, ...], goal: int) -> list[_Store]:
    growing, held, stores = folder / "growing", 0, []
    for count in counts:
        say(f"backlog: filling up to {count:,}")
        given = {"folder": str(growing), "url": load.NOBODY, "body_bytes": _BODY_BYTES}
        in_process(load.fill_rows, first=held, count=count - held, **given)
        held = count
        kept = _Store(f"{count:,}, by submit", folder / str(count), count, must_be_quick=count == goal)
        stores.append(kept)
        if count == counts[-1]:
            growing.rename(kept.folder)
        else:
            shutil.copytree(growing, kept.folder)
    return stores


def _reopen(store: _Store) -> dict[str, float]:
    say(f"backlog: reopening {store.what}")
    return in_process(reopen, folder=str(store.folder), expected=store.count)


def _compare_enqueue(report: Report, took: dict[str, list[float]]) -> None:
    smallest = next(iter(took))
    for name, each in took.items():
        what, ours = f"one submit at {name}", seconds(statistics.median(each))
        if name == smallest:
            report.add(what, ours)
        else:
            beside = f"at {smallest}: {seconds(statistics.median(took[smallest]))}"
            report.at_most(what, ours, beside, median_ratio(each, took[smallest]), 1.3)


def _compare_reopen(report: Report, store: _Store, each: list[dict[str, float]]) -> None:
    taken = statistics.median(one["seconds"] for one in each)
    peak = max(one["peak_bytes"] for one in each)
    beside = f"{megabytes(peak)} of memory above the start"
    goal = (f"< {_OPEN_SECONDS:g} s", taken < _OPEN_SECONDS) if store.must_be_quick else ("", None)
    report.add(f"reopen and know {store.what}", seconds(taken), beside, None, *goal)
