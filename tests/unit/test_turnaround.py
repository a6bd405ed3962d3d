"""How long batches take here: Kaplan and Meier's estimate with a prior."""

from __future__ import annotations

import math
import warnings
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain.turnaround import (
    ENOUGH,
    PRIOR,
    REMEMBERED,
    Observation,
    Prior,
    fit_turnaround,
    turnaround_of,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # What lifelines and its own dependencies warn of when they load.
    from lifelines import KaplanMeierFitter

NO_PRIOR = Prior(batches=0)

minutes = st.integers(1, 40).map(float) | st.floats(0.1, 2_000)
samples = st.lists(st.tuples(minutes, st.booleans()), min_size=1, max_size=60)


def seen(*samples: tuple[float, bool], model: str = "m") -> list[Observation]:
    """Observations from (minutes, ended)."""
    return [Observation(model=model, age=timedelta(minutes=age), ended=ended) for age, ended in samples]


def in_minutes(span: timedelta | None) -> float:
    """A span, infinite where there is none."""
    return math.inf if span is None else span.total_seconds() / 60


@settings(deadline=None)
@given(samples)
def test_without_a_prior_it_is_lifelines(sample: list[tuple[float, bool]]) -> None:
    """At, between and after the observations, ties and censoring included."""
    curve = fit_turnaround(seen(*sample), NO_PRIOR)
    ages = [observation.age.total_seconds() / 60 for observation in seen(*sample)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KaplanMeierFitter().fit(ages, [ended for _, ended in sample])

    for age in [0.0, *ages, *(age + 0.05 for age in ages)]:
        expected = float(theirs.predict(age))
        assert curve.survival(timedelta(minutes=age)) == pytest.approx(expected, abs=1e-9)


def test_a_quantile_without_a_prior_is_that_of_lifelines() -> None:
    """And there is none where too many batches have not ended."""
    sample = [(float(age), age % 5 != 0) for age in range(1, 40)]
    curve = fit_turnaround(seen(*sample), NO_PRIOR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KaplanMeierFitter().fit([age for age, _ in sample], [ended for _, ended in sample])
        expected = {share: float(theirs.percentile(1 - share)) for share in (0.1, 0.33, 0.5, 0.7)}

    for share, age in expected.items():
        assert in_minutes(curve.quantile(share)) == pytest.approx(age)
    assert fit_turnaround(seen((5, True), (6, False)), NO_PRIOR).quantile(0.9) is None


def test_before_the_first_batch_it_is_the_prior() -> None:
    """Nine in ten around 4.5 minutes, one in ten around 100."""
    curve = fit_turnaround([])

    for age in (1.0, 4.5, 20.0, 100.0, 1_000.0):
        assert curve.survival(timedelta(minutes=age)) == pytest.approx(PRIOR.survival(age))
    assert curve.survival(timedelta(minutes=4.5)) == pytest.approx(0.9 * 0.5 + 0.1 * 0.995, abs=1e-3)
    for share in (0.1, 0.5, 0.9, 0.99):
        quantile = curve.quantile(share)
        assert quantile is not None
        assert curve.survival(quantile) == pytest.approx(1 - share, abs=1e-6)


@settings(deadline=None)
@given(samples)
def test_with_a_prior_it_is_the_estimate_of_susarla_and_van_ryzin(sample: list[tuple[float, bool]]) -> None:
    """Their closed form: at risk with pseudo-batches, times a factor for each censored age before."""
    observations = seen(*sample)
    curve = fit_turnaround(observations)
    ages = sorted((one.age.total_seconds() / 60, one.ended) for one in observations)

    def weight(age: float) -> float:
        return PRIOR.batches * PRIOR.survival(age)

    for age in [0.05, *(age for age, _ in ages), *(age * 1.1 for age, _ in ages), 5_000.0]:
        expected = (weight(age) + sum(one > age for one, _ in ages)) / (PRIOR.batches + len(ages))
        for one in {one for one, ended in ages if not ended and one <= age}:
            at_risk = weight(one) + sum(other >= one for other, _ in ages)
            gone = sum(other == one and ended for other, ended in ages)
            lost = sum(other == one and not ended for other, ended in ages)
            expected *= (at_risk - gone) / (at_risk - gone - lost)
        assert curve.survival(timedelta(minutes=age)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(samples, st.floats(0.01, 0.99))
def test_the_curve_falls_and_its_quantiles_are_its_inverse(
    sample: list[tuple[float, bool]], share: float
) -> None:
    """From 1 to 0; the quantile is the first span within which the share is back."""
    curve = fit_turnaround(seen(*sample))
    values = [curve.survival(timedelta(minutes=1.2**step - 1)) for step in range(60)]

    assert values[0] == 1
    assert all(after <= before + 1e-12 for before, after in pairwise(values))
    quantile = curve.quantile(share)
    assert quantile is not None
    assert curve.survival(quantile) <= 1 - share + 1e-6
    assert curve.survival(quantile * 0.99 - timedelta(seconds=1)) >= 1 - share - 1e-6


def test_a_batch_in_flight_counts_for_what_it_has_waited() -> None:
    """Five that wait for an hour say that an hour is possible; leaving them out would hide it."""
    ended = seen(*[(5.0, True)] * 20)
    with_waiting = fit_turnaround([*ended, *seen(*[(60.0, False)] * 5)])

    assert fit_turnaround(ended).survival(timedelta(minutes=30)) < 0.05
    assert with_waiting.survival(timedelta(minutes=30)) > 0.15


def test_many_batches_outweigh_the_prior() -> None:
    """Where batches take an hour, 200 of them say so."""
    curve = fit_turnaround(seen(*[(50.0 + age % 20, True) for age in range(200)]))

    assert in_minutes(curve.quantile(0.5)) == pytest.approx(59, abs=2)
    assert curve.ended == 200


def test_a_model_has_its_own_curve_when_there_is_enough_of_it() -> None:
    """Until then that of all models is the better guess."""
    others = seen(*[(5.0, True)] * 100, model="other")
    few = seen(*[(60.0, True)] * (ENOUGH - 1), *[(60.0, False)] * 9)
    enough = [*few, *seen((60.0, True))]

    assert turnaround_of("m", [*others, *few]).survival(timedelta(minutes=30)) < 0.5
    assert turnaround_of("m", [*others, *enough]).survival(timedelta(minutes=30)) > 0.7


def test_the_latest_batches_count() -> None:
    """The first of many are forgotten."""
    old = seen(*[(500.0, True)] * 100)
    new = seen(*[(5.0, True)] * REMEMBERED)

    assert turnaround_of("m", [*old, *new]) == fit_turnaround(new)
