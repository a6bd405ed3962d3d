"""How long batches take here, learned from the router's own: for status, `why` and warnings."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REMEMBERED = 400
"""How many of the router's latest batches count."""

ENOUGH = 30
"""Ended batches of a model from which on it has a curve of its own.

``0.9 ** 29 < 0.05``: from 29 on, the slowest of them is slower than nine in ten batches, with 95 %
confidence (Wilks 1941). With fewer, the 90 % point that `status` shows would be the prior's guess.
"""

_SQRT2 = math.sqrt(2)
_LONGEST_MINUTES = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """A part of the prior."""

    share: float
    """Of the batches; those of all parts add up to 1."""
    median: timedelta
    sigma: float
    """Standard deviation of the logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is believed before the first batch, and how many batches that belief is worth."""

    batches: float = 8.0
    parts: tuple[Lognormal, ...] = (
        Lognormal(share=0.9, median=timedelta(minutes=4.5), sigma=0.75),
        Lognormal(share=0.1, median=timedelta(minutes=100), sigma=1.2),
    )

    def survival(self, minutes: float) -> float:
        """The share of batches that take longer than that."""
        return 1.0 if minutes <= 0 else sum(part.share * _tail(part, minutes) for part in self.parts)


def _tail(part: Lognormal, minutes: float) -> float:
    z = math.log(minutes * 60 / part.median.total_seconds()) / part.sigma
    return math.erfc(z / _SQRT2) / 2


PRIOR = Prior()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one of the router's own batches told."""

    model: str
    age: timedelta
    """From its creation to its end; for one that has not ended by itself, to the last moment of waiting."""
    ended: bool
    """False for one in flight, canceled or expired: it would have taken longer than its age."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turnaround:
    """The share of batches that take longer than any span: a survival curve.

    Between two observations it follows the prior, after the last one too. Times in minutes.
    """

    prior: Prior
    ended: int
    """How many batches ended in the sample: how far the curve is evidence."""
    _times: list[float] = field(repr=False)
    """Of the observations, ascending, without repetition; begins with 0."""
    _shares: list[float] = field(repr=False)
    """Of batches that take longer than each of the times."""
    _real: list[int] = field(repr=False)
    """Batches observed for longer than each of the times."""

    def survival(self, span: timedelta) -> float:
        """The share of batches that take longer than a span."""
        minutes = max(0.0, span.total_seconds() / 60)
        place = bisect_right(self._times, minutes) - 1
        return self._shares[place] * self._fades(place, minutes)

    def quantile(self, share: float) -> timedelta | None:
        """The span within which a share of the batches is back; None when the sample cannot tell.

        It can always tell with a prior, up to 19 years.
        """
        left = 1 - share
        for place, time in enumerate(self._times):
            if self._shares[place] <= left:
                return timedelta(minutes=time)
            until = self._times[place + 1] if place + 1 < len(self._times) else _LONGEST_MINUTES
            if self._shares[place] * self._fades(place, until) <= left:
                return timedelta(minutes=self._cross(place, until, left))
        return None

    def _fades(self, place: int, minutes: float) -> float:
        """What the prior's hazard leaves of the curve between an observation and a later moment."""
        pseudo = self.prior.batches
        begin = self._real[place] + pseudo * self.prior.survival(self._times[place])
        end = self._real[place] + pseudo * self.prior.survival(minutes)
        return end / begin if begin > 0 else 1.0

    def _cross(self, place: int, until: float, left: float) -> float:
        low, high = self._times[place], until
        for _ in range(60):
            middle = (low + high) / 2
            if self._shares[place] * self._fades(place, middle) <= left:
                high = middle
            else:
                low = middle
        return high


def fit_turnaround(observations: Sequence[Observation], prior: Prior = PRIOR) -> Turnaround:
    """Kaplan and Meier's estimate, with a prior.

    The prior is a Dirichlet process: ``prior.batches`` pseudo-batches that end as it says, so that
    between observations ``dH = m dF / (n + m S)``, n being the batches still observed, m S the
    pseudo-batches still left. That integrates to the ratio of what is at risk (Susarla and Van
    Ryzin 1976). With a weight of 0 it is Kaplan and Meier's own.

    Args:
        observations: The latest batches; see `REMEMBERED`. One that ended counts as at risk until
            then, and before one of the same age that did not end.
        prior: What is believed before.
    """
    ages = sorted((one.age.total_seconds() / 60, one.ended) for one in observations)
    times, shares, real = [0.0], [1.0], [len(ages)]
    share, at_risk = 1.0, len(ages)
    for age, group in groupby(ages, key=lambda one: one[0]):
        same = [ended for _, ended in group]
        before = at_risk + prior.batches * prior.survival(times[-1])
        now = at_risk + prior.batches * prior.survival(age)
        share *= (now / before) * (1 - sum(same) / now)
        at_risk -= len(same)
        if age <= 0:
            times, shares, real = [], [], []
        times.append(max(0.0, age))
        shares.append(share)
        real.append(at_risk)
    ended = sum(ended for _, ended in ages)
    return Turnaround(prior=prior, ended=ended, _times=times, _shares=shares, _real=real)


def turnaround_of(model: str, observations: Sequence[Observation], prior: Prior = PRIOR) -> Turnaround:
    """The curve of a model, or that of all models while it has fewer than `ENOUGH` ended batches.

    Args:
        model: Its name.
        observations: Of all models, oldest first; the last `REMEMBERED` of what is used count.
        prior: What is believed before.
    """
    own = [one for one in observations if one.model == model][-REMEMBERED:]
    enough = sum(one.ended for one in own) >= ENOUGH
    return fit_turnaround(own if enough else observations[-REMEMBERED:], prior)
