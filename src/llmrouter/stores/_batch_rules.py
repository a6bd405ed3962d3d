"""What a store makes of news of a batch: one place for every store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain.batches import OPEN_STATES, BatchState
from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.domain.batches import Batch


def updated(stored: Batch, said: Batch) -> Batch:
    """A batch after `Store.update_batch`.

    Raises:
        StoreError: The new state is not that of an open batch of the API's, or the batch is none of those.
    """
    if said.state not in OPEN_STATES or BatchState.ESCALATING in (stored.state, said.state):
        raise StoreError(f"{said.batch_id}: {said.state} is no news of an open batch that was {stored.state}")
    if stored.state is BatchState.IN_FLIGHT and said.state is not BatchState.IN_FLIGHT:
        return stored
    return _with_its_own(stored, said)


def created(stored: Batch, said: Batch) -> Batch | None:
    """A batch after `Store.record_created`; None when the store does not take it for created."""
    if stored.state in (BatchState.CLAIMED, BatchState.IN_DOUBT):
        return replace(
            stored,
            state=BatchState.IN_FLIGHT,
            provider_batch_id=said.provider_batch_id,
            created_at=said.created_at,
            expires_at=said.expires_at,
            ended_at=said.ended_at,
            candidates=(),
        )
    known = stored.state is not BatchState.RELEASED and stored.provider_batch_id == said.provider_batch_id
    return stored if known else None


def finished(stored: Batch, said: Batch) -> Batch:
    """A batch after `Store.finish`."""
    return replace(_with_its_own(stored, said), state=BatchState.ENDED)


def is_over_before(batch: Batch, instant: datetime) -> bool:
    """Whether a closed batch ended before an instant; of one that never did, the last that is known."""
    return (batch.ended_at or batch.created_at or batch.claimed_at) < instant


def _with_its_own(stored: Batch, said: Batch) -> Batch:
    """News of a batch, but for what is the store's own: whoever tells it may have read that long ago."""
    return replace(
        said,
        cancel_wanted=stored.cancel_wanted,
        reason=stored.reason,
        insured=stored.insured,
        recalled_at=stored.recalled_at,
        escalated_at=stored.escalated_at,
        raced=stored.raced,
    )
