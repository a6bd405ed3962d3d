"""How long a batch takes from creation to its end, when nothing cuts it short."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MEDIAN_SECONDS = 7 * 60.0
_NINETY_PERCENT_SECONDS = 60 * 60.0
_Z_NINETY_PERCENT = 1.2815515655446004


class Turnaround:
    """How long each batch takes. Make one with `typical`, `lognormal`, `fixed` or `of`."""

    def __init__(self, sample: Callable[[int, int], timedelta]) -> None:
        self._sample = sample

    @classmethod
    def typical(cls, seed: int = 0) -> Turnaround:
        """A lognormal spread: median 7 minutes, 90 % within an hour, a long tail that may expire.

        The n-th batch of a sandbox takes the same time for the same seed, whatever else happens.
        """
        sigma = math.log(_NINETY_PERCENT_SECONDS / _MEDIAN_SECONDS) / _Z_NINETY_PERCENT
        return cls.lognormal(timedelta(seconds=_MEDIAN_SECONDS), sigma, seed)

    @classmethod
    def lognormal(cls, median: timedelta, sigma: float, seed: int = 0) -> Turnaround:
        """A lognormal spread about `median`, above zero; `sigma` is that of the logarithm."""
        mu = math.log(median.total_seconds())

        def sample(number: int, _requests: int) -> timedelta:
            spread = random.Random(f"turnaround:{seed}:{number}")  # noqa: S311 - a simulation, not a secret
            return timedelta(seconds=spread.lognormvariate(mu, sigma))

        return cls(sample)

    @classmethod
    def fixed(cls, span: timedelta) -> Turnaround:
        """Every batch takes `span`; more than 24 hours makes its last items expire."""
        return cls(lambda _number, _requests: span)

    @classmethod
    def of(cls, function: Callable[[int, int], timedelta]) -> Turnaround:
        """What `function(number, requests)` returns, for the batch's number (from 0) and its size."""
        return cls(function)

    def sample(self, number: int, requests: int) -> timedelta:
        """The time batch `number` of `requests` requests takes; raises ValueError when negative."""
        span = self._sample(number, requests)
        if span < timedelta(0):
            raise ValueError(f"a batch cannot take {span}")
        return span
