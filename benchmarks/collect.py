"""Collecting and storing 100,000 results beside the SDK merely iterating them."""

from __future__ import annotations

from benchmarks import load
from benchmarks.harness import Meter, Report, Size, in_copy, in_process, interleave, say, scratch
from benchmarks.sink import end_batch, serve
from llmrouter import Settings
from llmrouter.wiring import build


def send_all(folder: str, url: str, count: int) -> str:
    """Fills a store and flushes it; answers with the API's id of the batch."""
    load.fill_by_submit_many(folder, url, count, 1_000)
    with load.router(folder, url=url, worker=True, batch_max_requests=count) as router:
        router.flush()
        (batch,) = router.status().batches
    assert batch.provider_batch_id is not None
    return batch.provider_batch_id


def by_collector(folder: str, url: str, count: int) -> dict[str, float]:
    """The collector of an engine: reads the results and settles every request."""
    parts = build(load.client(url), f"disk://{folder}", Settings(), None)
    engine = parts.engine(on_settled=lambda: None)
    lease = engine.keeper.run_once(engine.clock.now())
    assert lease is not None
    meter = Meter()
    collected = engine.collector.run_once(lease)
    taken = meter.stop()
    assert collected == 1
    assert not engine.store.open_batches()
    cursor = settled = 0
    while cursor < engine.store.outcome_cursor():
        outcomes, cursor = engine.store.outcomes_since(cursor)
        settled += len(outcomes)
    assert settled == count, settled
    parts.store.close()
    return taken


def by_sdk(url: str, provider_batch_id: str, count: int) -> dict[str, float]:
    """`batches.results`, iterated."""
    client = load.client(url)
    meter = Meter()
    read = sum(1 for _ in client.messages.batches.results(provider_batch_id))
    taken = meter.stop()
    assert read == count, read
    return taken


def run(size: Size) -> Report:
    """Has one batch in flight, and collects a copy of its store in every round."""
    count = size.pick(100_000, 2_000)
    report = Report(f"5. Collect of {count:,} results of 1.2 kB")
    with scratch() as folder, serve(folder, keep=True) as url:
        say("collect: sending the batch")
        provider_batch_id = in_process(send_all, folder=str(folder / "store"), url=url, count=count)
        line_bytes = end_batch(folder, provider_batch_id)

        def measure(name: str) -> dict[str, float]:
            say(f"collect: {name}")
            if name == "collector":
                return in_copy(by_collector, folder / "store", url=url, count=count)
            return in_process(by_sdk, url=url, provider_batch_id=provider_batch_id, count=count)

        found = interleave(["collector", "sdk"], measure, size.pick(5, 1))
    report.values |= {**found, "line_bytes": line_bytes}
    report.work(
        "collect and store", found["collector"], "SDK's batches.results, only iterated", found["sdk"], 1.2
    )
    report.notes.append(f"A line has {line_bytes:,} bytes; the results come in another order than was sent.")
    return report
