"""Warms the prompt cache before a batch leaves: a live call for each beginning that many prompts share."""

from __future__ import annotations

import logging
import secrets
import threading
from concurrent import futures
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.cache_use import use_of
from llmrouter.domain.live import LiveCallError
from llmrouter.domain.prompt_cache import (
    WARM_FOR,
    PrefixGroup,
    is_warmable,
    is_worth_warming,
    minimum_tokens,
)
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain.live import LiveReply
    from llmrouter.domain.prompt_cache import WarmUpCall
    from llmrouter.domain.requests import Waiting
    from llmrouter.engine.budget import Budget
    from llmrouter.engine.live_faults import LiveFaults
    from llmrouter.engine.pace import Pace
    from llmrouter.ports import Clock, LiveApi, Store

MOST_AT_ONCE = 16
"""Prefixes that are warmed before one flush, those of most requests first: the flush waits for them."""

PATIENCE = timedelta(seconds=20)
"""How long a flush waits for all its warm-up calls together. One may take minutes where the API is ill."""

RETRY_AFTER = timedelta(minutes=5)
"""How long a prefix is left alone when its warm-up call was clearly not done."""

log = logging.getLogger("llmrouter.engine")


@dataclass(slots=True)
class _Cache:
    """What is known of the prompt cache of one lane and model. Instants are the clock's monotonic seconds."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    """Its owner alone reads and writes the others, and makes calls."""
    warmed_at: dict[str, float] = field(default_factory=dict)
    """When a prefix was warmed, or may have been."""
    retry_at: dict[str, float] = field(default_factory=dict)
    """When it may be tried again, for those that could not be."""


class Warmer:
    """Warms prefixes of backlogs that are about to leave, and remembers for 50 minutes which are warm.

    Backlogs of one lane and model, of several latency classes, read the same cache: they take turns, and
    what is warm for the first is so for the second. After a restart a prefix that is still warm is read
    once more, at a twentieth of the price of writing it.

    Live calls that have deadlines come first: none is made here beyond their pace, their budget, or while
    something stops them.
    """

    def __init__(
        self,
        store: Store,
        api: LiveApi,
        clock: Clock,
        pace: Pace,
        budget: Budget,
        faults: LiveFaults,
        *,
        shape: Callable[[bytes, str], WarmUpCall | None],
        is_storm: Callable[[], bool],
        patience: timedelta = PATIENCE,
    ) -> None:
        """Makes a warmer.

        Args:
            store: Where the requests are, and where the calls are counted.
            api: Where the calls go.
            clock: Tells how long ago a prefix was warmed.
            pace: Says whether a call may begin.
            budget: Says whether it may cost anything.
            faults: Says what stops live calls.
            shape: Makes the warm-up call of a body and its prefix; None when there can be none.
            is_storm: Whether batches do not come back now.
            patience: How long a backlog waits for its calls.
        """
        self._store = store
        self._api = api
        self._clock = clock
        self._pace = pace
        self._budget = budget
        self._faults = faults
        self._shape = shape
        self._is_storm = is_storm
        self._patience = patience.total_seconds()
        self._caches: dict[tuple[str, str], _Cache] = {}

    def run_once(self, waiting: Waiting) -> int:
        """Warms what pays to be warmed of a backlog; to be called right before it leaves.

        Nothing foreseen that goes wrong here keeps it from leaving: it is logged, and what is left stays
        cold. A call that is not answered in time goes on, and is counted when it is.

        Returns:
            How many prefixes were warmed.
        """
        if not self._worth_a_look(waiting, _Cache()):
            return 0
        if not (self._api.serves(waiting.lane) and self._api.carries(waiting.lane)):
            return 0
        until = self._clock.monotonic() + self._patience
        cache = self._caches.setdefault((waiting.lane.lane_id, waiting.model), _Cache())
        if not cache.turn.acquire(timeout=self._patience):
            return 0
        try:
            self._forget(cache)
            return self._warm_some(waiting, cache, until)
        finally:
            cache.turn.release()

    def _warm_some(self, waiting: Waiting, cache: _Cache, until: float) -> int:
        """Warms one prefix after the other, while there is time."""
        known = {"lane": waiting.lane.lane_id, "latency": waiting.latency}
        count = 0
        try:
            self._budget.refresh()
            for prefix in self._worth_a_look(waiting, cache)[:MOST_AT_ONCE]:
                call = self._call_for(waiting, prefix, cache)
                if call is None:
                    continue
                if self._clock.monotonic() >= until or not self._may_begin(waiting):
                    break
                count += self._warm(waiting, prefix, call, cache, until)
        except LiveCallError as error:
            log.warning("a warm-up of the prompt cache failed: %s", error.brief, extra=known)
        except StoreError as error:
            name = type(error).__name__
            log.warning("the prompt cache was not warmed: no request could be read (%s)", name, extra=known)
        if count:
            log.info("warmed the prompt cache for %d prefixes", count, extra=known)
        return count

    def _worth_a_look(self, waiting: Waiting, cache: _Cache) -> list[str]:
        """The prefixes to warm if they are long enough, the most shared ones first."""
        enough = minimum_tokens(waiting.model)
        wanted = [
            prefix
            for prefix in waiting.prefixes
            if prefix not in cache.retry_at and self._pays(waiting, prefix, enough, cache)
        ]
        return sorted(wanted, key=lambda prefix: -waiting.prefixes[prefix])

    def _pays(self, waiting: Waiting, prefix: str, tokens: int, cache: _Cache) -> bool:
        warmed_at = cache.warmed_at.get(prefix)
        ago = None if warmed_at is None else timedelta(seconds=self._clock.monotonic() - warmed_at)
        group = PrefixGroup(
            request_count=waiting.prefixes[prefix],
            prefix_tokens=tokens,
            minimum_tokens=minimum_tokens(waiting.model),
            warmed_ago=ago,
        )
        return is_worth_warming(group, allowed=is_warmable(prefix), storm=self._is_storm())

    def _call_for(self, waiting: Waiting, prefix: str, cache: _Cache) -> WarmUpCall | None:
        """The call for one prefix; None where none can be made, or it is too short: it is left for a while.

        Raises:
            StoreError: There is no reading of requests now.
        """
        body = self._store.sample(waiting, prefix)
        call = None if body is None else self._shape(body, prefix)
        if call is not None and self._pays(waiting, prefix, call.prefix_tokens, cache):
            return call
        cache.retry_at[prefix] = self._clock.monotonic() + RETRY_AFTER.total_seconds()
        return None

    def _may_begin(self, waiting: Waiting) -> bool:
        """Takes a place under the pace; False where there is none, or something stops live calls."""
        held = self._faults.spent_until or self._faults.lane_hold(waiting.lane.lane_id)
        if held or self._budget.is_used_up(waiting.latency):
            return False
        return self._pace.begin(waiting.model, 1) > 0

    def _warm(self, waiting: Waiting, prefix: str, call: WarmUpCall, cache: _Cache, until: float) -> bool:
        """Makes the call for one prefix, for which a place was taken. False when the API refuses it.

        Raises:
            LiveCallError: It was not answered, or not in time.
        """
        now = self._clock.monotonic()
        try:
            reply = self._answer(waiting, call, until)
        except LiveCallError as error:
            if error.unclear:
                # It may have been done, and paid for: better a cold batch than to pay for it twice.
                cache.warmed_at[prefix] = now
            else:
                cache.retry_at[prefix] = now + RETRY_AFTER.total_seconds()
            raise
        if reply.kind is OutcomeKind.SUCCEEDED:
            cache.warmed_at[prefix] = now
            return True
        # The next one of these would fare no better.
        cache.retry_at[prefix] = now + WARM_FOR.total_seconds()
        known = {"lane": waiting.lane.lane_id, "latency": waiting.latency}
        log.warning("the API refused a warm-up of the prompt cache", extra=known)
        return False

    def _answer(self, waiting: Waiting, call: WarmUpCall, until: float) -> LiveReply:
        """Makes a call in a thread of its own, so that nobody has to wait for it longer than is good.

        Raises:
            LiveCallError: It was not answered, or not in time.
        """
        answered: futures.Future[LiveReply | Exception] = futures.Future()

        def run() -> None:
            try:
                came: LiveReply | Exception = self._api.call(
                    waiting.lane, f"warm_{secrets.token_hex(10)}", call.body
                )
            except Exception as error:  # noqa: BLE001  (whatever it is, it is this call's end)
                came = error
            try:
                self._count(waiting, came)
            finally:
                answered.set_result(came)

        try:
            # Nobody waits for it at the end: all that could get lost is what it cost.
            threading.Thread(target=run, name="llmrouter-warm", daemon=True).start()
        except RuntimeError as error:  # The interpreter ends: nothing was sent.
            self._pace.cancel(waiting.model, 1)
            raise LiveCallError("the call was not made: this process is stopping") from error
        try:
            came = answered.result(timeout=max(0.0, until - self._clock.monotonic()))
        except futures.TimeoutError as error:
            raise LiveCallError("it takes too long; the batch leaves without it", unclear=True) from error
        if isinstance(came, LiveCallError):
            raise came
        if isinstance(came, Exception):
            raise LiveCallError(type(came).__name__, unclear=True) from came
        return came

    def _count(self, waiting: Waiting, came: LiveReply | Exception) -> None:
        """Notes how a call ended, and what it cost."""
        self._pace.end(waiting.model, came, usual=False)
        if isinstance(came, Exception) or came.kind is not OutcomeKind.SUCCEEDED:
            return
        self._budget.note(waiting.latency, came.paid_usd)
        try:
            self._store.count_warm_up(waiting.latency, use_of(came.raw), came.paid_usd, self._clock.now())
        except StoreError as error:
            known = {"lane": waiting.lane.lane_id, "latency": waiting.latency}
            log.warning("a warm-up call could not be counted (%s)", type(error).__name__, extra=known)

    def _forget(self, cache: _Cache) -> None:
        """Drops what does not matter any more, so that no memory is lost to prefixes of long ago."""
        now = self._clock.monotonic()
        oldest = now - WARM_FOR.total_seconds()
        cache.warmed_at = {prefix: at for prefix, at in cache.warmed_at.items() if at >= oldest}
        cache.retry_at = {prefix: at for prefix, at in cache.retry_at.items() if at > now}
