"""The sandbox's time, and how long its batches take."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sandbox_requests import entries

from llmrouter.sandbox import ManualClock, ScaledClock, Turnaround, clocks

START = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_manual_clock_moves_only_when_told():
    clock = ManualClock(START)
    assert clock.now() == clock.now() == START
    clock.advance(HOUR)
    assert clock.now() == START + HOUR


def test_a_scaled_clock_multiplies_elapsed_time(monkeypatch):
    """An hour a second, from its start."""
    seconds = iter([100.0, 100.0, 101.5])
    monkeypatch.setattr(clocks.time, "monotonic", lambda: next(seconds))
    clock = ScaledClock(speed=3600, start=START)
    assert clock.now() == START
    assert clock.now() == START + 1.5 * HOUR


def test_a_scaled_clock_can_jump():
    clock = ScaledClock(speed=0.000001, start=START)
    clock.advance(HOUR)
    assert START + HOUR <= clock.now() < START + HOUR + timedelta(seconds=1)


@pytest.mark.parametrize("clock", [ManualClock(), ScaledClock()])
def test_a_clock_begins_now_in_utc_and_never_goes_back(clock):
    assert abs(clock.now() - datetime.now(UTC)) < HOUR
    assert clock.now().tzinfo is UTC
    with pytest.raises(ValueError, match="back"):
        clock.advance(-HOUR)


def test_a_start_is_turned_to_utc_and_must_have_a_time_zone():
    assert ManualClock(START.astimezone(timezone(5 * HOUR))).now().tzinfo is UTC
    with pytest.raises(ValueError, match="time zone"):
        ManualClock(START.replace(tzinfo=None))


@pytest.mark.parametrize("speed", [0, -1])
def test_a_speed_is_above_zero(speed):
    with pytest.raises(ValueError, match="speed"):
        ScaledClock(speed=speed)


def test_typical_turnaround_has_the_median_and_the_ninth_decile_asked_for():
    """Median 7 minutes, 90 % within an hour, and the same again for the same seed."""
    minutes = [Turnaround.typical(seed=1).sample(number, 1).total_seconds() / 60 for number in range(5_000)]
    assert 6.5 < statistics.median(minutes) < 7.5
    assert 0.88 < sum(1 for value in minutes if value <= 60) / len(minutes) < 0.92
    again = Turnaround.typical(seed=1)
    assert again.sample(7, 1).total_seconds() / 60 == minutes[7]
    assert again.sample(7, 1) != Turnaround.typical(seed=2).sample(7, 1)


def test_a_function_decides_how_long_each_batch_takes(start):
    """By the batch's number and size; a batch may take no time at all."""

    def take(number, requests):
        return timedelta(minutes=number * requests)

    sandbox, client = start(turnaround=Turnaround.of(take))
    first, second = (client.messages.batches.create(requests=entries(3)) for _ in range(2))
    assert client.messages.batches.retrieve(first.id).processing_status == "ended"
    sandbox.clock.advance(timedelta(minutes=2))
    assert client.messages.batches.retrieve(second.id).processing_status == "in_progress"
    sandbox.clock.advance(timedelta(minutes=1))
    assert client.messages.batches.retrieve(second.id).request_counts.succeeded == 3


def test_a_negative_turnaround_is_refused():
    with pytest.raises(ValueError, match="cannot take"):
        Turnaround.fixed(-HOUR).sample(0, 1)
