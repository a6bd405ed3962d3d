"""A batch that the API refuses for its content: the bad request fails alone, its neighbours go out."""

from __future__ import annotations

import json
import logging
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain.reporting import HoldCause
from llmrouter.domain.requests import OutcomeKind
from llmrouter.domain.scheduling import FlushReason
from llmrouter.engine.suspects import MOST_ASIDE, Search
from support.engine import Bench, allow, refuse, refuse_where
from support.requests import LANE

if TYPE_CHECKING:
    from llmrouter.domain.requests import QueuedRequest

NAMING = {"names_request": True}
TOO_LARGE = {"status": 413}
VAGUE: dict[str, Any] = {}
"""The API says 400, and not which request it means."""
WORDS = pytest.mark.parametrize("words", [VAGUE, NAMING, TOO_LARGE], ids=["vague", "naming", "413"])


def sent(bench: Bench) -> list[str]:
    """Requests that are in a batch at the API, by our ids."""
    return [one for posted in bench.api.posted for one in posted.request_ids]


def ids(requests: list[QueuedRequest]) -> list[str]:
    """Of these requests, in order."""
    return [request.request_id for request in requests]


def work(bench: Bench, rounds: int) -> None:
    """Flushes again and again, each time when no lane is held any more."""
    for _ in range(rounds):
        bench.flush()
        bench.clock.advance(timedelta(minutes=15))


@WORDS
@pytest.mark.parametrize("place", [0, 1, 49, 98, 99])
def test_one_bad_request_of_a_hundred_fails_alone(place: int, words: dict[str, Any]) -> None:
    """In one flush, with the API's own error; all others are sent, in a logarithm of creates."""
    bench = Bench()
    requests = bench.enqueue(100)
    bad = requests[place].request_id
    envelope = {"type": "error", "error": {"type": "invalid_request_error", "message": "bad image"}}
    bench.api.before_create = refuse_where({bad}, envelope=envelope, **words)
    bench.flush()
    if place == 99 and words is VAGUE:
        # No neighbour is left to decide: it fails after some rounds alone.
        assert bench.queued_count() == 1
        work(bench, 3)

    assert sorted(sent(bench)) == [one for one in ids(requests) if one != bad]
    (outcome,) = bench.outcomes(requests).values()
    assert (outcome.request_id, outcome.kind, outcome.attempts) == (bad, OutcomeKind.ERRORED, 1)
    assert json.loads(outcome.raw)["result"] == {"type": "errored", "error": envelope}
    assert bench.queued_count() == 0
    assert len(bench.api.sizes) <= 4 * math.log2(100)


@pytest.mark.parametrize("words", [NAMING, TOO_LARGE], ids=["naming", "413"])
def test_a_lone_request_that_is_certainly_to_blame_fails_at_once(words: dict[str, Any]) -> None:
    """No neighbour is asked, and the lane does not wait."""
    bench = Bench()
    requests = bench.enqueue(1)
    bench.api.before_create = refuse(**{"status": 400, "blames_content": True, **words})
    bench.flush()

    assert bench.kinds(requests) == [OutcomeKind.ERRORED]
    assert bench.api.sizes == [1]
    assert bench.flusher.holds.all() == {}


def test_a_lone_request_that_is_refused_again_and_again_fails_after_three_rounds() -> None:
    """There is nothing to compare it with; the lane waits in between."""
    bench = Bench(max_attempts=3)
    requests = bench.enqueue(1)
    bench.api.before_create = refuse(400, blames_content=True)
    for _ in range(2):
        bench.flush()
        assert bench.kinds(requests) == [None]
        assert bench.queued_count() == 1
        assert bench.flusher.holds.all()[LANE.lane_id].cause is HoldCause.REFUSED
        bench.flush()
        bench.clock.advance(timedelta(minutes=1))
    bench.flush()

    assert bench.kinds(requests) == [OutcomeKind.ERRORED]
    assert bench.api.sizes == [1, 1, 1]


def test_a_lone_request_that_is_taken_in_a_later_round_starts_anew() -> None:
    """What was held against it is forgotten."""
    bench = Bench(max_attempts=2)
    requests = bench.enqueue(1)
    bench.api.before_create = refuse(400, blames_content=True)
    work(bench, 1)
    bench.api.before_create = allow
    work(bench, 1)
    assert sent(bench) == ids(requests)
    assert bench.flusher.holds.all() == {}


def test_a_neighbour_decides() -> None:
    """When the API takes it, the one that was refused alone before is to blame, at once."""
    bench = Bench()
    bad, good = bench.enqueue(2)
    bench.api.before_create = refuse_where({bad.request_id})
    bench.flush()

    assert bench.kinds([bad, good]) == [OutcomeKind.ERRORED, None]
    assert sent(bench) == [good.request_id]
    assert bench.api.sizes == [2, 1, 1]


@WORDS
@pytest.mark.parametrize("bad_count", range(2, MOST_ASIDE))
@pytest.mark.parametrize("first", [0, 40, -1])
def test_some_bad_requests_in_a_row_fail_and_nobody_else(
    first: int, bad_count: int, words: dict[str, Any]
) -> None:
    """Also at the end of the backlog, where no neighbour follows."""
    bench = Bench()
    requests = bench.enqueue(100)
    start = 100 - bad_count if first < 0 else first
    bad = set(ids(requests)[start : start + bad_count])
    bench.api.before_create = refuse_where(bad, **words)
    work(bench, 4)

    assert set(bench.outcomes(requests)) == bad
    assert sorted(sent(bench)) == [one for one in ids(requests) if one not in bad]
    assert bench.queued_count() == 0
    assert len(bench.api.sizes) <= 20 + 6 * bad_count


def test_an_account_that_is_refused_fails_nobody() -> None:
    """A 400 that no text tells apart from a bad request: all wait, and go when it is over."""
    bench = Bench()
    requests = bench.enqueue(100)
    bench.api.before_create = refuse(400, blames_content=True)
    work(bench, 10)

    assert bench.outcomes(requests) == {}
    assert bench.queued_count() == 100
    assert LANE.lane_id in bench.flusher.holds.all()
    assert len(bench.api.sizes) <= 8 + 10 * 100
    bench.api.before_create = allow
    work(bench, 10)
    assert sorted(sent(bench)) == ids(requests)
    assert bench.flusher.holds.all() == {}


def test_many_bad_requests_in_a_row_do_not_keep_the_others_for_ever() -> None:
    """More of them than are put aside at first: each round tries more."""
    bench = Bench()
    requests = bench.enqueue(60)
    bad = set(ids(requests)[5:25])
    bench.api.before_create = refuse_where(bad)
    work(bench, 6)

    assert set(bench.outcomes(requests)) == bad
    assert bench.queued_count() == 0


def test_a_bad_request_is_narrowed_down_after_a_hold() -> None:
    """A hold whose time is over is over."""
    bench = Bench()
    requests = bench.enqueue(64)
    bench.api.before_create = refuse(429)
    bench.flush()
    bench.clock.advance(timedelta(minutes=1))
    bench.api.before_create = refuse_where({requests[20].request_id})
    bench.flush()

    assert bench.queued_count() == 0


def test_after_narrowing_down_batches_grow_to_their_size_again() -> None:
    """One bad request must not make small batches for ever."""
    bench = Bench(max_requests=64)
    requests = bench.enqueue(64)
    bench.api.before_create = refuse_where({requests[0].request_id})
    bench.flush()
    bench.enqueue(640)
    bench.flush()
    before = len(bench.api.sizes)
    bench.enqueue(64)
    bench.flush()

    assert bench.api.sizes[before:] == [64]


def test_a_refusal_without_an_envelope_still_tells_the_reason() -> None:
    """As an invalid request, under the id the request has."""
    bench = Bench()
    (request,) = bench.enqueue(1)
    bench.api.before_create = refuse(400, blames_content=True, names_request=True)
    bench.flush()
    (outcome,) = bench.outcomes([request]).values()
    written = json.loads(outcome.raw)

    assert written["custom_id"] == request.request_id
    assert written["result"]["error"]["error"] == {"type": "invalid_request_error", "message": "HTTP 400"}


def test_nothing_that_was_put_aside_stays_claimed_when_the_lease_is_lost() -> None:
    """The next holder puts it in doubt; this process forgets it."""
    bench = Bench()
    requests = bench.enqueue(8)
    bad = set(ids(requests)[:3])

    def refuse_and_lose(items: list[dict[str, Any]]) -> None:
        if len(items) == 1 and items[0]["custom_id"].startswith(ids(requests)[2]):
            bench.hand_over()
        refuse_where(bad)(items)

    bench.api.before_create = refuse_and_lose
    with pytest.raises(Exception, match="lease"):
        bench.flush(FlushReason.ASKED)

    assert bench.flusher.creator.under_way() == frozenset()


@given(
    places=st.sets(st.integers(0, 39), max_size=6),
    max_requests=st.integers(1, 60),
    words=st.sampled_from([VAGUE, NAMING, TOO_LARGE]),
)
@settings(max_examples=60, deadline=None)
def test_any_number_of_bad_requests_fail_alone(
    places: set[int], max_requests: int, words: dict[str, Any]
) -> None:
    """Each with the API's error; all others are sent exactly once."""
    logging.disable()
    try:
        bench = Bench(max_requests=max_requests)
        requests = bench.enqueue(40)
        bad = {requests[place].request_id for place in places}
        bench.api.before_create = refuse_where(bad, **words)
        work(bench, len(places) + 4)
    finally:
        logging.disable(logging.NOTSET)

    assert sorted(sent(bench)) == [one for one in ids(requests) if one not in bad]
    assert set(bench.outcomes(requests)) == bad
    assert bench.queued_count() == 0


@pytest.mark.parametrize("count", [2, 3, 99, 100_000])
def test_a_search_halves_and_doubles(count: int) -> None:
    """It reaches one in a logarithm of steps, and is over when a batch as large as any went well."""
    search, halvings, doublings, size = Search(), 0, 0, count
    while size > 1:
        search.halve(size)
        assert search.limit is not None
        size, halvings = search.limit, halvings + 1
    while search.limit is not None:
        search.passed(count)
        doublings += 1

    assert halvings <= math.ceil(math.log2(count))
    assert doublings <= math.ceil(math.log2(count))
