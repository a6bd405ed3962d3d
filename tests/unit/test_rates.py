"""How much may go live: shares of limits, percentiles, and the ramp after a pause."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain.rates import (
    RAMP,
    Concurrency,
    PerMinute,
    Work,
    minutes_for,
    percentile_95,
    planning_rate,
    ramp_lag,
    ramp_share,
    ramp_work,
    requests_per_minute,
    usage_p95,
)

NO_USE = PerMinute(requests=0, input_tokens=0, output_tokens=0)


def test_the_rate_is_a_share_of_what_the_application_leaves() -> None:
    """0.8 of (limit less use), each figure by itself."""
    limits = PerMinute(requests=1_000, input_tokens=400_000, output_tokens=80_000)
    used = PerMinute(requests=200, input_tokens=100_000, output_tokens=30_000)

    rate = planning_rate(limits, used)

    assert rate == PerMinute(requests=640, input_tokens=240_000, output_tokens=40_000)


def test_nothing_is_left_where_the_application_uses_it_all() -> None:
    """Not less than nothing."""
    rate = planning_rate(PerMinute(requests=50), PerMinute(requests=70))

    assert rate.requests == 0
    assert math.isinf(minutes_for(Work(requests=1), rate))
    assert minutes_for(Work(requests=0), rate) == 0


def test_an_unknown_limit_limits_nothing() -> None:
    """Whatever is used of it."""
    rate = planning_rate(PerMinute(), PerMinute(requests=10))

    assert math.isinf(rate.requests)
    assert minutes_for(Work(requests=10_000), rate) == 0
    assert math.isinf(requests_per_minute(rate, Work(requests=1, input_tokens=5)))


def test_calls_that_may_be_under_way_at_once_limit_the_rate() -> None:
    """32 calls of 30 seconds are 64 a minute, however much the account allows."""
    rate = planning_rate(
        PerMinute(requests=4_000), NO_USE, concurrency=Concurrency(calls=32, call_seconds=30)
    )

    assert rate.requests == pytest.approx(0.8 * 64)


@pytest.mark.parametrize(
    ("work", "minutes"),
    [
        (Work(requests=300), 3),
        (Work(requests=300, input_tokens=100_000), 10),
        (Work(requests=300, input_tokens=100_000, output_tokens=24_000), 12),
    ],
)
def test_what_is_scarcest_says_how_long_work_takes(work: Work, minutes: float) -> None:
    """Requests, input tokens or output tokens."""
    rate = PerMinute(requests=100, input_tokens=10_000, output_tokens=2_000)

    assert minutes_for(work, rate) == pytest.approx(minutes)
    assert requests_per_minute(rate, work) == pytest.approx(300 / minutes)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7),
        ([float(n) for n in range(1, 11)], 10),
        ([float(n) for n in range(1, 21)], 19),
        ([float(n) for n in range(1, 101)], 95),
    ],
)
def test_percentile_95_is_a_value_that_was_seen(values: list[float], expected: float) -> None:
    """Nearest rank: one in twenty lies above it."""
    assert percentile_95(values) == expected
    assert percentile_95(values[::-1]) == expected


def test_no_values_have_no_percentile() -> None:
    """And no use is no use."""
    with pytest.raises(ValueError, match="no values"):
        percentile_95([])
    assert usage_p95([]) == NO_USE


def test_use_is_that_of_a_busy_minute() -> None:
    """Each figure by itself: the busiest minutes of one need not be those of the other."""
    minutes = [PerMinute(requests=n, input_tokens=100 - n, output_tokens=5) for n in range(1, 101)]

    assert usage_p95(minutes) == PerMinute(requests=95, input_tokens=94, output_tokens=5)


@pytest.mark.parametrize(("minutes", "share"), [(0, 0.1), (1, 0.2), (2, 0.4), (3, 0.8), (3.33, 1), (60, 1)])
def test_a_ramp_begins_with_a_tenth_and_doubles_each_minute(minutes: float, share: float) -> None:
    """Up to the full rate."""
    assert ramp_share(timedelta(minutes=minutes)) == pytest.approx(share, abs=0.01)


def test_what_a_ramp_lets_through_is_its_integral() -> None:
    """Against a sum of small steps."""
    steps = [ramp_share(timedelta(minutes=step / 1000)) / 1000 for step in range(6_000)]

    for minutes in (0.5, 2.0, 3.3, 6.0):
        assert ramp_work(minutes) == pytest.approx(sum(steps[: int(minutes * 1000)]), abs=1e-3)


ramps = st.sampled_from([0.5, 60.0, 90.0, 600.0]).map(lambda seconds: timedelta(seconds=seconds))


@settings(deadline=None)
@given(st.floats(0, 1_000), ramps)
def test_the_lag_of_a_ramp_is_just_enough(work: float, ramp: timedelta) -> None:
    """What takes some minutes at the full rate is done that much later."""
    assert ramp_lag(math.inf, ramp) == pytest.approx(2.0235 * (ramp / RAMP), rel=1e-3)
    assert 0 <= ramp_lag(work, ramp) <= ramp_lag(math.inf, ramp)
    assert ramp_work(work + ramp_lag(work, ramp), ramp) == pytest.approx(work, abs=1e-9)


@settings(deadline=None)
@given(st.floats(0, 60), ramps)
def test_a_ramp_of_another_length_is_the_same_on_another_clock(minutes: float, ramp: timedelta) -> None:
    """Twice as long: half as far; without a word it doubles each minute."""
    times = ramp / RAMP
    assert ramp_share(timedelta(minutes=minutes) * times, ramp) == pytest.approx(
        ramp_share(timedelta(minutes=minutes)), rel=1e-4
    )
    assert ramp_work(minutes * times, ramp) == pytest.approx(times * ramp_work(minutes))
    assert ramp_lag(minutes * times, ramp) == pytest.approx(times * ramp_lag(minutes))
    assert ramp_work(minutes, RAMP) == ramp_work(minutes)
