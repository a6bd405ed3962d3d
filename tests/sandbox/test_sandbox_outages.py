"""Batches that stand still: outages of a span, one stalled batch, cancels that take their time."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_requests import MODEL, entries, entry, params

from llmrouter.sandbox import Fault, Outage, Turnaround, params_hash
from llmrouter.sandbox.outages import done_at, worked

MINUTE = timedelta(minutes=1)
START = datetime(2026, 11, 20, tzinfo=UTC)


def outcomes(client, batch_id):
    return Counter(result.result.type for result in client.messages.batches.results(batch_id))


def status(client, batch_id):
    return client.messages.batches.retrieve(batch_id).processing_status


def test_nothing_gets_done_in_an_outage(sandbox, client):
    """What was under way goes on after it; a batch that is created in it begins then."""
    first = client.messages.batches.create(requests=entries(2)).id
    sandbox.clock.advance(4 * MINUTE)
    sandbox.add_outage(60 * MINUTE)
    sandbox.clock.advance(30 * MINUTE)
    second = client.messages.batches.create(requests=entries(2)).id
    sandbox.clock.advance(35 * MINUTE)
    assert (status(client, first), status(client, second)) == ("in_progress", "in_progress")
    sandbox.clock.advance(1 * MINUTE)
    assert (status(client, first), status(client, second)) == ("ended", "in_progress")
    sandbox.clock.advance(4 * MINUTE)
    assert outcomes(client, second) == {"succeeded": 2}


def test_live_calls_are_answered_in_an_outage(sandbox, client):
    sandbox.add_outage(60 * MINUTE)
    assert client.messages.create(**params()).type == "message"


def test_an_outage_may_be_yet_to_come(sandbox, client):
    """A batch that ends before it is not touched; several add up, overlapping or not."""
    first = client.messages.batches.create(requests=entries(1)).id
    sandbox.add_outage(20 * MINUTE, after=12 * MINUTE)
    sandbox.add_outage(20 * MINUTE, after=22 * MINUTE)
    sandbox.clock.advance(10 * MINUTE)
    assert status(client, first) == "ended"
    second = client.messages.batches.create(requests=entries(1)).id
    sandbox.clock.advance(39 * MINUTE)
    assert status(client, second) == "in_progress"
    sandbox.clock.advance(1 * MINUTE)
    assert status(client, second) == "ended"


def test_batches_expire_in_an_outage(sandbox, client):
    """What was done before it counts, and is charged."""
    batch = client.messages.batches.create(requests=entries(10)).id
    sandbox.clock.advance(3 * MINUTE)
    sandbox.add_outage(timedelta(hours=26))
    sandbox.clock.advance(timedelta(hours=24))
    assert outcomes(client, batch) == {"succeeded": 3, "expired": 7}
    assert len(sandbox.books.charges) == 3


@pytest.mark.parametrize(("cancels", "ended"), [(True, "ended"), (False, "canceling")])
def test_cancels_work_in_an_outage_or_do_not(sandbox, client, cancels, ended):
    """Those that do not end when it is over; nothing gets done meanwhile."""
    batch = client.messages.batches.create(requests=entries(10)).id
    sandbox.clock.advance(3 * MINUTE)
    sandbox.add_outage(60 * MINUTE, cancels=cancels)
    client.messages.batches.cancel(batch)
    sandbox.clock.advance(1 * MINUTE)
    assert status(client, batch) == ended
    sandbox.clock.advance(60 * MINUTE)
    # A cancel takes half a minute, in which an item is not done.
    assert outcomes(client, batch) == {"succeeded": 3, "canceled": 7}


def test_a_stalled_batch_stands_still_when_a_part_is_done(sandbox, client):
    """It does not end before it expires; those created later are not touched."""
    sandbox.faults.add(Fault(kind="stall", done=0.4))
    stalled = client.messages.batches.create(requests=entries(10)).id
    other = client.messages.batches.create(requests=entries(10)).id
    sandbox.clock.advance(timedelta(hours=23))
    assert (status(client, stalled), status(client, other)) == ("in_progress", "ended")
    sandbox.clock.advance(timedelta(hours=1))
    assert outcomes(client, stalled) == {"succeeded": 4, "expired": 6}


@pytest.mark.parametrize(("after", "succeeded"), [(1.5, 2), (7, 4), (60, 4)])
def test_a_stalled_batch_can_be_canceled(sandbox, client, after, succeeded):
    """The part that is done can be read then."""
    sandbox.faults.add(Fault(kind="stall", done=0.4))
    batch = client.messages.batches.create(requests=entries(10)).id
    sandbox.clock.advance(after * MINUTE)
    client.messages.batches.cancel(batch)
    sandbox.clock.advance(1 * MINUTE)
    assert outcomes(client, batch) == {"succeeded": succeeded, "canceled": 10 - succeeded}


@pytest.mark.parametrize("done", [1, -0.1])
def test_a_batch_that_is_done_does_not_stall(done):
    with pytest.raises(ValueError, match="done"):
        Fault(kind="stall", done=done)


def test_how_long_cancels_take_can_be_drawn(start):
    """Anew for each batch, the same for the same seed."""
    spans = []
    for _ in range(2):
        sandbox, client = start(cancel_takes=Turnaround.lognormal(5 * MINUTE, 0.5, seed=3))
        for _ in range(20):
            client.messages.batches.create(requests=entries(1))
        spans.append([batch.cancel_takes for batch in sandbox.batches.values()])
    assert spans[0] == spans[1]
    assert len(set(spans[0])) == 20
    assert 3 * MINUTE < sorted(spans[0])[10] < 8 * MINUTE


def test_a_slow_cancel_lets_items_get_done(start):
    """They are charged."""
    sandbox, client = start(cancel_takes=Turnaround.fixed(4 * MINUTE))
    batch = client.messages.batches.create(requests=entries(10)).id
    client.messages.batches.cancel(batch)
    sandbox.clock.advance(3.9 * MINUTE)
    assert status(client, batch) == "canceling"
    sandbox.clock.advance(0.1 * MINUTE)
    assert outcomes(client, batch) == {"succeeded": 4, "canceled": 6}


def test_another_process_can_have_an_outage(sandbox, server, client):
    """And see those there are; a reset ends them."""
    with httpx2.Client(base_url=server.base_url) as http:
        added = http.post("/_sandbox/outages", json={"seconds": 3600, "after_seconds": 60, "cancels": False})
        assert added.status_code == 200
        assert http.get("/_sandbox/outages").json() == [added.json()]
        (outage,) = sandbox.outages
        assert outage.until_at - outage.from_at == 60 * MINUTE
        assert outage.from_at - sandbox.clock.now() == MINUTE
        assert not outage.cancels
        http.post("/_sandbox/reset")
        assert http.get("/_sandbox/outages").json() == []


@pytest.mark.parametrize(
    "body",
    [{}, {"seconds": -1}, {"seconds": 1, "after_seconds": "x"}, {"seconds": 1, "cancels": 1}, {"a": 1}],
)
def test_an_outage_that_makes_no_sense_is_refused(server, body):
    with httpx2.Client(base_url=server.base_url) as http:
        assert http.post("/_sandbox/outages", json=body).status_code == 400


@pytest.mark.parametrize("span", [{"span": -MINUTE}, {"span": MINUTE, "after": -MINUTE}])
def test_an_outage_is_none_of_the_past(sandbox, span):
    with pytest.raises(ValueError, match="outage"):
        sandbox.add_outage(**span)


def test_what_was_paid_twice_shows_in_the_charges(sandbox, server, client):
    """An item of a batch and a live call, streamed or not, are the same request by their hash."""
    client.messages.batches.create(requests=[entry("r0"), entry("r1")])
    client.messages.create(**params("r1"))
    with client.messages.stream(**params("r1")) as stream:
        stream.until_done()
    sandbox.clock.advance(10 * MINUTE)
    with httpx2.Client(base_url=server.base_url) as http:
        charges = http.get("/_sandbox/charges").json()
    paid = Counter((charge["params_hash"], charge["route"]) for charge in charges)
    first, second = params_hash(params("r0")), params_hash(params("r1"))
    assert paid == {(first, "batch"): 1, (second, "batch"): 1, (second, "live"): 2}
    assert {charge["custom_id"] for charge in charges} == {None, "r0", "r1"}
    assert {charge["model"] for charge in charges} == {MODEL}


@st.composite
def spans(draw):
    since = draw(st.integers(-100, 100))
    return Outage(
        from_at=START + since * MINUTE, until_at=START + (since + draw(st.integers(0, 50))) * MINUTE
    )


@given(st.lists(spans(), max_size=6), st.integers(0, 200))
def test_work_is_done_when_so_much_time_lay_in_no_outage(outages, minutes):
    """And not a minute sooner: against counting the minutes one by one."""
    span = minutes * MINUTE
    end = done_at(START, span, outages)
    count = sum(
        1
        for index in range(int((end - START) / MINUTE))
        if not any(one.from_at <= START + index * MINUTE < one.until_at for one in outages)
    )
    assert count == minutes
    assert worked(START, end, outages) == span
    if minutes:
        assert worked(START, end - MINUTE, outages) < span
