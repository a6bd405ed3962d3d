"""Answers for requests that no result line answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmrouter.domain.batches import Answer
from llmrouter.domain.requests import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.errors import CreateRefusedError


def refused_answer(request_id: str, refusal: CreateRefusedError) -> Answer:
    """An errored answer that carries the API's own error, in the form of a result line."""
    envelope: Mapping[str, Any] = refusal.envelope or {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": str(refusal)},
    }
    line = {"custom_id": request_id, "result": {"type": "errored", "error": envelope}}
    return Answer(request_id=request_id, kind=OutcomeKind.ERRORED, raw=json.dumps(line).encode(), retry=False)


def missing_answer(request_id: str, *, retry: bool) -> Answer:
    """The answer of a request whose batch is over without a line for it."""
    return Answer(request_id=request_id, kind=OutcomeKind.ERRORED, raw=b"", retry=retry)
