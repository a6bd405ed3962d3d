"""What a store should do, in the simplest words: a dictionary of requests and one of batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC
from decimal import Decimal
from typing import TYPE_CHECKING

from conformance.lines import window_of
from llmrouter.domain.batches import BatchState, Canceled, Settled, wire_bytes
from llmrouter.domain.ledger import ClassTally, miss_cause
from llmrouter.domain.live import LiveCall
from llmrouter.domain.requests import Accepted, Outcome, OutcomeKind, RequestState, Route
from llmrouter.domain.scheduling import group_span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date, datetime

    from llmrouter.domain.batches import Answer, Batch
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Lane, QueuedRequest

Line = tuple["Lane", str, str]
"""Lane, latency class and model."""


@dataclass
class Held:
    """A request and its one state."""

    request: QueuedRequest
    state: RequestState = RequestState.QUEUED
    attempts: int = 0
    batch_id: str | None = None
    outcome: Outcome | None = None
    given_up: bool = False
    delivered: bool = False

    @property
    def line(self) -> Line:
        """The backlog that it belongs to."""
        group = self.request.group
        return group.lane, group.latency, group.model

    def requeue(self, *, attempts: int = 0) -> None:
        """Back into the queue."""
        self.state, self.batch_id = RequestState.QUEUED, None
        self.attempts += attempts

    def may_go(self, before: datetime, *, undelivered: bool) -> bool:
        """Whether a prune may forget it."""
        told = self.delivered or undelivered or (self.outcome is not None and self.outcome.withdrawn)
        return self.outcome is not None and self.outcome.settled_at < before and told


@dataclass
class HeldBatch:
    """A batch, who was taken into it, and who is still in it."""

    batch: Batch
    members: frozenset[str]
    inside: set[str]
    moved: set[str] = field(default_factory=set)
    """Who was taken out of it to go live."""
    begun: set[str] = field(default_factory=set)
    """Whose live calls have begun."""
    given_up_at: datetime | None = None
    closed: bool = False

    @property
    def goes_live(self) -> bool:
        """Whether it is open, and none of the API's."""
        return self.batch.state is BatchState.ESCALATING

    def may_go(self, before: datetime) -> bool:
        """Whether a prune may forget it, when it has no request left."""
        ended_at = self.batch.ended_at or self.batch.created_at or self.batch.claimed_at
        return self.closed and ended_at < before


@dataclass
class Model:
    """A store that nobody shares."""

    held: dict[str, Held] = field(default_factory=dict)
    batches: dict[str, HeldBatch] = field(default_factory=dict)
    log: list[Outcome] = field(default_factory=list)
    ended: list[Outcome] = field(default_factory=list)
    """The log, and what was pruned."""
    wasted: Counter[str] = field(default_factory=Counter)
    resent: Counter[str] = field(default_factory=Counter)
    paid: list[tuple[str, date, Decimal]] = field(default_factory=list)

    def answering(self, requests: Sequence[QueuedRequest]) -> list[QueuedRequest]:
        """For each request the one that stands for it: itself, or the first one with its key."""
        known = {held.request.key: held.request for held in self.held.values()}
        return [
            request if request.key is None else known.setdefault(request.key, request) for request in requests
        ]

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """Takes requests in among which there is no `conflict_of`."""
        answering = self.answering(requests)
        self.held = {first.request_id: Held(first) for first in answering} | self.held
        return [
            Accepted(
                request_id=first.request_id,
                accepted_at=first.accepted_at,
                deadline_at=first.deadline_at,
                duplicate=first is not request,
            )
            for first, request in zip(answering, requests, strict=True)
        ]

    def cancel(self, request_ids: Iterable[str], now: datetime, *, in_batches: bool) -> Canceled:
        """Settles what is queued, and gives up what is in a batch."""
        found = [self.held[one] for one in sorted(set(request_ids)) if one in self.held]
        queued = [held for held in found if held.state is RequestState.QUEUED]
        claimed = [held for held in found if held.state is RequestState.CLAIMED and in_batches]
        settled = [held for held in found if held.state is RequestState.SETTLED]
        for held in queued:
            self.end(held, OutcomeKind.CANCELED, b"", now)
        for held in claimed:
            held.given_up = True
        for known in (self.batches[held.batch_id] for held in claimed if held.batch_id):
            known.given_up_at = now
            if all(self.held[one].given_up for one in known.inside):
                known.batch = replace(known.batch, cancel_wanted=True)
        return Canceled(canceled=len(queued), asked=len(claimed), settled=len(settled))

    def deliver(self, request_ids: Iterable[str]) -> None:
        """Notes what somebody was told."""
        for held in (self.held[one] for one in request_ids if one in self.held):
            held.delivered = held.delivered or held.outcome is not None

    def forget(self, gone: set[str], before: datetime) -> None:
        """Takes over what the store has pruned."""
        self.held = {one: held for one, held in self.held.items() if one not in gone}
        self.log = [outcome for outcome in self.log if outcome.request_id not in gone]
        over = [known for known in self.batches.values() if known.may_go(before)]
        for known in over:
            if known.members.isdisjoint(self.held):
                del self.batches[known.batch.batch_id]

    def backlog(self) -> dict[Line, list[Held]]:
        """What waits, by line."""
        lines: dict[Line, list[Held]] = {}
        for held in self.held.values():
            if held.state is RequestState.QUEUED:
                lines.setdefault(held.line, []).append(held)
        return lines

    def open_batches(self) -> list[HeldBatch]:
        """In the order of claiming."""
        return [known for known in self.batches.values() if not known.closed]

    def closed_batches(self) -> list[Batch]:
        """Those of the API's that ended, the newest first."""
        batches = [known.batch for known in self.batches.values()]
        return [one for one in reversed(batches) if one.state is BatchState.ENDED and one.provider_batch_id]

    def tally(self, latency: str) -> ClassTally:
        """What came of all requests of a class."""
        counted = [one for one in self.ended if one.latency == latency and not one.withdrawn]
        causes = [miss_cause(outcome) for outcome in counted]
        days: dict[date, Decimal] = {}
        for of_class, day, usd in self.paid:
            if of_class == latency:
                days[day] = days.get(day, Decimal(0)) + usd
        return ClassTally(
            settled=dict(Counter(outcome.route for outcome in counted)),
            missed=dict(Counter(cause for cause in causes if cause is not None)),
            wasted=self.wasted[latency],
            resent=self.resent[latency],
            live_usd=days,
        )

    def take_in(self, batch: Batch, inside: Iterable[str]) -> HeldBatch:
        """Moves requests into a new batch."""
        members = frozenset(inside)
        for held in (self.held[request_id] for request_id in members):
            self.take_out(held)
            held.state, held.batch_id = RequestState.CLAIMED, batch.batch_id
        known = HeldBatch(batch=batch, members=members, inside=set(members))
        self.batches[batch.batch_id] = known
        return known

    def take_out(self, held: Held) -> Batch | None:
        """Takes a request out of its batch; that batch."""
        if held.batch_id is None:
            return None
        known = self.batches[held.batch_id]
        known.inside.discard(held.request.request_id)
        known.begun.discard(held.request.request_id)
        return known.batch

    def end(
        self,
        held: Held,
        kind: OutcomeKind,
        raw: bytes,
        now: datetime,
        *,
        attempts: int = 0,
        answering: Batch | None = None,
        decided: Batch | None = None,
        route: Route = Route.BATCH,
    ) -> None:
        """Settles a request, wherever it is; ``attempts`` are those in ``answering``."""
        self.take_out(held)
        request, told = held.request, answering or decided
        held.outcome = Outcome(
            request_id=request.request_id,
            kind=kind,
            latency=request.group.latency,
            accepted_at=request.accepted_at,
            deadline_at=request.deadline_at,
            settled_at=now,
            attempts=held.attempts + attempts,
            batch_id=answering.batch_id if answering else None,
            key=request.key,
            raw=raw,
            route=route,
            reason=told.reason if told else None,
            insured=told.insured if told else True,
        )
        held.state, held.batch_id = RequestState.SETTLED, None
        self.log.append(held.outcome)
        self.ended.append(held.outcome)

    def settle(self, known: HeldBatch, answers: Sequence[Answer], now: datetime) -> Settled:
        """Applies answers of a batch, each to a request in it, or to one that went live out of it."""
        done = Counter(self._settle(known, answer, now) for answer in answers)
        return Settled(
            outcomes=done["outcome"],
            retried=done["retried"],
            repeated=done["repeated"] + done["wasted"],
            unknown=done["unknown"],
            wasted=done["wasted"],
        )

    def _settle(self, known: HeldBatch, answer: Answer, now: datetime) -> str:
        request_id, batch = answer.request_id, known.batch
        if request_id not in known.members:
            return "unknown"
        held = self.held.get(request_id)
        if held is None:
            return "repeated"
        if request_id in known.inside and answer.retry:
            if held.given_up:
                self.end(held, OutcomeKind.CANCELED, b"", now, attempts=1, answering=batch)
                return "outcome"
            self.take_out(held)
            held.requeue(attempts=1)
            return "retried"
        if not answer.retry and held.outcome is None and request_id in known.inside | known.moved:
            self.end(held, answer.kind, answer.raw, now, attempts=1, answering=batch)
            return "outcome"
        success = answer.kind is OutcomeKind.SUCCEEDED and not answer.retry
        elsewhere = held.outcome is not None and held.outcome.batch_id != batch.batch_id
        return "wasted" if success and elsewhere else "repeated"

    def answer(self, answers: Sequence[Answer], now: datetime) -> Settled:
        """Applies what live calls gave."""
        done: Counter[str] = Counter()
        for answer in answers:
            held = self.held.get(answer.request_id)
            if held is None:
                done["unknown"] += 1
                continue
            latency = held.request.group.latency
            if answer.paid_usd is not None:
                self.paid.append((latency, now.astimezone(UTC).date(), answer.paid_usd))
            if held.outcome is not None:
                vain = answer.kind is OutcomeKind.SUCCEEDED
                done.update(repeated=1, wasted=vain)
                self.wasted[latency] += vain
                continue
            done["outcomes"] += 1
            batch = self.batches[held.batch_id].batch if held.batch_id else None
            self.end(held, answer.kind, answer.raw, now, decided=batch, route=Route.ESCALATED)
        return Settled(
            outcomes=done["outcomes"],
            retried=0,
            repeated=done["repeated"],
            unknown=done["unknown"],
            wasted=done["wasted"],
        )

    def movable(self, known: HeldBatch) -> list[Held]:
        """Who goes live when a batch is escalated."""
        return [held for one in sorted(known.inside) if not (held := self.held[one]).given_up]

    def begin_calls(self, known: HeldBatch, request_ids: Iterable[str]) -> list[LiveCall]:
        """Notes intents, or ends what was given up."""
        calls = []
        for request_id in dict.fromkeys(request_ids):
            if request_id not in known.inside:
                continue
            held = self.held[request_id]
            if held.given_up and known.given_up_at is not None:
                self.end(held, OutcomeKind.CANCELED, b"", known.given_up_at)
                continue
            again = request_id in known.begun
            calls.append(LiveCall(request_id=request_id, body=held.request.body, again=again))
            known.begun.add(request_id)
            self.resent[known.batch.latency] += again
        return calls

    def release(self, known: HeldBatch) -> int:
        """Closes a batch that the API never had, and queues what is in it."""
        if known.closed or known.batch.state is BatchState.IN_FLIGHT:
            return 0
        left = sorted(known.inside)
        for held in (self.held[one] for one in left):
            if held.given_up and known.given_up_at is not None:
                self.end(held, OutcomeKind.CANCELED, b"", known.given_up_at)
            else:
                self.resent[known.batch.latency] += held.request.request_id in known.begun
                self.take_out(held)
                held.requeue()
        known.closed = True
        known.batch = replace(known.batch, state=BatchState.RELEASED)
        return len(left)

    def finish(self, known: HeldBatch, said: Batch) -> None:
        """Closes a batch that is empty."""
        known.batch = replace(known.batch, state=BatchState.ENDED, wasted=said.wasted, ended_at=said.ended_at)
        known.closed = True
        self.wasted[known.batch.latency] += said.wasted


def conflict_of(answering: Sequence[QueuedRequest], requests: Sequence[QueuedRequest]) -> int | None:
    """The place of the first request that differs from the one with its key."""
    for index, (first, request) in enumerate(zip(answering, requests, strict=True)):
        if (first.body, first.group.latency) != (request.body, request.group.latency):
            return index
    return None


def check_choice(taken: list[Held], left: list[Held], limits: BatchLimits) -> None:
    """A batch keeps its limits, takes the earliest deadlines, and is as full as they allow."""
    count, size = len(taken), sum(len(held.request.body) for held in taken)
    assert count == 1 or (count <= limits.max_requests and wire_bytes(count, size) <= limits.max_bytes)
    first_due = min(held.request.deadline_at for held in taken)
    last_due = max(held.request.deadline_at for held in taken)
    spans = [group_span(window_of(h.request)) for h in taken if h.request.deadline_at == first_due]
    if limits.one_fate:
        assert last_due - first_due <= max(spans)
    if not left:
        return
    next_due = min(held.request.deadline_at for held in left)
    assert last_due <= next_due
    if limits.one_fate and next_due - first_due > min(spans):
        return
    next_size = max(len(held.request.body) for held in left if held.request.deadline_at == next_due)
    assert count == limits.max_requests or wire_bytes(count + 1, size + next_size) > limits.max_bytes
