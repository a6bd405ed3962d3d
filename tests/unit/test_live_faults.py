"""What becomes of requests whose live call was not answered."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from llmrouter.domain.blocks import Hold
from llmrouter.engine.live_faults import LiveFaults
from llmrouter.errors import LeaseLostError, StoreBusyError
from support.clocks import FakeClock
from support.live_api import failed, limited, lost, not_connected, spent, unauthorized
from support.requests import LANE, OTHER_LANE

ONE, OTHER = "req_1", "req_2"


@pytest.fixture
def clock() -> FakeClock:
    """Stands still."""
    return FakeClock()


@pytest.fixture
def faults(clock: FakeClock) -> LiveFaults:
    """Three attempts."""
    return LiveFaults(clock, max_attempts=3)


@pytest.mark.parametrize(
    ("error", "undone"),
    [
        (limited(), True),
        (spent(), True),
        (unauthorized(), True),
        (failed(), True),
        (not_connected(), True),
        (StoreBusyError("locked"), True),
        (LeaseLostError("lost"), True),
        (lost(), False),
        (KeyError("usage"), False),
    ],
)
def test_a_call_is_undone_only_where_that_is_clear(
    faults: LiveFaults, error: Exception, undone: bool
) -> None:
    """What is unclear may have been paid for."""
    verdict = faults.judge(LANE, ONE, error)

    assert (verdict.undone, verdict.answer) == (undone, None)


def test_pauses_grow_to_a_minute(faults: LiveFaults) -> None:
    """And are those of one request."""
    pauses = [faults.judge(LANE, ONE, failed()).pause.total_seconds() for _ in range(12)]

    assert pauses[:5] == [5, 10, 20, 40, 60]
    assert set(pauses[5:]) == {60}
    assert faults.judge(LANE, OTHER, failed()).pause == timedelta(seconds=5)


def test_after_an_answer_all_is_forgiven(faults: LiveFaults) -> None:
    """An id never comes back, but the count must not outlive its request."""
    for _ in range(2):
        faults.judge(LANE, ONE, lost())
    faults.forgive(ONE)

    assert faults.judge(LANE, ONE, lost()).answer is None


@pytest.mark.parametrize(("error", "kind"), [(lost(), "timeout_error"), (KeyError("x"), "timeout_error")])
def test_the_last_attempt_gives_the_outcome(faults: LiveFaults, error: Exception, kind: str) -> None:
    """An error in the form of a result line, that is not sent again."""
    answers = [faults.judge(LANE, ONE, error).answer for _ in range(3)]

    assert answers[:2] == [None, None]
    assert answers[2] is not None
    assert not answers[2].retry
    assert json.loads(answers[2].raw)["result"]["error"]["error"]["type"] == kind


def test_failures_count_only_while_others_are_answered(faults: LiveFaults) -> None:
    """Three such, whatever came between."""
    for _ in range(9):
        assert faults.judge(LANE, ONE, failed()).answer is None
    answers = []
    for _ in range(3):
        faults.forgive(OTHER)
        answers.append(faults.judge(LANE, ONE, failed()).answer)

    assert answers[:2] == [None, None]
    assert answers[2] is not None


def test_what_was_not_sent_is_nobodys_fault(faults: LiveFaults) -> None:
    """However often, and whoever is answered meanwhile."""
    for _ in range(9):
        faults.forgive(OTHER)
        assert faults.judge(LANE, ONE, not_connected()).answer is None


def test_too_many_calls_pause_from_the_second_time_on(faults: LiveFaults) -> None:
    """The pace waits as the API asks; one that is too large for ever lets the others go first."""
    pauses = [faults.judge(LANE, ONE, limited()).pause.total_seconds() for _ in range(3)]

    assert pauses == [0, 5, 10]


@pytest.mark.parametrize(
    ("named", "lasts"),
    [
        (None, timedelta(minutes=1)),
        (timedelta(hours=5), timedelta(hours=5)),
        (timedelta(hours=-5), timedelta(seconds=5)),
        (timedelta(days=300), timedelta(days=31)),
    ],
)
def test_a_spend_limit_lasts_as_long_as_it_says_within_reason(
    faults: LiveFaults, clock: FakeClock, named: timedelta | None, lasts: timedelta
) -> None:
    """It can be raised at any time."""
    faults.judge(LANE, ONE, spent(None if named is None else clock.now() + named))
    assert faults.spent_until == clock.now() + lasts
    clock.advance(lasts - timedelta(seconds=1))
    assert faults.spent_until is not None
    clock.advance(timedelta(seconds=1))

    assert faults.spent_until is None


def test_a_credential_holds_its_lane(faults: LiveFaults, clock: FakeClock) -> None:
    """For half a minute, then twice as long each time, up to five minutes; an answer ends that."""
    faults.judge(LANE, ONE, unauthorized())
    assert (faults.lane_hold(LANE.lane_id), faults.lane_hold(OTHER_LANE.lane_id)) == (Hold.CREDENTIAL, None)
    clock.advance(timedelta(seconds=30))
    assert faults.lane_hold(LANE.lane_id) is None

    pauses = [faults.judge(LANE, ONE, unauthorized()).pause for _ in range(6)]
    assert [pause.total_seconds() - 5 for pause in pauses] == [60, 120, 240, 300, 300, 300]
    assert faults.lane_hold(LANE.lane_id) is Hold.CREDENTIAL
    faults.forgive(OTHER)
    assert faults.judge(LANE, OTHER, unauthorized()).pause == timedelta(seconds=35)


def test_what_alone_is_refused_ends_with_that(faults: LiveFaults) -> None:
    """The key is good for others: three refusals, between which others were answered, are its outcome."""
    assert faults.judge(LANE, ONE, unauthorized()).answer is None
    answers = []
    for _ in range(3):
        faults.forgive(OTHER)
        answers.append(faults.judge(LANE, ONE, unauthorized()).answer)

    assert answers[:2] == [None, None]
    assert answers[2] is not None
    assert json.loads(answers[2].raw)["result"]["error"]["error"]["type"] == "permission_error"
