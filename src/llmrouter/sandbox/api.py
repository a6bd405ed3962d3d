"""The Messages API without its transport: a request in, an answer out.

Everything here may block, on parsing a large body or on the lock, and is called from threads.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from llmrouter.sandbox.books import CallRecord, Charge
from llmrouter.sandbox.errors import ApiError
from llmrouter.sandbox.faults import Call, Endpoint, Fault
from llmrouter.sandbox.items import parse_object, read_batch_items, read_counted_item, read_live_item
from llmrouter.sandbox.lines import change_lines, join_lines
from llmrouter.sandbox.params import VERSIONS, Terms
from llmrouter.sandbox.replies import stream_events

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from llmrouter.sandbox.batches import Batch, Item
    from llmrouter.sandbox.books import Books
    from llmrouter.sandbox.faults import Faults
    from llmrouter.sandbox.limits import Limits, Rates
    from llmrouter.sandbox.replies import Answerer
    from llmrouter.sandbox.shelf import Shelf

DEFAULT_PAGE = 20
LARGEST_PAGE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One HTTP call, its body read."""

    endpoint: Endpoint
    batch_id: str
    """The batch in the path; empty where the path names none."""
    headers: Mapping[str, str]
    """Names in lower case."""
    query: Mapping[str, str]
    body: bytes | bytearray
    body_bytes: int
    """The size of the body that was sent; `body` is empty when that was above the limit."""
    base_url: str
    """Where the caller reaches the sandbox, without a slash at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A call that was let in and understood, and the faults that strike at it."""

    request: ApiRequest
    items: tuple[Item, ...] = ()
    """The requests it carries."""
    stream: bool = False
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to send back: `body` as JSON, or `chunks` of `media_type`."""

    body: Mapping[str, Any] | None = None
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those that the call changed after it was let in."""


class Api:
    """Answers calls. Safe to use from several threads.

    Args:
        shelf: the batches.
        faults: what goes wrong.
        books: where calls and live charges are booked.
        answerer: makes the messages.
        limits: sizes.
        live_rates: the rate limits of the messages endpoints.
        batch_rates: the rate limits of the batch endpoints.
        api_keys: the credentials accepted; None: any.
        keep_bodies: whether to keep every call's body.
    """

    def __init__(
        self,
        *,
        shelf: Shelf,
        faults: Faults,
        books: Books,
        answerer: Answerer,
        limits: Limits,
        live_rates: Rates,
        batch_rates: Rates,
        api_keys: Collection[str] | None,
        keep_bodies: bool,
    ) -> None:
        self.limits = limits
        self._shelf = shelf
        self._faults = faults
        self._books = books
        self._answerer = answerer
        self._live_rates = live_rates
        self._batch_rates = batch_rates
        self._api_keys = api_keys
        self._keep_bodies = keep_bodies
        self._request_numbers = itertools.count()
        self._live_numbers = itertools.count()

    def next_request_id(self) -> str:
        """A `request-id` never given out before."""
        number = next(self._request_numbers)
        return f"req_{hashlib.sha256(f'request:{number}'.encode()).hexdigest()[:24]}"

    def admit(self, request: ApiRequest) -> dict[str, str]:
        """Counts a call, and returns the rate limit headers of its answer.

        Raises:
            ApiError: 401 without a credential, 429 above the rate limit, 413 above the size.
        """
        self._books.add_call(request.endpoint)
        if self._keep_bodies:
            record = CallRecord(
                endpoint=request.endpoint, headers=dict(request.headers), body=bytes(request.body)
            )
            self._books.add_record(record)
        self._check_credential(request.headers)
        rates = self._live_rates if request.endpoint.startswith("messages.") else self._batch_rates
        rates.admit()
        headers = rates.headers()
        if request.body_bytes > self.size_limit(request.endpoint):
            raise ApiError("request_too_large", "Request exceeds the maximum size", headers=headers)
        return headers

    def size_limit(self, endpoint: Endpoint) -> int:
        """How many bytes a body may have."""
        return self.limits.batch_bytes if endpoint == "batches.create" else self.limits.message_bytes

    def prepare(self, request: ApiRequest) -> Prepared:
        """Reads what a call carries and settles which faults strike at it.

        Raises:
            ApiError: 400 or 413, for what the API refuses at once.
        """
        version = request.headers.get("anthropic-version")
        if version not in VERSIONS:
            problem = "header is required" if version is None else f'"{version}" is not a valid version'
            raise ApiError("invalid_request_error", f"anthropic-version: {problem}")
        items, stream = self._read_items(request, version)
        batch = self._shelf.peek(request.batch_id)
        call = Call(
            endpoint=request.endpoint,
            batch_id=request.batch_id or None,
            items=items if batch is None else batch.items,
        )
        return Prepared(request=request, items=items, stream=stream, faults=self._faults.strike(call))

    def perform(self, prepared: Prepared) -> Answer:
        """Does what the call asks for, and books it.

        Raises:
            ApiError: as the API would refuse it.
        """
        request = prepared.request
        match request.endpoint:
            case "messages.create":
                answer = self._create_message(prepared)
            case "messages.count_tokens":
                answer = Answer(body={"input_tokens": _accept(prepared.items[0]).input_tokens})
            case "batches.create":
                answer = self._create_batch(prepared)
            case "batches.retrieve":
                answer = self._show_batch(self._shelf.find(request.batch_id), request)
            case "batches.list":
                answer = self._list_batches(request)
            case "batches.cancel":
                answer = self._show_batch(self._shelf.cancel(request.batch_id), request)
            case "batches.delete":
                batch = self._shelf.delete(request.batch_id)
                answer = Answer(body={"id": batch.id, "type": "message_batch_deleted"})
            case "batches.results":
                chunks = join_lines(self._result_lines(prepared))
                answer = Answer(chunks=chunks, media_type="application/x-jsonl")
            case _:
                assert_never(request.endpoint)
        return answer

    def first_lines(self, prepared: Prepared, count: int) -> list[bytes]:
        """The first `count` lines of a batch's results, and the one after them if there is one.

        Raises:
            ApiError: 404, as for the results themselves.
        """
        return list(itertools.islice(self._result_lines(prepared), count + 1))

    def _result_lines(self, prepared: Prepared) -> Iterator[bytes]:
        batch = self._shelf.find_results(prepared.request.batch_id)
        lines = self._answerer.result_lines(batch)
        fault = next((fault for fault in prepared.faults if fault.kind == "lines"), None)
        return lines if fault is None else change_lines(lines, len(batch.items), fault)

    def _check_credential(self, headers: Mapping[str, str]) -> None:
        credential = _read_credential(headers)
        if not credential:
            raise ApiError("authentication_error", "x-api-key or authorization header is required")
        if self._api_keys is not None and credential not in self._api_keys:
            raise ApiError("authentication_error", "invalid credential")

    def _read_items(self, request: ApiRequest, version: str) -> tuple[tuple[Item, ...], bool]:
        if request.endpoint not in ("messages.create", "messages.count_tokens", "batches.create"):
            return (), False
        betas = frozenset(filter(None, map(str.strip, request.headers.get("anthropic-beta", "").split(","))))
        terms = Terms(
            version=version,
            betas=betas,
            beta=bool(betas) or request.query.get("beta") == "true",
            in_batch=request.endpoint == "batches.create",
            user_profile_id=request.headers.get("anthropic-user-profile-id"),
        )
        if request.endpoint == "batches.create":
            items = self._faults.mark_items(read_batch_items(request.body, terms, self.limits))
            return items, False
        payload = parse_object(request.body)
        read = read_live_item if request.endpoint == "messages.create" else read_counted_item
        return (read(payload, terms),), payload.get("stream") is True

    def _create_message(self, prepared: Prepared) -> Answer:
        item = _accept(prepared.items[0])
        message_id = self._answerer.message_id(next(self._live_numbers))
        message = self._answerer.message(item, "standard", message_id)
        self._live_rates.spend(item.input_tokens, message["usage"]["output_tokens"])
        self._books.add_charge(
            Charge(
                route="live",
                batch_id=None,
                custom_id=None,
                params_hash=item.params_hash,
                model=item.model,
                usage=message["usage"],
            )
        )
        headers = self._live_rates.headers()
        if prepared.stream:
            return Answer(chunks=stream_events(message), media_type="text/event-stream", headers=headers)
        return Answer(body=message, headers=headers)

    def _create_batch(self, prepared: Prepared) -> Answer:
        request = prepared.request
        batch = self._shelf.create(
            prepared.items,
            api_key=_read_credential(request.headers),
            headers={name: value for name, value in request.headers.items() if name.startswith("anthropic-")},
            body=bytes(request.body) if self._keep_bodies else None,
            hidden_calls=sum(fault.calls for fault in prepared.faults if fault.kind == "hide"),
            unlisted_calls=sum(fault.lists for fault in prepared.faults if fault.kind == "hide"),
            queued_limit=self.limits.queued_requests,
            stalls_after=min((fault.done for fault in prepared.faults if fault.kind == "stall"), default=1.0),
        )
        return self._show_batch(batch, request)

    def _show_batch(self, batch: Batch, request: ApiRequest) -> Answer:
        return Answer(body=self._shelf.describe(batch, request.base_url))

    def _list_batches(self, request: ApiRequest) -> Answer:
        page = self._shelf.page(
            after_id=request.query.get("after_id"),
            before_id=request.query.get("before_id"),
            limit=_read_limit(request.query),
        )
        return Answer(
            body={
                "data": [self._shelf.describe(batch, request.base_url) for batch in page.batches],
                "has_more": page.has_more,
                "first_id": page.batches[0].id if page.batches else None,
                "last_id": page.batches[-1].id if page.batches else None,
            }
        )


def _accept(item: Item) -> Item:
    if item.problem is not None:
        raise ApiError("invalid_request_error", item.problem)
    return item


def _read_credential(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return bearer or headers.get("x-api-key", "").strip()


def _read_limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(DEFAULT_PAGE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= LARGEST_PAGE:
        raise ApiError("invalid_request_error", f"limit: Input should be a number from 1 to {LARGEST_PAGE}")
    return int(text)
