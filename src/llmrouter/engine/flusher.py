"""Sends backlogs off: claims, packs and creates batches."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain.batches import NONCE_CHARS
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.scheduling import FlushReason
from llmrouter.engine.creator import Creator
from llmrouter.engine.holds import Holds
from llmrouter.engine.suspects import MOST_ASIDE, Search, is_to_blame
from llmrouter.engine.unanswered import refused_answer
from llmrouter.errors import CreateRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.requests import Waiting
    from llmrouter.domain.scheduling import Flush
    from llmrouter.ports import BatchApi, Clock, Lease, Store

_NONCE_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"

log = logging.getLogger("llmrouter.engine")


class Flusher:
    """Turns what waits into batches at the API, each created once.

    Backlogs of different lanes, classes or models may leave side by side, each in its thread; one of them
    leaves in one thread at a time, since two would only split its batches.
    """

    def __init__(
        self,
        store: Store,
        api: BatchApi,
        clock: Clock,
        limits: Mapping[str, BatchLimits],
        *,
        max_attempts: int,
        warm: Callable[[Waiting], object] = lambda _: None,
    ) -> None:
        """Makes a flusher.

        Args:
            store: Where the backlog is.
            api: Where it goes.
            clock: Tells when a batch was claimed.
            limits: The largest batch of each latency class.
            max_attempts: How often a request that is refused alone, with nothing to compare it
                with, is tried before that is its outcome.
            warm: Called with a backlog some of whose prompts begin alike, right before its first batch
                is claimed. It is waited for.
        """
        self.store = store
        self.clock = clock
        self.max_attempts = max_attempts
        self.warm = warm
        self._api = api
        self._limits = limits
        self._turns: dict[tuple[str, ...], threading.Lock] = {}
        self._searches: dict[tuple[str, ...], Search] = {}
        self.creator = Creator(store, api, clock)
        self.holds = Holds(clock)
        self.stopping = threading.Event()
        """Set: what is under way is finished, and no other batch begun."""

    def run_once(self, lease: Lease, flush: Flush) -> int:
        """Sends a backlog off; answers with the number of batches that were created, or perhaps were.

        A lane whose credential this process does not hold, one that is held back, and a class that
        is paused are left waiting.

        Raises:
            LeaseLostError: Another process works on the store now.
            StoreError: The store cannot be used now. What was created is recorded as soon as it can.
        """
        waiting = flush.waiting
        name = flush.name
        with self._turns.setdefault(name, threading.Lock()):
            if not self._api.serves(waiting.lane):
                return 0
            most = self._limits.get(waiting.latency) or BatchLimits()
            search = self._searches.setdefault(name, Search())
            return _Departure(self, lease, flush, search, most).run()


class _Departure:
    """One backlog on its way out."""

    def __init__(
        self, flusher: Flusher, lease: Lease, flush: Flush, search: Search, most: BatchLimits
    ) -> None:
        self._store, self._clock = flusher.store, flusher.clock
        self._creator, self._holds = flusher.creator, flusher.holds
        self._max_attempts, self._stopping = flusher.max_attempts, flusher.stopping
        self._warm = flusher.warm
        self._lease = lease
        self._waiting, self._reason = flush.waiting, flush.reason
        self._search = search
        self._most = most
        self._lane_id = flush.waiting.lane.lane_id
        self._left = flush.waiting.request_count
        self._created = 0

    def run(self) -> int:
        """Sends batch after batch, until nothing is left or the lane has to wait."""
        try:
            if self._waiting.prefixes and self._may_go_on():
                self._warm_up()
            while self._may_go_on() and self._send_one():
                pass
            self._judge_aside()
        finally:
            for batch, _ in self._search.aside:
                self._creator.drop(batch.batch_id)
            self._search.aside.clear()
        return self._created

    def _may_go_on(self) -> bool:
        if self._stopping.is_set() or self._left <= 0:
            return False
        if self._holds.blocks(self._lane_id, asked=self._reason is FlushReason.ASKED):
            return False
        if self._waiting.latency in self._store.paused():
            return False
        # What is left of a full backlog waits for company again.
        rest = self._reason is FlushReason.FULL and self._created > 0
        return not rest or self._left >= self._limits().max_requests

    def _warm_up(self) -> None:
        """Warms the prompt cache. The lease is looked at first: another process would do it, too."""
        self._store.check_lease(self._lease)
        try:
            self._warm(self._waiting)
        except Exception as error:  # noqa: BLE001  (whatever is wrong with its warm-up, the backlog leaves)
            known = {"lane": self._lane_id, "latency": self._waiting.latency}
            log.warning("the prompt cache was not warmed (%s)", type(error).__name__, extra=known)

    def _limits(self) -> BatchLimits:
        limit = self._search.limit
        if limit is None:
            return self._most
        return replace(self._most, max_requests=min(limit, self._most.max_requests))

    def _send_one(self) -> bool:
        """Claims and creates one batch. False when the rest has to wait."""
        batch = self._claim()
        if batch is None:
            return False
        error = self._creator.create(self._lease, batch)
        if isinstance(error, CreateRefusedError):
            return self._take_back(batch, error)
        self._created += 1
        self._left -= batch.request_count
        if error is not None:
            # Or else an outage would put batch after batch in doubt.
            self._holds.hold(self._lane_id, error)
            return False
        self._passed()
        known = {"batch_id": batch.batch_id, "lane": self._lane_id, "latency": batch.latency}
        log.info("created a batch of %d requests (%s)", batch.request_count, self._reason, extra=known)
        return True

    def _claim(self) -> Batch | None:
        batch_id = f"batch_{secrets.token_hex(10)}"
        self._creator.begin(batch_id)
        batch = None
        try:
            batch = self._store.claim(
                self._lease,
                self._waiting,
                self._limits(),
                batch_id=batch_id,
                nonce="".join(secrets.choice(_NONCE_ALPHABET) for _ in range(NONCE_CHARS)),
                now=self._clock.now(),
            )
        finally:
            if batch is None:
                self._creator.drop(batch_id)
        return batch

    def _passed(self) -> None:
        """The API took a batch: what was put aside before it is to blame for its own refusal."""
        self._holds.end(self._lane_id)
        aside = self._search.aside
        while aside:
            self._fail(*aside[0])
            del aside[0]
        self._search.rounds.clear()
        self._search.most_aside = MOST_ASIDE
        self._search.passed(self._most.max_requests)

    def _take_back(self, batch: Batch, refusal: CreateRefusedError) -> bool:
        """Deals with a batch that the API refused as a whole. False when the lane has to wait.

        A refusal that blames the content is narrowed down, any other holds the lane back for a
        while: the next batch would fare no better.
        """
        if not refusal.blames_content:
            self._release(batch)
            self._holds.hold(self._lane_id, refusal)
            return False
        known = {"batch_id": batch.batch_id, "lane": self._lane_id}
        log.warning("a batch of %d was refused: %s", batch.request_count, refusal.brief, extra=known)
        if batch.request_count > 1:
            self._search.halve(batch.request_count)
            self._release(batch)
            return True
        self._left -= 1
        if is_to_blame(refusal):
            self._fail(batch, refusal)
            self._search.passed(self._most.max_requests)
            return True
        self._search.aside.append((batch, refusal))
        self._search.limit = 1
        return len(self._search.aside) < self._search.most_aside

    def _judge_aside(self) -> None:
        """Nothing passed after these were refused alone: the account may be to blame, so the lane waits.

        Where there were no others to compare them with, they fail after some rounds of that.
        """
        aside = self._search.aside
        if not aside:
            return
        many, (_, last) = len(aside) >= MOST_ASIDE, aside[-1]
        if len(aside) >= self._search.most_aside:
            self._search.waits()
        while aside:
            batch, refusal = aside[0]
            request_id = self._only_request(batch)
            rounds = 0 if request_id is None else self._search.rounds.get(request_id, 0) + 1
            if request_id is not None:
                self._search.rounds[request_id] = rounds
            if rounds >= self._max_attempts and not many:
                self._fail(batch, refusal)
            else:
                self._release(batch)
            del aside[0]
        self._holds.hold(self._lane_id, last)

    def _fail(self, batch: Batch, refusal: CreateRefusedError) -> None:
        """Gives the only request of a refused batch the API's error."""
        with self._dealing_with(batch):
            request_id = self._only_request(batch)
            if request_id is None:
                self._store.release(self._lease, batch.batch_id)
                return
            answer = refused_answer(request_id, refusal)
            self._store.settle(self._lease, batch.batch_id, [answer], self._clock.now())
            self._store.finish(self._lease, batch)
        self._search.rounds.pop(request_id, None)
        log.warning("a request was refused: %s", refusal.brief, extra={"request_id": request_id})

    def _release(self, batch: Batch) -> None:
        with self._dealing_with(batch):
            self._store.release(self._lease, batch.batch_id)

    @contextlib.contextmanager
    def _dealing_with(self, batch: Batch) -> Iterator[None]:
        """Lets go of a refused batch in any case: what the store cannot do now is left to `Creator.tidy`."""
        try:
            yield
        finally:
            self._creator.drop(batch.batch_id)

    def _only_request(self, batch: Batch) -> str | None:
        """The request of a refused batch; None when it goes live meanwhile."""
        return next(iter(self._store.unsettled(batch.batch_id)), None)
