"""When a prefix is worth caching and warming: the numbers of docs/policy.md."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from llmrouter.domain.prompt_cache import (
    FIVE_MINUTES,
    ONE_HOUR,
    CachePrices,
    PrefixGroup,
    Shape,
    WarmUp,
    batch_cost,
    break_even_hit_rate,
    caching_pays,
    live_cost,
    plan_warm_up,
    prefix_multiplier,
    warm_up_gain,
)

SHAPE = Shape(prefix=20_000, rest=200, output=200)
GROUP = PrefixGroup(request_count=10, prefix_tokens=20_000, minimum_tokens=4_096)


def test_a_prefix_heavy_request_can_be_cheaper_live_than_in_a_cold_batch() -> None:
    """Live with a warm cache, in a cold batch (0.45 hits, 5 minutes), in a warmed one (0.97, an hour)."""
    assert live_cost(SHAPE, prefix_multiplier(FIVE_MINUTES, 1.0)) == pytest.approx(3_200)
    assert batch_cost(SHAPE, prefix_multiplier(FIVE_MINUTES, 0.45)) == pytest.approx(7_925)
    assert batch_cost(SHAPE, prefix_multiplier(ONE_HOUR, 0.97)) == pytest.approx(2_170)
    assert live_cost(SHAPE) == 2 * batch_cost(SHAPE) == 21_200


@pytest.mark.parametrize(
    ("prices", "threshold"),
    [(FIVE_MINUTES, 0.22), (ONE_HOUR, 0.53), (CachePrices(write=2, read=0.025), 0.51)],
)
def test_caching_pays_from_a_hit_rate_on(prices: CachePrices, threshold: float) -> None:
    """There it costs what no caching costs."""
    even = break_even_hit_rate(prices)

    assert even == pytest.approx(threshold, abs=0.005)
    assert prefix_multiplier(prices, even) == pytest.approx(1)
    assert caching_pays(prices, even + 0.01)
    assert not caching_pays(prices, even - 0.01)


@pytest.mark.parametrize(
    ("hit_rate", "prices", "pays"),
    [
        (0.24, ONE_HOUR, False),
        (0.46, ONE_HOUR, False),
        (0.46, FIVE_MINUTES, True),
        (0.93, ONE_HOUR, True),
        (0.99, ONE_HOUR, True),
    ],
)
def test_a_cold_batch_with_one_hour_writes_loses_money(
    hit_rate: float, prices: CachePrices, pays: bool
) -> None:
    """Hit rates from published logs: cold 0.24 to 0.46, later and warmed ones above 0.9."""
    assert caching_pays(prices, hit_rate) is pays


def test_a_warm_up_pays_for_a_group_of_ten() -> None:
    """It costs two prefixes; each request of the group saves 0.29 of one, or 0.42 where nothing is cached."""
    cold, warmed = prefix_multiplier(FIVE_MINUTES, 0.45), prefix_multiplier(ONE_HOUR, 0.97)

    assert warm_up_gain(SHAPE, 10, cold=cold, warmed=warmed) > 0
    assert warm_up_gain(SHAPE, 6, cold=cold, warmed=warmed) < 0
    assert warm_up_gain(SHAPE, 10, cold=1.0, warmed=warmed) == pytest.approx(0.5 * 200_000 * 0.843 - 40_000)


@pytest.mark.parametrize(
    ("group", "plan"),
    [
        (GROUP, WarmUp.LIVE_CALL),
        (replace(GROUP, request_count=9), WarmUp.NONE),
        (replace(GROUP, prefix_tokens=4_096), WarmUp.LIVE_CALL),
        (replace(GROUP, prefix_tokens=4_095), WarmUp.NONE),
        (replace(GROUP, warmed_ago=timedelta(minutes=50)), WarmUp.NONE),
        (replace(GROUP, warmed_ago=timedelta(minutes=51)), WarmUp.LIVE_CALL),
        (replace(GROUP, warmed_hit_rates=(0.5,)), WarmUp.LIVE_CALL),
        (replace(GROUP, warmed_hit_rates=(0.5, 0.59)), WarmUp.BATCH_OF_ONE),
        (replace(GROUP, warmed_hit_rates=(0.5, 0.6)), WarmUp.LIVE_CALL),
        (replace(GROUP, warmed_hit_rates=(0.9, 0.5, 0.5)), WarmUp.BATCH_OF_ONE),
    ],
)
def test_which_groups_are_warmed(group: PrefixGroup, plan: WarmUp) -> None:
    """Ten or more, long enough, not warm yet; by a batch of one where live calls did not help twice."""
    assert plan_warm_up(group, allowed=True, storm=False) is plan


def test_nothing_is_warmed_in_a_storm_or_against_the_site() -> None:
    """The caller's cache control is left alone."""
    assert plan_warm_up(GROUP, allowed=False, storm=False) is WarmUp.NONE
    assert plan_warm_up(GROUP, allowed=True, storm=True) is WarmUp.NONE
