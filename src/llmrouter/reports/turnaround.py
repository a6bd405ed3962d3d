"""How long the router's own batches take, as `status` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain.experience import observations
from llmrouter.domain.turnaround import ENOUGH, REMEMBERED, fit_turnaround, turnaround_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.turnaround import Turnaround

_GUESS_BELOW = 5
"""Ended batches below which the numbers are mostly what was believed before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnaroundStatus:
    """Within which time batches are back."""

    model: str | None
    """None: of all models."""
    ended: int
    """Batches that ended by themselves, in the sample."""
    p50: timedelta | None
    """Half of them are back within it; None when the sample cannot tell."""
    p90: timedelta | None
    guess: bool
    """Whether so few have ended that this is mostly what is believed before the first one."""


def describe_turnaround(
    closed: Sequence[Batch], opened: Sequence[Batch], now: datetime
) -> tuple[TurnaroundStatus, ...]:
    """That of all models, then of each model with enough batches of its own.

    Args:
        closed: The latest batches that ended.
        opened: Open batches; those in flight count as far as they have come.
        now: The present instant.
    """
    seen = observations(closed, opened, now)
    everything = _describe(None, fit_turnaround(seen[-REMEMBERED:]))
    models = sorted({one.model for one in seen if one.model})
    known = [model for model in models if sum(one.ended for one in seen if one.model == model) >= ENOUGH]
    return (everything, *(_describe(model, turnaround_of(model, seen)) for model in known))


def _describe(model: str | None, curve: Turnaround) -> TurnaroundStatus:
    return TurnaroundStatus(
        model=model,
        ended=curve.ended,
        p50=curve.quantile(0.5),
        p90=curve.quantile(0.9),
        guess=curve.ended < _GUESS_BELOW,
    )
