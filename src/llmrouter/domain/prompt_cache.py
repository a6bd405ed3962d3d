"""When a shared prompt prefix is worth caching, and worth warming before a batch leaves.

All costs are in tokens of uncached live input: multiply by the model's input price.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta

BATCH_DISCOUNT = 0.5

WARM_AT_LEAST = 10
"""Requests of one prefix from which on a warm-up call pays, with the hit rates seen so far."""

WARM_FOR = timedelta(minutes=50)
"""How long a warm-up counts: its entry lives an hour from its last use, and batches take a while to begin."""

POOR_HIT_RATE = 0.6
"""Below it, live warm-up calls have not reached the cache that the batches read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePrices:
    """What the cache does to the price of an input token."""

    write: float
    """Multiplier of a token that is written: 1.25 for 5 minutes, 2 for an hour."""
    read: float = 0.1
    """Multiplier of a token that is read; 0.05 and 0.025 on some models."""


FIVE_MINUTES = CachePrices(write=1.25)
ONE_HOUR = CachePrices(write=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The tokens of a usual request of a group."""

    prefix: float
    """Shared by the group, so that it can be cached."""
    rest: float
    """Of the input after the prefix."""
    output: float
    output_ratio: float = 5.0
    """Price of an output token over that of an input token."""


class WarmUp(enum.StrEnum):
    """How a group's prefix gets into the cache before its batches leave."""

    NONE = "none"
    LIVE_CALL = "live_call"
    """One live call with ``max_tokens: 0`` and an hour's cache control."""
    BATCH_OF_ONE = "batch_of_one"
    """A batch with one request of the group, collected before the others leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixGroup:
    """Requests of one lane and model that begin alike."""

    request_count: int
    prefix_tokens: int
    minimum_tokens: int
    """What the model caches at least."""
    warmed_ago: timedelta | None = None
    """None when it was not warmed yet."""
    warmed_hit_rates: tuple[float, ...] = ()
    """Of its batches after live warm-up calls, oldest first."""


def prefix_multiplier(prices: CachePrices, hit_rate: float) -> float:
    """What a token of the prefix costs on average: ``h r + (1 - h) w``. Uncached it is 1."""
    return hit_rate * prices.read + (1 - hit_rate) * prices.write


def live_cost(shape: Shape, multiplier: float = 1.0) -> float:
    """A live request: ``P x + s + κ o``."""
    return shape.prefix * multiplier + shape.rest + shape.output_ratio * shape.output


def batch_cost(shape: Shape, multiplier: float = 1.0) -> float:
    """The same request in a batch, which has a cache and so a hit rate of its own."""
    return BATCH_DISCOUNT * live_cost(shape, multiplier)


def break_even_hit_rate(prices: CachePrices) -> float:
    """The hit rate above which caching costs less than not caching: ``(w - 1) / (w - r)``."""
    return (prices.write - 1) / (prices.write - prices.read)


def caching_pays(prices: CachePrices, hit_rate: float) -> bool:
    """Whether cache control on the prefix saves money at this hit rate."""
    return hit_rate > break_even_hit_rate(prices)


def warm_up_gain(
    shape: Shape, request_count: int, *, cold: float, warmed: float, prices: CachePrices = ONE_HOUR
) -> float:
    """What a live warm-up call saves on a group, less what it costs itself; negative when it does not pay.

    Args:
        shape: Of the group's requests.
        request_count: How many leave while it is warm.
        cold: The prefix's multiplier in a batch without it: 1 where it is not cached.
        warmed: And with it.
        prices: Of the warm-up call.
    """
    return request_count * BATCH_DISCOUNT * shape.prefix * (cold - warmed) - shape.prefix * prices.write


def plan_warm_up(group: PrefixGroup, *, allowed: bool, storm: bool) -> WarmUp:
    """Whether and how to warm a group's prefix now, before its batches leave.

    Args:
        group: What is about to leave.
        allowed: Whether its site lets the router set cache control (``cache = "auto"``).
        storm: Whether batches do not come back now: they would miss what was warmed.
    """
    small = group.request_count < WARM_AT_LEAST or group.prefix_tokens < group.minimum_tokens
    warm = group.warmed_ago is not None and group.warmed_ago <= WARM_FOR
    if not allowed or storm or small or warm:
        return WarmUp.NONE
    latest = group.warmed_hit_rates[-2:]
    poor = len(latest) == 2 and max(latest) < POOR_HIT_RATE
    return WarmUp.BATCH_OF_ONE if poor else WarmUp.LIVE_CALL
