"""The rules of the store's state machine for requests that go live."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from conformance.lines import window_of
from conformance.machine_ground import NOBODY, PROCESSES, Ground
from conformance.scene import MOMENT, drain_log, line_of
from llmrouter.domain.batches import Answer, Batch, BatchState
from llmrouter.domain.blocks import Reason
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from conformance.model import Held, HeldBatch
    from llmrouter.domain.requests import Waiting

REASONS = st.sampled_from([Reason.LATEST_START, Reason.STORM, Reason.BUDGET])
KINDS = st.sampled_from([OutcomeKind.SUCCEEDED, OutcomeKind.SUCCEEDED, OutcomeKind.ERRORED])
PRICES = st.sampled_from([None, Decimal(0), Decimal("0.1"), Decimal("0.000000001")])


class LiveRules(Ground):
    """Requests go live out of the queue and out of batches; their answers come from anywhere."""

    @precondition(lambda self: self.model.backlog())
    @rule(data=st.data(), reason=REASONS, insured=st.booleans(), after=st.sampled_from([0, 0, 1]))
    def escalate_waiting(self, data: st.DataObject, reason: Reason, insured: bool, after: int) -> None:
        """Some cohorts of a line, or what is due before some request."""
        line, queue = self.drawn_line(data)
        instants = [cohort.before for cohort in line.cohorts]
        instants += [held.request.deadline_at + after * MOMENT for held in queue]
        before = data.draw(st.sampled_from(sorted({*instants})))
        due = [held for held in queue if held.request.deadline_at < before]
        number = self.batch_number()
        batch = self.engine.escalate_waiting(
            self.lease,
            line,
            before,
            batch_id=f"batch-{number}",
            reason=reason,
            insured=insured,
            now=self.now,
        )
        if due:
            self.check_escalating(batch, due, number, reason=reason, insured=insured)
        else:
            assert batch is None

    @precondition(lambda self: self.model.batches)
    @rule(data=st.data(), reason=REASONS, insured=st.booleans())
    def escalate_batch(self, data: st.DataObject, reason: Reason, insured: bool) -> None:
        """Out of a batch in any state: closed ones have nothing to move, ESCALATING ones are refused."""
        known = self.drawn_batch(data)
        if known.goes_live:
            with pytest.raises(StoreError):
                self.move_out(known, self.batch_number(), reason=reason, insured=insured)
        else:
            self.race(data, known, reason=reason, insured=insured)

    def race(self, data: st.DataObject, known: HeldBatch, *, reason: Reason, insured: bool) -> None:
        """What is in a batch goes live; some was given up before, and some the batch answers at once."""
        if known.inside and data.draw(st.integers(0, 3)) == 0:
            self.give_up(data.draw(st.sampled_from(sorted(known.inside))))
        number, moving = self.batch_number(), self.model.movable(known)
        batch = self.move_out(known, number, reason=reason, insured=insured)
        if not moving:
            assert batch is None
            return
        known.moved |= {held.request.request_id for held in moving}
        known.batch = replace(known.batch, reason=reason, insured=insured, escalated_at=self.now)
        self.check_escalating(
            batch, moving, number, reason=reason, insured=insured, raced=known.batch.batch_id
        )
        if data.draw(st.integers(0, 2)) == 0:
            new = self.model.batches[f"batch-{number}"]
            assert self.engine.release(self.lease, new.batch.batch_id) == self.model.release(new)
        if data.draw(st.booleans()):
            self.answer_from(data, known)

    def move_out(self, known: HeldBatch, number: int, *, reason: Reason, insured: bool) -> Batch | None:
        """Escalates a batch."""
        return self.engine.escalate_batch(
            self.lease,
            known.batch.batch_id,
            into=f"batch-{number}",
            reason=reason,
            insured=insured,
            now=self.now,
        )

    def give_up(self, request_id: str) -> None:
        """Cancels a request wherever it is."""
        canceled = self.look().cancel([request_id], self.now, in_batches=True)
        assert canceled == self.model.cancel([request_id], self.now, in_batches=True)

    @precondition(lambda self: self.model.batches)
    @rule(data=st.data(), reason=REASONS, insured=st.booleans(), recalled=st.booleans())
    def note_decision(self, data: st.DataObject, reason: Reason, insured: bool, recalled: bool) -> None:
        """About a batch in any state."""
        known = self.drawn_batch(data)
        at = self.now if recalled else None
        self.engine.note_decision(
            self.lease, known.batch.batch_id, reason=reason, insured=insured, recalled_at=at
        )
        if not known.closed:
            recalled_at = at or known.batch.recalled_at
            known.batch = replace(known.batch, reason=reason, insured=insured, recalled_at=recalled_at)

    @precondition(lambda self: self.model.batches)
    @rule(data=st.data(), answered=st.booleans(), at=PROCESSES)
    def begin_calls(self, data: st.DataObject, answered: bool, at: int) -> None:
        """Of requests in a batch, of others, and of some twice; some are answered at once."""
        known = self.drawn_live_batch(data)
        request_ids = self.drawn_ids(data, known)
        batch_id = known.batch.batch_id
        if known.goes_live and known.inside and data.draw(st.booleans()):
            request_ids.append(data.draw(st.sampled_from(sorted(known.inside))))
            self.give_up(request_ids[-1])
        if not known.closed and not known.goes_live:
            with pytest.raises(StoreError):
                self.engine.begin_calls(self.lease, batch_id, request_ids)
            return
        calls = self.engine.begin_calls(self.lease, batch_id, request_ids)
        before = len(self.model.log)
        assert calls == self.model.begin_calls(known, request_ids)
        # What is canceled by it is canceled all at once: in which order is the store's choice.
        order = [outcome.request_id for outcome in drain_log(self.look(), self.log_start)]
        self.model.log[before:] = sorted(
            self.model.log[before:], key=lambda outcome: order.index(outcome.request_id)
        )
        if calls and data.draw(st.booleans()):
            calls = self.engine.begin_calls(self.lease, batch_id, request_ids)
            assert calls == self.model.begin_calls(known, request_ids)
        if answered:
            self.write_answers(at, [live_answer(call.request_id) for call in calls])

    @precondition(lambda self: self.model.batches)
    @rule(data=st.data())
    def end_calls(self, data: st.DataObject) -> None:
        """In any batch, of any request."""
        known = self.drawn_live_batch(data)
        request_ids = self.drawn_ids(data, known)
        self.engine.end_calls(self.lease, known.batch.batch_id, request_ids)
        if not known.closed:
            known.begun.difference_update(request_ids)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), at=PROCESSES)
    def answer(self, data: st.DataObject, at: int) -> None:
        """By a process with or without the lease, of requests wherever they are."""
        live_ones = [one for known in self.model.open_batches() if known.goes_live for one in known.inside]
        mostly = st.sampled_from(sorted(live_ones) * 3 + self.known_ids() + [NOBODY])
        drawn = data.draw(st.lists(st.tuples(mostly, KINDS, PRICES), min_size=1, max_size=5))
        answers = [
            replace(live_answer(request_id), kind=kind, paid_usd=paid_usd, raw=f"{place}\n".encode())
            for place, (request_id, kind, paid_usd) in enumerate(drawn)
        ]
        self.write_answers(at, answers)

    @precondition(lambda self: any(known.moved for known in self.model.open_batches()))
    @rule(data=st.data())
    def answer_late(self, data: st.DataObject) -> None:
        """A batch answers what was taken out of it, wherever that is."""
        names = [known.batch.batch_id for known in self.model.open_batches() if known.moved]
        self.answer_from(data, self.model.batches[data.draw(st.sampled_from(names))])

    def answer_from(self, data: st.DataObject, known: HeldBatch) -> None:
        """A batch answers some of what was taken out of it."""
        said = st.tuples(st.sampled_from(sorted(known.moved)), KINDS, st.sampled_from([False, False, True]))
        answers = [
            Answer(request_id=request_id, kind=kind, raw=request_id.encode(), retry=retry)
            for request_id, kind, retry in data.draw(st.lists(said, min_size=1, max_size=5))
        ]
        settled = self.engine.settle(self.lease, known.batch.batch_id, answers, self.now)
        assert settled == self.model.settle(known, answers, self.now)

    def write_answers(self, at: int, answers: Sequence[Answer]) -> None:
        """Writes what live calls gave, in a process."""
        assert self.stores[at].answer(answers, self.now) == self.model.answer(answers, self.now)

    def drawn_line(self, data: st.DataObject) -> tuple[Waiting, list[Held]]:
        """A line of the backlog, as the engine sees it, and its requests."""
        backlog = self.model.backlog()
        names = {
            f"{latency} {model} of {lane.lane_id}": (lane, latency, model) for lane, latency, model in backlog
        }
        line = names[data.draw(st.sampled_from(sorted(names)))]
        (seen,) = [one for one in self.engine.waiting() if line_of(one) == line]
        return seen, backlog[line]

    def drawn_live_batch(self, data: st.DataObject) -> HeldBatch:
        """A batch, mostly an ESCALATING one."""
        names = [known.batch.batch_id for known in self.model.open_batches() if known.goes_live]
        return self.model.batches[data.draw(st.sampled_from(names * 4 + list(self.model.batches)))]

    def drawn_ids(self, data: st.DataObject, known: HeldBatch) -> list[str]:
        """Requests, mostly of a batch, some twice."""
        mostly = sorted(known.members) * 3 + self.known_ids() + [NOBODY]
        return data.draw(st.lists(st.sampled_from(mostly), max_size=6))

    def check_escalating(
        self,
        batch: Batch | None,
        taken: Sequence[Held],
        number: int,
        *,
        reason: Reason,
        insured: bool,
        raced: str | None = None,
    ) -> None:
        """A new ESCALATING batch says what is so; its requests are in it from now on."""
        assert batch is not None
        first_due = min(held.request.deadline_at for held in taken)
        assert batch == Batch(
            batch_id=f"batch-{number}",
            lane=taken[0].request.group.lane,
            latency=taken[0].request.group.latency,
            model=taken[0].request.group.model,
            nonce="",
            state=BatchState.ESCALATING,
            request_count=len(taken),
            body_bytes=sum(len(held.request.body) for held in taken),
            claimed_at=self.now,
            fence=self.lease.fence,
            attempts={held.request.request_id: held.attempts for held in taken if held.attempts},
            deadline_at=first_due,
            window=self.first_window(batch, taken),
            reason=reason,
            insured=insured,
            escalated_at=self.now,
            raced=raced,
        )
        self.model.take_in(batch, [held.request.request_id for held in taken])

    def first_window(self, batch: Batch, taken: Sequence[Held]) -> timedelta | None:
        """The window that a batch names, which must be that of a request with the first deadline."""
        first_due = min(held.request.deadline_at for held in taken)
        firsts = [held.request for held in taken if held.request.deadline_at == first_due]
        assert batch.window in {window_of(request) for request in firsts}
        return batch.window


def live_answer(request_id: str) -> Answer:
    """A live call's success."""
    return Answer(request_id=request_id, kind=OutcomeKind.SUCCEEDED, raw=request_id.encode(), retry=False)
