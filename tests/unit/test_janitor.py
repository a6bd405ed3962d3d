"""What nobody needs any more is thrown away: prompts soon, answers when they were delivered and are old."""

from __future__ import annotations

from datetime import timedelta

import pytest

from llmrouter.domain.requests import OutcomeKind, QueuedRequest
from llmrouter.engine import janitor as cleaning
from llmrouter.errors import LeaseLostError
from llmrouter.stores.memory import MemoryStore
from support.engine import RETENTION, Bench

MOMENT = timedelta(microseconds=1)


def answered(count: int = 3, **options: object) -> tuple[Bench, list[QueuedRequest]]:
    """Requests that have their outcomes."""
    bench = Bench(**options)
    requests = bench.enqueue(count)
    bench.flush()
    bench.api.end()
    bench.collect()
    return bench, requests


def deliver(bench: Bench, requests: list[QueuedRequest]) -> None:
    """Somebody has the answers."""
    bench.store.deliver([request.request_id for request in requests])


def test_prompts_of_settled_requests_are_dropped() -> None:
    """All there are, a bounded number at a time; answers stay, and so do prompts that are still needed."""
    taken: list[int] = []

    class Noting(MemoryStore):
        def sweep(self, lease, limit) -> int:
            taken.append(super().sweep(lease, limit))
            return taken[-1]

    bench, requests = answered(1234, store=Noting())
    waiting = bench.enqueue(2)

    assert bench.janitor.run_once(bench.lease) == 1234
    assert max(taken) <= 500
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 1234
    assert bench.janitor.run_once(bench.lease) == 0
    bench.flush()
    assert bench.api.posted[-1].request_ids == [request.request_id for request in waiting]


def test_answers_are_forgotten_when_they_were_delivered_and_are_old() -> None:
    """By default after 29 days, to the moment; their batches with them."""
    bench, requests = answered()
    deliver(bench, requests)
    bench.clock.advance(RETENTION)
    assert bench.janitor.prune(bench.lease) == 0
    bench.clock.advance(MOMENT)

    assert bench.janitor.prune(bench.lease) == 3
    assert bench.store.find(requests[0].request_id) is None
    assert bench.store.find_batch("msgbatch_0") is None


def test_an_answer_that_nobody_has_had_is_kept() -> None:
    """However old, unless somebody says otherwise."""
    bench, requests = answered()
    deliver(bench, requests[:1])
    bench.clock.advance(timedelta(days=3650))

    assert bench.janitor.prune(bench.lease) == 1
    assert bench.kinds(requests)[1:] == [OutcomeKind.SUCCEEDED] * 2
    assert bench.janitor.prune(bench.lease, undelivered=True) == 2


@pytest.mark.parametrize(("older_than", "pruned"), [(timedelta(0), 3), (timedelta(hours=2), 0)])
def test_an_age_may_be_given(older_than: timedelta, pruned: int) -> None:
    """Instead of the retention of the settings; nothing at all is an age too."""
    bench, requests = answered()
    deliver(bench, requests)
    bench.clock.advance(timedelta(hours=1))

    assert bench.janitor.prune(bench.lease, older_than) == pruned


def test_what_has_no_outcome_is_never_forgotten() -> None:
    """Queued, in flight or in doubt, whatever its age."""
    bench = Bench()
    requests = bench.enqueue(2)
    bench.flush()
    requests += bench.enqueue(2)
    bench.clock.advance(timedelta(days=3650))

    assert bench.janitor.prune(bench.lease, timedelta(0), undelivered=True) == 0
    assert bench.janitor.run_once(bench.lease) == 0
    assert all(bench.store.find(request.request_id) for request in requests)


def test_many_are_forgotten_in_bounded_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until none is left."""
    monkeypatch.setattr(cleaning, "_PRUNED_AT_ONCE", 2)
    bench, requests = answered(5)
    deliver(bench, requests)
    bench.clock.advance(RETENTION * 2)

    assert bench.janitor.prune(bench.lease) == 5


def test_without_the_lease_nothing_is_thrown_away() -> None:
    """Another process works now."""
    bench, requests = answered()
    deliver(bench, requests)
    bench.clock.advance(RETENTION * 2)
    bench.hand_over()

    with pytest.raises(LeaseLostError):
        bench.janitor.run_once(bench.lease)
    with pytest.raises(LeaseLostError):
        bench.janitor.prune(bench.lease)
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 3
