"""Enqueues per second: `submit` and `submit_many` beside raw SQLite and other queues on SQLite."""

from __future__ import annotations

import json
import sqlite3
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.harness import (
    Report,
    Size,
    in_process,
    interleave,
    median_ratio,
    per_second,
    rate_of,
    say,
    scratch,
)

_CASES = [(1_000, 1), (1_000, 4), (8_000, 1), (8_000, 4)]
_DISTINCT = 1_000
_WARM_UP = 20

Step = Callable[[int], int]
"""Enqueues one or more requests, answers with how many."""


@dataclass(frozen=True, slots=True)
class Load:
    """The same requests for all: as arguments of `messages.create`, and as their bytes."""

    requests: list[dict[str, Any]]
    bodies: list[bytes]

    @classmethod
    def of(cls, body_bytes: int) -> Load:
        """Requests whose JSON has exactly so many bytes."""
        requests = [load.request(place, body_bytes) for place in range(_DISTINCT)]
        return cls(requests, [load.encode(one) for one in requests])


Contender = Callable[[Path, Load], AbstractContextManager[Step]]


def submit(folder: Path, given: Load, durability: str = "process") -> AbstractContextManager[Step]:
    """`Router.submit`: one call, one durable request; the futures are kept, as a caller would."""
    return _submit(folder, given, durability)


def submit_power(folder: Path, given: Load) -> AbstractContextManager[Step]:
    """The same with durability "power": each commit is synced."""
    return _submit(folder, given, "power")


@contextmanager
def _submit(folder: Path, given: Load, durability: str) -> Iterator[Step]:
    with load.router(folder, durability=durability) as router:
        futures: list[object] = []

        def step(place: int) -> int:
            futures.append(router.submit(given.requests[place % _DISTINCT], latency="daily"))
            return 1

        yield step


@contextmanager
def submit_many(folder: Path, given: Load) -> Iterator[Step]:
    """`Router.submit_many`: a thousand requests a call."""
    with load.router(folder) as router:
        futures: list[object] = []

        def step(_place: int) -> int:
            futures.extend(router.submit_many(given.requests, latency="daily"))
            return len(given.requests)

        yield step


@contextmanager
def _raw(folder: Path, given: Load, synchronous: str, rows: int) -> Iterator[Step]:
    """Rows of the finished bytes; threads take turns on one connection, which is fastest."""
    with closing(sqlite3.connect(folder / "raw.db", isolation_level=None, check_same_thread=False)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, body BLOB)")
        insert, turn = "INSERT INTO queue (body) VALUES (?)", threading.Lock()

        def one(place: int) -> int:
            with turn:
                db.execute(insert, (given.bodies[place % _DISTINCT],))
            return 1

        def many(_place: int) -> int:
            with turn:
                db.execute("BEGIN IMMEDIATE")
                db.executemany(insert, ((body,) for body in given.bodies))
                db.execute("COMMIT")
            return len(given.bodies)

        yield one if rows == 1 else many


def raw_one(folder: Path, given: Load) -> AbstractContextManager[Step]:
    """Raw SQLite, a row a commit."""
    return _raw(folder, given, "NORMAL", 1)


def raw_one_synced(folder: Path, given: Load) -> AbstractContextManager[Step]:
    """Raw SQLite, a row a commit, each synced."""
    return _raw(folder, given, "FULL", 1)


def raw_many(folder: Path, given: Load) -> AbstractContextManager[Step]:
    """Raw SQLite, a thousand rows a commit."""
    return _raw(folder, given, "NORMAL", load.MANY)


@contextmanager
def persist_queue(folder: Path, given: Load) -> Iterator[Step]:
    """persist-queue: pickles the request; WAL, and SQLite's default for synchronous."""
    from persistqueue import FIFOSQLiteQueue  # noqa: PLC0415  (each peer is loaded where it is measured)

    with closing(FIFOSQLiteQueue(str(folder), multithreading=True, auto_commit=True)) as queue:

        def step(place: int) -> int:
            queue.put(given.requests[place % _DISTINCT])
            return 1

        yield step


@contextmanager
def huey(folder: Path, given: Load) -> Iterator[Step]:
    """huey: a task with the request as its argument; WAL, and SQLite's default for synchronous."""
    from huey import SqliteHuey  # noqa: PLC0415  (as above)

    app = SqliteHuey(filename=str(folder / "huey.db"))

    @app.task()
    def send(_request: dict[str, Any]) -> None:
        """Never runs."""

    def step(place: int) -> int:
        send(given.requests[place % _DISTINCT])
        return 1

    yield step
    app.storage.close()


@contextmanager
def _litequeue(folder: Path, given: Load, rows: int) -> Iterator[Step]:
    """litequeue takes text, so its caller encodes; WAL, synchronous=NORMAL."""
    from litequeue import LiteQueue  # noqa: PLC0415  (as above)

    with closing(LiteQueue(folder / "lite.db")) as queue:
        turn = threading.Lock()

        def one(place: int) -> int:
            queue.put(json.dumps(given.requests[place % _DISTINCT]))
            return 1

        def many(_place: int) -> int:
            texts = [json.dumps(request) for request in given.requests]
            with turn, queue.transaction(mode="IMMEDIATE"):
                for text in texts:
                    queue.put(text)
            return len(texts)

        yield one if rows == 1 else many


def litequeue_one(folder: Path, given: Load) -> AbstractContextManager[Step]:
    """litequeue, a put a commit."""
    return _litequeue(folder, given, 1)


def litequeue_many(folder: Path, given: Load) -> AbstractContextManager[Step]:
    """litequeue, a thousand puts in its `transaction`."""
    return _litequeue(folder, given, load.MANY)


def _default_synchronous() -> str:
    """What SQLite does where nobody asks: persist-queue and huey do not."""
    with closing(sqlite3.connect(":memory:")) as db:
        return ("OFF", "NORMAL", "FULL", "EXTRA")[db.execute("PRAGMA synchronous").fetchone()[0]]


_DEFAULT = _default_synchronous()

CONTENDERS: dict[str, tuple[str, Contender]] = {
    "submit": ("submit (WAL, NORMAL)", submit),
    "submit_many": ("submit_many (WAL, NORMAL)", submit_many),
    "submit_power": ('submit, "power" (WAL, FULL)', submit_power),
    "raw_one": ("raw SQLite, a row a commit (WAL, NORMAL)", raw_one),
    "raw_many": ("raw SQLite, 1,000 a commit (WAL, NORMAL)", raw_many),
    "raw_one_synced": ("raw SQLite, a row a commit (WAL, FULL)", raw_one_synced),
    "persist_queue": (f"persist-queue, a put a commit (WAL, {_DEFAULT})", persist_queue),
    "huey": (f"huey, a task a commit (WAL, {_DEFAULT})", huey),
    "litequeue_one": ("litequeue, a put a commit (WAL, NORMAL)", litequeue_one),
    "litequeue_many": ("litequeue, 1,000 in its transaction (WAL, NORMAL)", litequeue_many),
}


def run_case(body_bytes: int, threads: int, span: float, rounds: int) -> dict[str, list[float]]:
    """The rates of all contenders, a number for each round; in a process of its own."""
    given = Load.of(body_bytes)

    def measure(name: str) -> float:
        _, contender = CONTENDERS[name]
        with scratch() as folder, contender(folder, given) as step:
            for place in range(1 if name.endswith("_many") else _WARM_UP):
                step(place)
            return rate_of(step, threads, span)

    return interleave(list(CONTENDERS), measure, rounds)


def run(size: Size) -> Report:
    """Measures every case."""
    report = Report("1. Enqueues per second")
    for body_bytes, threads in size.pick(_CASES, _CASES[:2]):
        case = f"{body_bytes // 1000} kB, {threads} thread{'s' * (threads > 1)}"
        say(f"enqueue: {case}")
        rates = in_process(
            run_case,
            body_bytes=body_bytes,
            threads=threads,
            span=size.pick(0.2, 0.04),
            rounds=size.pick(11, 1),
        )
        report.values[case] = rates
        _compare(report, case, rates)
    report.notes.append(
        f"In brackets: journal mode and PRAGMA synchronous. NORMAL survives a killed process, FULL syncs"
        f" each commit. persist-queue and huey never set it: they run at SQLite's default, here {_DEFAULT}."
    )
    return report


def _compare(report: Report, case: str, rates: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(found) for name, found in rates.items()}

    def beside(name: str, ours: str, bound: float | None) -> None:
        ratio = median_ratio(rates[ours], rates[name])
        what = f"{CONTENDERS[ours][0].split(' (')[0]}, {case}"
        value, other = per_second(medians[ours]), f"{CONTENDERS[name][0]}: {per_second(medians[name])}"
        if bound is None:
            report.add(what, value, other, ratio)
        else:
            report.at_least(what, value, other, ratio, bound)

    beside("raw_one", "submit", 0.25)
    beside("persist_queue", "submit", 1)
    beside("huey", "submit", 1)
    beside("litequeue_one", "submit", None)
    beside("raw_one_synced", "submit_power", None)
    beside("persist_queue", "submit_power", None)
    beside("huey", "submit_power", None)
    beside("raw_many", "submit_many", 0.3)
    best_single = max(("persist_queue", "huey", "litequeue_one"), key=lambda name: medians[name])
    beside(best_single, "submit_many", 2)
    beside("litequeue_many", "submit_many", 2)
