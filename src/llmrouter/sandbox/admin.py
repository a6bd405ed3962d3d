"""Routes under `/_sandbox/`, for another process to drive the sandbox: no credential, never counted.

| call | does |
|---|---|
| `GET /_sandbox/books` | the account in figures, as `Books.summarize` |
| `GET /_sandbox/charges` | every answer that was charged, by route, batch, `custom_id` and `params_hash` |
| `GET /_sandbox/batches` | every batch, oldest first, deleted ones too, and what became of its items |
| `GET /_sandbox/faults` | every fault since the last clear, with its `strikes` |
| `POST /_sandbox/faults` | adds the fault in the body, as `Fault.from_json` |
| `DELETE /_sandbox/faults` | clears them |
| `GET /_sandbox/outages` | every outage since the last reset, as `Outage.to_json` |
| `POST /_sandbox/outages` | `{"seconds": 21600, "after_seconds": 0, "cancels": true}` adds one |
| `GET /_sandbox/clock` | `{"now": ...}` |
| `POST /_sandbox/advance` | `{"seconds": 600}` moves the clock forward |
| `POST /_sandbox/reset` | forgets batches, books, faults and outages |
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.routing import Route

from llmrouter.sandbox.app import json_response
from llmrouter.sandbox.clocks import format_instant
from llmrouter.sandbox.errors import ApiError
from llmrouter.sandbox.faults import ArmedFault, Fault
from llmrouter.sandbox.items import parse_object

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from starlette.requests import Request
    from starlette.responses import Response

    from llmrouter.sandbox.batches import Batch
    from llmrouter.sandbox.books import Charge
    from llmrouter.sandbox.core import Sandbox

    Action = Callable[[dict[str, Any]], Any]


def build_admin_routes(sandbox: Sandbox) -> list[Route]:
    """The routes that look at `sandbox` and drive it."""
    admin = _Admin(sandbox)
    table: list[tuple[str, str, Action]] = [
        ("GET", "books", lambda _: sandbox.books.summarize()),
        ("GET", "charges", lambda _: [_show_charge(charge) for charge in sandbox.books.charges]),
        ("GET", "batches", admin.show_batches),
        ("GET", "faults", lambda _: [_show(armed) for armed in sandbox.faults.armed]),
        ("POST", "faults", admin.add_fault),
        ("DELETE", "faults", admin.clear_faults),
        ("GET", "outages", lambda _: [outage.to_json() for outage in sandbox.outages]),
        ("POST", "outages", admin.add_outage),
        ("GET", "clock", lambda _: admin.show_clock()),
        ("POST", "advance", admin.advance),
        ("POST", "reset", admin.reset),
    ]
    return [Route(f"/_sandbox/{path}", _route(action), methods=[method]) for method, path, action in table]


class _Admin:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def show_batches(self, _body: dict[str, Any]) -> list[dict[str, Any]]:
        now = self._sandbox.clock.now()
        return [_show_batch(batch, now) for batch in self._sandbox.batches.values()]

    def add_fault(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            fault = Fault.from_json(body)
        except ValueError as error:
            raise ApiError("invalid_request_error", str(error)) from error
        return _show(self._sandbox.faults.add(fault))

    def clear_faults(self, _body: dict[str, Any]) -> dict[str, Any]:
        self._sandbox.faults.clear()
        return {}

    def add_outage(self, body: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(body.keys() - {"seconds", "after_seconds", "cancels"})
        if unknown:
            raise ApiError("invalid_request_error", f"{unknown[0]}: Extra inputs are not permitted")
        span, after = _read_span(body, "seconds"), _read_span({"after_seconds": 0, **body}, "after_seconds")
        cancels = body.get("cancels", True)
        if not isinstance(cancels, bool):
            raise ApiError("invalid_request_error", "cancels: Input should be a valid boolean")
        return self._sandbox.add_outage(span, after=after, cancels=cancels).to_json()

    def show_clock(self) -> dict[str, Any]:
        return {"now": format_instant(self._sandbox.clock.now())}

    def advance(self, body: dict[str, Any]) -> dict[str, Any]:
        span = _read_span(body, "seconds")
        try:
            self._sandbox.clock.advance(span)
        except OverflowError as error:
            raise ApiError("invalid_request_error", f"seconds: {error}") from error
        return self.show_clock()

    def reset(self, _body: dict[str, Any]) -> dict[str, Any]:
        self._sandbox.reset()
        return {}


def _route(action: Action) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        raw = await request.body()
        body = parse_object(raw) if raw else {}
        return json_response(await run_in_threadpool(action, body))

    return answer


def _read_span(body: dict[str, Any], name: str) -> timedelta:
    seconds = body.get(name)
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or seconds < 0:
        raise ApiError("invalid_request_error", f"{name}: Input should be a number, not negative")
    try:
        return timedelta(seconds=seconds)
    except OverflowError as error:
        raise ApiError("invalid_request_error", f"{name}: {error}") from error


def _show_charge(charge: Charge) -> dict[str, Any]:
    return {
        "route": charge.route,
        "batch_id": charge.batch_id,
        "custom_id": charge.custom_id,
        "params_hash": charge.params_hash,
        "model": charge.model,
        "usage": dict(charge.usage),
    }


def _show_batch(batch: Batch, now: datetime) -> dict[str, Any]:
    """What the API would not tell of a batch: its items, and their outcomes once it has ended."""
    ended = batch.status(now) == "ended"
    outcomes = {item.custom_id: outcome for item, outcome in batch.outcomes()} if ended else {}
    return {
        "id": batch.id,
        "processing_status": batch.status(now),
        "created_at": format_instant(batch.created_at),
        "ended_at": format_instant(batch.ends_at) if ended else None,
        "cancel_initiated_at": format_instant(batch.cancel_initiated_at),
        "deleted_at": format_instant(batch.deleted_at),
        "items": [
            {
                "custom_id": item.custom_id,
                "params_hash": item.params_hash,
                "outcome": outcomes.get(item.custom_id),
            }
            for item in batch.items
        ],
    }


def _show(armed: ArmedFault) -> dict[str, Any]:
    return {**armed.fault.to_json(), "strikes": armed.strikes}
