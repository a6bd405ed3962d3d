"""Requests into batches, under the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain.batches import API_MAX_BYTES, API_MAX_REQUESTS, wire_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How large a batch may become. Never above the API's own limits."""

    max_requests: int = API_MAX_REQUESTS
    max_bytes: int = API_MAX_BYTES
    """Of the posted body, see `wire_bytes`."""
    one_fate: bool = False
    """Whether its deadlines may lie no further apart than `llmrouter.domain.scheduling.group_span` of the
    first request's window."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_requests <= API_MAX_REQUESTS:
            raise ValueError(f"a batch takes 1 to {API_MAX_REQUESTS:,} requests, not {self.max_requests:,}")
        if not 1 <= self.max_bytes <= API_MAX_BYTES:
            raise ValueError(f"a batch takes 1 to {API_MAX_BYTES:,} bytes, not {self.max_bytes:,}")


@dataclass(frozen=True, slots=True)
class Run:
    """Requests that are stored side by side and stay in order."""

    count: int
    body_bytes: int
    """Of all its bodies together."""
    sizes: Callable[[], Sequence[int]]
    """Bytes of each body. Asked for only when the run has to be cut: it may cost a read."""


def pack(runs: Iterable[Run], limits: BatchLimits) -> Iterator[int]:
    """How many requests of each run go into one batch, in order, until it is full.

    The first request is always taken; one that is too large alone is refused when it is submitted.

    Args:
        runs: The backlog in the order in which it should leave.
        limits: The largest batch.

    Yields:
        For each run that goes in, how many of its first requests do (at least one). Ends after
        the first run that does not go in whole.
    """
    count = body_bytes = 0
    for run in runs:
        if _fits(count + run.count, body_bytes + run.body_bytes, limits):
            count += run.count
            body_bytes += run.body_bytes
            yield run.count
            continue
        taken = _cut(run.sizes(), count, body_bytes, limits)
        if taken:
            yield taken
        return


def _cut(sizes: Sequence[int], count: int, body_bytes: int, limits: BatchLimits) -> int:
    """How many of the first requests of a run still fit."""
    taken = 0
    for size in sizes:
        body_bytes += size
        first = count + taken == 0
        if not first and not _fits(count + taken + 1, body_bytes, limits):
            break
        taken += 1
    return taken


def _fits(count: int, body_bytes: int, limits: BatchLimits) -> bool:
    return count <= limits.max_requests and wire_bytes(count, body_bytes) <= limits.max_bytes
