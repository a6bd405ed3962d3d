"""The policies: what teams write by hand, and the router's own functions."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from benchmarks.policy.simulation import RULES, Simulation, at
from benchmarks.policy.worlds import WINDOWS
from llmrouter.domain.blocks import (
    Action,
    Block,
    BlockKind,
    Conditions,
    Decision,
    LatestStart,
    Leftover,
    Rules,
)
from llmrouter.domain.escalation import live_order, plan_actions, plan_latest_starts, plan_leftover
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.rates import (
    RAMP_PAUSE,
    PerMinute,
    Work,
    planning_rate,
    ramp_share,
    ramp_work,
    requests_per_minute,
    usage_p95,
)
from llmrouter.domain.weather import Sent, cancel_lead, is_storm, overtaken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.policy.provider import Batch, Group
    from benchmarks.policy.simulation import Policy

_CANCELS_REMEMBERED = 100
_USAGE_MINUTES, _USAGE_EVERY = 60, 10
_OVERTAKEN_EVERY = 15
_ONE = Work(requests=1.0)


class ByHand:
    """A fixed rule: some classes live, the rest in batches, perhaps canceled at a share of their window."""

    reserve = timedelta(0)

    def __init__(
        self, name: str, *, live: frozenset[str] = frozenset(), cancel_at: float | None = None
    ) -> None:
        self.name = name
        self._live = live
        self._cancel_at = cancel_at

    def goes_live_at_once(self, latency: str) -> bool:
        return latency in self._live

    def batch_rate(self) -> float | None:
        return None

    def act(self, simulation: Simulation, returned: list[Group]) -> None:
        provider, now = simulation.provider, simulation.now
        for group in returned:
            if self._cancel_at is None:
                simulation.wait(group)
            else:
                provider.go_live(group)
        if self._cancel_at is None:
            return
        for batch in provider.in_flight.values():
            window = WINDOWS[batch.group.latency]
            if batch.cancel_asked is None and now >= batch.group.deadline - (1 - self._cancel_at) * window:
                provider.cancel(batch, now)

    def serve(self, simulation: Simulation) -> None:
        weather, provider, now = simulation.weather, simulation.provider, simulation.now
        if not provider.live or not weather.live_up[now]:
            return
        room = float(max(0, weather.world.live_per_minute - weather.real_time[now]))
        for live in sorted(provider.live.values(), key=lambda live: live.group.deadline):
            room -= provider.send(live, now + 1, room)
            if room <= 0:
                return


class Ours:
    """The router's policy functions, with what its escalator will have to do around them."""

    def __init__(self, name: str = "llmrouter", *, restart: bool = False, rules: Rules = RULES) -> None:
        self.name = name
        self._restart = restart
        self._rules = rules
        self._conditions = Conditions(rate=PerMinute(requests=0.0))
        self._blocks: dict[str, Block] = {}
        self._plan: list[LatestStart] = []
        self._ramp_since: int | None = None
        self._last_live: int | None = None
        self._cancels_seen = -1
        self._rate_at = -_USAGE_EVERY
        self._overtaken: set[str] = set()

    @property
    def reserve(self) -> timedelta:
        return self._conditions.cancel_lead + self._rules.spare

    def goes_live_at_once(self, latency: str) -> bool:
        return WINDOWS[latency] < self._rules.min_window.total_seconds() / 60

    def batch_rate(self) -> float | None:
        return requests_per_minute(self._conditions.rate, _ONE)

    def act(self, simulation: Simulation, returned: list[Group]) -> None:
        provider, now = simulation.provider, at(simulation.now)
        self._learn(simulation)
        if simulation.now % _OVERTAKEN_EVERY == 0:
            self._count_overtaken(simulation)
        groups = self._waiting(simulation)
        back = {f"r{place}": group for place, group in enumerate(returned)}
        self._plan = self._starts(simulation, {**groups, **back})
        for start in self._plan:
            self._note(simulation, start, groups, back)
        decisions = plan_actions(now, self._plan, self._conditions, self._rules)
        for decision in decisions:
            if decision.block.block_id not in back:
                self._do(simulation, decision, groups)
        if provider.live and (back or decisions):
            self._plan = self._starts(simulation, self._waiting(simulation))

    def _note(
        self, simulation: Simulation, start: LatestStart, groups: dict[str, Group], back: dict[str, Group]
    ) -> None:
        """Notes what is promised to new requests, and finds a place for those that a batch gave back."""
        name, provider = start.block.block_id, simulation.provider
        for cohort in groups[name].cohorts if name in groups else ():
            if cohort.insured is None:
                cohort.insured = start.insured
                provider.books.uninsured += 0 if start.insured else cohort.number
        if name in back:
            now = at(simulation.now)
            if plan_leftover(now, start, self._conditions, self._rules) is Leftover.LIVE:
                provider.go_live(back[name])
            else:
                simulation.wait(back[name])

    def serve(self, simulation: Simulation) -> None:
        weather, provider, now = simulation.weather, simulation.provider, simulation.now
        if not provider.live:
            return
        if not weather.live_up[now]:
            self._ramp_since = None
            return
        if self._ramp_since is None or self._paused(now):
            self._ramp_since = now
        self._last_live = now
        gone = now - self._ramp_since
        share = ramp_work(gone + 1, self._rules.ramp) - ramp_work(gone, self._rules.ramp)
        room = self._conditions.rate.requests * share
        for start in live_order(self._plan):
            live = provider.live.get(start.block.block_id)
            if live is not None:
                room -= provider.send(live, now + 1, room)
            if room <= 1e-9:
                return

    def _learn(self, simulation: Simulation) -> None:
        provider, minute = simulation.provider, simulation.now
        rate, lead = self._conditions.rate, self._conditions.cancel_lead
        if minute - self._rate_at >= _USAGE_EVERY:
            used = simulation.weather.real_time[max(0, minute - _USAGE_MINUTES) : minute]
            usage = usage_p95([PerMinute(requests=n, input_tokens=0, output_tokens=0) for n in used])
            rate = planning_rate(PerMinute(requests=simulation.weather.world.live_per_minute), usage)
            self._rate_at = minute
        if len(provider.cancels_took) != self._cancels_seen:
            self._cancels_seen = len(provider.cancels_took)
            latest = provider.cancels_took[-_CANCELS_REMEMBERED:]
            lead = cancel_lead([timedelta(minutes=took) for took in latest])
        since = [at(batch.created) for batch in provider.in_flight.values() if batch.cancel_asked is None]
        last = None if provider.last_result is None else at(provider.last_result)
        self._conditions = Conditions(
            rate=rate,
            cancel_lead=lead,
            storm=is_storm(
                at(minute), since, last, silence=self._rules.storm_silence, age=self._rules.storm_age
            ),
            ramping=self._is_ramping(minute),
        )

    def _count_overtaken(self, simulation: Simulation) -> None:
        provider = simulation.provider
        batches = [batch for batch in provider.in_flight.values() if batch.cancel_asked is None]
        names = overtaken(at(simulation.now), [_sent(batch) for batch in (*batches, *provider.ended)])
        for name in names:
            batch = provider.in_flight[name]
            left = timedelta(minutes=batch.group.deadline - simulation.now)
            if self._restart and left > self._rules.rebatch_left:
                provider.cancel(batch, simulation.now)
        self._overtaken.update(names)
        provider.books.overtaken = len(self._overtaken)

    def _paused(self, minute: int) -> bool:
        return self._last_live is None or timedelta(minutes=minute - self._last_live) >= RAMP_PAUSE

    def _is_ramping(self, minute: int) -> bool:
        if self._ramp_since is None or self._paused(minute):
            return True
        return ramp_share(timedelta(minutes=minute - self._ramp_since), self._rules.ramp) < 1

    def _waiting(self, simulation: Simulation) -> dict[str, Group]:
        limits = BatchLimits(max_requests=simulation.limits(self, "hourly").max_requests)
        return {f"w{place}": group for place, group in enumerate(simulation.waiting_groups(limits))}

    def _starts(self, simulation: Simulation, groups: dict[str, Group]) -> list[LatestStart]:
        blocks = list(self._all_blocks(simulation, groups))
        return plan_latest_starts(at(simulation.now), blocks, self._conditions, self._rules)

    def _all_blocks(self, simulation: Simulation, groups: dict[str, Group]) -> Iterator[Block]:
        for name, group in groups.items():
            yield _block(name, BlockKind.WAITING, group, group.number)
        known = self._blocks
        self._blocks = {}
        for name, batch in simulation.provider.in_flight.items():
            if batch.raced is None:
                kind = BlockKind.IN_FLIGHT if batch.cancel_asked is None else BlockKind.CANCELING
                block = known.get(name)
                if block is None or block.kind is not kind:
                    block = _block(name, kind, batch.group, batch.size)
                self._blocks[name] = block
                yield block
        for name, live in simulation.provider.live.items():
            yield _block(name, BlockKind.LIVE, live.group, live.group.number)

    def _do(self, simulation: Simulation, decision: Decision, groups: dict[str, Group]) -> None:
        provider, name = simulation.provider, decision.block.block_id
        if decision.action is Action.GO_LIVE:
            group = groups[name]
            gone = {id(cohort) for cohort in group.cohorts}
            waiting = simulation.waiting[group.latency]
            simulation.waiting[group.latency] = [one for one in waiting if id(one) not in gone]
            provider.go_live(group)
        else:
            batch = provider.in_flight[name]
            provider.cancel(batch, simulation.now)
            if decision.action is Action.RACE:
                provider.go_live(batch.group, batch)
        provider.books.causes[decision.reason] += round(decision.block.work.requests)


def _block(name: str, kind: BlockKind, group: Group, number: float) -> Block:
    return Block(
        block_id=name,
        kind=kind,
        work=Work(requests=number),
        deadline_at=at(group.deadline),
        window=timedelta(minutes=WINDOWS[group.latency]),
    )


def _sent(batch: Batch) -> Sent:
    ended = at(int(batch.ends)) if batch.over else None
    return Sent(batch_id=batch.name, group=batch.group.latency, created_at=at(batch.created), ended_at=ended)


POLICIES: dict[str, Callable[[], Policy]] = {
    "all live": lambda: ByHand("all live", live=frozenset(WINDOWS)),
    "all batch": lambda: ByHand("all batch"),
    "hourly live, rest batch": lambda: ByHand("hourly live, rest batch", live=frozenset({"hourly"})),
    "cancel at 90 %": lambda: ByHand("cancel at 90 %", cancel_at=0.9),
    "llmrouter": Ours,
    "llmrouter, restarting": lambda: Ours("llmrouter, restarting", restart=True),
}
