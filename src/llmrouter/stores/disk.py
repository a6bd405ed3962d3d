"""The embedded store: diskcache in one folder, several threads and processes at once.

`_layout` says how it lies on disk, `_cache` how diskcache is held, `_lookups` what anybody may ask,
`_engine` and `_escalating` what the holder of the lease does, `_backlog` what it keeps in memory. A
request costs one row when it comes alone, a thousandth of one when it comes in company.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from llmrouter.stores import _answering as answering
from llmrouter.stores import _batch_rules as rules
from llmrouter.stores import _canceling as canceling
from llmrouter.stores import _layout as layout
from llmrouter.stores import _traffic as traffic
from llmrouter.stores._cache import LockedCache
from llmrouter.stores._engine import Engine
from llmrouter.stores._enqueuer import Enqueuer
from llmrouter.stores._escalating import Escalations
from llmrouter.stores._layout import from_us, to_us
from llmrouter.stores._leases import Leases
from llmrouter.stores._log import LogWriter
from llmrouter.stores._lookups import Lookups
from llmrouter.stores._meta import opened_meta
from llmrouter.stores._rows import Rows
from llmrouter.stores._runs import runs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import date, datetime, timedelta
    from decimal import Decimal
    from pathlib import Path

    from llmrouter.domain.batches import Answer, Batch, Canceled, Settled
    from llmrouter.domain.blocks import Reason
    from llmrouter.domain.cache_use import CacheUse
    from llmrouter.domain.ledger import Tally
    from llmrouter.domain.live import LiveCall
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.reporting import EngineReport, EngineView
    from llmrouter.domain.requests import Accepted, Outcome, QueuedRequest, RequestView, Waiting
    from llmrouter.domain.runs import RunProgress
    from llmrouter.domain.traffic import TrafficRow
    from llmrouter.ports import BatchBody, Lease


class DiskStore:
    """A `Store` in a folder."""

    def __init__(self, folder: Path, *, durability: Literal["process", "power"] = "process") -> None:
        """Opens the store, or makes it; one of an older version is brought up to date.

        Args:
            folder: Where it lives; made with mode 0700 when it is not there. Not on a network file
                system: SQLite's locks do not work there.
            durability: ``"process"``: what was enqueued survives a killed process. ``"power"``: a
                power cut too, at the price of a sync for each commit.

        Raises:
            StoreUnusableError: It is damaged, of a newer version, read-only, on a network file
                system or on a full disk, or another program changed it.
        """
        self._cache = LockedCache(folder)
        self._rows = Rows(self._cache)
        self._meta = opened_meta(self._rows)
        self._enqueuer = Enqueuer(self._rows, synced=durability == "power")
        self._lookups = Lookups(self._rows)
        self._leases = Leases(self._rows, self._cache.folder)
        self._engine = Engine(self._rows, self._leases)
        self._escalations = Escalations(self._rows, self._engine)

    def secret(self) -> bytes:
        """See `Store.secret`."""
        return bytes.fromhex(self._meta["secret"])

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """See `Store.enqueue`."""
        return self._enqueuer.enqueue(requests)

    def find(self, request_id: str) -> RequestView | None:
        """See `Store.find`."""
        return self._lookups.find(request_id)

    def find_key(self, key: str) -> str | None:
        """See `Store.find_key`."""
        return self._rows.key_owner(key)

    def find_keys(self, pattern: str) -> Iterator[str]:
        """See `Store.find_keys`."""
        return self._lookups.find_keys(pattern)

    def runs(self) -> list[RunProgress]:
        """See `Store.runs`."""
        return runs(self._rows)

    def find_batch(self, batch_id: str) -> Batch | None:
        """See `Store.find_batch`."""
        return self._lookups.find_batch(batch_id)

    def outcomes(self, request_ids: Collection[str]) -> Iterator[Outcome]:
        """See `Store.outcomes`."""
        return self._lookups.outcomes(request_ids)

    def outcome_cursor(self) -> int:
        """See `Store.outcome_cursor`."""
        return self._rows.counters()["chunks"]

    def outcomes_since(self, cursor: int) -> tuple[list[Outcome], int]:
        """See `Store.outcomes_since`."""
        return self._lookups.outcomes_since(cursor)

    def cancel(self, request_ids: Collection[str], now: datetime, *, in_batches: bool) -> Canceled:
        """See `Store.cancel`."""
        return canceling.cancel(self._rows, request_ids, now, in_batches=in_batches)

    def deliver(self, request_ids: Collection[str]) -> None:
        """See `Store.deliver`."""
        canceling.deliver(self._rows, request_ids)

    def pause(self, latency: str, now: datetime) -> None:
        """See `Store.pause`."""
        with self._cache.write(synced=True):
            self._cache.set(layout.PAUSED, layout.dump({latency: to_us(now), **self._paused()}))

    def resume(self, latency: str) -> bool:
        """See `Store.resume`."""
        with self._cache.write(synced=True):
            paused = self._paused()
            was_paused = paused.pop(latency, None) is not None
            if was_paused:
                self._cache.set(layout.PAUSED, layout.dump(paused))
        return was_paused

    def paused(self) -> Mapping[str, datetime]:
        """See `Store.paused`."""
        return {latency: from_us(since) for latency, since in self._paused().items()}

    def engine(self) -> EngineView | None:
        """See `Store.engine`."""
        return self._leases.view()

    def request_flush(self) -> None:
        """See `Store.request_flush`."""
        with self._cache.write(synced=False):
            self._cache.set(layout.FLUSH, b"1")

    def waiting(self) -> list[Waiting]:
        """See `Store.waiting`."""
        return self._engine.waiting()

    def sample(self, waiting: Waiting, prefix: str) -> bytes | None:
        """See `Store.sample`."""
        return self._engine.sample(waiting, prefix)

    def open_batches(self) -> list[Batch]:
        """See `Store.open_batches`."""
        return self._lookups.open_batches()

    def closed_batches(self, limit: int) -> list[Batch]:
        """See `Store.closed_batches`."""
        return self._lookups.closed_batches(limit)

    def tally(self) -> Tally:
        """See `Store.tally`."""
        return self._rows.tally()

    def answer(self, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.answer`."""
        return answering.answer(self._rows, answers, now)

    def count_warm_up(self, latency: str, use: CacheUse, paid_usd: Decimal | None, now: datetime) -> None:
        """See `Store.count_warm_up`."""
        with self._cache.write(synced=False):
            log = LogWriter(self._rows)
            log.add_warm_up(latency, use, now, paid_usd)
            log.flush()

    def add_traffic(self, rows: Sequence[TrafficRow]) -> None:
        """See `Store.add_traffic`."""
        traffic.add_traffic(self._rows, rows)

    def traffic(self, since: date | None) -> list[TrafficRow]:
        """See `Store.traffic`."""
        return traffic.traffic(self._rows, since)

    def acquire_lease(self, holder: str, now: datetime, length: timedelta) -> Lease | None:
        """See `Store.acquire_lease`."""
        with self._engine.work():
            return self._leases.acquire(holder, now, length)

    def release_lease(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        self._engine.release_lease(lease)

    def check_lease(self, lease: Lease) -> None:
        """See `Store.check_lease`."""
        self._leases.check(lease)

    def report(self, lease: Lease, report: EngineReport) -> None:
        """See `Store.report`."""
        self._leases.report(lease, report)

    def take_flush_request(self, lease: Lease) -> bool:
        """See `Store.take_flush_request`."""
        self._leases.check(lease)
        return self._engine.take_flush_request(lease)

    def claim(
        self, lease: Lease, waiting: Waiting, limits: BatchLimits, *, batch_id: str, nonce: str, now: datetime
    ) -> Batch | None:
        """See `Store.claim`."""
        return self._engine.claim(lease, waiting, limits, batch_id=batch_id, nonce=nonce, now=now)

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
        return self._escalations.escalate_waiting(
            lease, waiting, before, batch_id=batch_id, reason=reason, insured=insured, now=now
        )

    def escalate_batch(
        self, lease: Lease, batch_id: str, *, into: str, reason: Reason, insured: bool, now: datetime
    ) -> Batch | None:
        """See `Store.escalate_batch`."""
        return self._escalations.escalate_batch(
            lease, batch_id, into=into, reason=reason, insured=insured, now=now
        )

    def note_decision(
        self, lease: Lease, batch_id: str, *, reason: Reason, insured: bool, recalled_at: datetime | None
    ) -> None:
        """See `Store.note_decision`."""
        self._engine.note_decision(lease, batch_id, reason=reason, insured=insured, recalled_at=recalled_at)

    def begin_calls(self, lease: Lease, batch_id: str, request_ids: Sequence[str]) -> list[LiveCall]:
        """See `Store.begin_calls`."""
        return self._escalations.begin_calls(lease, batch_id, request_ids)

    def end_calls(self, lease: Lease, batch_id: str, request_ids: Collection[str]) -> None:
        """See `Store.end_calls`."""
        self._escalations.end_calls(lease, batch_id, request_ids)

    def body(self, batch: Batch) -> BatchBody:
        """See `Store.body`."""
        return self._engine.body(batch)

    def update_batch(self, lease: Lease, batch: Batch) -> None:
        """See `Store.update_batch`."""
        self._engine.update_batch(lease, batch)

    def record_created(self, batch: Batch) -> bool:
        """See `Store.record_created`."""
        with self._cache.write(synced=True):
            number = self._rows.numbered("i", batch.batch_id)
            stored = None if number is None else self._rows.find_batch(number)
            created = None if stored is None else rules.created(stored.batch, batch)
            if number is None or stored is None or created is None:
                return False
            if created != stored.batch:
                self._rows.rewrite_batch(number, stored, replace(stored, batch=created))
        return True

    def known_batches(self, provider_batch_ids: Collection[str]) -> set[str]:
        """See `Store.known_batches`."""
        return self._lookups.known_batches(provider_batch_ids)

    def release(self, lease: Lease, batch_id: str) -> int:
        """See `Store.release`."""
        return self._engine.release(lease, batch_id)

    def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.settle`."""
        return self._engine.settle(lease, batch_id, answers, now)

    def unsettled(self, batch_id: str) -> Iterator[str]:
        """See `Store.unsettled`."""
        return self._lookups.unsettled(batch_id)

    def finish(self, lease: Lease, batch: Batch) -> None:
        """See `Store.finish`."""
        self._engine.finish(lease, batch)

    def sweep(self, lease: Lease, limit: int) -> int:
        """See `Store.sweep`."""
        return self._engine.sweep(lease, limit)

    def prune(self, lease: Lease, before: datetime, limit: int, *, undelivered: bool) -> int:
        """See `Store.prune`."""
        return self._engine.prune(lease, before, limit, undelivered=undelivered)

    def close(self) -> None:
        """See `Store.close`."""
        self._leases.close()
        self._cache.close()

    def _paused(self) -> dict[str, int]:
        value = self._cache.get(layout.PAUSED)
        return {} if value is None else self._rows.parse(layout.PAUSED, json.loads, value)
