"""From the JSON of a call to items, refusing what the API refuses at once."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from llmrouter.sandbox.batches import Item
from llmrouter.sandbox.errors import ApiError
from llmrouter.sandbox.params import (
    canonical_json,
    count_input_tokens,
    count_written_tokens,
    digest_params,
    find_count_problem,
    find_problem,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.sandbox.limits import Limits
    from llmrouter.sandbox.params import Terms

CUSTOM_ID_PATTERN = "^[a-zA-Z0-9_-]{1,64}$"

_CUSTOM_ID = re.compile("[a-zA-Z0-9_-]{1,64}")
_SPACE = r"[ \t\n\r]*"
_REQUESTS_START = re.compile(rf'{_SPACE}\{{{_SPACE}"requests"{_SPACE}:{_SPACE}\[(?!{_SPACE}\]){_SPACE}')
_BETWEEN_REQUESTS = re.compile(rf"{_SPACE}(?:(?P<comma>,){_SPACE}|\]{_SPACE}\}}{_SPACE}\Z)")


def _refuse(message: str) -> NoReturn:
    raise ApiError("invalid_request_error", message)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in a body; raises ApiError (400) for anything else."""
    try:
        parsed = _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        _refuse(f"The request body is not valid JSON: {error}")
    if not isinstance(parsed, dict):
        _refuse("The request body must be a JSON object")
    return parsed


def read_live_item(params: dict[str, Any], terms: Terms) -> Item:
    """The request of a live call; what the API refuses in it stands in `problem`."""
    return _build_item("", params, find_problem(params, terms))


def read_counted_item(params: dict[str, Any], terms: Terms) -> Item:
    """The request of a `count_tokens` call; what the API refuses in it stands in `problem`."""
    return _build_item("", params, find_count_problem(params, terms))


def read_batch_items(body: bytes | bytearray, terms: Terms, limits: Limits) -> tuple[Item, ...]:
    """The items of a batch to create.

    Raises:
        ApiError: 400 or 413, for what refuses the whole batch at once. Bad parameters do not.
    """
    items: list[Item] = []
    seen: set[str] = set()
    for index, request in enumerate(_iter_requests(body)):
        if index >= limits.batch_requests:
            raise ApiError(
                "request_too_large", f"requests: At most {limits.batch_requests} items are allowed"
            )
        custom_id, params = _read_request(request, index)
        if custom_id in seen:
            _refuse(f"requests.{index}.custom_id: Duplicate custom_id '{custom_id}'")
        seen.add(custom_id)
        items.append(_build_item(custom_id, params, find_problem(params, terms)))
    if not items:
        _refuse("requests: List should have at least 1 item")
    return tuple(items)


def _iter_requests(body: bytes | bytearray) -> Iterator[object]:
    """The requests in a body, parsed one by one.

    Parsing 100 MB in one call would hold the interpreter's lock for a second, and every live call with it.
    """
    try:
        text = body.decode()
        start = _REQUESTS_START.match(text)
        if start is None:
            yield from _find_requests(parse_object(body))
            return
        position = start.end()
        while True:
            request, position = _DECODER.raw_decode(text, position)
            yield request
            between = _BETWEEN_REQUESTS.match(text, position)
            if between is None:
                _refuse(f"The request body is not valid JSON, or more than requests: character {position}")
            if between["comma"] is None:
                return
            position = between.end()
    except (ValueError, RecursionError) as error:
        _refuse(f"The request body is not valid JSON: {error}")


def _find_requests(payload: dict[str, Any]) -> list[object]:
    for field in payload:
        if field != "requests":
            _refuse(f"{field}: Extra inputs are not permitted")
    if "requests" not in payload:
        _refuse("requests: Field required")
    requests = payload["requests"]
    if not isinstance(requests, list):
        _refuse("requests: Input should be a valid list")
    return requests


def _read_request(request: object, index: int) -> tuple[str, dict[str, Any]]:
    where = f"requests.{index}"
    if not isinstance(request, dict):
        _refuse(f"{where}: Input should be a valid dictionary")
    for field in ("custom_id", "params"):
        if field not in request:
            _refuse(f"{where}.{field}: Field required")
    if len(request) > 2:
        extra = next(field for field in request if field not in ("custom_id", "params"))
        _refuse(f"{where}.{extra}: Extra inputs are not permitted")
    custom_id, params = request["custom_id"], request["params"]
    if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
        _refuse(f"{where}.custom_id: String should match pattern '{CUSTOM_ID_PATTERN}'")
    if not isinstance(params, dict):
        _refuse(f"{where}.params: Input should be a valid dictionary")
    return custom_id, params


def _build_item(custom_id: str, params: dict[str, Any], problem: str | None) -> Item:
    model, max_tokens = params.get("model"), params.get("max_tokens")
    params_json = canonical_json(params)
    # Most say nothing of caching: those are not walked once more.
    written = count_written_tokens(params) if b'"cache_control":{' in params_json else (0, 0)
    return Item(
        custom_id=custom_id,
        params_json=params_json,
        digest=hashlib.sha256(params_json).digest() if "stream" not in params else digest_params(params),
        model=model if isinstance(model, str) else "",
        max_tokens=max_tokens if isinstance(max_tokens, int) else 0,
        input_tokens=count_input_tokens(params),
        written_5m_tokens=written[0],
        written_1h_tokens=written[1],
        problem=problem,
    )
