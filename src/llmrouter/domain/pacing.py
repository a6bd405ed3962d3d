"""How fast the router's own live calls may begin: limits, what is left of them, ramps and waits."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.model_pace import Average, Bucket, ModelPace, Use
from llmrouter.domain.rates import (
    RAMP,
    RAMP_FIRST_SHARE,
    RAMP_PAUSE,
    Concurrency,
    PerMinute,
    Work,
    planning_rate,
    ramp_share,
    ramp_work,
    requests_per_minute,
)
from llmrouter.domain.requests import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from llmrouter.domain.live import LiveCallError, LiveReply, RateLimits

_FIRST_CALL_SECONDS = 10.0
"""What a call is taken to last before the first has ended."""

_BURST_SECONDS = 2
"""So much of the rate may begin at once."""

_TRICKLE = 1.0
"""Calls a minute that may begin though the application's busy minutes leave nothing: most are not busy."""


class Pacer:
    """How fast the router's own live calls may begin.

    Decides by what it is told: each call that begins, how it ended, and the application's own. The
    API's limits are those of a model, ``requests_per_minute`` counts all models together. Not thread-safe.
    ``now`` is in seconds of one monotonic clock, ``at`` the same moment by the machine's clock.
    """

    def __init__(
        self, *, concurrency: int, requests_per_minute: float | None, share: float, ramp: timedelta
    ) -> None:
        """Nothing is known yet.

        Args:
            concurrency: Calls that may be under way at once.
            requests_per_minute: The account's limit of live requests; None: what the headers say.
            share: How much of what is left of the limits may be used, above 0 and at most 1.
            ramp: In which the rate doubles after a pause.
        """
        self._concurrency = concurrency
        self._set_limit = requests_per_minute
        self._share = share
        self._ramp = ramp
        self._pause_seconds = RAMP_PAUSE.total_seconds() * (ramp / RAMP)
        self._ramp_since: float | None = None
        self._begun_at = self._ended_at = -math.inf
        """When a call last began, and when one ended."""
        self._under_way = 0
        self._call_seconds = Average(_FIRST_CALL_SECONDS, count=1)
        self._models: dict[str, ModelPace] = {}
        self._use = Use()
        self._pace = Bucket()
        """Of all models together, under the limit that was set."""

    @property
    def under_way(self) -> int:
        """Calls that began and have not ended."""
        return self._under_way

    @property
    def knows_limits(self) -> bool:
        """Whether a limit was set, or the API has named one."""
        return self._set_limit is not None or any(model.left for model in self._models.values())

    def room(self, now: float, model: str) -> int:
        """How many calls of a model may begin now."""
        known = self._model(model)
        if known.waits_until > now:
            return 0
        pace = self._per_minute(now, known)
        if math.isinf(pace):
            # Nothing but the calls under way can be ramped, and slowed.
            share = self._ramp_share(now) * known.speed(now)
            room: float = math.ceil(share * self._concurrency) - self._under_way
        else:
            self._fill(now, known.pace, pace)
            room = min(self._concurrency - self._under_way, known.pace.room())
        if self._set_limit is not None:
            self._fill(now, self._pace, self._spare(self._set_limit, self._use.busy(now)))
            room = min(room, self._pace.room())
        return max(0, int(min(room, known.room_left(now))))

    def begin(self, now: float, model: str) -> None:
        """A call begins."""
        known = self._model(model)
        self.room(now, model)  # Fills what it is taken from.
        if self._is_paused(now):
            self._ramp_since = now
        self._begun_at = now
        self._under_way += 1
        self._pace.level -= 1
        known.pace.level -= 1
        known.take_left()

    def cancel(self, now: float, model: str) -> None:
        """A call that began was not sent after all."""
        known = self._model(model)
        self._under_way = max(0, self._under_way - 1)
        self._pace.level += 1
        known.pace.level += 1
        known.take_left(-1)
        if not self._under_way and now - self._ended_at >= self._pause_seconds:
            self._begun_at = self._ended_at  # The pause goes on.

    def end(self, now: float, at: datetime, model: str, reply: LiveReply, *, usual: bool = True) -> None:
        """A call that began was answered; one that is not usual tells nothing of the work of others."""
        known = self._end(now, at, model, reply.limits)
        known.forgive(now)
        if usual and reply.kind is OutcomeKind.SUCCEEDED:
            self._call_seconds.add(reply.took.total_seconds())
            known.took(reply.work)

    def failed(self, now: float, at: datetime, model: str, error: LiveCallError) -> None:
        """A call that began was not answered."""
        known = self._end(now, at, model, error.limits)
        if error.limited:
            known.refuse(now, error.retry_after)
        elif not (error.spent or error.credential):  # Those have waits of their own.
            known.fail(now)

    def saw(self, now: float, at: datetime, model: str, work: Work, limits: RateLimits | None) -> None:
        """The application made a call of its own."""
        known = self._model(model)
        known.use.add(now, work)
        self._use.add(now, work)
        known.note(now, at, limits, self._share)

    def rate(self, now: float, models: Iterable[str]) -> PerMinute:
        """What to plan with while requests of these models are outstanding: that of the scarcest.

        Its requests are finite, since only so many calls may be under way.
        """
        known = [self._model(model) for model in models] or [ModelPace()]
        rates = [self._rate(now, model) for model in known]
        return PerMinute(
            requests=min(rate.requests for rate in rates),
            input_tokens=min(rate.input_tokens for rate in rates),
            output_tokens=min(rate.output_tokens for rate in rates),
        )

    def usual(self, model: str) -> Work:
        """The work of one request of a model; without tokens while they are not known."""
        known = self._models.get(model)
        return Work(requests=1.0) if known is None else known.usual

    def ramping(self, now: float) -> bool:
        """Whether calls would begin below the rate now."""
        return self._ramp_share(now) < 1

    def waits_until(self, now: float, model: str | None = None) -> float | None:
        """Until when the API asked to wait with a model, or the longest with any; None when it does not."""
        known = self._models.values() if model is None else [self._model(model)]
        until = max((one.waits_until for one in known), default=now)
        return until if until > now else None

    def _model(self, name: str) -> ModelPace:
        known = self._models.get(name)
        if known is None:
            known = self._models[name] = ModelPace()
        return known

    def _end(self, now: float, at: datetime, model: str, limits: RateLimits | None) -> ModelPace:
        known = self._model(model)
        self._under_way = max(0, self._under_way - 1)
        self._ended_at = now
        known.note(now, at, limits, self._share)
        return known

    def _is_paused(self, now: float) -> bool:
        return now - max(self._begun_at, self._ended_at) >= self._pause_seconds

    def _ramp_share(self, now: float) -> float:
        if self._ramp_since is None or self._is_paused(now):
            return RAMP_FIRST_SHARE
        return ramp_share(timedelta(seconds=now - self._ramp_since), self._ramp)

    def _limits_of(self, model: ModelPace) -> PerMinute:
        limits = model.limits
        if self._set_limit is None:
            return limits
        return PerMinute(
            requests=self._set_limit, input_tokens=limits.input_tokens, output_tokens=limits.output_tokens
        )

    def _use_of(self, now: float, model: ModelPace) -> PerMinute:
        used = model.use.busy(now)
        if self._set_limit is None:
            return used
        return PerMinute(
            requests=self._use.busy(now).requests,
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
        )

    def _rate(self, now: float, model: ModelPace) -> PerMinute:
        concurrency = Concurrency(calls=self._concurrency, call_seconds=self._call_seconds.value)
        rate = planning_rate(
            self._limits_of(model), self._use_of(now, model), share=self._share, concurrency=concurrency
        )
        speed = model.speed(now)
        return PerMinute(
            requests=speed * rate.requests,
            input_tokens=speed * rate.input_tokens,
            output_tokens=speed * rate.output_tokens,
        )

    def _per_minute(self, now: float, model: ModelPace) -> float:
        """Calls of a model that may begin a minute once the ramp is over, whatever is under way."""
        limits, usual = self._limits_of(model), model.usual
        rate = planning_rate(limits, self._use_of(now, model), share=self._share)
        least = min(_TRICKLE, self._share * requests_per_minute(limits, usual))
        return max(least, model.speed(now) * requests_per_minute(rate, usual))

    def _spare(self, limit: float, used: PerMinute) -> float:
        """The same of all models together."""
        rate = planning_rate(PerMinute(requests=limit), used, share=self._share)
        return max(min(_TRICKLE, self._share * limit), rate.requests)

    def _fill(self, now: float, pace: Bucket, per_minute: float) -> None:
        """What has come in since the last look, and not more than a burst.

        In any minute begins what comes in, and the burst. Where the share leaves no room for that, less
        comes in.
        """
        most = max(1.0, per_minute * self._ramp_share(now) * _BURST_SECONDS / 60)
        coming = min(per_minute, per_minute / self._share - (most - 1))
        since = self._ramp_since
        if since is None or self._is_paused(now):
            minutes = RAMP_FIRST_SHARE * (now - pace.filled_at) / 60
        else:
            minutes = ramp_work((now - since) / 60, self._ramp)
            minutes -= ramp_work(max(0.0, pace.filled_at - since) / 60, self._ramp)
        pace.fill(now, coming * minutes, most)
