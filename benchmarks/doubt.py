"""A process killed with 100 creates in doubt: from its restart until each is settled the right way."""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
from datetime import timedelta
from typing import Any

from benchmarks import load
from benchmarks.harness import (
    Child,
    Report,
    Size,
    in_process,
    kill_self,
    median_ratio,
    say,
    scratch,
    seconds,
)
from llmrouter import Router, Settings
from llmrouter.claude.batches import SdkBatchApi
from llmrouter.domain.batches import BatchState, nonce_of
from llmrouter.domain.packing import BatchLimits
from llmrouter.sandbox import Sandbox, Turnaround
from llmrouter.wiring import build, open_store

_BODY_BYTES = 1_000
_GRACE_SECONDS = 3.0
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 0.02
_WAIT_SECONDS = 120.0
_MOST = 3.0
"""The goal for the time beside the bare reads."""

_STRANGERS = 10_000_000
"""Where the numbers of other people's requests begin."""

_SETTLED = (BatchState.IN_FLIGHT, BatchState.ENDED, BatchState.RELEASED)


def claim_and_die(folder: str, url: str, batches: int, each: int) -> None:
    """Claims batches, has every other one created, is killed before it writes down that they were."""
    load.fill_by_submit_many(folder, url, batches * each, _BODY_BYTES)
    parts = build(load.client(url), f"disk://{folder}", Settings(), None)
    engine, api, store = parts.engine(lambda: None), SdkBatchApi(parts.client, parts.lanes), parts.store
    lease = engine.keeper.run_once(engine.clock.now())
    assert lease is not None
    for number in range(batches):
        (waiting,) = store.waiting()
        batch = store.claim(
            lease,
            waiting,
            BatchLimits(max_requests=each),
            batch_id=f"batch_{number:020d}",
            nonce=f"{number:010d}",
            now=engine.clock.now(),
        )
        assert batch is not None
        if number % 2:
            api.create(batch.lane, store.body(batch))
    kill_self()


def create_strangers(url: str, batches: int, each: int) -> None:
    """Batches of other people in the same workspace, of the same size."""
    client = load.client(url)
    for first in range(_STRANGERS, _STRANGERS + batches * each, each):
        places = range(first, first + each)
        requests = [
            {"custom_id": f"request-{place}", "params": load.request(place, _BODY_BYTES)} for place in places
        ]
        client.messages.batches.create(requests=requests)


def recover(folder: str, url: str) -> dict[str, Any]:
    """A new process: seconds from `Router(...)` to the end of each doubt, to the answers, and the calls."""
    import llmrouter.worker  # noqa: F401, PLC0415  (loading it is no part of the work)

    store, client = open_store(f"disk://{folder}", Settings()), load.client(url)
    left = {batch.batch_id for batch in store.open_batches()}
    ends: dict[str, dict[str, Any]] = {}
    settings = Settings(
        in_doubt_grace=_GRACE_SECONDS, poll=_POLL_SECONDS, batch_max_requests=100_000, max_attempts=1
    )
    before, start = _calls(url), time.perf_counter()
    with Router(client, store=f"disk://{folder}", settings=settings) as router:
        while left:
            for batch in filter(None, map(store.find_batch, sorted(left))):
                if batch.state in _SETTLED:
                    passed = time.perf_counter() - start
                    ends[batch.nonce] = {"seconds": passed, "is": batch.provider_batch_id}
                    left.remove(batch.batch_id)
            assert time.perf_counter() - start < _WAIT_SECONDS, f"still in doubt: {sorted(left)}"
            time.sleep(_LOOK_SECONDS)
        after = _calls(url)
        while store.open_batches():
            time.sleep(_LOOK_SECONDS)
        router.flush()
        assert router.drain(_WAIT_SECONDS)
    store.close()
    return {"ends": ends, "calls": {name: after[name] - before.get(name, 0) for name in after}}


def by_sdk(url: str, provider_batch_ids: list[str]) -> float:
    """The least that tells whose the candidates are: a GET of the results of each, one line read."""
    client = load.client(url)
    options = {"headers": {"X-Stainless-Raw-Response": "stream"}}
    start = time.perf_counter()
    for provider_batch_id in provider_batch_ids:
        path = f"/v1/messages/batches/{provider_batch_id}/results"
        response: Any = client.get(path, cast_to=object, options=options)
        assert json.loads(next(response.iter_lines()))["custom_id"]
        response.close()
    return time.perf_counter() - start


def _calls(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/_sandbox/books") as answer:
        return json.load(answer)["calls"]


def run(size: Size) -> Report:
    """Makes the doubts anew in every round: recovering sends what was not created."""
    batches, each = size.pick((100, 100), (10, 10))
    report = Report(
        f"8. {batches} creates in doubt after a kill, {batches} candidates, all of {each} requests"
    )
    rounds = [_round(number, batches, each) for number in range(size.pick(3, 1))]
    report.values |= {"rounds": rounds}
    _compare(report, rounds, batches)
    return report


def _round(number: int, batches: int, each: int) -> dict[str, Any]:
    # Batches end as soon as they are created: all candidates have, when the process starts again.
    sandbox = Sandbox(turnaround=Turnaround.fixed(timedelta(0)), seed=number)
    with scratch() as folder, sandbox.serve() as server:
        say(f"doubt: the kill, round {number + 1}")
        store, url = str(folder / "store"), server.base_url
        Child(claim_and_die, folder=store, url=url, batches=batches, each=each).killed()
        ours = {nonce_of(batch.items[0].custom_id): batch.id for batch in sandbox.batches.values()}
        in_process(create_strangers, url=url, batches=batches - len(ours), each=each)
        candidates = list(sandbox.batches)
        assert (len(ours), len(candidates)) == (batches // 2, batches)
        say("doubt: recovery")
        sdk = in_process(by_sdk, url=url, provider_batch_ids=candidates)
        found = in_process(recover, folder=store, url=url)
        charges = sandbox.books.count_charges()
    ends = found["ends"]
    assert len(ends) == batches, len(ends)
    # A wrong end fails the benchmark, as does a request that was lost or paid twice.
    assert {nonce: end["is"] for nonce, end in ends.items() if end["is"]} == ours
    strangers = (batches - len(ours)) * each
    assert len(charges) == batches * each + strangers, len(charges)
    paid_again = sum(charges.values()) - len(charges)
    assert not paid_again, f"{paid_again} requests were paid more than once"
    adopted = [end["seconds"] for end in ends.values() if end["is"]]
    released = [end["seconds"] for end in ends.values() if not end["is"]]
    found_in = {"adopted": adopted, "released": released, "calls": found["calls"]}
    return {**found_in, "sdk": sdk, "paid": len(charges), "paid_again": paid_again}


def _compare(report: Report, rounds: list[dict[str, Any]], batches: int) -> None:
    sdk = [one["sdk"] for one in rounds]
    half, beside = batches // 2, f"{batches} GETs of results through the SDK, a line of each: {_median(sdk)}"
    known = [max(one["adopted"]) for one in rounds]
    waiting = [max(one["released"]) - _GRACE_SECONDS for one in rounds]
    report.at_most(
        f"all {half} that exist are known", _median(known), beside, median_ratio(known, sdk), _MOST
    )
    report.add(
        f"all {half} that do not exist wait again, less the grace time",
        _median(waiting),
        beside,
        median_ratio(waiting, sdk),
    )
    calls = [sum(one["calls"].values()) for one in rounds]
    count = statistics.median(calls)
    split = ", ".join(f"{number} {name}" for name, number in sorted(rounds[-1]["calls"].items()) if number)
    report.add("calls until then", f"{count:.0f}", f"{batches}; ours: {split}", count / batches)
    paid_again = sum(one["paid_again"] for one in rounds)
    books = f"of {rounds[-1]['paid']:,} by the sandbox's books, each round"
    report.add("requests paid twice", str(paid_again), books, None, "none", not paid_again)
    report.notes.append(
        f"From Router(...) of a new process, with in_doubt_grace={_GRACE_SECONDS:g} and"
        f" poll={_POLL_SECONDS:g} seconds instead of 120 and 5: looks come in that rhythm, and a doubt ends"
        " at the first look after the grace time. Half of the candidates are other people's. The calls"
        f" include the collector's, who reads {half} results."
    )


def _median(each: list[float]) -> str:
    return seconds(statistics.median(each))
