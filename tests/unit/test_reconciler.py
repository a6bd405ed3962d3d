"""What a process left unclear when it ended."""

from __future__ import annotations

from datetime import timedelta

import pytest

from llmrouter.domain.batches import BatchState
from llmrouter.engine.reconciler import Reconciler
from llmrouter.errors import LeaseLostError
from support.engine import Bench


def claim(bench: Bench) -> None:
    """Writes an intent, and ends before the create is answered."""
    bench.store.claim(
        bench.lease,
        bench.waiting(),
        bench.limits["daily"],
        batch_id=f"batch_{len(bench.store.open_batches())}",
        nonce="n" * 10,
        now=bench.clock.now(),
    )


def test_an_intent_without_an_answer_is_in_doubt() -> None:
    """Created, perhaps: it is marked, not released, and marked once."""
    bench = Bench()
    bench.enqueue(2)
    claim(bench)
    lease = bench.lose_lease()
    reconciler = Reconciler(bench.store)

    assert reconciler.run_once(lease) == 1
    assert [batch.state for batch in bench.store.open_batches()] == [BatchState.IN_DOUBT]
    assert bench.queued_count() == 0
    assert reconciler.run_once(lease) == 0


def test_an_intent_of_this_lease_is_none_of_its_business() -> None:
    """Its create is under way."""
    bench = Bench()
    bench.enqueue(2)
    claim(bench)

    assert Reconciler(bench.store).run_once(bench.lease) == 0
    assert [batch.state for batch in bench.store.open_batches()] == [BatchState.CLAIMED]


def test_a_batch_in_flight_stays_in_flight() -> None:
    """It was answered; whoever works now collects it."""
    bench = Bench()
    requests = bench.enqueue(2)
    bench.flush()
    lease = bench.lose_lease()

    assert Reconciler(bench.store).run_once(lease) == 0
    bench.api.end()
    assert bench.collector.run_once(lease) == 1
    assert len(bench.outcomes(requests)) == 2


def test_a_batch_in_doubt_is_left_alone_by_the_engine() -> None:
    """Neither polled nor flushed, whatever time passes."""
    bench = Bench()
    bench.enqueue(2)
    claim(bench)
    bench.lease = bench.lose_lease()
    Reconciler(bench.store).run_once(bench.lease)
    bench.clock.advance(timedelta(days=2))

    assert (bench.flush(), bench.collect()) == (0, 0)
    assert (bench.api.sizes, bench.api.looks) == ([], [])


def test_who_lost_the_lease_marks_nothing() -> None:
    """The holder of the next one does."""
    bench = Bench()
    bench.enqueue(2)
    claim(bench)
    stale = bench.lose_lease()
    bench.lose_lease()

    with pytest.raises(LeaseLostError):
        Reconciler(bench.store).run_once(stale)
    assert [batch.state for batch in bench.store.open_batches()] == [BatchState.CLAIMED]
