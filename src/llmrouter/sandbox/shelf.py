"""All batches of a sandbox, under one lock."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmrouter.sandbox.batches import ARCHIVED_AFTER, Batch, Item, Outcome, shuffled_order
from llmrouter.sandbox.clocks import format_instant
from llmrouter.sandbox.errors import ApiError
from llmrouter.sandbox.outages import Outage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from llmrouter.sandbox.clocks import Clock
    from llmrouter.sandbox.turnaround import Turnaround


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of the list of batches, newest first."""

    batches: tuple[Batch, ...]
    has_more: bool
    """Whether there are more in the direction of the page: older ones, or newer ones for `before_id`."""


class Shelf:
    """Creates, finds, cancels and deletes batches. Safe to use from several threads.

    Args:
        clock: the sandbox's clock; the state of a batch is worked out from it when looked at.
        turnaround: how long each batch takes.
        seed: decides ids and the order of results.
        cancel_takes: how long each canceled batch stays `canceling`.
    """

    def __init__(self, *, clock: Clock, turnaround: Turnaround, seed: int, cancel_takes: Turnaround) -> None:
        self._clock = clock
        self._turnaround = turnaround
        self._seed = seed
        self._cancel_takes = cancel_takes
        self._batches: dict[str, Batch] = {}
        self._outages: tuple[Outage, ...] = ()
        self._hidden_calls: dict[str, int] = {}
        self._unlisted_calls: dict[str, int] = {}
        self._counts: dict[str, Counter[Outcome]] = {}
        self._next_number = 0
        self._lock = threading.RLock()

    def create(
        self,
        items: tuple[Item, ...],
        *,
        api_key: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        hidden_calls: int = 0,
        unlisted_calls: int = 0,
        queued_limit: int | None = None,
        stalls_after: float = 1.0,
    ) -> Batch:
        """Shelves a new batch.

        Args:
            items: its requests, at least one.
            api_key: the credential of the call.
            headers: the `anthropic-…` headers of the call.
            body: the body of the call, to be kept.
            hidden_calls: how many calls that name it are answered with 404.
            unlisted_calls: how many calls of the list leave it out.
            queued_limit: how many requests may wait in all batches together.
            stalls_after: what part of its items gets done; less than 1: it then stands still.

        Raises:
            ApiError: 429, too many requests are waiting already.
        """
        with self._lock:
            now = self._clock.now()
            self._check_queue(len(items), queued_limit, now)
            number = self._next_number
            self._next_number += 1
            batch = Batch(
                id=f"msgbatch_{hashlib.sha256(f'{self._seed}:batch:{number}'.encode()).hexdigest()[:24]}",
                number=number,
                created_at=now,
                turnaround=self._turnaround.sample(number, len(items)),
                items=items,
                order=shuffled_order(len(items), f"order:{self._seed}:{number}"),
                api_key=api_key,
                headers=headers,
                stuck=stalls_after < 1 or any(item.forced_outcome == "expired" for item in items),
                stalls_after=stalls_after,
                outages=self._outages,
                cancel_takes=self._cancel_takes.sample(number, len(items)),
                body=body,
            )
            self._batches[batch.id] = batch
            self._hidden_calls[batch.id] = hidden_calls
            self._unlisted_calls[batch.id] = unlisted_calls
            return batch

    @property
    def outages(self) -> tuple[Outage, ...]:
        """Every outage, in the order they were added."""
        with self._lock:
            return self._outages

    def add_outage(self, span: timedelta, *, after: timedelta, cancels: bool) -> Outage:
        """Has all batches stand still for a while; raises ValueError when a span is negative."""
        if after < timedelta(0):
            raise ValueError("an outage must not begin in the past: batches may have ended in it")
        with self._lock:
            now = self._clock.now()
            outage = Outage(from_at=now + after, until_at=now + after + span, cancels=cancels)
            self._outages = (*self._outages, outage)
            for batch in self._batches.values():
                if batch.status(now) != "ended":
                    self._batches[batch.id] = replace(batch, outages=self._outages)
            return outage

    def all(self) -> dict[str, Batch]:
        """Every batch by its id, oldest first, deleted ones too."""
        with self._lock:
            return dict(self._batches)

    def ended(self) -> tuple[Batch, ...]:
        """Every batch that has ended by now, oldest first, deleted ones too."""
        now = self._clock.now()
        return tuple(batch for batch in self.all().values() if batch.status(now) == "ended")

    def peek(self, batch_id: str) -> Batch | None:
        """The batch of this id, deleted and hidden ones too; counts as no call."""
        with self._lock:
            return self._batches.get(batch_id)

    def find(self, batch_id: str) -> Batch:
        """The batch a call names; raises ApiError (404) when it is unknown, deleted or hidden."""
        with self._lock:
            batch = self._batches.get(batch_id)
            hidden = self._hidden_calls.get(batch_id, 0)
            if hidden > 0:
                self._hidden_calls[batch_id] = hidden - 1
            if batch is None or batch.deleted_at is not None or hidden > 0:
                raise ApiError("not_found_error", f"Message Batch {batch_id} not found")
            return batch

    def page(self, *, after_id: str | None, before_id: str | None, limit: int) -> Page:
        """A page of the batches that are not deleted; raises ApiError (400) for an unknown cursor."""
        if after_id is not None and before_id is not None:
            raise ApiError("invalid_request_error", "Only one of after_id and before_id may be given")
        with self._lock:
            lagging = self._count_lag()
            newest_first = [
                batch
                for batch in reversed(self._batches.values())
                if batch.deleted_at is None and batch.id not in lagging
            ]
            cursor = self._find_cursor(after_id or before_id)
        if cursor is None:
            return Page(batches=tuple(newest_first[:limit]), has_more=len(newest_first) > limit)
        if after_id is not None:
            older = [batch for batch in newest_first if batch.number < cursor.number]
            return Page(batches=tuple(older[:limit]), has_more=len(older) > limit)
        newer = [batch for batch in newest_first if batch.number > cursor.number]
        return Page(batches=tuple(newer[-limit:]), has_more=len(newer) > limit)

    def cancel(self, batch_id: str) -> Batch:
        """Starts to cancel a batch, once; raises ApiError (400) when it has ended."""
        with self._lock:
            batch = self.find(batch_id)
            now = self._clock.now()
            if batch.status(now) == "ended":
                raise ApiError("invalid_request_error", f"Message Batch {batch_id} has ended already")
            if batch.cancel_initiated_at is None:
                batch = replace(batch, cancel_initiated_at=now)
                self._batches[batch_id] = batch
            return batch

    def delete(self, batch_id: str) -> Batch:
        """Deletes a batch; raises ApiError (400) before it has ended."""
        with self._lock:
            batch = self.find(batch_id)
            now = self._clock.now()
            if batch.status(now) != "ended":
                raise ApiError(
                    "invalid_request_error", f"Message Batch {batch_id} cannot be deleted before it has ended"
                )
            self._batches[batch_id] = replace(batch, deleted_at=now)
            return batch

    def find_results(self, batch_id: str) -> Batch:
        """A batch whose results can be read; raises ApiError (404) before its end and after 29 days."""
        batch = self.find(batch_id)
        now = self._clock.now()
        if batch.status(now) != "ended":
            raise ApiError("not_found_error", f"Message Batch {batch_id} has no results before it has ended")
        if now >= batch.created_at + ARCHIVED_AFTER:
            raise ApiError(
                "not_found_error", f"The results of Message Batch {batch_id} are no longer available"
            )
        return batch

    def describe(self, batch: Batch, base_url: str) -> dict[str, Any]:
        """The batch as the API shows it now, as plain JSON."""
        now = self._clock.now()
        status = batch.status(now)
        ended = status == "ended"
        archived_at = batch.created_at + ARCHIVED_AFTER
        archived = now >= archived_at
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": self._request_counts(batch, ended=ended),
            "created_at": format_instant(batch.created_at),
            "expires_at": format_instant(batch.expires_at),
            "ended_at": format_instant(batch.ends_at) if ended else None,
            "cancel_initiated_at": format_instant(batch.cancel_initiated_at),
            "archived_at": format_instant(archived_at) if archived else None,
            "results_url": f"{base_url}/v1/messages/batches/{batch.id}/results"
            if ended and not archived
            else None,
        }

    def clear(self) -> None:
        """Forgets every batch. Ids are not used again."""
        with self._lock:
            self._batches.clear()
            self._outages = ()
            self._hidden_calls.clear()
            self._unlisted_calls.clear()
            self._counts.clear()

    def _check_queue(self, size: int, queued_limit: int | None, now: datetime) -> None:
        if queued_limit is None:
            return
        waiting = sum(len(batch.items) for batch in self._batches.values() if batch.status(now) != "ended")
        if waiting + size > queued_limit:
            raise ApiError(
                "rate_limit_error",
                f"{waiting} requests are waiting in the batch queue; at most {queued_limit} may",
                headers={"retry-after": "60"},
            )

    def _count_lag(self) -> set[str]:
        """Counts one call of the list; returns the batches that it leaves out."""
        lagging = {batch_id for batch_id, left in self._unlisted_calls.items() if left > 0}
        for batch_id in lagging:
            self._unlisted_calls[batch_id] -= 1
        return lagging

    def _find_cursor(self, batch_id: str | None) -> Batch | None:
        if batch_id is None:
            return None
        cursor = self._batches.get(batch_id)
        if cursor is None:
            raise ApiError("invalid_request_error", f"There is no Message Batch {batch_id} to page from")
        return cursor

    def _request_counts(self, batch: Batch, *, ended: bool) -> dict[str, int]:
        counts: Counter[Outcome] = Counter()
        if ended:
            with self._lock:
                if batch.id not in self._counts:
                    self._counts[batch.id] = batch.count_outcomes()
                counts = self._counts[batch.id]
        return {
            "processing": 0 if ended else len(batch.items),
            "succeeded": counts["succeeded"],
            "errored": counts["errored"],
            "canceled": counts["canceled"],
            "expired": counts["expired"],
        }
