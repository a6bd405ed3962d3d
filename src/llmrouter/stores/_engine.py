"""What the holder of the lease does with a disk store, and the index that it keeps for it."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from llmrouter.domain.batches import Batch, BatchState, Settled
from llmrouter.domain.requests import format_request_id
from llmrouter.errors import StoreError, StoreUnusableError
from llmrouter.stores import _batch_rules as rules
from llmrouter.stores import _layout as layout
from llmrouter.stores._backlog import Backlog
from llmrouter.stores._batch_rows import StoredBatch
from llmrouter.stores._log import LogWriter
from llmrouter.stores._pieces import Piece, read_entry, runs_of
from llmrouter.stores._pruning import Pruner
from llmrouter.stores._settlement import Settlement
from llmrouter.stores.framing import FramedBody

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from llmrouter.domain.batches import Answer
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Waiting
    from llmrouter.ports import Lease
    from llmrouter.stores._batch_rows import Ranges
    from llmrouter.stores._leases import Leases
    from llmrouter.stores._rows import Rows
    from llmrouter.stores._table import Table

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
        with self.work():
            for _ in range(_LOOK_TRIES - 1):
                try:
                    return self._fresh_backlog().waiting()
                except StoreUnusableError:
                    # A single look reads row by row: the holder may have swept one of them meanwhile.
                    self._backlog = None
                except StoreError:
                    # The index cannot be marked, on a full disk; a single look writes nothing.
                    self._backlog = None
                    return Backlog(self._rows, None).waiting()
            return self._fresh_backlog().waiting()

    def take_flush_request(self, lease: Lease) -> bool:
        """See `Store.take_flush_request`."""
        if self._cache.get(layout.FLUSH) is None:
            return False
        with self.work(), self._under(lease):
            asked = self._cache.get(layout.FLUSH) is not None
            self._cache.delete(layout.FLUSH)
        return asked

    def claim(
        self, lease: Lease, waiting: Waiting, limits: BatchLimits, *, batch_id: str, nonce: str, now: datetime
    ) -> Batch | None:
        """See `Store.claim`."""
        batch = Batch(
            batch_id=batch_id,
            lane=waiting.lane,
            latency=waiting.latency,
            nonce=nonce,
            state=BatchState.CLAIMED,
            request_count=0,
            body_bytes=0,
            claimed_at=now,
            fence=lease.fence,
        )
        with self.work():
            for _ in range(_CLAIM_TRIES):
                backlog = self._fresh_backlog(lease)
                # Sorts the pile, if it must be, before others have to wait for the transaction.
                if not backlog.choose(waiting.lane.lane_id, waiting.latency, limits):
                    return None
                with self._under(lease):
                    if not backlog.take_out_canceled(self._rows.counters()):
                        self._backlog = None
                        continue
                    pieces = backlog.choose(waiting.lane.lane_id, waiting.latency, limits)
                    if not pieces:
                        return None
                    number = self._rows.counters()["batches"] + 1
                    stored = self._claim_pieces(batch, pieces, number)
                    self._rows.open_batch(number, stored)
                backlog.take(waiting.lane.lane_id, waiting.latency, pieces, number)
                return stored.batch
        raise StoreError(f"{batch_id} could not be claimed: the log of outcomes was pruned meanwhile")

    def body(self, batch: Batch) -> FramedBody:
        """See `Store.body`."""
        with self.work():
            number = self._rows.open_number(batch.batch_id)
            entries = self._fresh_backlog().claimed[number]
        return FramedBody(
            nonce=batch.nonce,
            request_count=batch.request_count,
            body_bytes=batch.body_bytes,
            bodies=lambda: self._bodies(entries),
        )

    def update_batch(self, lease: Lease, batch: Batch) -> None:
        """See `Store.update_batch`."""
        with self.work(), self._under(lease):
            number = self._rows.open_number(batch.batch_id)
            stored = self._rows.batch(number)
            updated = replace(stored, batch=rules.updated(stored.batch, batch))
            self._rows.rewrite_batch(number, stored, updated)

    def release(self, lease: Lease, batch_id: str) -> int:
        """See `Store.release`."""
        with self.work():
            backlog = self._fresh_backlog(lease)
            with self._under(lease):
                number = self._rows.open_numbers().get(batch_id)
                stored = None if number is None else self._rows.batch(number)
                if number is None or stored is None or stored.batch.state is BatchState.IN_FLIGHT:
                    return 0
                log = LogWriter(self._rows)
                # Without a time nothing was given up.
                at = stored.given_up_at or stored.batch.claimed_at
                settlement = Settlement(self._rows, backlog.members(number), stored.batch, number, log, at)
                for page, slot, _ in list(self._rows.members(number, stored.ranges)):
                    settlement.release(page, slot)
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
            backlog = self._fresh_backlog(lease)
            with self._under(lease):
                number = self._rows.open_number(batch_id)
                batch = self._rows.batch(number).batch
                log = LogWriter(self._rows)
                settlement = Settlement(self._rows, backlog.members(number), batch, number, log, now)
                for answer in answers:
                    settlement.apply(answer)
                settlement.write()
            backlog.own(log.numbers())
            backlog.requeue(number, settlement.requeued)
        return Settled(
            outcomes=log.count,
            retried=len(settlement.requeued),
            repeated=settlement.repeated,
            unknown=settlement.unknown,
        )

    def finish(self, lease: Lease, batch: Batch) -> None:
        """See `Store.finish`."""
        with self.work():
            backlog = self._fresh_backlog(lease)
            with self._under(lease):
                number = self._rows.open_number(batch.batch_id)
                stored = self._rows.batch(number)
                if next(self._rows.members(number, stored.ranges), None) is not None:
                    raise StoreError(f"{batch.batch_id}: some of its requests are not settled")
                ended = replace(stored, batch=rules.finished(stored.batch, batch))
                self._rows.close_batch(number, stored, ended)
            backlog.forget(number)

    def sweep(self, lease: Lease, limit: int) -> int:
        """See `Store.sweep`."""
        dropped = 0
        with self.work():
            backlog = self._fresh_backlog(lease)
            with self._under(lease):
                while backlog.sweepable and dropped < limit:
                    key = next(iter(backlog.sweepable))
                    del backlog.sweepable[key]
                    segment = layout.read_segment_key(key)
                    table = self._rows.table(segment.page)
                    if table.is_over(segment.start, segment.stop) and self._cache.delete(key):
                        dropped += segment.count
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
            with self.work(), self._under(lease):
                return self._pruner.prune(plan)

    def _claim_pieces(self, batch: Batch, pieces: list[Piece], number: int) -> StoredBatch:
        """Writes a claim into the state tables.

        Raises:
            StoreError: The index was wrong: one of the requests is not queued.
        """
        ranges: Ranges = {}
        attempts: dict[str, int] = {}
        tables: dict[str, Table] = {}
        for page, members in _by_page(pieces):
            slots = sorted(slot for piece in members for slot in range(piece.start, piece.stop))
            table = tables[page] = self._rows.table(page)
            for start, stop in runs_of(slots):
                if any(table.states(start, stop)):
                    raise StoreError(f"{batch.batch_id}: the index of the backlog was not that of the store")
                earlier = enumerate(table.attempts(start, stop), start)
                attempts |= {format_request_id(page, slot): count for slot, count in earlier if count}
                table.claim(start, stop, number)
                ranges.setdefault(page, []).append([start, stop])
        self._rows.write_tables(tables)
        claimed = replace(
            batch,
            request_count=sum(piece.stop - piece.start for piece in pieces),
            body_bytes=sum(piece.body_bytes for piece in pieces),
            attempts=attempts,
        )
        return StoredBatch(batch=claimed, ranges=ranges)

    def _bodies(self, entries: list[str]) -> Iterator[tuple[str, bytes]]:
        for key, pieces in groupby(map(read_entry, entries), key=attrgetter("key")):
            page, first = key[layout.PAGE_OF_KEY], int(key[layout.START_OF_KEY])
            slots = [slot for piece in pieces for slot in range(piece.start, piece.stop)]
            for slot, body in zip(slots, self._rows.bodies(key, [s - first for s in slots]), strict=True):
                yield format_request_id(page, slot), body

    @contextlib.contextmanager
    def _under(self, lease: Lease) -> Iterator[None]:
        """A write transaction of the engine's, refused when its lease was lost."""
        with self._cache.write(synced=True):
            self._leases.check(lease)
            yield

    def _fresh_backlog(self, lease: Lease | None = None) -> Backlog:
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


def _by_page(pieces: list[Piece]) -> Iterator[tuple[str, Iterable[Piece]]]:
    """The pieces of each page, wherever in the list they stand."""
    return groupby(sorted(pieces, key=attrgetter("page", "start")), key=attrgetter("page"))
