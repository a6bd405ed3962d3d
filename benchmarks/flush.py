"""Flushing 100,000 requests of 1 kB beside the SDK's own `batches.create` of the same."""

from __future__ import annotations

from benchmarks import load
from benchmarks.harness import Meter, Report, Size, in_copy, in_process, interleave, say, scratch
from benchmarks.sink import serve

_BODY_BYTES = 1_000
_FILLS = {"submit_many": (load.fill_by_submit_many, 0.5), "submit": (load.fill_by_submit, 1.5)}


def by_router(folder: str, url: str, count: int) -> dict[str, float]:
    """`Router.flush` of a filled store: opens it, looks at it, claims, reads and posts."""
    import llmrouter.worker  # noqa: F401, PLC0415  (loading it is no part of the work)

    meter = Meter()
    with load.router(folder, url=url, worker=True, batch_max_requests=count) as router:
        opened = meter.lap()
        created = router.flush()
        taken = meter.stop()
        status = router.status()
        assert (created, status.in_batches, status.queued) == (1, count, 0), status
    return {**taken, "open_seconds": opened}


def by_sdk(url: str, count: int) -> dict[str, float]:
    """`batches.create` of a list of requests, which is there before the start."""
    client = load.client(url)
    requests = [
        {"custom_id": f"request-{place:08d}", "params": load.request(place, _BODY_BYTES)}
        for place in range(count)
    ]
    meter = Meter()
    batch = client.messages.batches.create(requests=requests)
    taken = meter.stop()
    assert batch.request_counts.processing == count, batch
    return taken


def run(size: Size) -> Report:
    """Fills two stores once, and flushes a copy of each in every round."""
    count = size.pick(100_000, 2_000)
    report = Report(f"4. Flush of {count:,} requests of 1 kB")
    with scratch() as folder, serve(folder) as url:
        for name, (fill, _) in _FILLS.items():
            say(f"flush: filling by {name}")
            in_process(fill, folder=str(folder / name), url=url, count=count, body_bytes=_BODY_BYTES)

        def measure(name: str) -> dict[str, float]:
            say(f"flush: {name}")
            if name in _FILLS:
                return in_copy(by_router, folder / name, url=url, count=count)
            return in_process(by_sdk, url=url, count=count)

        found = interleave([*_FILLS, "sdk"], measure, size.pick(5, 1))
    report.values |= found
    for name, (_, bound) in _FILLS.items():
        report.work(f"flush of what {name} wrote", found[name], "SDK's batches.create", found["sdk"], bound)
    report.notes.append(
        "Ours from before the store is opened; the SDK's from when its list of requests is in memory."
        " Each in a fresh process; memory is the peak (VmHWM) above the resident size at the start."
    )
    return report
