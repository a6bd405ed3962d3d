"""A killed process with 100,000 requests in flight: from its restart to the recovered futures."""

from __future__ import annotations

import shutil
import statistics
import time
from concurrent.futures import wait
from datetime import timedelta
from typing import TYPE_CHECKING

from benchmarks import load
from benchmarks.harness import (
    Child,
    Meter,
    Report,
    Size,
    in_copy,
    in_process,
    interleave,
    kill_self,
    median_ratio,
    megabytes,
    say,
    scratch,
    seconds,
)
from llmrouter import Router, Settings
from llmrouter.sandbox import ManualClock, Sandbox, Turnaround, params_hash

if TYPE_CHECKING:
    from anthropic.types import Message

_BODY_BYTES = 1_000
_BATCHES = 10
_TURNAROUND = timedelta(minutes=10)
_WAIT_SECONDS = 120.0
_SETTLED_RATIO = 1.2
"""As for a collect (section 5)."""

_FIRST_SECONDS = 1.0
"""The goal for a first future: what somebody who starts a program again takes for at once."""


def submit_and_die(folder: str, url: str, count: int) -> None:
    """Has requests with keys in flight, and is killed."""
    with load.router(folder, url=url) as router:
        for start in range(0, count, load.MANY):
            places = range(start, min(start + load.MANY, count))
            requests = [load.request(place, _BODY_BYTES) for place in places]
            router.submit_many(requests, latency="daily", keys=[_key(place) for place in places])
    with load.router(folder, url=url, worker=True, batch_max_requests=count // _BATCHES) as router:
        router.flush()
        status = router.status()
        assert (len(status.batches), status.in_batches, status.queued) == (_BATCHES, count, 0), status
        kill_self()


def by_router(folder: str, url: str, count: int, awaited: int) -> dict[str, float]:
    """A new process: seconds from `Router(...)` to what it recovers, in the rhythm of the settings."""
    import llmrouter.worker  # noqa: F401, PLC0415  (loading it is no part of the work)

    client, places = load.client(url), range(0, count, count // awaited)
    laps: list[float] = []
    meter = Meter()
    with Router(client, store=f"disk://{folder}", settings=Settings()) as router:
        opened = meter.lap()
        futures = []
        for place in places:
            futures.append(router.future(key=_key(place)))
            futures[-1].add_done_callback(lambda _: laps.append(meter.lap()))
        made = meter.lap()
        wait(futures, _WAIT_SECONDS)
        assert router.drain(_WAIT_SECONDS)
        taken = meter.stop()
        for place, future in zip(places, futures, strict=True):
            _check(place, future.result(0))
    return {"opened": opened, "made": made, "first": min(laps), "last": max(laps), **taken}


def from_store(folder: str, url: str, count: int, awaited: int) -> dict[str, float]:
    """The same where the answers were stored before the restart."""
    import llmrouter.worker  # noqa: F401, PLC0415  (as above)

    client, places = load.client(url), range(0, count, count // awaited)
    meter = Meter()
    with Router(client, store=f"disk://{folder}", settings=Settings()) as router:
        opened = meter.lap()
        messages = [router.future(key=_key(count // 2)).result(_WAIT_SECONDS)]
        first = meter.lap()
        messages += [router.future(key=_key(place)).result(_WAIT_SECONDS) for place in places]
        taken = meter.stop()
    for place, message in zip([count // 2, *places], messages, strict=True):
        _check(place, message)
    return {"opened": opened, "first": first, **taken}


def by_sdk(url: str, provider_batch_ids: list[str], count: int) -> dict[str, float]:
    """The SDK alone, told the ids, reads the same results and keeps none; then only their bytes."""
    batches = load.client(url).messages.batches
    read, first = 0, 0.0
    meter = Meter()
    for provider_batch_id in provider_batch_ids:
        for _ in batches.results(provider_batch_id):
            read += 1
            first = first or meter.lap()
    taken = meter.stop()
    start, lines = time.perf_counter(), 0
    for provider_batch_id in provider_batch_ids:
        with batches.with_streaming_response.results(provider_batch_id) as response:
            lines += sum(piece.count(b"\n") for piece in response.iter_bytes())
    took = time.perf_counter() - start
    assert read == lines == count, (read, lines)
    return {"first": first, "bytes": took, **taken}


def run(size: Size) -> Report:
    """Kills a process once, and starts another on a copy of its store in every round."""
    count, awaited = size.pick((100_000, 1_000), (2_000, 100))
    report = Report(f"7. Restart with {count:,} requests of 1 kB in flight, in {_BATCHES} batches")
    sandbox = Sandbox(clock=ManualClock(), turnaround=Turnaround.fixed(_TURNAROUND))
    with scratch() as folder, sandbox.serve() as server:
        killed, collected = folder / "killed", folder / "collected"
        shared = {"url": server.base_url, "count": count}
        start = time.monotonic()
        say("restart: sending the batches")
        Child(submit_and_die, folder=str(killed), **shared).killed()
        sandbox.clock.advance(_TURNAROUND)
        provider_batch_ids = list(sandbox.batches)
        assert len(provider_batch_ids) == _BATCHES, provider_batch_ids
        say(f"restart: killed after {time.monotonic() - start:.0f} s; collecting once, for the second store")
        shutil.copytree(killed, collected)
        in_process(by_router, folder=str(collected), awaited=awaited, **shared)

        def measure(name: str) -> dict[str, float]:
            say(f"restart: {name}")
            match name:
                case "router":
                    return in_copy(by_router, killed, awaited=awaited, **shared)
                case "stored":
                    return in_copy(from_store, collected, awaited=awaited, **shared)
                case _:
                    return in_process(by_sdk, provider_batch_ids=provider_batch_ids, **shared)

        found = interleave(["router", "stored", "sdk"], measure, size.pick(3, 1))
        charges = sandbox.books.count_charges()
    assert len(charges) == count, len(charges)
    assert set(charges.values()) == {1}, "requests were paid more than once"
    report.values |= found
    _compare(report, found, awaited)
    return report


def _compare(report: Report, found: dict[str, list[dict[str, float]]], awaited: int) -> None:
    sdk_first, sdk, raw = (_all(found, "sdk", name) for name in ("first", "seconds", "bytes"))
    line = f"SDK's batches.results, its first line: {_median(sdk_first)}"
    iterated = f"SDK's batches.results, all iterated: {_median(sdk)}"
    for what, name in (
        (f"first of {awaited:,} futures", "router"),
        ("first future, answer stored", "stored"),
    ):
        each = _all(found, name, "first")
        goal = (f"< {_FIRST_SECONDS:g} s", statistics.median(each) < _FIRST_SECONDS)
        report.add(what, _median(each), line, median_ratio(each, sdk_first), *goal)
    last, settled = _all(found, "router", "last"), _all(found, "router", "seconds")
    stored = _all(found, "stored", "seconds")
    report.add(f"last of {awaited:,} futures", _median(last), iterated, median_ratio(last, sdk))
    report.at_most(
        f"last of {awaited:,}, answers stored", _median(stored), iterated, median_ratio(stored, sdk), 1.0
    )
    report.at_most("all settled", _median(settled), iterated, median_ratio(settled, sdk), _SETTLED_RATIO)
    beside = f"the bytes of the results through the SDK: {_median(raw)}"
    report.add("  the same", _median(settled), beside, median_ratio(settled, raw))
    peak, sdk_peak = (max(_all(found, name, "peak_bytes")) for name in ("router", "sdk"))
    report.add(
        "  peak memory above the start", megabytes(peak), f"SDK: {megabytes(sdk_peak)}", peak / sdk_peak
    )
    opened, made = (_median(_all(found, "router", name)) for name in ("opened", "made"))
    report.notes.append(
        f"From Router(...) of a new process, with default settings: it was open after {opened}, the"
        f" {awaited:,} futures were made after {made}. Each answer is checked, and paid once."
    )


def _all(found: dict[str, list[dict[str, float]]], name: str, value: str) -> list[float]:
    return [one[value] for one in found[name]]


def _median(each: list[float]) -> str:
    return seconds(statistics.median(each))


def _key(place: int) -> str:
    return f"key-{place:08d}"


def _check(place: int, message: Message) -> None:
    """Fails unless an answer is that of its request: the sandbox's begins with the digits of its hash."""
    expected = params_hash(load.request(place, _BODY_BYTES))[:12]
    (block,) = message.content
    assert block.type == "text"
    assert block.text.startswith(f"[{expected}]"), (place, block.text)
