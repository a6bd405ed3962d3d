"""What our own batches tell of the API now."""

from __future__ import annotations

from datetime import timedelta

import pytest

from llmrouter.domain.blocks import Rules
from llmrouter.domain.weather import Sent, cancel_lead, is_storm, overtaken
from support.clocks import START

MINUTE = timedelta(minutes=1)
RULES = Rules()


@pytest.mark.parametrize(
    ("ages", "silent", "storm"),
    [
        ([15, 16, 17], 20, True),
        ([15, 16, 17], 19.9, False),
        ([14.9, 16, 17], 20, False),
        ([15, 16], 60, False),
        ([15, 16, 20], None, True),
        ([15, 16, 19], None, False),
        ([], None, False),
    ],
)
def test_a_storm_is_silence_while_batches_are_waited_for(
    ages: list[float],
    silent: float | None,
    storm: bool,
) -> None:
    """No result for 20 minutes (or ever), three batches in flight for 15 or more."""
    last = None if silent is None else START - silent * MINUTE
    since = [START - age * MINUTE for age in ages]
    assert is_storm(START, since, last, silence=RULES.storm_silence, age=RULES.storm_age) is storm


@pytest.mark.parametrize(
    ("took", "lead"),
    [
        ([], 5),
        ([1.0], 5),
        ([1.0, 9.0], 9),
        ([1.0] * 19, 5),
        ([0.2] * 20, 1),
        ([2.0] * 19 + [9.0], 2),
        ([2.0] * 18 + [9.0] * 2, 9),
        ([40.0] * 30, 15),
    ],
)
def test_the_cancel_lead_is_what_cancels_took_here(took: list[float], lead: float) -> None:
    """The 95th percentile within 1 and 15 minutes; 5 at first, more if one took longer."""
    assert cancel_lead([one * MINUTE for one in took]) == lead * MINUTE


def test_a_batch_that_three_younger_ones_overtook_is_counted() -> None:
    """From 20 minutes on, within its group."""

    def sent(name: str, age: float, *, ended: bool = True, group: str = "g") -> Sent:
        created = START - age * MINUTE
        return Sent(batch_id=name, group=group, created_at=created, ended_at=START if ended else None)

    younger = [sent("1", 19), sent("2", 18), sent("3", 17)]
    stuck = sent("stuck", 20, ended=False)

    assert overtaken(START, [stuck, *younger]) == ["stuck"]
    assert overtaken(START, [sent("stuck", 19.5, ended=False), *younger]) == []
    assert overtaken(START, [stuck, *younger[1:], sent("3", 17, group="other")]) == []
    assert overtaken(START, [stuck, *younger[1:], sent("older", 30)]) == []
