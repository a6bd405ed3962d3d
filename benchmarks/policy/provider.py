"""The simulated API and its books: batches, cancels, live calls. Time goes by in minutes."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from benchmarks.policy.worlds import EXPIRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.policy.worlds import Weather

_CANCEL_SIGMA = 0.5
_REMEMBERED = 300


@dataclass(slots=True)
class Cohort:
    """Requests of one class that were accepted in the same minute. Parts of requests are counted, too."""

    deadline: int
    number: float
    insured: bool | None = None
    """What the plan said when they were accepted; None under a policy that promises nothing."""

    def take(self, share: float) -> Cohort:
        """Splits a part off."""
        taken = self.number * share
        self.number -= taken
        return Cohort(self.deadline, taken, self.insured)


@dataclass(slots=True)
class Group:
    """Cohorts that share a fate, by deadline."""

    latency: str
    cohorts: list[Cohort]

    @property
    def number(self) -> float:
        """How many requests."""
        return sum(cohort.number for cohort in self.cohorts)

    @property
    def deadline(self) -> int:
        """The earliest."""
        return self.cohorts[0].deadline


@dataclass(slots=True)
class Batch:
    """A batch at the API."""

    name: str
    group: Group
    created: int
    work: float
    ends: float
    """When it ends by itself; infinite when it does not."""
    size: float
    stuck: float = 1.0
    """The share that can be done at all."""
    cancel_asked: int | None = None
    over_at: float = math.inf
    raced: Live | None = None
    over: bool = False


@dataclass(slots=True)
class Live:
    """Requests queued for live calls."""

    name: str
    group: Group
    batch: Batch | None = None
    """That may still answer them."""
    sent: float = 0.0
    """How many have been sent while it might."""


@dataclass(slots=True)
class Books:
    """What was paid and what was missed, in requests and in prices of live calls."""

    cost: float = 0.0
    accepted: int = 0
    uninsured: float = 0.0
    missed: float = 0.0
    missed_insured: float = 0.0
    paid_twice: float = 0.0
    by_batch: float = 0.0
    by_live: float = 0.0
    batches: int = 0
    cancels: int = 0
    overtaken: int = 0
    """Batches that the policy saw overtaken."""
    causes: Counter[str] = field(default_factory=Counter)
    """Of escalations: requests by reason."""
    missed_by: Counter[str] = field(default_factory=Counter)
    """Missed requests by class."""


class Provider:
    """Batches and live calls under one draw of the weather."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.books = Books()
        self.in_flight: dict[str, Batch] = {}
        self.live: dict[str, Live] = {}
        self.ended: deque[Batch] = deque(maxlen=_REMEMBERED)
        """Those that ended by themselves lately."""
        self.last_result: int | None = None
        self.cancels_took: list[float] = []
        self._numbers = count()
        self._events: list[tuple[float, int, Batch]] = []
        self._stalls = random.Random(f"{weather.seed} stalls")
        self._cancels = random.Random(f"{weather.seed} cancels")

    def create(self, group: Group, now: int) -> Batch:
        """Creates a batch."""
        world, work, number = self.weather.world, self.weather.work[now], next(self._numbers)
        ends = self.weather.end_of(now, work)
        batch = Batch(name=f"b{number}", group=group, created=now, work=work, ends=ends, size=group.number)
        if self._stalls.random() < world.stall_share:
            batch.ends, batch.stuck = math.inf, self._stalls.uniform(*world.stuck)
        batch.over_at = min(batch.ends, now + EXPIRY)
        self.in_flight[batch.name] = batch
        self.books.batches += 1
        heapq.heappush(self._events, (batch.over_at, number, batch))
        return batch

    def cancel(self, batch: Batch, now: int) -> None:
        """Asks for a cancel, once."""
        if batch.cancel_asked is not None:
            return
        median = self.weather.world.cancel_median
        took = max(1, round(median * math.exp(_CANCEL_SIGMA * self._cancels.gauss(0, 1))))
        batch.cancel_asked = now
        self.books.cancels += 1
        if now + took < batch.over_at:
            batch.over_at = now + took
            heapq.heappush(self._events, (batch.over_at, next(self._numbers), batch))

    def go_live(self, group: Group, batch: Batch | None = None) -> Live:
        """Queues requests for live calls; those of a batch may still be answered by it."""
        live = Live(name=f"l{next(self._numbers)}", group=group, batch=batch)
        self.live[live.name] = live
        if batch is not None:
            batch.raced = live
        return live

    def pass_to(self, now: int) -> Iterator[Group]:
        """Ends what is over by now; gives what is left unanswered and not queued for live calls."""
        while self._events and self._events[0][0] <= now:
            batch = heapq.heappop(self._events)[2]
            if not batch.over:
                yield from self._end(batch, now)

    def _end(self, batch: Batch, now: int) -> Iterator[Group]:
        batch.over = True
        del self.in_flight[batch.name]
        whole = batch.ends <= now
        if whole:
            self.last_result = now
            self.ended.append(batch)
        elif batch.cancel_asked is not None:
            self.cancels_took.append(now - batch.cancel_asked)
        share = 1.0 if whole else min(batch.stuck, self.weather.done_share(batch.created, batch.work, now))
        live = batch.raced
        if live is not None:
            twice = live.sent * share
            self.books.paid_twice += twice
            self.books.cost += 0.5 * twice
            live.batch = None
        for cohort in batch.group.cohorts:
            self._answer(batch.group.latency, cohort.take(share), now, by_batch=True)
        if whole:
            batch.group.cohorts.clear()
            if live is not None:
                self.live.pop(live.name, None)
        elif live is None:
            yield batch.group

    def _answer(self, latency: str, cohort: Cohort, now: float, *, by_batch: bool) -> None:
        books = self.books
        if by_batch:
            books.by_batch += cohort.number
            books.cost += 0.5 * cohort.number
        else:
            books.by_live += cohort.number
            books.cost += cohort.number
        if now > cohort.deadline:
            books.missed += cohort.number
            books.missed_by[latency] += cohort.number
            books.missed_insured += cohort.number if cohort.insured else 0.0

    def send(self, live: Live, now: int, room: float) -> float:
        """Sends queued requests, earliest deadline first, as far as there is room; answers with how many."""
        sent = 0.0
        cohorts = live.group.cohorts
        while cohorts and room - sent > 1e-9:
            first = cohorts[0]
            number = min(first.number, room - sent)
            self._answer(
                live.group.latency, Cohort(first.deadline, number, first.insured), now, by_batch=False
            )
            first.number -= number
            sent += number
            if first.number <= 1e-9:
                cohorts.pop(0)
        live.sent += sent
        if not cohorts:
            # Its batch, if any, still has to be paid for what it answers as well.
            del self.live[live.name]
        return sent

    @property
    def idle(self) -> bool:
        """Whether nothing is outstanding."""
        return not self.in_flight and not self.live
