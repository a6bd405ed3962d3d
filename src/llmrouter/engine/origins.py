"""What the parts that ask the API have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anthropic

    from llmrouter.domain.batches import Batch


def origin(batch: Batch) -> tuple[str, ...]:
    """Batches of one origin can be shown by one list call."""
    workspace = dict(batch.lane.headers).get("anthropic-workspace-id", "")
    return batch.lane.base_url, batch.lane.credential, workspace, batch.lane.endpoint


def brief(error: anthropic.APIError) -> str:
    """An error without what it says of content."""
    status = getattr(error, "status_code", None)
    return type(error).__name__ if status is None else f"{type(error).__name__} ({status})"
