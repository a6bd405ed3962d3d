"""Keeps deadlines: recalls batches in time, and lets requests go live that cannot wait any longer.

The thin loop over `llmrouter.domain.escalation`: it says what there is and what is known, writes each
decision down before anything comes of it, and leaves the cancels to the canceller and the live calls to
the sender.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter import failpoints
from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Action, BlockKind, Conditions, Leftover, Reason
from llmrouter.domain.escalation import live_order, plan_actions, plan_latest_starts, plan_leftover
from llmrouter.domain.experience import cancels_seen, last_result_at, sent
from llmrouter.domain.rates import Work, requests_per_minute
from llmrouter.domain.reporting import LiveReport, Uninsured
from llmrouter.domain.weather import cancel_lead, is_storm, overtaken
from llmrouter.engine.outstanding import Outstanding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.blocks import Decision, LatestStart, Rules
    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.requests import Waiting
    from llmrouter.engine.budget import Budget
    from llmrouter.engine.outstanding import Lot
    from llmrouter.engine.pace import Pace
    from llmrouter.engine.sender import Sender
    from llmrouter.ports import Clock, Lease, LiveApi, Store

_REMEMBERED = 400
_LATE = timedelta(minutes=1)
"""A decision comes a second or two after its moment where somebody works, and the machine does not sleep."""

log = logging.getLogger("llmrouter.engine")


class Escalator:
    """Decides about everything outstanding, as often as it is run."""

    def __init__(
        self,
        store: Store,
        api: LiveApi,
        clock: Clock,
        pace: Pace,
        budget: Budget,
        sender: Sender,
        *,
        classes: Mapping[str, LatencyClass],
        rules: Rules,
        lead: timedelta | None,
        restart_age: timedelta | None,
    ) -> None:
        """Makes an escalator.

        Args:
            store: What is outstanding.
            api: Says what can go live.
            clock: The machine's.
            pace: Says at what rate.
            budget: Says whether it may cost anything more.
            sender: Makes the calls.
            classes: The latency classes by name.
            rules: The numbers of the policy.
            lead: The cancel lead; None: what cancels take here.
            restart_age: From which age on overtaken batches are sent again; None: never.
        """
        self._store = store
        self._clock = clock
        self._pace = pace
        self._budget = budget
        self._sender = sender
        self._outstanding = Outstanding(
            store, api, pace, budget, sender, classes=classes, window=rules.storm_window
        )
        self._rules = rules
        self._lead = lead
        self._restart_age = restart_age
        self._closed: list[Batch] = []
        self._flying: frozenset[str] = frozenset()
        self._told: dict[str, tuple[Reason | None, bool]] = {}
        """What was last said of each block, by its id."""
        self._starts: Mapping[str, LatestStart] = {}
        self.conditions = Conditions(rate=pace.rate(()))
        self.report: LiveReport | None = None
        """What it saw in its last run."""

    @property
    def reserve(self) -> timedelta:
        """What a batch needs before its margin to be worth its while: cancel lead and spare."""
        return self.conditions.cancel_lead + self._rules.spare

    @property
    def per_minute(self) -> float | None:
        """Requests of the usual size that may go live a minute; None where nothing limits them."""
        if self.report is not None:
            return self.report.requests_per_minute
        rate = requests_per_minute(self.conditions.rate, Work(requests=1))
        return None if rate == float("inf") else rate

    def run_once(self, lease: Lease) -> int:
        """Decides what is to be decided now; answers with how many decisions were acted on.

        Raises:
            LeaseLostError: Another process works on the store now.
            StoreError: The store cannot be used now. What was decided before that stands.
        """
        now = self._clock.now()
        batches = self._outstanding.batches()
        waiting = self._outstanding.waiting()
        self._budget.refresh()
        self._learn(now, batches, waiting)
        lots = self._outstanding.lots(batches, waiting)
        plan = self._plan(now, lots)
        # The earliest first: what waits goes live together with all that is due before it.
        decisions = reversed(plan_actions(now, plan, self.conditions, self._rules))
        done = sum(self._act(lease, now, lots[one.block.block_id], one) for one in decisions)
        done += self._restart_overtaken(lease, now, batches)
        if done:
            batches = self._outstanding.batches()
            lots = self._outstanding.lots(batches, self._outstanding.waiting())
            plan = self._plan(now, lots)
        batches = self._give_back(lease, batches)
        going = {batch.batch_id: batch for batch in batches if batch.state is BatchState.ESCALATING}
        order = [one.block.block_id for one in live_order(plan) if one.block.block_id in going]
        self._sender.serve(lease, [going[batch_id] for batch_id in order])
        self._tell(plan, lots)
        return done

    def leftover(self, batch: Batch) -> Leftover:
        """Where the requests go that a batch, whose results are being read, did not answer."""
        start = self._starts.get(batch.batch_id)
        if start is None:
            return Leftover.BATCH
        return plan_leftover(self._clock.now(), start, self.conditions, self._rules)

    # What is known

    def _learn(self, now: datetime, batches: Sequence[Batch], waiting: Sequence[Waiting]) -> None:
        flying = [batch for batch in batches if batch.state is BatchState.IN_FLIGHT]
        names = frozenset(batch.batch_id for batch in flying)
        if self._flying - names or not self._closed:
            self._closed = self._store.closed_batches(_REMEMBERED)
        self._flying = names
        models = {batch.model for batch in batches} | {line.model for line in waiting}
        since = [batch.created_at for batch in flying if batch.created_at and not batch.cancel_asked_at]
        self.conditions = Conditions(
            rate=self._pace.rate(models),
            cancel_lead=self._lead or cancel_lead(cancels_seen(self._closed)),
            storm=is_storm(
                now,
                since,
                last_result_at(self._closed),
                silence=self._rules.storm_silence,
                age=self._rules.storm_age,
            ),
            ramping=self._pace.ramping,
            hold=self._sender.hold()[0],
        )

    def _plan(self, now: datetime, lots: Mapping[str, Lot]) -> list[LatestStart]:
        plan = plan_latest_starts(now, [lot.block for lot in lots.values()], self.conditions, self._rules)
        self._starts = {start.block.block_id: start for start in plan}
        return plan

    # What is done

    def _act(self, lease: Lease, now: datetime, lot: Lot, decision: Decision) -> bool:
        """Writes a decision down. True when something comes of it."""
        if _is_too_late(now, decision):
            decision = replace(decision, reason=Reason.TOO_LATE)
        name, said = decision.block.block_id, (decision.reason, decision.insured)
        stays = decision.action is Action.STAY
        if stays and self._told.get(name) == said:
            return False
        done = self._do(lease, now, lot, decision)
        if done or stays:
            self._told[name] = said
            self._log(lot, decision)
        return done

    def _do(self, lease: Lease, now: datetime, lot: Lot, decision: Decision) -> bool:
        match decision.action:
            case Action.GO_LIVE:
                return self._go_live(lease, now, lot, decision)
            case Action.CANCEL:
                self._note(lease, lot, decision, recalled_at=now)
                return True
            case Action.RACE:
                return self._race(lease, now, lot, decision)
            case Action.STAY:
                self._note(lease, lot, decision, recalled_at=None)
                return False

    def _go_live(self, lease: Lease, now: datetime, lot: Lot, decision: Decision) -> bool:
        if lot.waiting is None or lot.cohort is None:
            return False
        taken = self._store.escalate_waiting(
            lease,
            lot.waiting,
            lot.cohort.before,
            batch_id=_new_id(),
            reason=decision.reason,
            insured=decision.insured,
            now=now,
        )
        failpoints.reach("escalating")
        return taken is not None

    def _race(self, lease: Lease, now: datetime, lot: Lot, decision: Decision) -> bool:
        if lot.batch is None:
            return False
        if lot.batch.recalled_at is None:
            self._note(lease, lot, decision, recalled_at=now)
        taken = self._store.escalate_batch(
            lease,
            lot.batch.batch_id,
            into=_new_id(),
            reason=decision.reason,
            insured=decision.insured,
            now=now,
        )
        failpoints.reach("escalating")
        return taken is not None

    def _note(self, lease: Lease, lot: Lot, decision: Decision, *, recalled_at: datetime | None) -> None:
        if lot.batch is None:
            return  # What waits has no record; it will have one when it leaves.
        self._store.note_decision(
            lease,
            lot.batch.batch_id,
            reason=decision.reason,
            insured=decision.insured,
            recalled_at=recalled_at,
        )
        if recalled_at is not None:
            failpoints.reach("recalled")

    def _restart_overtaken(self, lease: Lease, now: datetime, batches: Sequence[Batch]) -> int:
        """Recalls batches that younger ones have overtaken, where that is switched on and time is left."""
        if self._restart_age is None:
            return 0
        paused = self._store.paused()  # It could not leave the queue again.
        flying = {
            batch.batch_id: batch
            for batch in batches
            if batch.state is BatchState.IN_FLIGHT
            and not batch.recalled_at
            and not batch.cancel_asked_at
            and batch.latency not in paused
        }
        count = 0
        for name in overtaken(now, sent(self._closed, list(flying.values())), age=self._restart_age):
            start = self._starts.get(name)
            if start is not None and start.block.deadline_at - now > self._rules.rebatch_left:
                self._store.note_decision(
                    lease, name, reason=Reason.OVERTAKEN, insured=start.insured, recalled_at=now
                )
                log.info("a batch was overtaken, and is recalled", extra={"batch_id": name})
                count += 1
        return count

    def _give_back(self, lease: Lease, batches: Sequence[Batch]) -> list[Batch]:
        """Queues again what was to go live, when the budget is used up: a batch may still take it.

        What was given up by its owner meanwhile ends by that, whatever holds the calls back.
        """
        names = {batch.batch_id for batch in batches}
        back = [
            batch
            for batch in batches
            if batch.state is BatchState.ESCALATING
            and (batch.cancel_wanted or (batch.raced not in names and self._budget.is_used_up(batch.latency)))
            and not self._sender.under_way(batch.batch_id)
        ]
        for batch in back:
            count = self._store.release(lease, batch.batch_id)
            if not batch.cancel_wanted:
                log.warning(
                    "the budget of escalations is used up: %d requests wait for a batch again",
                    count,
                    extra={"batch_id": batch.batch_id, "latency": batch.latency},
                )
        return [batch for batch in batches if batch not in back]

    # What is told

    def _log(self, lot: Lot, decision: Decision) -> None:
        known = {
            "latency": lot.latency,
            "model": lot.model,
            "batch_id": lot.batch.batch_id if lot.batch else None,
            "action": decision.action.value,
            "reason": decision.reason.value,
            "insured": decision.insured,
        }
        tell = log.warning if decision.action is Action.STAY or not decision.insured else log.info
        tell(
            "%s %d requests of class %s: %s; due %s, latest start %s",
            decision.action.value,
            round(decision.block.work.requests),
            lot.latency,
            decision.reason.value,
            decision.block.deadline_at.isoformat(timespec="seconds"),
            decision.latest_at.isoformat(timespec="seconds"),
            extra=known,
        )

    def _tell(self, plan: Sequence[LatestStart], lots: Mapping[str, Lot]) -> None:
        """Reports what cannot be insured as soon as it is there, and forgets what is gone."""
        self._told = {name: said for name, said in self._told.items() if name in lots}
        now = self._clock.now()
        risks = [
            start
            for start in plan
            if not start.insured
            and start.block.hold is None
            and self.conditions.hold is None
            and start.block.deadline_at > now
            and start.block.kind is not BlockKind.LIVE
        ]
        models = {lot.model for lot in lots.values()}
        usual = max(
            (self._pace.usual(model) for model in models),
            key=lambda work: work.output_tokens,
            default=Work(requests=1),
        )
        rate = requests_per_minute(self.conditions.rate, usual)
        for start in risks:
            lot = lots[start.block.block_id]
            if start.block.block_id not in self._told:
                self._told[start.block.block_id] = (None, False)
                log.warning(
                    "%d requests of class %s cannot be insured: %.0f live requests a minute do not suffice"
                    " for them, should their batch not be back by %s",
                    round(start.block.work.requests),
                    lot.latency,
                    rate,
                    start.block.deadline_at.isoformat(timespec="seconds"),
                    extra={"latency": lot.latency, "model": lot.model, "insured": False},
                )
        hold, until = self._sender.hold()
        going = [lot for lot in lots.values() if lot.block.kind is BlockKind.LIVE]
        self.report = LiveReport(
            requests_per_minute=None if rate == float("inf") else rate,
            going=round(sum(lot.block.work.requests for lot in going)),
            under_way=self._sender.under_way(),
            storm=self.conditions.storm,
            hold=hold,
            hold_until=until,
            waits_until=self._pace.waits_until,
            uninsured=_summed(risks, lots),
        )


def _summed(risks: Sequence[LatestStart], lots: Mapping[str, Lot]) -> tuple[Uninsured, ...]:
    """What cannot be insured, by class and model."""
    by_kind: dict[tuple[str, str], Uninsured] = {}
    for start in risks:
        lot = lots[start.block.block_id]
        count, due = round(start.block.work.requests), start.block.deadline_at
        known = by_kind.get((lot.latency, lot.model))
        by_kind[lot.latency, lot.model] = (
            Uninsured(latency=lot.latency, model=lot.model, request_count=count, deadline_at=due)
            if known is None
            else replace(
                known,
                request_count=known.request_count + count,
                deadline_at=min(known.deadline_at, due),
            )
        )
    return tuple(by_kind.values())


def _is_too_late(now: datetime, decision: Decision) -> bool:
    """Whether it should have been decided long ago, and it was there to be decided about."""
    block = decision.block
    accepted_at = block.deadline_at - block.window
    decided = decision.action is not Action.STAY
    return decided and max(decision.latest_at, accepted_at) + _LATE < now


def _new_id() -> str:
    return f"batch_{secrets.token_hex(10)}"
