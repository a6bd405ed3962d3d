"""When a shared prompt prefix is worth caching, and worth warming before a batch leaves.

All costs are in tokens of uncached live input: multiply by the model's input price.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH_DISCOUNT = 0.5

WARM_AT_LEAST = 10
"""Requests of one prefix from which on a warm-up call pays, with the hit rates seen so far."""

WARM_FOR = timedelta(minutes=50)
"""How long a warm-up counts: its entry lives an hour from its last use, and batches take a while to begin."""

PREFIXES_KEPT = 4096
"""How many beginnings of prompts a router remembers."""

_BYTES_PER_TOKEN = 4
_MINIMUM_TOKENS = (
    ("opus-4-8", 1024),
    ("opus-4-7", 2048),
    ("opus-4-6", 4096),
    ("opus-4-5", 4096),
    ("opus-4", 1024),
    ("sonnet-4", 1024),
    ("haiku-4-5", 4096),
    ("sonnet-5-5", 512),
    ("sonnet-5", 1024),
    ("haiku-5-5", 512),
    ("opus-5", 512),
    ("fable-5", 512),
    ("mythos-5", 512),
    ("mythos-preview", 2048),
    ("3-5-haiku", 2048),
)
"""What a model caches at least, by a part of its name, the first that fits. From "Cache limitations" in
https://platform.claude.com/docs/en/build-with-claude/prompt-caching, as quoted in October 2026; a newer
version that is not named there is taken to be as the others of its family."""

_UNKNOWN_MINIMUM_TOKENS = 4096
"""Of a model that is not listed: the largest of those that are. Too much only leaves some uncached."""

_WARMABLE = "auto-"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixGroup:
    """Requests of one lane and model that begin alike."""

    request_count: int
    prefix_tokens: int
    minimum_tokens: int
    """What the model caches at least."""
    warmed_ago: timedelta | None = None
    """None when it was not warmed yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpCall:
    """A live call that puts a prefix into the cache."""

    body: bytes = field(repr=False)
    """The JSON of its parameters."""
    prefix_tokens: int
    """Estimated from its bytes."""


class SharedPrefixes:
    """Tells which beginnings of prompts are shared by requests, from those that came by.

    Each distinct `Group` costs a row in the store, so a prefix that only one request has, a document of
    its own, say, must not become part of one: that takes a second request with it, in this process, while
    the first is remembered (the last `PREFIXES_KEPT` prefixes). May be used from several threads.
    """

    def __init__(self, most: int = PREFIXES_KEPT) -> None:
        self._most = most
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def pick(self, prefixes: Sequence[str]) -> str:
        """The longest prefix of a request that an earlier one had, too; empty when there is none.

        Args:
            prefixes: One for each of its cache breakpoints, the shortest first.
        """
        shared = ""
        with self._lock:
            for prefix in prefixes:
                if prefix in self._seen:
                    shared = prefix
                self._seen[prefix] = None
                self._seen.move_to_end(prefix)
            while len(self._seen) > self._most:
                self._seen.popitem(last=False)
        return shared


def name_prefix(prefix: str, *, warmable: bool) -> str:
    """What `Group.prefix` says of a prefix: its hash, and whether its site lets the router warm it.

    The process that flushes may have other settings than the one that submitted, and knows no sites.

    Args:
        prefix: Its hash; empty for none.
        warmable: Whether the site has ``cache = "auto"``.
    """
    return _WARMABLE + prefix if prefix and warmable else prefix


def is_warmable(prefix: str) -> bool:
    """Whether the site of a `Group.prefix` lets the router warm it."""
    return prefix.startswith(_WARMABLE)


def prefix_hash(prefix: str) -> str:
    """The hash in a `Group.prefix`."""
    return prefix.removeprefix(_WARMABLE)


def minimum_tokens(model: str) -> int:
    """How long a prefix has to be for a model to cache it; a shorter one is no error, and is not cached."""
    return next((tokens for part, tokens in _MINIMUM_TOKENS if part in model), _UNKNOWN_MINIMUM_TOKENS)


def estimate_tokens(size: int) -> int:
    """About how many tokens so many bytes of JSON are: a quarter."""
    return size // _BYTES_PER_TOKEN


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


def is_worth_warming(group: PrefixGroup, *, allowed: bool, storm: bool) -> bool:
    """Whether to warm a group's prefix now by a live call, before its batches leave.

    Args:
        group: What is about to leave.
        allowed: Whether its site lets the router set cache control (``cache = "auto"``).
        storm: Whether batches do not come back now: they would miss what was warmed.
    """
    large = group.request_count >= WARM_AT_LEAST and group.prefix_tokens >= group.minimum_tokens
    warm = group.warmed_ago is not None and group.warmed_ago <= WARM_FOR
    return allowed and not storm and large and not warm
