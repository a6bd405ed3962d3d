"""How the disk store writes down a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmrouter.domain.batches import Batch, BatchState
from llmrouter.stores._layout import dump, from_us, read_lane, to_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

Ranges = dict[str, list[list[int]]]
"""Page to ``[start, stop)`` slots."""

_INSTANTS = ("claimed_at", "created_at", "expires_at", "ended_at", "in_doubt_at", "cancel_asked_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch and what the store keeps with it."""

    batch: Batch
    ranges: Ranges
    """What was claimed into it."""
    given_up_at: datetime | None = None
    """When one of its requests was last given up."""


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


def batch_key(number: int) -> str:
    """The row key of a batch. They sort by number."""
    return f"b{number:010d}"


def attempts_key(number: int) -> str:
    """The row key of earlier attempts of a batch."""
    return f"a{number:010d}"


def batch_row(stored: StoredBatch) -> bytes:
    """The value of a batch, without those attempts that have a row of their own."""
    attempts = stored.batch.attempts
    fields = asdict(replace(stored.batch, attempts={}))
    fields["attempts"] = None if isinstance(attempts, StoredAttempts) else dict(attempts)
    for name in _INSTANTS:
        fields[name] = _us(fields[name])
    return dump({**fields, "ranges": stored.ranges, "given_up_at": _us(stored.given_up_at)})


def read_batch(value: bytes, read_attempts: Callable[[], dict[str, int]]) -> StoredBatch:
    """The batch of a row.

    Schema 1 lacks the later fields: they have their defaults. Its attempts stand in the row.

    Args:
        value: Of the row.
        read_attempts: Reads those that have a row of their own.
    """
    fields: dict[str, Any] = json.loads(value)
    ranges: Ranges = fields.pop("ranges")
    given_up_at = _instant(fields.pop("given_up_at", None))
    batch = Batch(
        **{
            **fields,
            **{name: _instant(fields.get(name)) for name in _INSTANTS},
            "lane": read_lane(fields["lane"]),
            "attempts": StoredAttempts(read_attempts) if fields["attempts"] is None else fields["attempts"],
            "state": BatchState(fields["state"]),
            "candidates": tuple(fields.get("candidates", ())),
        }
    )
    return StoredBatch(batch=batch, ranges=ranges, given_up_at=given_up_at)


def _us(instant: datetime | None) -> int | None:
    return None if instant is None else to_us(instant)


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_us(microseconds)
