"""Lanes that wait since the API did not take their last batch: why, until when, and what ends it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from llmrouter.domain.reporting import Hold, HoldCause
from llmrouter.domain.scheduling import FlushReason
from llmrouter.engine.holds import Holds
from llmrouter.errors import CreateError, CreateRefusedError, CreateUnclearError
from support.clocks import START, FakeClock
from support.engine import Bench, allow, refuse
from support.requests import LANE, OTHER_LANE

NAME = "lane-a"
SECOND = timedelta(seconds=1)


def held(error: CreateError, *, times: int = 1) -> tuple[Holds, FakeClock, Hold]:
    """A lane after so many refusals, one right after the other."""
    clock = FakeClock()
    holds = Holds(clock)
    for _ in range(times):
        holds.hold(NAME, error)
    return holds, clock, holds.all()[NAME]


def refusal(**details: Any) -> CreateRefusedError:
    """The API said no."""
    return CreateRefusedError("the batch was not created: HTTP 4xx no", **details)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (refusal(status=401, credential=True), HoldCause.CREDENTIAL),
        (refusal(status=403, credential=True), HoldCause.CREDENTIAL),
        (refusal(status=400, spent=True), HoldCause.SPENT),
        (refusal(status=429, limited=True), HoldCause.LIMITED),
        (refusal(status=404), HoldCause.REFUSED),
        (refusal(status=400, blames_content=True), HoldCause.REFUSED),
        (refusal(), HoldCause.REFUSED),
        (CreateUnclearError("no clear answer"), HoldCause.UNCLEAR),
        (CreateUnclearError("no clear answer", status=504), HoldCause.UNCLEAR),
    ],
)
def test_a_hold_says_why(error: CreateError, cause: HoldCause) -> None:
    """For `status`."""
    _, _, hold = held(error)

    assert (hold.cause, hold.lane_id, hold.refusals, hold.since) == (cause, NAME, 1, START)


def test_a_hold_quotes_the_api_only_about_the_account() -> None:
    """What it says of content may quote a prompt."""
    assert "4xx no" in held(refusal(status=401, credential=True))[2].reason
    assert "4xx no" not in held(refusal(status=400, blames_content=True))[2].reason


def test_a_lane_waits_longer_with_each_refusal() -> None:
    """Doubling from 15 seconds to 15 minutes; a batch that goes well begins anew."""
    clock = FakeClock()
    holds = Holds(clock)
    waits = []
    for _ in range(9):
        holds.hold(NAME, refusal(status=404))
        hold = holds.all()[NAME]
        waits.append((hold.until - clock.now()).total_seconds())
        clock.advance(hold.until - clock.now())
    assert hold.refusals == 9
    assert hold.since == START
    holds.end(NAME)
    assert holds.all() == {}
    holds.hold(NAME, refusal(status=404))

    assert waits == [15, 30, 60, 120, 240, 480, 900, 900, 900]
    assert holds.all()[NAME].until - clock.now() == timedelta(seconds=15)


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize(
    ("error", "span"),
    [
        (refusal(status=429, limited=True, retry_after=timedelta(seconds=77)), timedelta(seconds=77)),
        (refusal(status=429, limited=True, retry_after=timedelta(days=9)), timedelta(days=1)),
        (CreateUnclearError("x", status=529, retry_after=timedelta(seconds=3)), timedelta(seconds=3)),
        (refusal(status=400, spent=True, regain_at=START + timedelta(days=11)), timedelta(days=11)),
        (refusal(status=400, spent=True), timedelta(hours=1)),
        (refusal(status=400, spent=True, regain_at=START - timedelta(days=1)), timedelta(seconds=15)),
    ],
)
def test_the_api_may_say_how_long_to_wait(error: CreateError, span: timedelta, times: int) -> None:
    """`retry-after`, a day at most; a spend limit's own end, or an hour; never not at all."""
    _, clock, hold = held(error, times=times)

    assert hold.until - clock.now() == span


@pytest.mark.parametrize("retry_after", [None, timedelta(0)])
def test_a_retry_after_of_nothing_is_no_invitation_to_hammer(retry_after: timedelta | None) -> None:
    """It waits as if the API had said nothing."""
    _, clock, hold = held(refusal(status=429, limited=True, retry_after=retry_after), times=3)

    assert hold.until - clock.now() == timedelta(minutes=1)


def test_a_lane_is_held_until_its_time_is_over() -> None:
    """Not a second less, nor longer; other lanes are not."""
    holds, clock, hold = held(refusal(status=404))
    clock.advance(hold.until - clock.now() - SECOND)
    assert holds.blocks(NAME, asked=False)
    assert not holds.blocks("lane-b", asked=False)
    clock.advance(SECOND)

    assert not holds.blocks(NAME, asked=False)
    assert NAME in holds.all()


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (refusal(status=401, credential=True), True),
        (refusal(status=400, spent=True), True),
        (refusal(status=404), True),
        (refusal(status=429, limited=True), False),
        (CreateUnclearError("no clear answer"), False),
    ],
)
def test_an_asked_flush_ends_what_a_person_may_have_set_right(error: CreateError, ends: bool) -> None:
    """A key, a limit, an address; but not the API's own pace, nor a doubt."""
    holds, _, _ = held(error)

    assert holds.blocks(NAME, asked=True) is not ends
    assert holds.blocks(NAME, asked=False)


@pytest.mark.parametrize("by", [timedelta(days=-30), timedelta(hours=-1), timedelta(seconds=-20)])
def test_a_clock_set_back_holds_no_lane_for_longer(by: timedelta) -> None:
    """The clock that cannot be set ends the hold."""
    holds, clock, hold = held(refusal(status=404))
    span = hold.until - clock.now()
    clock.set(clock.now() + by)
    assert holds.blocks(NAME, asked=False)
    clock.advance(span)

    assert not holds.blocks(NAME, asked=False)


def test_a_clock_set_forward_ends_a_hold() -> None:
    """Or the machine slept, and the other clock stood still: trying once costs nothing."""
    holds, clock, hold = held(refusal(status=400, spent=True))
    clock.set(hold.until)

    assert not holds.blocks(NAME, asked=False)


@pytest.mark.parametrize(
    "details",
    [
        {"status": 401, "credential": True},
        {"status": 403, "credential": True},
        {"status": 400, "spent": True},
        {"status": 429, "limited": True, "retry_after": timedelta(seconds=15)},
        {"status": None},
    ],
)
def test_a_held_lane_resumes_by_itself_and_nothing_fails(details: dict[str, Any]) -> None:
    """All of its requests wait, in every class, and go when its time is over."""
    bench = Bench()
    requests = bench.enqueue(3)
    bench.enqueue(2, latency="nightly")
    bench.api.before_create = refuse(**details)
    bench.flush()
    assert len(bench.api.sizes) == 1
    assert (bench.outcomes(requests), bench.queued_count(), bench.states()) == ({}, 5, [])
    bench.api.before_create = allow
    bench.clock.advance(timedelta(hours=1))

    assert bench.flush() == 2
    assert bench.flusher.holds.all() == {}


def test_an_asked_flush_tries_a_lane_once_not_batch_after_batch() -> None:
    """A key that is still refused is refused once for each time somebody asks."""
    bench = Bench(max_requests=1)
    bench.enqueue(5)
    bench.enqueue(5, lane=OTHER_LANE)
    bench.api.before_create = refuse(401, credential=True)
    for _ in range(3):
        bench.flush(FlushReason.ASKED)

    assert bench.api.sizes == [1] * 6
    assert set(bench.flusher.holds.all()) == {LANE.lane_id, OTHER_LANE.lane_id}
