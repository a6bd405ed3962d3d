"""The batches of the store in memory: how requests get into them, and how they leave."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from llmrouter.domain.batches import OPEN_STATES, Batch, BatchState, Settled
from llmrouter.domain.live import LiveCall
from llmrouter.domain.requests import OutcomeKind, Route
from llmrouter.errors import StoreError
from llmrouter.stores import _batch_rules as rules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from llmrouter.domain.batches import Answer
    from llmrouter.domain.blocks import Reason
    from llmrouter.stores._memory_book import Book, Held


@dataclass(slots=True, kw_only=True)
class HeldBatch:
    """A batch and the requests that it was made with."""

    batch: Batch
    members: dict[str, None]
    """In the order of their deadlines."""
    inside: dict[str, None]
    """Those that have not left it."""
    moved: set[str] = field(default_factory=set)
    """Those that `Store.escalate_batch` took out of it."""
    begun: set[str] = field(default_factory=set)
    """Those with the intent of a live call."""
    given_up_at: datetime | None = None
    """When one of them was last given up."""


class Batches:
    """Batches by our id, in the order of claiming. Their owner lets one thread in at a time."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._held: dict[str, HeldBatch] = {}

    def find(self, batch_id: str) -> HeldBatch | None:
        """A batch by our id, open or not."""
        return self._held.get(batch_id)

    def opened(self, batch_id: str) -> HeldBatch:
        """An open batch.

        Raises:
            StoreError: There is no such batch, or it is closed.
        """
        held_batch = self._find_open(batch_id)
        if held_batch is None:
            raise StoreError(f"{batch_id}: there is no such open batch")
        return held_batch

    def named(self, batch_id: str) -> Batch | None:
        """See `Store.find_batch`."""
        return next(
            (one for one in self._all() if batch_id in (one.batch_id, one.provider_batch_id)),
            None,
        )

    def known(self, provider_batch_ids: Collection[str]) -> set[str]:
        """See `Store.known_batches`."""
        known = {batch.provider_batch_id for batch in self._all()}
        return {one for one in provider_batch_ids if one in known}

    def in_open_states(self) -> list[Batch]:
        """See `Store.open_batches`."""
        return [batch for batch in self._all() if batch.state in OPEN_STATES]

    def closed(self, limit: int) -> list[Batch]:
        """See `Store.closed_batches`."""
        ended = [batch for batch in self._all() if batch.state is BatchState.ENDED]
        return [batch for batch in reversed(ended) if batch.provider_batch_id is not None][:limit]

    def claim(self, batch: Batch, queued: Sequence[Held]) -> Batch | None:
        """Takes queued requests into a new batch, which says so; None for none."""
        if not queued:
            return None
        for held in queued:
            self._book.unqueue(held)
        return self._fill(batch, queued)

    def escalate(
        self, batch_id: str, *, into: str, fence: int, reason: Reason, insured: bool, now: datetime
    ) -> Batch | None:
        """See `Store.escalate_batch`."""
        old = self._find_open(batch_id)
        if old is None:
            return None
        if old.batch.state is BatchState.ESCALATING:
            raise StoreError(f"{batch_id}: its requests go live already")
        moving = [held for held in self._requests(old.inside) if not held.given_up]
        if not moving:
            return None
        old.batch = replace(old.batch, reason=reason, insured=insured, escalated_at=now)
        for held in moving:
            self._take_out(held)
            old.moved.add(held.request.request_id)
        new = Batch(
            batch_id=into,
            lane=old.batch.lane,
            latency=old.batch.latency,
            model=old.batch.model,
            nonce="",
            state=BatchState.ESCALATING,
            request_count=0,
            body_bytes=0,
            claimed_at=now,
            fence=fence,
            reason=reason,
            insured=insured,
            escalated_at=now,
            raced=batch_id,
        )
        return self._fill(new, moving)

    def note_given_up(self, batch_id: str, now: datetime) -> None:
        """Notes that requests in a batch have been given up."""
        held_batch = self._held[batch_id]
        held_batch.given_up_at = now
        if all(held.given_up for held in self._requests(held_batch.inside)):
            held_batch.batch = replace(held_batch.batch, cancel_wanted=True)

    def note_decision(
        self, batch_id: str, *, reason: Reason, insured: bool, recalled_at: datetime | None
    ) -> None:
        """See `Store.note_decision`."""
        held_batch = self._find_open(batch_id)
        if held_batch is not None:
            batch = held_batch.batch
            held_batch.batch = replace(
                batch, reason=reason, insured=insured, recalled_at=recalled_at or batch.recalled_at
            )

    def begin_calls(self, batch_id: str, request_ids: Iterable[str]) -> list[LiveCall]:
        """See `Store.begin_calls`."""
        held_batch = self._find_open(batch_id)
        if held_batch is None:
            return []
        if held_batch.batch.state is not BatchState.ESCALATING:
            raise StoreError(f"{batch_id}: its requests do not go live")
        calls = []
        for request_id in [one for one in dict.fromkeys(request_ids) if one in held_batch.inside]:
            held = self._book.held[request_id]
            if held.given_up and held_batch.given_up_at is not None:
                self._take_out(held)
                self._book.cancel(held, held_batch.given_up_at)
                continue
            again = request_id in held_batch.begun
            calls.append(LiveCall(request_id=request_id, body=self._book.bodies[request_id], again=again))
            held_batch.begun.add(request_id)
        self._book.count_resent(held_batch.batch.latency, sum(call.again for call in calls))
        return calls

    def end_calls(self, batch_id: str, request_ids: Collection[str]) -> None:
        """See `Store.end_calls`."""
        held_batch = self._find_open(batch_id)
        if held_batch is not None:
            held_batch.begun.difference_update(request_ids)

    def answer(self, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.answer`."""
        done = Counter(self._take_live(answer, now) for answer in answers)
        return _settled(done)

    def settle(self, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.settle`."""
        held_batch = self.opened(batch_id)
        if held_batch.batch.state is BatchState.ESCALATING:
            raise StoreError(f"{batch_id}: it is no batch of the API's")
        done = Counter(self._take_batched(held_batch, answer, now) for answer in answers)
        return _settled(done)

    def update(self, batch: Batch) -> None:
        """See `Store.update_batch`."""
        held_batch = self.opened(batch.batch_id)
        held_batch.batch = rules.updated(held_batch.batch, batch)

    def created(self, batch: Batch) -> bool:
        """See `Store.record_created`."""
        held_batch = self._held.get(batch.batch_id)
        created = None if held_batch is None else rules.created(held_batch.batch, batch)
        if held_batch is None or created is None:
            return False
        held_batch.batch = created
        return True

    def release(self, batch_id: str) -> int:
        """See `Store.release`."""
        held_batch = self._find_open(batch_id)
        if held_batch is None or held_batch.batch.state is BatchState.IN_FLIGHT:
            return 0
        held_batch.batch = replace(held_batch.batch, state=BatchState.RELEASED)
        left, called = sorted(held_batch.inside), 0
        for held in self._requests(left):
            self._take_out(held)
            if held.given_up and held_batch.given_up_at is not None:
                self._book.cancel(held, held_batch.given_up_at)
            else:
                called += held.request.request_id in held_batch.begun
                self._book.queue(held)
        self._book.count_resent(held_batch.batch.latency, called)
        return len(left)

    def finish(self, batch: Batch) -> None:
        """See `Store.finish`."""
        held_batch = self.opened(batch.batch_id)
        if held_batch.inside:
            raise StoreError(f"{batch.batch_id}: {len(held_batch.inside)} requests are still in it")
        held_batch.batch = rules.finished(held_batch.batch, batch)
        self._book.count_wasted(batch.latency, batch.wasted)

    def prune(self, before: datetime) -> None:
        """Forgets batches that ended before an instant and have no request left."""
        self._held = {
            batch_id: held
            for batch_id, held in self._held.items()
            if held.batch.state in OPEN_STATES
            or not rules.is_over_before(held.batch, before)
            or any(request_id in self._book.held for request_id in held.members)
        }

    def _all(self) -> Iterable[Batch]:
        return (held_batch.batch for held_batch in self._held.values())

    def _find_open(self, batch_id: str) -> HeldBatch | None:
        held_batch = self._held.get(batch_id)
        return held_batch if held_batch is not None and held_batch.batch.state in OPEN_STATES else None

    def _requests(self, request_ids: Iterable[str]) -> list[Held]:
        return [self._book.held[request_id] for request_id in request_ids]

    def _fill(self, batch: Batch, taken: Sequence[Held]) -> Batch:
        """Puts requests that are nowhere now, the earliest deadline first, into a new batch."""
        for held in taken:
            held.batch_id = batch.batch_id
        first = taken[0].request
        batch = replace(
            batch,
            request_count=len(taken),
            body_bytes=sum(held.size for held in taken),
            attempts={held.request.request_id: held.attempts for held in taken if held.attempts},
            deadline_at=first.deadline_at,
            window=taken[0].window,
        )
        members = dict.fromkeys(held.request.request_id for held in taken)
        self._held[batch.batch_id] = HeldBatch(batch=batch, members=members, inside=members.copy())
        return batch

    def _take_out(self, held: Held) -> Batch | None:
        """Takes a request out of where it is; the batch that it was in."""
        if held.batch_id is None:
            self._book.unqueue(held)
            return None
        held_batch = self._held[held.batch_id]
        del held_batch.inside[held.request.request_id]
        held.batch_id = None
        return held_batch.batch

    def _take_live(self, answer: Answer, now: datetime) -> _Taken:
        """Takes in what a live call said."""
        held = self._book.held.get(answer.request_id)
        if held is None:
            return "unknown"
        latency = held.request.group.latency
        if answer.paid_usd is not None:
            self._book.count_paid(latency, now, answer.paid_usd)
        if held.outcome is None:
            batch = self._take_out(held)
            self._book.end(held, answer, now, attempts=held.attempts, batch=batch, route=Route.ESCALATED)
            return "outcome"
        if answer.kind is OutcomeKind.SUCCEEDED:
            self._book.count_wasted(latency, 1)
            return "wasted"
        return "repeated"

    def _take_batched(self, held_batch: HeldBatch, answer: Answer, now: datetime) -> _Taken:
        """Takes in what a batch says of one request."""
        request_id = answer.request_id
        if request_id not in held_batch.members:
            return "unknown"
        held = self._book.held.get(request_id)
        if held is None:
            return "repeated"
        inside = request_id in held_batch.inside
        if inside and answer.retry:
            return self._retry(held_batch, held, answer, now)
        if held.outcome is None and not answer.retry and (inside or request_id in held_batch.moved):
            self._take_out(held)
            self._book.end(held, answer, now, attempts=held.attempts + 1, batch=held_batch.batch)
            return "outcome"
        elsewhere = held.outcome is not None and held.outcome.batch_id != held_batch.batch.batch_id
        wasted = elsewhere and not answer.retry and answer.kind is OutcomeKind.SUCCEEDED
        return "wasted" if wasted else "repeated"

    def _retry(self, held_batch: HeldBatch, held: Held, answer: Answer, now: datetime) -> _Taken:
        """Queues a request again, or ends it when nobody wants it any more."""
        self._take_out(held)
        if held.given_up:
            canceled = replace(answer, kind=OutcomeKind.CANCELED, raw=b"")
            self._book.end(held, canceled, now, attempts=held.attempts + 1, batch=held_batch.batch)
            return "outcome"
        held.attempts += 1
        self._book.queue(held)
        return "retried"


_Taken = Literal["outcome", "retried", "repeated", "wasted", "unknown"]


def _settled(done: Counter[_Taken]) -> Settled:
    return Settled(
        outcomes=done["outcome"],
        retried=done["retried"],
        repeated=done["repeated"] + done["wasted"],
        unknown=done["unknown"],
        wasted=done["wasted"],
    )
