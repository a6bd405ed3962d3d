"""The sandbox over HTTP: routes, answers, and faults of the connection."""

from __future__ import annotations

import asyncio
import email.utils
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llmrouter.sandbox.api import Answer, Api, ApiRequest, Prepared
from llmrouter.sandbox.errors import TYPE_BY_STATUS, ApiError, error_envelope
from llmrouter.sandbox.replies import encode_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from llmrouter.sandbox.clocks import Clock
    from llmrouter.sandbox.faults import Endpoint, Fault

ORGANIZATION_ID = "00000000-0000-4000-8000-000000000000"
TRANSPORT_STATE = "llmrouter_transport"
"""Where in the connection's ASGI state the server puts its `asyncio.Transport`."""

_PATHS: dict[Endpoint, tuple[str, str]] = {
    "messages.create": ("POST", "/v1/messages"),
    "messages.count_tokens": ("POST", "/v1/messages/count_tokens"),
    "batches.create": ("POST", "/v1/messages/batches"),
    "batches.list": ("GET", "/v1/messages/batches"),
    "batches.retrieve": ("GET", "/v1/messages/batches/{batch_id}"),
    "batches.delete": ("DELETE", "/v1/messages/batches/{batch_id}"),
    "batches.cancel": ("POST", "/v1/messages/batches/{batch_id}/cancel"),
    "batches.results": ("GET", "/v1/messages/batches/{batch_id}/results"),
}


class _Dated:
    """Dates every answer by the sandbox's clock, to the second, as HTTP has it."""

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = email.utils.format_datetime(self._clock.now(), usegmt=True).encode()
                message = {**message, "headers": [*message.get("headers", ()), (b"date", date)]}
            await send(message)

        await self._app(scope, receive, send_dated)


def build_app(api: Api, clock: Clock, more_routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The ASGI application of `api`, and of `more_routes` beside it; its answers are dated by `clock`."""
    routes = [
        Route(path, _route(api, endpoint), methods=[method]) for endpoint, (method, path) in _PATHS.items()
    ]
    return Starlette(
        routes=[*routes, *more_routes],
        middleware=[Middleware(_Dated, clock=clock)],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_exception,
            Exception: _answer_crash,
        },
    )


def _route(api: Api, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        request_id = api.next_request_id()
        headers = {"request-id": request_id, "anthropic-organization-id": ORGANIZATION_ID}
        try:
            read = await _read_request(request, api, endpoint)
            headers |= await run_in_threadpool(api.admit, read)
            prepared = await run_in_threadpool(api.prepare, read)
            return await _answer_with_faults(request, api, prepared, headers)
        except ClientDisconnect:
            return Response()
        except ApiError as error:
            return _error_response(error, headers)

    return answer


async def _read_request(request: Request, api: Api, endpoint: Endpoint) -> ApiRequest:
    """Reads the body to its end, for a client that is still sending reads no answer."""
    limit = api.size_limit(endpoint)
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        else:
            body.clear()
    return ApiRequest(
        endpoint=endpoint,
        batch_id=request.path_params.get("batch_id", ""),
        headers=dict(request.headers),
        query=dict(request.query_params),
        body=body,
        body_bytes=size,
        base_url=str(request.base_url).rstrip("/"),
    )


async def _answer_with_faults(
    request: Request, api: Api, prepared: Prepared, headers: Mapping[str, str]
) -> Response:
    faults = prepared.faults
    if await _delay(request, faults, accepted=False):
        return Response()
    early = await _end_by_fault(request, faults, accepted=False)
    if early is not None:
        return early
    cut = next((fault for fault in faults if fault.kind == "cut"), None)
    if cut is not None:
        return await _cut_results(request, api, prepared, cut)
    answer = await run_in_threadpool(api.perform, prepared)
    await _delay(request, faults, accepted=True)
    late = await _end_by_fault(request, faults, accepted=True)
    return late if late is not None else _response(answer, {**headers, **answer.headers})


async def _delay(request: Request, faults: Sequence[Fault], *, accepted: bool) -> bool:
    """Waits as long as the faults say; returns whether the client gave up meanwhile."""
    seconds = sum(fault.seconds for fault in faults if fault.kind == "delay" and fault.accepted == accepted)
    if seconds == 0:
        return False
    try:
        await asyncio.wait_for(_when_disconnected(request), timeout=seconds)
    except TimeoutError:
        return False
    return True


async def _end_by_fault(request: Request, faults: Sequence[Fault], *, accepted: bool) -> Response | None:
    for fault in faults:
        if fault.accepted != accepted:
            continue
        if fault.kind == "drop":
            return await _drop(request)
        if fault.kind == "status":
            error_type, message = fault.error
            raise ApiError(
                error_type, message, status=fault.status, headers=fault.headers, details=fault.details
            )
    return None


async def _drop(request: Request) -> Response:
    _transport(request).abort()
    return await _when_disconnected(request)


async def _cut_results(request: Request, api: Api, prepared: Prepared, fault: Fault) -> Response:
    lines = await run_in_threadpool(api.first_lines, prepared, fault.lines)
    whole = b"".join(lines[: fault.lines])
    rest = b"".join(lines[fault.lines :])
    transport = _transport(request)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-jsonl\r\nconnection: close\r\n"
    if fault.cut_at == "broken":
        # A chunk without the final empty one: the client sees that the body is not complete.
        transport.write(head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(whole) or 1, whole))
    else:
        half = rest[: len(rest) // 2] if fault.cut_at == "mid_line" else b""
        transport.write(head + b"\r\n" + whole + half)
    transport.close()
    return await _when_disconnected(request)


def _transport(request: Request) -> asyncio.Transport:
    transport = getattr(request.state, TRANSPORT_STATE, None)
    if not isinstance(transport, asyncio.Transport):
        raise TypeError("a fault of the connection needs the sandbox's own server: use Sandbox.serve()")
    return transport


async def _when_disconnected(request: Request) -> Response:
    """Waits for the server to notice the end of the connection; what is sent after it goes nowhere."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response()


def _response(answer: Answer, headers: Mapping[str, str]) -> Response:
    if answer.body is not None:
        return json_response(answer.body, headers=headers)
    return StreamingResponse(
        _iterate(answer), media_type=answer.media_type, headers={**headers, "cache-control": "no-cache"}
    )


async def _iterate(answer: Answer) -> AsyncIterator[bytes]:
    if answer.media_type == "text/event-stream":
        for event in answer.chunks:
            yield event
        return
    async for chunk in iterate_in_threadpool(answer.chunks):
        yield chunk


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`body` as JSON."""
    return Response(encode_json(body), status, dict(headers or {}), "application/json")


def _error_response(error: ApiError, headers: Mapping[str, str]) -> Response:
    body = error_envelope(
        error.error_type, error.message, request_id=headers.get("request-id"), details=error.details
    )
    return json_response(body, status=error.status, headers={**headers, **error.headers})


async def _answer_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error, {})


async def _answer_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    error_type = TYPE_BY_STATUS.get(error.status_code, "invalid_request_error")
    return _error_response(ApiError(error_type, error.detail, status=error.status_code), {})


async def _answer_crash(_request: Request, error: Exception) -> Response:
    return _error_response(ApiError("api_error", f"The sandbox failed: {error!r}"), {})
