"""What the router's own batches told."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain.batches import Batch, BatchState
from llmrouter.domain.experience import cancels_seen, last_result_at, observations, sent
from llmrouter.domain.turnaround import Observation
from llmrouter.domain.weather import Sent, overtaken
from support.clocks import START
from support.requests import LANE, OTHER_LANE

MINUTE = timedelta(minutes=1)
DAY = timedelta(hours=24)
NOW = START + DAY


def batch(
    name: str = "a",
    *,
    created: float | None = 0,
    ended: float | None = None,
    canceled: float | None = None,
    state: BatchState | None = None,
    model: str = "m",
) -> Batch:
    """A batch, its instants in minutes from START; it expires after a day."""
    created_at = None if created is None else START + created * MINUTE
    return Batch(
        batch_id=name,
        lane=LANE,
        latency="daily",
        nonce="n" * 10,
        state=state or (BatchState.IN_FLIGHT if ended is None else BatchState.ENDED),
        request_count=1,
        body_bytes=1,
        claimed_at=START,
        fence=1,
        created_at=created_at,
        expires_at=None if created_at is None else created_at + DAY,
        ended_at=None if ended is None else START + ended * MINUTE,
        cancel_asked_at=None if canceled is None else START + canceled * MINUTE,
        model=model,
    )


def seen(age: float, *, ended: bool) -> Observation:
    """An observation, its age in minutes."""
    return Observation(model="m", age=age * MINUTE, ended=ended)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (batch(ended=7), seen(7, ended=True)),
        (batch(ended=1440), seen(1440, ended=False)),
        (batch(ended=1450), seen(1440, ended=False)),
        (batch(ended=62, canceled=60), seen(60, ended=False)),
        (batch(created=1400), seen(40, ended=False)),
        (batch(created=1400, canceled=1425), seen(25, ended=False)),
        (batch(created=1500), seen(0, ended=False)),
        (batch(created=None), None),
        (batch(state=BatchState.ENDED), None),
        (batch(created=None, ended=7), None),
        (batch(state=BatchState.ESCALATING), None),
        (batch(state=BatchState.RELEASED), None),
    ],
)
def test_a_batch_tells_how_long_it_took_or_was_waited_for(one: Batch, expected: Observation | None) -> None:
    """Only what ended by itself has ended; what was cut short would have taken longer than that."""
    found = [] if expected is None else [expected]

    assert observations([one], [], NOW) == found
    assert observations([], [one], NOW) == found


def test_the_oldest_comes_first() -> None:
    """Closed ones come newest first, and those in flight may be older."""
    closed = [batch("c", created=30, ended=33), batch("b", created=20, ended=22), batch("a", ended=1)]
    flying = [batch("d", created=25), batch("e", created=1)]

    ages = [one.age / MINUTE for one in observations(closed, flying, NOW)]
    assert ages == [1, 1439, 2, 1415, 3]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2_000), st.none() | st.integers(0, 3_000), st.none() | st.integers(0, 3_000))
    )
)
def test_nothing_is_seen_longer_than_it_can_last(batches: list[tuple[int, int | None, int | None]]) -> None:
    """Whatever the two clocks say, an age lies between nothing and a day."""
    made = [
        batch(str(n), created=one, ended=two, canceled=three) for n, (one, two, three) in enumerate(batches)
    ]
    found = observations(made, [], NOW)

    assert len(found) == len(made)
    assert all(timedelta(0) <= one.age <= DAY for one in found)


def test_a_cancel_took_from_the_request_to_the_end() -> None:
    """By two clocks: less than nothing is nothing. One that is not final, or not asked for, tells nothing."""
    closed = [
        batch(ended=64, canceled=60),
        batch(ended=59.9, canceled=60),
        batch(ended=7),
        batch(canceled=60, state=BatchState.ENDED),
    ]

    assert cancels_seen(closed) == [4 * MINUTE, timedelta(0)]


def test_the_last_result_is_that_of_a_batch_that_ended_by_itself() -> None:
    """Neither a cancel nor an expiry says that batches come back."""
    closed = [batch(ended=90, canceled=80), batch(ended=1440), batch(ended=50), batch(created=40, ended=45)]

    assert last_result_at(closed) == START + 50 * MINUTE
    assert last_result_at(closed[:2]) is None


def test_what_is_waited_for_is_compared_with_what_came_back() -> None:
    """Within a lane, class and model; what is canceled is not waited for."""
    flying = [batch("old"), batch("going", canceled=30)]
    closed = [
        *(batch(f"young{n}", created=n, ended=30) for n in (1, 2, 3)),
        batch("canceled", created=4, ended=40, canceled=30),
        batch("expired", created=5, ended=1500),
    ]
    found = sent(closed, flying)

    group = (LANE.lane_id, "daily", "m")
    assert {one.batch_id: one for one in found} == {
        "old": Sent(batch_id="old", group=group, created_at=START, ended_at=None),
        **{
            f"young{n}": Sent(
                batch_id=f"young{n}", group=group, created_at=at(n), ended_at=START + 30 * MINUTE
            )
            for n in (1, 2, 3)
        },
    }
    assert overtaken(START + 30 * MINUTE, found) == ["old"]
    for changed in ({"lane": OTHER_LANE}, {"latency": "hourly"}, {"model": "other"}):
        others = [replace(one, **changed) for one in closed]
        assert overtaken(START + 30 * MINUTE, sent(others, flying)) == []


def at(minute: float) -> datetime:
    """The instant of a minute from START."""
    return START + minute * MINUTE
