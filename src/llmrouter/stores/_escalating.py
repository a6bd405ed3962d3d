"""What the holder of the lease does with requests of a disk store that go live, each by itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from llmrouter.domain.batches import Batch, BatchState
from llmrouter.domain.live import LiveCall
from llmrouter.domain.requests import format_request_id
from llmrouter.errors import StoreError, StoreUnusableError
from llmrouter.stores._backlog import line_of
from llmrouter.stores._claiming import claim_pieces
from llmrouter.stores._layout import slots_by_page
from llmrouter.stores._log import LogWriter
from llmrouter.stores._settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from llmrouter.domain.blocks import Reason
    from llmrouter.domain.requests import Waiting
    from llmrouter.ports import Lease
    from llmrouter.stores._batch_rows import StoredBatch
    from llmrouter.stores._engine import Engine
    from llmrouter.stores._members import Members
    from llmrouter.stores._rows import Rows


class Escalations:
    """The calls of a `Store` that concern ESCALATING batches."""

    def __init__(self, rows: Rows, engine: Engine) -> None:
        self._rows = rows
        self._engine = engine

    def escalate_waiting(
        self,
        lease: Lease,
        waiting: Waiting,
        before: datetime,
        *,
        batch_id: str,
        reason: Reason,
        insured: bool,
        now: datetime,
    ) -> Batch | None:
        """See `Store.escalate_waiting`."""
        line = line_of(waiting)
        batch = Batch(
            batch_id=batch_id,
            lane=waiting.lane,
            latency=waiting.latency,
            model=waiting.model,
            nonce="",
            state=BatchState.ESCALATING,
            request_count=0,
            body_bytes=0,
            claimed_at=now,
            fence=lease.fence,
            reason=reason,
            insured=insured,
            escalated_at=now,
        )
        return self._engine.take_queued(lease, batch, line, lambda backlog: backlog.choose_due(line, before))

    def escalate_batch(
        self, lease: Lease, batch_id: str, *, into: str, reason: Reason, insured: bool, now: datetime
    ) -> Batch | None:
        """See `Store.escalate_batch`."""
        with self._engine.work():
            backlog = self._engine.fresh_backlog(lease)
            with self._engine.under(lease):
                found = self._rows.find_open(batch_id)
                if found is None:
                    return None
                number, old = found
                if old.batch.state is BatchState.ESCALATING:
                    raise StoreError(f"{batch_id}: its requests go live already")
                members = self._rows.members(number, old.ranges)
                moving = [(page, slot) for page, slot, given_up in members if not given_up]
                if not moving:
                    return None
                new_number = self._rows.counters()["batches"] + 1
                decided = replace(old.batch, reason=reason, insured=insured, escalated_at=now)
                batch = Batch(
                    batch_id=into,
                    lane=old.batch.lane,
                    latency=old.batch.latency,
                    model=old.batch.model,
                    nonce="",
                    state=BatchState.ESCALATING,
                    request_count=0,
                    body_bytes=0,
                    claimed_at=now,
                    fence=lease.fence,
                    reason=reason,
                    insured=insured,
                    escalated_at=now,
                    raced=batch_id,
                )
                pieces = backlog.move(number, moving, new_number)
                new = claim_pieces(self._rows, batch, pieces, new_number, out_of=number)
                self._rows.open_batch(new_number, new)
                escalated = replace(old, batch=decided, escalated=new.ranges)
                self._rows.rewrite_batch(number, old, escalated)
        return new.batch

    def begin_calls(self, lease: Lease, batch_id: str, request_ids: Sequence[str]) -> list[LiveCall]:
        """See `Store.begin_calls`."""
        with self._engine.work():
            backlog = self._engine.fresh_backlog(lease)
            with self._engine.under(lease):
                found = self._rows.find_open(batch_id)
                if found is None:
                    return []
                number, stored = found
                if stored.batch.state is not BatchState.ESCALATING:
                    raise StoreError(f"{batch_id}: its requests do not go live")
                members = backlog.members(number)
                log = LogWriter(self._rows)
                settlement = self._settlement(stored, number, members, log)
                begun: dict[tuple[str, int], bool] = {}
                for page, slots in slots_by_page(request_ids).items():
                    for slot in slots:
                        again = settlement.begin(page, slot)
                        if again is not None:
                            begun[page, slot] = again
                log.add_resent(stored.batch.latency, sum(begun.values()))
                settlement.write()
            backlog.own(log.numbers())
            try:
                # Others need not wait for large bodies; nobody drops those of unsettled requests.
                calls = self._calls(members, begun)
            except StoreUnusableError:
                self._engine.check_lease(lease)  # The next holder may have swept one that was answered.
                raise
        return [calls[request_id] for request_id in dict.fromkeys(request_ids) if request_id in calls]

    def end_calls(self, lease: Lease, batch_id: str, request_ids: Collection[str]) -> None:
        """See `Store.end_calls`."""
        with self._engine.work():
            backlog = self._engine.fresh_backlog(lease)
            with self._engine.under(lease, synced=False):
                found = self._rows.find_open(batch_id)
                if found is not None:
                    number, stored = found
                    log = LogWriter(self._rows)
                    settlement = self._settlement(stored, number, backlog.members(number), log)
                    for page, slots in slots_by_page(request_ids).items():
                        for slot in slots:
                            settlement.end_call(page, slot)
                    settlement.write()

    def _settlement(self, stored: StoredBatch, number: int, members: Members, log: LogWriter) -> Settlement:
        """Of what was given up; without a time nothing was."""
        at = stored.given_up_at or stored.batch.claimed_at
        return Settlement(self._rows, members, stored, number, log, at)

    def _calls(self, members: Members, begun: dict[tuple[str, int], bool]) -> dict[str, LiveCall]:
        """The calls that begin. Each segment is read once."""
        calls = {}
        located = [(members.segment(page, slot), slot) for page, slot in sorted(begun)]
        for segment, group in groupby(located, key=lambda pair: pair[0]):
            slots = [slot for _, slot in group]
            bodies = self._rows.bodies(segment.key, [slot - segment.start for slot in slots])
            for slot, body in zip(slots, bodies, strict=True):
                request_id = format_request_id(segment.page, slot)
                again = begun[segment.page, slot]
                calls[request_id] = LiveCall(request_id=request_id, body=body, again=again)
        return calls
