"""The outcome log of the disk store: rows of outcomes that were settled together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmrouter.domain.blocks import Reason
from llmrouter.domain.requests import Outcome, OutcomeKind, Route
from llmrouter.stores._layout import dump, from_us, to_us

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK_OUTCOMES = 10_000
"""At most so many outcomes in one row; a place in it is written with 16 bits."""


def chunk_key(number: int) -> str:
    """The row key of a chunk. They sort by number."""
    return f"o{number:010d}"


def chunk_row(outcomes: Sequence[Outcome]) -> bytes:
    """The value of a chunk of outcomes."""
    rows = [
        (
            outcome.request_id,
            outcome.kind,
            outcome.latency,
            to_us(outcome.accepted_at),
            to_us(outcome.deadline_at),
            to_us(outcome.settled_at),
            outcome.attempts,
            outcome.batch_id,
            outcome.key,
            len(outcome.raw),
            *_decided(outcome),
        )
        for outcome in outcomes
    ]
    return b"".join([dump(rows), b"\n", *(outcome.raw for outcome in outcomes)])


def _decided(outcome: Outcome) -> tuple[object, ...]:
    """What was decided about its deadline; nothing takes no space and no time."""
    if outcome.reason is None and outcome.insured and outcome.route is Route.BATCH:
        return ()
    return outcome.route, outcome.reason, outcome.insured


class Chunk:
    """A chunk of outcomes, whose parts are made when they are asked for."""

    def __init__(self, value: bytes) -> None:
        end = value.index(b"\n") + 1
        self._value = value
        self._rows: list[tuple[Any, ...]] = json.loads(value[:end])
        self._starts = [end]
        for row in self._rows:
            self._starts.append(self._starts[-1] + row[9])

    def all(self) -> list[Outcome]:
        """All of them, in the order of settling."""
        return [self[place] for place in range(len(self._rows))]

    def request_ids(self) -> list[str]:
        """Whose outcomes they are, in the same order."""
        return [row[0] for row in self._rows]

    def keys(self) -> dict[str, str]:
        """The idempotency keys of those that have one, and whose they are."""
        return {row[8]: row[0] for row in self._rows if row[8] is not None}

    def keyed_places(self, prefix: str) -> list[int]:
        """Places of those whose idempotency key begins with a text."""
        return [place for place, row in enumerate(self._rows) if (row[8] or "").startswith(prefix)]

    def newest_us(self) -> int:
        """When the last one was settled."""
        settled_us: list[int] = [row[5] for row in self._rows]
        return max(settled_us)

    def batch_id(self, place: int) -> str | None:
        """Of the batch that one of them names."""
        named: str | None = self._rows[place][7]
        return named

    def __getitem__(self, place: int) -> Outcome:
        row = self._rows[place]
        # A row ends here where nothing was decided, and before schema 3.
        route, reason, insured = row[10:] or (Route.BATCH, None, True)
        return Outcome(
            request_id=row[0],
            kind=OutcomeKind(row[1]),
            latency=row[2],
            accepted_at=from_us(row[3]),
            deadline_at=from_us(row[4]),
            settled_at=from_us(row[5]),
            attempts=row[6],
            batch_id=row[7],
            key=row[8],
            raw=self._value[self._starts[place] : self._starts[place + 1]],
            route=Route(route),
            reason=None if reason is None else Reason(reason),
            insured=insured,
        )
