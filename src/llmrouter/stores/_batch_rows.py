"""How the disk store writes down a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmrouter.domain.batches import Batch, BatchState
from llmrouter.domain.blocks import Reason
from llmrouter.stores._layout import dump, from_us, read_lane, to_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from llmrouter.stores._layout import Segment

Ranges = dict[str, list[list[int]]]
"""Page to ``[start, stop)`` slots."""

_INSTANTS = (
    "claimed_at",
    "created_at",
    "expires_at",
    "ended_at",
    "in_doubt_at",
    "cancel_asked_at",
    "deadline_at",
    "recalled_at",
    "escalated_at",
)
_BESIDE = ("ranges", "given_up_at", "escalated")
"""In a row, but not of the batch."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch and what the store keeps with it."""

    batch: Batch
    ranges: Ranges
    """What was claimed into it."""
    given_up_at: datetime | None = None
    """When one of its requests was last given up."""
    escalated: Ranges = field(default_factory=dict)
    """Those of them that were taken out of it to go live: what it still answers may be their outcome."""


class StoredAttempts(Mapping[str, int]):
    """`Batch.attempts` of a row of their own, read when they are first asked for.

    There may be 100,000 of them, and open batches are listed every second.
    """

    def __init__(self, read: Callable[[], dict[str, int]]) -> None:
        self._read = read

    @cached_property
    def _attempts(self) -> dict[str, int]:
        return self._read()

    def __getitem__(self, request_id: str) -> int:
        return self._attempts[request_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._attempts)

    def __len__(self) -> int:
        return len(self._attempts)

    def __reduce__(self) -> tuple[type, tuple[dict[str, int]]]:
        """A copy needs no store."""
        return dict, (self._attempts,)


def includes(ranges: Ranges, page: str, slot: int) -> bool:
    """Whether a request is among those of some ranges."""
    for start, stop in ranges.get(page, ()):  # noqa: SIM110  (asked for each answer, and twice as fast)
        if start <= slot < stop:
            return True
    return False


def overlaps(ranges: Ranges, segment: Segment) -> bool:
    """Whether any request of a segment is among those of some ranges."""
    runs = ranges.get(segment.page, ())
    return any(start < segment.stop and segment.start < stop for start, stop in runs)


def batch_key(number: int) -> str:
    """The row key of a batch. They sort by number."""
    return f"b{number:010d}"


def ended_key(number: int) -> str:
    """The row key that says of a batch that it was one of the API's, and ended."""
    return f"c{number:010d}"


def attempts_key(number: int) -> str:
    """The row key of earlier attempts of a batch."""
    return f"a{number:010d}"


def batch_row(stored: StoredBatch) -> bytes:
    """The value of a batch, without those attempts that have a row of their own.

    What is known of it as a whole stands in a line before what was claimed into it: open batches are listed
    every second, and the ranges of requests that were not neighbours can have a megabyte.
    """
    attempts = stored.batch.attempts
    fields = asdict(replace(stored.batch, attempts={}))
    fields["attempts"] = None if isinstance(attempts, StoredAttempts) else dict(attempts)
    for name in _INSTANTS:
        fields[name] = _us(fields[name])
    window = stored.batch.window
    fields["window"] = None if window is None else window // _MICROSECOND
    claimed = {"ranges": stored.ranges, "escalated": stored.escalated}
    return b"\n".join([dump({**fields, "given_up_at": _us(stored.given_up_at)}), dump(claimed)])


def read_batch(value: bytes, read_attempts: Callable[[], dict[str, int]]) -> StoredBatch:
    """The batch of a row.

    Schemas 1 and 2 lack the later fields: they have their defaults. Schema 1 has the attempts in the row.

    Args:
        value: Of the row.
        read_attempts: Reads those that have a row of their own.
    """
    head, _, claimed = value.partition(b"\n")
    fields: dict[str, Any] = json.loads(head)
    # Before schema 3 all stood in one line.
    beside: dict[str, Any] = json.loads(claimed) if claimed else fields
    return StoredBatch(
        batch=_batch_of(fields, read_attempts),
        ranges=beside["ranges"],
        given_up_at=_instant(fields.get("given_up_at")),
        escalated=beside.get("escalated", {}),
    )


def read_batch_alone(value: bytes, read_attempts: Callable[[], dict[str, int]]) -> Batch:
    """The same without what was claimed into it, which takes far longer to read."""
    return _batch_of(json.loads(value.partition(b"\n")[0]), read_attempts)


def _batch_of(fields: Mapping[str, Any], read_attempts: Callable[[], dict[str, int]]) -> Batch:
    window, reason = fields.get("window"), fields.get("reason")
    return Batch(
        **{
            **{name: value for name, value in fields.items() if name not in _BESIDE},
            **{name: _instant(fields.get(name)) for name in _INSTANTS},
            "lane": read_lane(fields["lane"]),
            "attempts": StoredAttempts(read_attempts) if fields["attempts"] is None else fields["attempts"],
            "state": BatchState(fields["state"]),
            "candidates": tuple(fields.get("candidates", ())),
            "window": None if window is None else timedelta(microseconds=window),
            "reason": None if reason is None else Reason(reason),
        }
    )


def _us(instant: datetime | None) -> int | None:
    return None if instant is None else to_us(instant)


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_us(microseconds)
