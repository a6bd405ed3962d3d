"""Requests into rows of the disk store: segments, groups and idempotency keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmrouter.domain.requests import Accepted
from llmrouter.errors import KeyConflictError
from llmrouter.stores import _layout as layout
from llmrouter.stores._layout import from_us

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.domain.requests import Group, QueuedRequest
    from llmrouter.stores._rows import Rows


_GROUPS_KEPT = 10_000
"""Call sites can be made up by the thousand."""


class Enqueuer:
    """Writes new requests."""

    def __init__(self, rows: Rows, *, synced: bool) -> None:
        self._cache = rows.cache
        self._synced = synced
        self._groups: dict[Group, str] = {}

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """See `Store.enqueue`. The most frequent case, a single one without a key, costs one row."""
        group_hash = self._groups.get(requests[0].group) if len(requests) == 1 else None
        if group_hash is not None and requests[0].key is None:
            key, value = layout.single_segment(requests[0], group_hash)
            self._cache.set_alone(key, value, synced=self._synced)
            return [_accepted(requests[0])]
        keyed = any(request.key is not None for request in requests)
        with self._cache.write(synced=self._synced):
            known = self._take_keys(requests) if keyed else {}
            new = (
                [request for place, request in enumerate(requests) if place not in known]
                if known
                else requests
            )
            for key, value in layout.plan_segments(new, self._group_hash):
                self._cache.set(key, value)
        if len(self._groups) > _GROUPS_KEPT:
            self._groups.clear()
        for group in {request.group for request in new}:
            self._groups.setdefault(group, layout.group_row(group)[0])
        return [known.get(place) or _accepted(request) for place, request in enumerate(requests)]

    def _group_hash(self, group: Group) -> str:
        """The hash of a group, whose row is written before the first request that needs it."""
        group_hash = self._groups.get(group)
        if group_hash is None:
            # Known only from the commit on: a row that is rolled back must be written again.
            group_hash, value = layout.group_row(group)
            if self._cache.get(f"g{group_hash}") is None:
                self._cache.set(f"g{group_hash}", value)
        return group_hash

    def _take_keys(self, requests: Sequence[QueuedRequest]) -> dict[int, Accepted]:
        """Writes the new idempotency keys; answers with the requests whose key is known already."""
        known = {}
        for place, request in enumerate(requests):
            if request.key is None:
                continue
            row = layout.key_row(request.key)
            value = self._cache.get(row)
            if value is None:
                self._cache.set(row, layout.key_value(request))
            else:
                known[place] = self._same_request(request, json.loads(value), place)
        return known

    def _same_request(self, request: QueuedRequest, stored: dict[str, Any], place: int) -> Accepted:
        if (stored["body"], stored["latency"]) != (layout.body_hash(request.body), request.group.latency):
            raise KeyConflictError(
                "key",
                f"{request.key!r} already belongs to {stored['request_id']}, which has another body or class",
                index=place,
            )
        return Accepted(
            request_id=stored["request_id"],
            accepted_at=from_us(stored["accepted"]),
            deadline_at=from_us(stored["deadline"]),
            duplicate=True,
        )


def _accepted(request: QueuedRequest) -> Accepted:
    return Accepted(
        request_id=request.request_id,
        accepted_at=request.accepted_at,
        deadline_at=request.deadline_at,
        duplicate=False,
    )
