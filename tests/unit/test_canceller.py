"""Batches whose requests were all given up are canceled at the API."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import LeaseLostError
from support.batch_api import line
from support.engine import Bench, allow, lose_answer, unreachable

if TYPE_CHECKING:
    from llmrouter.domain.requests import QueuedRequest


def in_flight(count: int = 2) -> tuple[Bench, list[QueuedRequest]]:
    """A batch at the API."""
    bench = Bench()
    requests = bench.enqueue(count)
    bench.flush()
    return bench, requests


def give_up(bench: Bench, *requests: QueuedRequest) -> None:
    """Their owner does not want them any more."""
    bench.store.cancel([one.request_id for one in requests], bench.clock.now(), in_batches=True)


def run(bench: Bench) -> int:
    """Cancels what is to be canceled."""
    return bench.canceller.run_once(bench.lease)


def test_a_batch_that_nobody_wants_is_canceled_once() -> None:
    """And that is written down, with the time."""
    bench, requests = in_flight()
    give_up(bench, *requests)
    bench.clock.advance(timedelta(minutes=1))

    assert [run(bench) for _ in range(3)] == [1, 0, 0]
    assert bench.api.cancels == ["msgbatch_0"]
    assert bench.store.open_batches()[0].cancel_asked_at == bench.clock.now()


def test_a_batch_that_somebody_wants_goes_on() -> None:
    """One of its requests is enough."""
    bench, requests = in_flight()
    give_up(bench, requests[0])

    assert run(bench) == 0
    assert bench.api.cancels == []


def test_given_up_requests_end_canceled_and_are_not_sent_again() -> None:
    """What the batch had answered by then was paid for, and is handed over."""
    bench, requests = in_flight(3)
    give_up(bench, *requests)
    run(bench)
    first, second, third = bench.api.posted[0].custom_ids
    bench.api.posted[0].lines = [line(first), line(second, "canceled"), line(third, "errored", "api_error")]
    bench.api.end()
    bench.collect()

    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED, OutcomeKind.CANCELED, OutcomeKind.CANCELED]
    assert (bench.queued_count(), bench.states()) == (0, [])


def test_a_cancel_that_fails_is_tried_again() -> None:
    """After a while. Also when it did arrive: asking twice does no harm."""
    bench, requests = in_flight()
    give_up(bench, *requests)
    bench.api.before_cancel = unreachable
    assert [run(bench) for _ in range(3)] == [0, 0, 0]
    assert len(bench.api.cancels) == 1
    bench.api.before_cancel, bench.api.after_cancel = allow, unreachable
    bench.clock.advance(timedelta(seconds=2))
    assert run(bench) == 0
    bench.api.after_cancel = allow
    bench.clock.advance(timedelta(seconds=4))

    assert run(bench) == 1
    assert bench.api.posted[0].canceled_at is not None


def test_one_cancel_that_fails_does_not_stop_the_others() -> None:
    """Each batch is asked for on its own."""
    bench, requests = in_flight()
    requests += bench.enqueue(2)
    bench.flush()
    give_up(bench, *requests)
    bench.api.hidden = {"msgbatch_0"}

    assert run(bench) == 1
    assert bench.api.posted[1].canceled_at is not None


def test_a_batch_in_doubt_is_canceled_when_it_is_found() -> None:
    """Before that there is nothing to cancel."""
    bench = Bench()
    requests = bench.enqueue(2)
    bench.api.after_create = lose_answer
    bench.flush()
    give_up(bench, *requests)

    assert run(bench) == 0
    bench.api.end()
    bench.reconcile()
    bench.collect()
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2


def test_a_doubt_that_comes_to_nothing_ends_its_given_up_requests() -> None:
    """They are not queued again."""
    bench = Bench()
    requests = bench.enqueue(2)
    bench.api.before_create = lose_answer
    bench.flush()
    give_up(bench, requests[0])
    bench.reconcile()
    bench.reconcile(passes=timedelta(minutes=2))

    assert bench.kinds(requests) == [OutcomeKind.CANCELED, None]
    assert bench.queued_count() == 1


def test_a_batch_of_another_credential_is_left_to_its_own_process() -> None:
    """This one cannot reach it."""
    bench, requests = in_flight()
    give_up(bench, *requests)
    bench.api.credentials.clear()

    assert run(bench) == 0
    assert bench.api.cancels == []


def test_a_batch_that_is_collected_meanwhile_needs_no_note() -> None:
    """It ended while the API was asked to cancel it: no error, nothing to do."""
    bench, requests = in_flight()
    give_up(bench, *requests)

    def collect(_: str) -> None:
        bench.api.end()
        bench.collect()

    bench.api.before_cancel = collect

    assert run(bench) == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2


def test_without_the_lease_nothing_is_written_down() -> None:
    """The next holder asks again: a cancel does no harm twice."""
    bench, requests = in_flight()
    give_up(bench, *requests)
    bench.hand_over()

    with pytest.raises(LeaseLostError):
        run(bench)
    assert bench.store.open_batches()[0].cancel_asked_at is None
