"""The clockwork: minute by minute, the policies act on the provider, and the books tell what it cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from benchmarks.policy.provider import Books, Cohort, Group, Provider
from benchmarks.policy.worlds import ALL_DAYS, ARRIVAL_DAYS, DAY, WINDOWS
from llmrouter.domain.blocks import Rules
from llmrouter.domain.latency import Interval, LatencyClass, linger
from llmrouter.domain.requests import Lane, Waiting
from llmrouter.domain.scheduling import Due, FlushReason, batch_limits, plan_early_flushes, split_by_deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.policy.worlds import Weather
    from llmrouter.domain.packing import BatchLimits

RULES = Rules()
_START = datetime(2026, 1, 1, tzinfo=UTC)
_AT = [_START + timedelta(minutes=minute) for minute in range(ALL_DAYS * DAY + 8 * DAY)]
_LANE = Lane(lane_id="lane", base_url="", credential="", headers=())
_WINDOW = {name: timedelta(minutes=window) for name, window in WINDOWS.items()}
_LINGER = {
    name: linger(window, at_least=timedelta(minutes=0.5), at_most=timedelta(minutes=10))
    for name, window in _WINDOW.items()
}
_SLOT = {name: max(1, round(span.total_seconds() / 60)) for name, span in _LINGER.items()}
CLASSES = {
    name: LatencyClass(name=name, deadline=_WINDOW[name], flush=Interval(every=_LINGER[name]))
    for name in WINDOWS
}


def at(minute: int) -> datetime:
    """The instant of a minute."""
    return _AT[minute]


class Policy(Protocol):
    """What decides in the simulation."""

    name: str
    reserve: timedelta
    """See `plan_early_flushes`."""

    def goes_live_at_once(self, latency: str) -> bool:
        """Whether requests of a class never see a batch."""
        ...

    def batch_rate(self) -> float | None:
        """What `batch_limits` is told."""
        ...

    def act(self, simulation: Simulation, returned: list[Group]) -> None:
        """Does what is due, also with what batches have just given back unanswered."""
        ...

    def serve(self, simulation: Simulation) -> None:
        """Sends what is queued for live calls, as far as the limits allow."""
        ...


class Simulation:
    """One policy in one draw of one world."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.provider = Provider(weather)
        self.waiting: dict[str, list[Cohort]] = {name: [] for name in WINDOWS}
        self.now = 0

    def run(self, policy: Policy) -> Books:
        """Runs until everything that was accepted is answered."""
        last = ARRIVAL_DAYS * DAY
        for now in range(len(self.weather.live_up)):
            self.now = now
            if self.now >= last and self.provider.idle and not any(self.waiting.values()):
                books = self.provider.books
                assert abs(books.by_batch + books.by_live - books.accepted) < 0.5, "requests got lost"
                return books
            returned = list(self.provider.pass_to(self.now))
            self._arrive(policy)
            policy.act(self, returned)
            self._flush(policy)
            policy.serve(self)
        raise RuntimeError(f"{policy.name} left something unanswered in {self.weather.world.name}")

    def waiting_groups(self, limits: BatchLimits) -> Iterator[Group]:
        """What waits, as it would leave: by deadline, none larger than a batch. It stays in `waiting`."""
        for name, cohorts in self.waiting.items():
            parts = [part for group in _split(name, cohorts) for part in _cut(group, limits.max_requests)]
            self.waiting[name] = [cohort for part in parts for cohort in part.cohorts]
            yield from parts

    def limits(self, policy: Policy, latency: str) -> BatchLimits:
        """The largest batch of a class."""
        return batch_limits(CLASSES[latency], None, None, requests_per_minute=policy.batch_rate())

    def wait(self, group: Group) -> None:
        """Puts requests back to those that wait for a batch."""
        cohorts = self.waiting[group.latency]
        cohorts += group.cohorts
        cohorts.sort(key=lambda cohort: cohort.deadline)

    def _arrive(self, policy: Policy) -> None:
        for name, arrivals in self.weather.arrivals.items():
            number = arrivals[self.now]
            if not number:
                continue
            self.provider.books.accepted += number
            cohort = Cohort(self.now + WINDOWS[name], number)
            if policy.goes_live_at_once(name):
                self.provider.go_live(Group(name, [cohort]))
            else:
                self.waiting[name].append(cohort)

    def _flush(self, policy: Policy) -> None:
        backlog = [
            Waiting(
                lane=_LANE,
                latency=name,
                model="model",
                request_count=int(sum(cohort.number for cohort in cohorts)),
                body_bytes=0,
                earliest_deadline_at=at(cohorts[0].deadline),
                window=_WINDOW[name],
            )
            for name, cohorts in self.waiting.items()
            if cohorts
        ]
        due = [waiting.latency for waiting in backlog if self.now % _SLOT[waiting.latency] == 0]
        limits = {name: self.limits(policy, name) for name in WINDOWS}
        slots = {name: at((self.now // _SLOT[name] + 1) * _SLOT[name]) for name in WINDOWS}
        early = plan_early_flushes(
            at(self.now), backlog, CLASSES, limits, slots, RULES.margin, reserve=policy.reserve
        )
        for flush in early:
            name = flush.waiting.latency
            if name not in due:
                self._leave(name, limits[name], only_full=flush.reason is FlushReason.FULL)
        for name in due:
            self._leave(name, limits[name], only_full=False)

    def _leave(self, name: str, limits: BatchLimits, *, only_full: bool) -> None:
        cohorts, self.waiting[name] = self.waiting[name], []
        for group in _split(name, cohorts):
            for part in _cut(group, limits.max_requests):
                if only_full and part.number < limits.max_requests - 1:
                    self.wait(part)
                else:
                    self.provider.create(part, self.now)


def _split(name: str, cohorts: list[Cohort]) -> Iterator[Group]:
    """Cohorts whose deadlines are near enough for one fate."""
    if not cohorts:
        return
    dues = [Due(deadline_at=at(cohort.deadline), window=_WINDOW[name]) for cohort in cohorts]
    first = 0
    for size in split_by_deadline(dues):
        yield Group(name, cohorts[first : first + size])
        first += size


def _cut(group: Group, most: int) -> Iterator[Group]:
    """A group in parts of at most that many requests. Cohorts that have to be cut are replaced by parts."""
    part: list[Cohort] = []
    room = float(most)
    for cohort in group.cohorts:
        while cohort.number > room:
            part.append(cohort.take(room / cohort.number))
            yield Group(group.latency, part)
            part, room = [], float(most)
        part.append(cohort)
        room -= cohort.number
    if part:
        yield Group(group.latency, part)
