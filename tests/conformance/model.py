"""What a store should do, in the simplest words: a dictionary of requests and one of batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmrouter.domain.batches import BatchState, Canceled, Settled, wire_bytes
from llmrouter.domain.requests import Accepted, Outcome, OutcomeKind, RequestState, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from llmrouter.domain.batches import Answer, Batch
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Lane, QueuedRequest


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
    def line(self) -> tuple[Lane, str]:
        """The backlog that it belongs to."""
        return self.request.group.lane, self.request.group.latency

    def requeue(self, *, attempts: int = 0) -> None:
        """Back into the queue."""
        self.state, self.batch_id = RequestState.QUEUED, None
        self.attempts += attempts

    def may_go(self, before: datetime, *, undelivered: bool) -> bool:
        """Whether a prune may forget it."""
        told = self.delivered or undelivered or (self.outcome is not None and self.outcome.withdrawn)
        return self.outcome is not None and self.outcome.settled_at < before and told

    def end(self, kind: OutcomeKind, raw: bytes, now: datetime, *, batches: int) -> Outcome:
        """Settles it."""
        self.outcome = Outcome(
            request_id=self.request.request_id,
            kind=kind,
            latency=self.request.group.latency,
            accepted_at=self.request.accepted_at,
            deadline_at=self.request.deadline_at,
            settled_at=now,
            attempts=batches,
            batch_id=self.batch_id,
            key=self.request.key,
            raw=raw,
        )
        self.state, self.batch_id = RequestState.SETTLED, None
        return self.outcome


@dataclass
class HeldBatch:
    """A batch, who was claimed into it, and who is still in it."""

    batch: Batch
    members: frozenset[str]
    inside: set[str]
    given_up_at: datetime | None = None
    closed: bool = False

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
        """Settles what is queued, and gives up what is claimed."""
        found = [self.held[one] for one in sorted(set(request_ids)) if one in self.held]
        queued = [held for held in found if held.state is RequestState.QUEUED]
        claimed = [held for held in found if held.state is RequestState.CLAIMED and in_batches]
        settled = [held for held in found if held.state is RequestState.SETTLED]
        for held in queued:
            self.log.append(held.end(OutcomeKind.CANCELED, b"", now, batches=held.attempts))
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

    def queue(self, lane: Lane, latency: str) -> list[Held]:
        """What waits in one line."""
        queued = (held for held in self.held.values() if held.state is RequestState.QUEUED)
        return [held for held in queued if held.line == (lane, latency)]

    def waiting(self) -> dict[tuple[Lane, str], Waiting]:
        """The backlog."""
        lines = {held.line for held in self.held.values() if held.state is RequestState.QUEUED}
        return {(lane, latency): self._line(lane, latency) for lane, latency in lines}

    def open_batches(self) -> list[HeldBatch]:
        """In the order of claiming."""
        return [known for known in self.batches.values() if not known.closed]

    def claim(self, batch: Batch, inside: set[str]) -> HeldBatch:
        """Takes over what the store has chosen."""
        for request_id in inside:
            self.held[request_id].state = RequestState.CLAIMED
            self.held[request_id].batch_id = batch.batch_id
        known = HeldBatch(batch=batch, members=frozenset(inside), inside=set(inside))
        self.batches[batch.batch_id] = known
        return known

    def settle(self, known: HeldBatch, answers: Sequence[Answer], now: datetime) -> Settled:
        """Applies answers, each to a request that is still in the batch."""
        outcomes = retried = repeated = unknown = 0
        for answer in answers:
            if answer.request_id not in known.members:
                unknown += 1
            elif answer.request_id not in known.inside:
                repeated += 1
            else:
                known.inside.discard(answer.request_id)
                held = self.held[answer.request_id]
                retried += answer.retry and not held.given_up
                outcomes += not answer.retry or held.given_up
                if answer.retry and not held.given_up:
                    held.requeue(attempts=1)
                else:
                    kind, raw = (OutcomeKind.CANCELED, b"") if answer.retry else (answer.kind, answer.raw)
                    self.log.append(held.end(kind, raw, now, batches=held.attempts + 1))
        return Settled(outcomes=outcomes, retried=retried, repeated=repeated, unknown=unknown)

    def release(self, known: HeldBatch) -> int:
        """Closes a batch that the API never had, and queues what is in it."""
        if known.closed or known.batch.state is BatchState.IN_FLIGHT:
            return 0
        released = len(known.inside)
        for held in (self.held[one] for one in sorted(known.inside)):
            if held.given_up and known.given_up_at is not None:
                held.batch_id = None
                at = known.given_up_at
                self.log.append(held.end(OutcomeKind.CANCELED, b"", at, batches=held.attempts))
            else:
                held.requeue()
        known.inside, known.closed = set(), True
        known.batch = replace(known.batch, state=BatchState.RELEASED)
        return released

    def _line(self, lane: Lane, latency: str) -> Waiting:
        requests = [held.request for held in self.queue(lane, latency)]
        return Waiting(
            lane=lane,
            latency=latency,
            request_count=len(requests),
            body_bytes=sum(len(request.body) for request in requests),
            earliest_deadline_at=min(request.deadline_at for request in requests),
        )


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
    if not left:
        return
    next_due = min(held.request.deadline_at for held in left)
    assert max(held.request.deadline_at for held in taken) <= next_due
    next_size = max(len(held.request.body) for held in left if held.request.deadline_at == next_due)
    assert count == limits.max_requests or wire_bytes(count + 1, size + next_size) > limits.max_bytes
