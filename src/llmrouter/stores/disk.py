"""The embedded store: diskcache in one folder, several threads and processes at once.

`_layout` says how it lies on disk, `_cache` how diskcache is held, `_backlog` what the engine keeps
in memory. A request costs one row when it comes alone, a thousandth of one when it comes in company.
"""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

from llmrouter.domain.batches import OPEN_STATES, Batch, BatchState, Settled
from llmrouter.domain.requests import (
    REQUEST_ID,
    Accepted,
    Outcome,
    OutcomeKind,
    RequestState,
    RequestView,
    format_request_id,
    split_request_id,
)
from llmrouter.errors import LeaseLostError, StoreBusyError, StoreError, StoreUnusableError
from llmrouter.ports import Lease
from llmrouter.stores import _layout as layout
from llmrouter.stores._backlog import Backlog, Piece, read_entry, runs_of
from llmrouter.stores._cache import LockedCache
from llmrouter.stores._engine_lock import EngineLock
from llmrouter.stores._enqueuer import Enqueuer
from llmrouter.stores._layout import CLAIMED, QUEUED, SETTLED, from_us, to_us
from llmrouter.stores._rows import Rows
from llmrouter.stores._settlement import Settlement
from llmrouter.stores.framing import FramedBody

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from datetime import datetime, timedelta
    from pathlib import Path

    from llmrouter.domain.batches import Answer
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import QueuedRequest, Waiting
    from llmrouter.stores._layout import Ranges, Table

_CLAIM_TRIES = 10
_LOOK_TRIES = 3


class DiskStore:
    """A `Store` in a folder."""

    def __init__(self, folder: Path, *, durability: Literal["process", "power"] = "process") -> None:
        """Opens the store, or makes it.

        Args:
            folder: Where it lives; made with mode 0700 when it is not there. Not on a network file
                system: SQLite's locks do not work there.
            durability: ``"process"``: what was enqueued survives a killed process. ``"power"``: a
                power cut too, at the price of a sync for each commit.

        Raises:
            StoreUnusableError: It is damaged, of a newer version, or another program changed it.
        """
        self._cache = LockedCache(folder)
        self._rows = Rows(self._cache)
        self._enqueuer = Enqueuer(self._rows, synced=durability == "power")
        self._engine = threading.RLock()
        self._engine_lock = EngineLock(folder)
        self._backlog: tuple[int, int, Backlog] | None = None
        self._meta = self._rows.meta()

    def secret(self) -> bytes:
        """See `Store.secret`."""
        return bytes.fromhex(self._meta["secret"])

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """See `Store.enqueue`."""
        return self._enqueuer.enqueue(requests)

    def find(self, request_id: str) -> RequestView | None:
        """See `Store.find`."""
        try:
            page, slot = split_request_id(request_id)
        except ValueError:
            return None
        state, attempts, place, number = self._rows.table(page).get(slot)
        if state == SETTLED:
            outcome = self._rows.chunk(number)[place]
            return RequestView(
                request_id=request_id,
                state=RequestState.SETTLED,
                latency=outcome.latency,
                accepted_at=outcome.accepted_at,
                deadline_at=outcome.deadline_at,
                attempts=attempts,
                batch_id=None,
                key=outcome.key,
            )
        segment = self._rows.find_segment(page, slot)
        if segment is None:
            # Perhaps it was settled and swept since its state was read.
            settled = state != SETTLED and self._rows.table(page).get(slot)[0] == SETTLED
            return self.find(request_id) if settled else None
        group = self._rows.group(segment.group_hash)
        keys = layout.segment_keys(self._rows.must_get(segment.key)) if segment.keyed else None
        return RequestView(
            request_id=request_id,
            state=RequestState.CLAIMED if state == CLAIMED else RequestState.QUEUED,
            latency=group.latency,
            accepted_at=from_us(segment.accepted_us),
            deadline_at=from_us(segment.deadline_us),
            attempts=attempts,
            batch_id=self._rows.batch(number)[0].batch_id if state == CLAIMED else None,
            key=keys[slot - segment.start] if keys else None,
        )

    def find_key(self, key: str) -> str | None:
        """See `Store.find_key`."""
        value = self._cache.get(layout.key_row(key))
        return None if value is None else json.loads(value)["request_id"]

    def outcomes(self, request_ids: Collection[str]) -> Iterator[Outcome]:
        """See `Store.outcomes`."""
        by_chunk: dict[int, list[int]] = {}
        pages = sorted(split_request_id(one) for one in request_ids if REQUEST_ID.fullmatch(one))
        for page, members in groupby(pages, key=lambda pair: pair[0]):
            table = self._rows.table(page)
            for _, slot in members:
                state, _, place, number = table.get(slot)
                if state == SETTLED:
                    by_chunk.setdefault(number, []).append(place)
        for number, places in by_chunk.items():
            chunk = self._rows.chunk(number)
            yield from (chunk[place] for place in places)

    def outcome_cursor(self) -> int:
        """See `Store.outcome_cursor`."""
        return self._rows.counters()["chunks"]

    def outcomes_since(self, cursor: int) -> tuple[list[Outcome], int]:
        """See `Store.outcomes_since`."""
        if cursor >= self.outcome_cursor():
            return [], cursor
        return self._rows.chunk(cursor).all(), cursor + 1

    def cancel(self, request_id: str, now: datetime) -> bool:
        """See `Store.cancel`."""
        with self._cache.write(synced=True):
            view = self.find(request_id)
            if view is None or view.state is not RequestState.QUEUED:
                return False
            page, slot = split_request_id(request_id)
            table = self._rows.table(page)
            outcome = Outcome(
                request_id=request_id,
                kind=OutcomeKind.CANCELED,
                latency=view.latency,
                accepted_at=view.accepted_at,
                deadline_at=view.deadline_at,
                settled_at=now,
                attempts=view.attempts,
                batch_id=None,
                key=view.key,
                raw=b"",
            )
            table.put(slot, SETTLED, view.attempts, 0, self._rows.append_chunk([outcome], cancels=1))
            self._rows.write_tables({page: table})
        return True

    def request_flush(self) -> None:
        """See `Store.request_flush`."""
        with self._cache.write(synced=False):
            self._cache.set(layout.FLUSH, b"1")

    def waiting(self) -> list[Waiting]:
        """See `Store.waiting`."""
        with self._engine_work():
            for _ in range(_LOOK_TRIES):
                try:
                    return self._fresh_backlog().waiting()
                except StoreUnusableError:
                    # A single look reads row by row: the holder may have swept one of them meanwhile.
                    self._backlog = None
            return self._fresh_backlog().waiting()

    def open_batches(self) -> list[Batch]:
        """See `Store.open_batches`."""
        return [self._rows.batch(number)[0] for number in self._rows.open_numbers().values()]

    def acquire_lease(self, holder: str, now: datetime, length: timedelta) -> Lease | None:
        """See `Store.acquire_lease`."""
        with self._engine_work(), self._cache.write(synced=True):
            row = self._rows.lease()
            mine = row["holder"] == holder
            fence = row["fence"] if mine else row["fence"] + 1
            if not mine:
                dead = row["locked"] and self._holder_is_dead(row["fence"], fence)
                if to_us(now) < row["until"] and not dead:
                    return None
            until, locked = to_us(now + length), self._engine_lock.take(fence)
            self._rows.write_lease({"holder": holder, "fence": fence, "until": until, "locked": locked})
        return Lease(holder=holder, fence=fence)

    def release_lease(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        with self._engine_work(), self._cache.write(synced=True):
            if self._rows.lease()["fence"] == lease.fence:
                self._rows.write_lease({"holder": "", "fence": lease.fence, "until": 0, "locked": False})
                self._engine_lock.release()
                self._backlog = None

    def take_flush_request(self, lease: Lease) -> bool:
        """See `Store.take_flush_request`."""
        self._check(lease)
        if self._cache.get(layout.FLUSH) is None:
            return False
        with self._engine_work(), self._under(lease):
            asked = self._cache.get(layout.FLUSH) is not None
            self._cache.delete(layout.FLUSH)
        return asked

    def claim(
        self, lease: Lease, waiting: Waiting, limits: BatchLimits, *, batch_id: str, nonce: str, now: datetime
    ) -> Batch | None:
        """See `Store.claim`."""
        lane_id = waiting.lane.lane_id
        with self._engine_work():
            for _ in range(_CLAIM_TRIES):
                backlog = self._fresh_backlog(lease)
                pieces = backlog.choose(lane_id, waiting.latency, limits)
                if not pieces:
                    return None
                with self._under(lease):
                    number = self._rows.counters()["batches"] + 1
                    claimed = self._claim_slots(pieces, number)
                    if claimed is None:
                        self._backlog = None  # A cancel of another process came between: look again.
                        continue
                    ranges, attempts = claimed
                    batch = Batch(
                        batch_id=batch_id,
                        lane=waiting.lane,
                        latency=waiting.latency,
                        nonce=nonce,
                        state=BatchState.CLAIMED,
                        request_count=sum(piece.stop - piece.start for piece in pieces),
                        body_bytes=sum(piece.body_bytes for piece in pieces),
                        claimed_at=now,
                        fence=lease.fence,
                        attempts=attempts,
                    )
                    self._rows.open_batch(number, batch, ranges)
                backlog.take(lane_id, waiting.latency, pieces, number)
                return batch
        raise StoreBusyError(f"requests were canceled {_CLAIM_TRIES} times while a batch was claimed")

    def body(self, batch: Batch) -> FramedBody:
        """See `Store.body`."""
        with self._engine_work():
            number = self._rows.open_numbers()[batch.batch_id]
            entries = self._fresh_backlog().claimed[number]
        return FramedBody(
            nonce=batch.nonce,
            request_count=batch.request_count,
            body_bytes=batch.body_bytes,
            bodies=lambda: self._bodies(entries),
        )

    def update_batch(self, lease: Lease, batch: Batch) -> None:
        """See `Store.update_batch`."""
        if batch.state not in OPEN_STATES:
            raise StoreError(f"{batch.batch_id}: {batch.state} is no open state")
        with self._engine_work(), self._under(lease):
            self._rows.rewrite_batch(self._rows.open_number(batch.batch_id), batch)

    def release(self, lease: Lease, batch_id: str) -> int:
        """See `Store.release`."""
        with self._engine_work():
            backlog = self._fresh_backlog(lease)
            with self._under(lease):
                number = self._rows.open_numbers().get(batch_id)
                if number is None:
                    return 0
                batch, ranges = self._rows.batch(number)
                slots = list(self._rows.members(number, ranges))
                tables = {page: self._rows.table(page) for page in ranges}
                for page, slot in slots:
                    tables[page].put(slot, QUEUED, tables[page].get(slot)[1], 0, 0)
                self._rows.write_tables(tables)
                self._rows.close_batch(number, replace(batch, state=BatchState.RELEASED))
            backlog.requeue(number, slots)
            backlog.forget(number)
        return len(slots)

    def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.settle`."""
        with self._engine_work():
            backlog = self._fresh_backlog(lease)
            with self._under(lease):
                number = self._rows.open_number(batch_id)
                settlement = Settlement(
                    backlog.members(number),
                    self._rows.batch(number)[0],
                    number,
                    self._rows.counters()["chunks"],
                    now,
                    self._rows.table,
                )
                for answer in answers:
                    settlement.apply(answer)
                for outcomes in settlement.chunks():
                    self._rows.append_chunk(outcomes)
                self._rows.write_tables(settlement.tables)
            backlog.requeue(number, settlement.retried)
        return Settled(
            outcomes=len(settlement.outcomes),
            retried=len(settlement.retried),
            repeated=settlement.repeated,
            unknown=settlement.unknown,
        )

    def unsettled(self, batch_id: str) -> Iterator[str]:
        """See `Store.unsettled`."""
        number = self._rows.open_numbers().get(batch_id)
        if number is not None:
            for page, slot in self._rows.members(number, self._rows.batch(number)[1]):
                yield format_request_id(page, slot)

    def finish(self, lease: Lease, batch: Batch) -> None:
        """See `Store.finish`."""
        with self._engine_work():
            backlog = self._fresh_backlog(lease)
            with self._under(lease):
                number = self._rows.open_number(batch.batch_id)
                if next(self._rows.members(number, self._rows.batch(number)[1]), None) is not None:
                    raise StoreError(f"{batch.batch_id}: some of its requests are not settled")
                self._rows.close_batch(number, replace(batch, state=BatchState.ENDED))
            backlog.forget(number)

    def sweep(self, lease: Lease, limit: int) -> int:
        """See `Store.sweep`."""
        dropped = 0
        with self._engine_work():
            backlog = self._fresh_backlog(lease)
            with self._under(lease):
                while backlog.sweepable and dropped < limit:
                    key = next(iter(backlog.sweepable))
                    del backlog.sweepable[key]
                    segment = layout.read_segment_key(key)
                    states = self._rows.table(segment.page).states(segment.start, segment.stop)
                    if states.count(SETTLED) == len(states) and self._cache.delete(key):
                        dropped += segment.count
        return dropped

    def close(self) -> None:
        """See `Store.close`."""
        self._engine_lock.release()
        self._cache.close()

    def _holder_is_dead(self, fence: int, next_fence: int) -> bool:
        """Whether the kernel has dropped the engine lock of the process that held the lease."""
        if self._engine_lock.is_held_for(fence):
            return False
        self._engine_lock.release()  # It may be a leftover of a lease that this process has lost.
        return self._engine_lock.take(next_fence)

    def _claim_slots(self, pieces: list[Piece], number: int) -> tuple[Ranges, dict[str, int]] | None:
        """Writes a claim into the state tables; None when one of the requests is not queued any more."""
        ranges: Ranges = {}
        attempts: dict[str, int] = {}
        tables: dict[str, Table] = {}
        for page, members in _by_page(pieces):
            slots = sorted(slot for piece in members for slot in range(piece.start, piece.stop))
            table = tables[page] = self._rows.table(page)
            for start, stop in runs_of(slots):
                if any(table.states(start, stop)):
                    return None
                earlier = enumerate(table.attempts(start, stop), start)
                attempts |= {format_request_id(page, slot): count for slot, count in earlier if count}
                table.claim(start, stop, number)
                ranges.setdefault(page, []).append([start, stop])
        self._rows.write_tables(tables)
        return ranges, attempts

    def _bodies(self, entries: list[str]) -> Iterator[tuple[str, bytes]]:
        for piece in map(read_entry, entries):
            value = self._rows.must_get(piece.key)
            first = int(piece.key[layout.START_OF_KEY])
            bodies = layout.segment_bodies(value, piece.start - first, piece.stop - first)
            for slot, body in enumerate(bodies, piece.start):
                yield format_request_id(piece.page, slot), body

    @contextlib.contextmanager
    def _engine_work(self) -> Iterator[None]:
        """One thread at a time; an exception leaves no index behind that may differ from the disk."""
        with self._engine:
            try:
                yield
            except BaseException:
                self._backlog = None
                raise

    @contextlib.contextmanager
    def _under(self, lease: Lease) -> Iterator[None]:
        """A write transaction of the engine's, refused when its lease was lost."""
        with self._cache.write(synced=True):
            self._check(lease)
            yield

    def _check(self, lease: Lease) -> None:
        if self._rows.lease()["fence"] != lease.fence:
            self._backlog = None
            raise LeaseLostError(f"{lease.holder}: another process works on this store now")

    def _fresh_backlog(self, lease: Lease | None = None) -> Backlog:
        """The index as of now: the kept one while its lease lasts, or else a single look."""
        fence = self._rows.lease()["fence"]
        if lease is not None:
            self._check(lease)
        cancels = self._rows.counters()["cancels"]
        kept = self._backlog
        if kept is not None and kept[:2] == (fence, cancels) and kept[2].refresh():
            return kept[2]
        if lease is None and not self._engine_lock.is_held_for(fence):
            return Backlog(self._rows, None)
        self._backlog = (fence, cancels, Backlog(self._rows, fence))
        return self._backlog[2]


def _by_page(pieces: list[Piece]) -> Iterator[tuple[str, Iterable[Piece]]]:
    """The pieces of each page, wherever in the list they stand."""
    return groupby(sorted(pieces, key=attrgetter("page", "start")), key=attrgetter("page"))
