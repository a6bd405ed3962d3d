"""When a prefix is worth caching and warming: the numbers of docs/policy.md."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.domain.prompt_cache import (
    FIVE_MINUTES,
    ONE_HOUR,
    CachePrices,
    PrefixGroup,
    Shape,
    SharedPrefixes,
    batch_cost,
    break_even_hit_rate,
    caching_pays,
    is_warmable,
    is_worth_warming,
    live_cost,
    minimum_tokens,
    name_prefix,
    prefix_hash,
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
    ("group", "worth"),
    [
        (GROUP, True),
        (replace(GROUP, request_count=9), False),
        (replace(GROUP, prefix_tokens=4_096), True),
        (replace(GROUP, prefix_tokens=4_095), False),
        (replace(GROUP, warmed_ago=timedelta(minutes=50)), False),
        (replace(GROUP, warmed_ago=timedelta(minutes=51)), True),
    ],
)
def test_which_groups_are_warmed(group: PrefixGroup, worth: bool) -> None:
    """Ten or more, long enough, not warm yet."""
    assert is_worth_warming(group, allowed=True, storm=False) is worth


def test_nothing_is_warmed_in_a_storm_or_against_the_site() -> None:
    """The caller's cache control is left alone."""
    assert not is_worth_warming(GROUP, allowed=False, storm=False)
    assert not is_worth_warming(GROUP, allowed=True, storm=True)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("claude-opus-5-5", 512),
        ("claude-opus-4-8", 1_024),
        ("claude-opus-4-7", 2_048),
        ("claude-opus-4-5-20251101", 4_096),
        ("claude-opus-4-1", 1_024),
        ("claude-opus-4-20250514", 1_024),
        ("claude-sonnet-5-5", 512),
        ("claude-sonnet-5", 1_024),
        ("claude-sonnet-4-6", 1_024),
        ("claude-haiku-4-5", 4_096),
        ("claude-haiku-5-5", 512),
        ("claude-mythos-preview", 2_048),
        ("a-model-of-tomorrow", 4_096),
    ],
)
def test_what_a_model_caches_at_least(model: str, tokens: int) -> None:
    """As the API's documentation lists it; the most for a model that it does not."""
    assert minimum_tokens(model) == tokens


def test_a_prefix_is_shared_from_the_second_request_on() -> None:
    """The longest that another request had as well; none for what a request has alone."""
    shared = SharedPrefixes()

    picked = [shared.pick(prefixes) for prefixes in (["s", "d1"], ["s", "d2"], ["s", "d1"], ["t"], [], ["s"])]

    assert picked == ["", "s", "d1", "", "", "s"]


@given(
    most=st.integers(1, 4),
    requests=st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=4), max_size=30),
)
def test_only_the_latest_prefixes_are_remembered(most: int, requests: list[list[str]]) -> None:
    """As by a list of what came, oldest dropped first: a router's memory does not grow."""
    shared = SharedPrefixes(most)
    latest: OrderedDict[str, None] = OrderedDict()

    for prefixes in requests:
        known = [prefix for prefix in prefixes if prefix in latest]
        assert shared.pick(prefixes) == (known[-1] if known else "")
        for prefix in prefixes:
            latest.pop(prefix, None)
            latest[prefix] = None
        latest = OrderedDict.fromkeys(list(latest)[-most:])


@pytest.mark.parametrize("prefix", ["", "a" * 32])
@pytest.mark.parametrize("warmable", [True, False])
def test_a_prefix_says_whether_it_may_be_warmed(prefix: str, warmable: bool) -> None:
    """And has the same hash either way."""
    named = name_prefix(prefix, warmable=warmable)

    assert prefix_hash(named) == prefix
    assert is_warmable(named) is (warmable and prefix != "")
    assert bool(named) is bool(prefix)
