"""How a request ended: as a line of batch results, and as an entry of the summary."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anthropic

from llmrouter.claude.prices import price_of
from llmrouter.claude.results import error_of
from llmrouter.domain.ledger import miss_cause
from llmrouter.domain.requests import OutcomeKind, Route
from llmrouter.reports.summary import Finished

if TYPE_CHECKING:
    from datetime import timedelta

    from llmrouter.futures import MessageFuture

_FREE = Decimal(0)


def result_of(future: MessageFuture) -> dict[str, Any]:
    """The `result` that a line of batch results would have for a future that is done.

    Real-time answers and those that have no line of their own are put into the same shape.
    """
    outcome = future.outcome
    if outcome is None:
        return _live_result(future)
    if outcome.raw:
        result: dict[str, Any] = json.loads(outcome.raw)["result"]
        return result
    if outcome.kind is OutcomeKind.ERRORED:
        return _errored("api_error", str(future.exception()))
    return {"type": outcome.kind.value}


def finished_of(future: MessageFuture, result: dict[str, Any], live_wait: timedelta) -> Finished:
    """The entry of a future that is done.

    Args:
        future: The future.
        result: What `result_of` said of it.
        live_wait: How long it took, for a real-time request: nothing is stored that would tell.
    """
    outcome = future.outcome
    kind = result["type"]
    error_type = None
    if kind != OutcomeKind.SUCCEEDED:
        error_type = str(error_of(result).get("type", kind))
    paid_usd, list_usd = _costs(future, result) if error_type is None else (_FREE, _FREE)
    return Finished(
        latency=future.latency,
        batch_id=outcome.batch_id if outcome else None,
        error_type=error_type,
        waited=outcome.settled_at - outcome.accepted_at if outcome else live_wait,
        on_time=outcome.settled_at <= outcome.deadline_at if outcome else None,
        paid_usd=paid_usd,
        list_usd=list_usd,
        escalated=outcome is not None and outcome.route is Route.ESCALATED,
        missed=miss_cause(outcome) if outcome else None,
    )


def _costs(future: MessageFuture, result: dict[str, Any]) -> tuple[Decimal | None, Decimal | None]:
    outcome = future.outcome
    in_batch = outcome is not None and outcome.route is Route.BATCH
    price = price_of(
        result["message"],
        processing="batch" if in_batch else "standard",
        at=outcome.settled_at if outcome else datetime.now(UTC),
    )
    return (None, None) if price is None else (price.paid_usd, price.list_usd)


def _live_result(future: MessageFuture) -> dict[str, Any]:
    error = future.exception()
    if error is None:
        return {"type": OutcomeKind.SUCCEEDED.value, "message": future.result().to_dict(mode="json")}
    body = error.body if isinstance(error, anthropic.APIStatusError) else None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return {"type": OutcomeKind.ERRORED.value, "error": body}
    error_type = "timeout_error" if isinstance(error, anthropic.APITimeoutError) else "api_error"
    return _errored(error_type, f"{type(error).__name__}: {error}")


def _errored(error_type: str, message: str) -> dict[str, Any]:
    error = {"type": "error", "error": {"type": error_type, "message": message}}
    return {"type": OutcomeKind.ERRORED.value, "error": error}
