"""What the holder of the lease does with a disk store, and the index that it keeps for it."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

from llmrouter.domain.batches import Batch, BatchState, Settled
from llmrouter.domain.requests import format_request_id
from llmrouter.errors import StoreError, StoreUnusableError
from llmrouter.stores import _batch_rules as rules
from llmrouter.stores import _layout as layout
from llmrouter.stores._backlog import Backlog, line_of
from llmrouter.stores._batch_rows import overlaps
from llmrouter.stores._claiming import claim_pieces
from llmrouter.stores._log import LogWriter
from llmrouter.stores._pieces import read_entry
from llmrouter.stores._pruning import Pruner
from llmrouter.stores._settlement import Settlement
from llmrouter.stores.framing import FramedBody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from llmrouter.domain.batches import Answer
    from llmrouter.domain.blocks import Reason
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Waiting
    from llmrouter.ports import Lease
    from llmrouter.stores._backlog import Line
    from llmrouter.stores._batch_rows import Ranges
    from llmrouter.stores._leases import Leases
    from llmrouter.stores._pieces import Piece
    from llmrouter.stores._rows import Rows

T = TypeVar("T")

_CLAIM_TRIES = 3
_LOOK_TRIES = 3


class Engine:
    """The engine's calls of a `Store`, one thread at a time."""

    def __init__(self, rows: Rows, leases: Leases) -> None:
        self._rows = rows
        self._cache = rows.cache
        self._leases = leases
        self._guard = threading.RLock()
        self._backlog: Backlog | None = None
        self._pruner = Pruner(rows)
        self._prune_guard = threading.Lock()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """One thread at a time; an exception leaves no index behind that may differ from the disk."""
        with self._guard:
            try:
                yield
            except BaseException:
                self._backlog = None
                raise

    def release_lease(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        with self.work():
            self._leases.release(lease)
            self._backlog = None

    def waiting(self) -> list[Waiting]:
        """See `Store.waiting`."""
        return self._look(Backlog.waiting)

    def sample(self, waiting: Waiting, prefix: str) -> bytes | None:
        """See `Store.sample`."""
        line = line_of(waiting)
        return self._look(lambda backlog: backlog.sample(line, prefix))

    def _look(self, read: Callable[[Backlog], T]) -> T:
        """What the index says, for anybody."""
        with self.work():
            for _ in range(_LOOK_TRIES - 1):
                try:
                    return read(self.fresh_backlog())
                except StoreUnusableError:
                    # A single look reads row by row: the holder may have swept one of them meanwhile.
                    self._backlog = None
                except StoreError:
                    # The index cannot be marked, on a full disk; a single look writes nothing.
                    self._backlog = None
                    return read(Backlog(self._rows, None))
            return read(self.fresh_backlog())

    def take_flush_request(self, lease: Lease) -> bool:
        """See `Store.take_flush_request`."""
        if self._cache.get(layout.FLUSH) is None:
            return False
        with self.work(), self.under(lease):
            asked = self._cache.get(layout.FLUSH) is not None
            self._cache.delete(layout.FLUSH)
        return asked

    def claim(
        self, lease: Lease, waiting: Waiting, limits: BatchLimits, *, batch_id: str, nonce: str, now: datetime
    ) -> Batch | None:
        """See `Store.claim`."""
        line = line_of(waiting)
        batch = Batch(
            batch_id=batch_id,
            lane=waiting.lane,
            latency=waiting.latency,
            model=waiting.model,
            nonce=nonce,
            state=BatchState.CLAIMED,
            request_count=0,
            body_bytes=0,
            claimed_at=now,
            fence=lease.fence,
        )
        return self.take_queued(lease, batch, line, lambda backlog: backlog.choose(line, limits))

    def take_queued(
        self, lease: Lease, batch: Batch, line: Line, choose: Callable[[Backlog], list[Piece]]
    ) -> Batch | None:
        """Takes the first requests of a line of the backlog into a new batch; None when none is chosen."""
        with self.work():
            for _ in range(_CLAIM_TRIES):
                backlog = self.fresh_backlog(lease)
                # Sorts the pile, if it must be, before others have to wait for the transaction.
                if not choose(backlog):
                    return None
                with self.under(lease):
                    if not backlog.take_out_canceled(self._rows.counters()):
                        self._backlog = None
                        continue
                    pieces = choose(backlog)
                    if not pieces:
                        return None
                    number = self._rows.counters()["batches"] + 1
                    stored = claim_pieces(self._rows, batch, pieces, number)
                    self._rows.open_batch(number, stored)
                backlog.take(line, pieces, number)
                return stored.batch
        raise StoreError(f"{batch.batch_id} could not be claimed: the log of outcomes was pruned meanwhile")

    def body(self, batch: Batch) -> FramedBody:
        """See `Store.body`."""
        with self.work():
            number = self._rows.open_number(batch.batch_id)
            entries = self.fresh_backlog().claimed[number]
        return FramedBody(
            nonce=batch.nonce,
            request_count=batch.request_count,
            body_bytes=batch.body_bytes,
            bodies=lambda: self._bodies(entries),
        )

    def update_batch(self, lease: Lease, batch: Batch) -> None:
        """See `Store.update_batch`."""
        with self.work(), self.under(lease):
            number = self._rows.open_number(batch.batch_id)
            stored = self._rows.batch(number)
            updated = replace(stored, batch=rules.updated(stored.batch, batch))
            self._rows.rewrite_batch(number, stored, updated)

    def note_decision(
        self, lease: Lease, batch_id: str, *, reason: Reason, insured: bool, recalled_at: datetime | None
    ) -> None:
        """See `Store.note_decision`."""
        with self.work(), self.under(lease):
            found = self._rows.find_open(batch_id)
            if found is not None:
                number, stored = found
                recalled_at = recalled_at or stored.batch.recalled_at
                batch = replace(stored.batch, reason=reason, insured=insured, recalled_at=recalled_at)
                self._rows.rewrite_batch(number, stored, replace(stored, batch=batch))

    def release(self, lease: Lease, batch_id: str) -> int:
        """See `Store.release`."""
        with self.work():
            backlog = self.fresh_backlog(lease)
            with self.under(lease):
                found = self._rows.find_open(batch_id)
                if found is None or found[1].batch.state is BatchState.IN_FLIGHT:
                    return 0
                number, stored = found
                log = LogWriter(self._rows)
                # Without a time nothing was given up.
                at = stored.given_up_at or stored.batch.claimed_at
                settlement = Settlement(self._rows, backlog.members(number), stored, number, log, at)
                for page, slot, _ in list(self._rows.members(number, stored.ranges)):
                    settlement.release(page, slot)
                log.add_resent(stored.batch.latency, settlement.called)
                settlement.write()
                batch = replace(stored.batch, state=BatchState.RELEASED)
                self._rows.close_batch(number, stored, replace(stored, batch=batch))
            backlog.own(log.numbers())
            backlog.requeue(number, settlement.requeued)
            backlog.forget(number)
        return log.count + len(settlement.requeued)

    def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.settle`."""
        with self.work():
            backlog = self.fresh_backlog(lease)
            with self.under(lease):
                number = self._rows.open_number(batch_id)
                stored = self._rows.batch(number)
                if stored.batch.state is BatchState.ESCALATING:
                    raise StoreError(f"{batch_id} is no batch of the API's")
                log = LogWriter(self._rows)
                settlement = Settlement(self._rows, backlog.members(number), stored, number, log, now)
                for answer in answers:
                    settlement.apply(answer)
                settlement.write()
            backlog.own(log.numbers())
            backlog.requeue(number, settlement.requeued)
            backlog.take_out(settlement.unqueued)
        return Settled(
            outcomes=log.count,
            retried=len(settlement.requeued),
            repeated=settlement.repeated,
            unknown=settlement.unknown,
            wasted=settlement.wasted,
        )

    def finish(self, lease: Lease, batch: Batch) -> None:
        """See `Store.finish`."""
        with self.work():
            backlog = self.fresh_backlog(lease)
            with self.under(lease):
                number = self._rows.open_number(batch.batch_id)
                stored = self._rows.batch(number)
                if next(self._rows.members(number, stored.ranges), None) is not None:
                    raise StoreError(f"{batch.batch_id}: some of its requests are not settled")
                ended = replace(stored, batch=rules.finished(stored.batch, batch))
                self._rows.close_batch(number, stored, ended)
                log = LogWriter(self._rows)
                log.add_wasted(batch.latency, batch.wasted)
                log.flush()
            backlog.forget(number)

    def sweep(self, lease: Lease, limit: int) -> int:
        """See `Store.sweep`."""
        dropped = 0
        with self.work():
            backlog = self.fresh_backlog(lease)
            backlog.find_sweepable()
            posted = self._posted() if backlog.sweepable else {}
            later: list[str] = []
            with self.under(lease):
                while backlog.sweepable and dropped < limit:
                    key = next(iter(backlog.sweepable))
                    del backlog.sweepable[key]
                    segment = layout.read_segment_key(key)
                    if overlaps(posted, segment):
                        later.append(key)
                    elif self._rows.table(segment.page).is_over(segment.start, segment.stop):
                        dropped += segment.count if self._cache.delete(key) else 0
            backlog.sweepable.update(dict.fromkeys(later))
        return dropped

    def prune(self, lease: Lease, before: datetime, limit: int, *, undelivered: bool) -> int:
        """See `Store.prune`. A chunk of outcomes goes as a whole, or stays until it can."""
        with self._prune_guard:
            self._leases.check(lease)
            try:
                # The first plan reads the old part of the log: nobody else has to wait for that.
                plan = self._pruner.plan(before, limit, undelivered=undelivered)
            except StoreUnusableError:
                self._leases.check(lease)  # The next holder may have pruned meanwhile.
                raise
            if not plan.chunks and not plan.batches:
                return 0
            with self.work(), self.under(lease):
                return self._pruner.prune(plan)

    def _posted(self) -> Ranges:
        """What was claimed into batches whose bodies may be on their way, with what has left them since.

        From their rows: an index that was built anew does not know what has left.
        """
        posted: Ranges = {}
        for number in self._rows.open_numbers().values():
            batch = self._rows.find_batch_alone(number)
            if batch is not None and batch.state is BatchState.CLAIMED:
                for page, runs in self._rows.batch(number).ranges.items():
                    posted.setdefault(page, []).extend(runs)
        return posted

    def _bodies(self, entries: list[str]) -> Iterator[tuple[str, bytes]]:
        for key, pieces in groupby(map(read_entry, entries), key=attrgetter("key")):
            page, first = key[layout.PAGE_OF_KEY], int(key[layout.START_OF_KEY])
            slots = [slot for piece in pieces for slot in range(piece.start, piece.stop)]
            for slot, body in zip(slots, self._rows.bodies(key, [s - first for s in slots]), strict=True):
                yield format_request_id(page, slot), body

    @contextlib.contextmanager
    def under(self, lease: Lease, *, synced: bool = True) -> Iterator[None]:
        """A write transaction of the engine's, refused when its lease was lost."""
        with self._cache.write(synced=synced):
            self._leases.check(lease)
            yield

    def check_lease(self, lease: Lease) -> None:
        """See `Store.check_lease`."""
        self._leases.check(lease)

    def fresh_backlog(self, lease: Lease | None = None) -> Backlog:
        """The index as of now: the kept one while its lease lasts, or else a single look."""
        fence = self._rows.lease()["fence"]
        if lease is not None and lease.fence != fence:
            self._leases.check(lease)
        kept = self._backlog
        if kept is not None and kept.fence == fence and kept.refresh():
            return kept
        if lease is None and not self._leases.is_held_here():
            self._backlog = None
            return Backlog(self._rows, None)
        self._backlog = Backlog(self._rows, fence)
        return self._backlog
