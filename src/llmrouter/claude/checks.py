"""What is wrong with a request, found before it is stored. Errors never repeat what is in it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import pydantic
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

from llmrouter.domain.batches import API_MAX_BYTES, wire_bytes
from llmrouter.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    from pydantic_core import ErrorDetails

_REQUIRED = ("model", "max_tokens", "messages")
_LISTS = ("messages", "stop_sequences", "tools")
_BETA = "a parameter of the beta API"
_SAMPLING = (
    "the current version of the API refuses it; for an older one give it in extra_body, "
    "with extra_headers={'anthropic-version': '2023-06-01'}"
)
_UNKNOWN = {
    "betas": "belongs in a header: give extra_headers={'anthropic-beta': ...}",
    "fallbacks": f"{_BETA}: give it in extra_body",
    "temperature": _SAMPLING,
    "thread": f"{_BETA}: give it in extra_body",
    "top_k": _SAMPLING,
    "top_p": _SAMPLING,
}
_LIVE = "leave it out, or submit with latency='real-time'"
_NOT_IN_A_BATCH = {
    "betas": _UNKNOWN["betas"],
    "fallbacks": f"a batch has no fallbacks: {_LIVE}",
    "speed": f"a batch has no speed: {_LIVE}",
    "thread": f"a thread is forgotten before a batch ends: {_LIVE}",
}
_NOT_WITH_A_BATCH = {
    "extra_query": f"a batch cannot carry query parameters: {_LIVE}",
    "timeout": "nobody waits for a batch to answer; say with deadline= by when the answer must be there",
}
_NO_STREAM = "the future gives the finished message: leave it out"


def check_names(arguments: Mapping[str, Any], names: Set[str], *, batch: bool) -> None:
    """Refuses arguments that `messages.create` does not have, that a batch does not, or that lack.

    Raises:
        InvalidRequestError: Names the argument, and those that look like it.
    """
    if not arguments.keys() <= names:
        name = next(name for name in arguments if name not in names)
        hints = {**_UNKNOWN, **_NOT_IN_A_BATCH} if batch else _UNKNOWN
        raise InvalidRequestError(str(name), hints.get(name) or _unknown(str(name), names))
    for name in _REQUIRED:
        if name not in arguments:
            raise InvalidRequestError(name, "is missing")
    if arguments.get("stream"):
        raise InvalidRequestError("stream", _NO_STREAM)
    if batch:
        for name, problem in _NOT_WITH_A_BATCH.items():
            if arguments.get(name):
                raise InvalidRequestError(name, problem)


def check_types(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of a wrong type, as far as the SDK's types tell.

    A string that is none of those they list passes: the API may be newer than the installed SDK.

    Args:
        arguments: Plain JSON data, as it will be sent.

    Raises:
        InvalidRequestError: Names the first wrong argument.
    """
    problem = _find_no_list(arguments)
    if problem is None:
        try:
            _adapter().validate_python(arguments)
        except pydantic.ValidationError as error:
            problem = next(_problems(error), None)
    if problem is not None:
        raise InvalidRequestError(*problem)


def check_values(data: Mapping[str, Any]) -> None:
    """Refuses a `max_tokens` below zero and a conversation without messages.

    Raises:
        InvalidRequestError: Names the field.
    """
    max_tokens = data.get("max_tokens")
    if isinstance(max_tokens, int) and max_tokens < 0:
        raise InvalidRequestError("max_tokens", "should be 0 or more")
    messages = data.get("messages")
    if isinstance(messages, list | tuple):
        if not messages:
            raise InvalidRequestError("messages", "should not be empty")
        for place, message in enumerate(messages):
            if not isinstance(message, dict):
                problem = f"should be an object with role and content, not {type(message).__name__}"
                raise InvalidRequestError(f"messages[{place}]", problem)


def check_batch_body(data: Mapping[str, Any], body_bytes: int) -> None:
    """Refuses what cannot be in a batch (docs/api.md, "not in a batch").

    Args:
        data: The body as plain data, `extra_body` merged.
        body_bytes: What it weighs.

    Raises:
        InvalidRequestError: Names the field, and says what to do instead.
    """
    if data.get("stream"):
        raise InvalidRequestError("stream", _NO_STREAM)
    for name, problem in _NOT_IN_A_BATCH.items():
        if data.get(name) is not None:
            raise InvalidRequestError(name, problem)
    if data.get("max_tokens") == 0:
        raise InvalidRequestError(
            "max_tokens", "a batch cannot warm the prompt cache with 0: ask for 1 or more, or submit live"
        )
    if wire_bytes(1, body_bytes) > API_MAX_BYTES:
        problem = f"{body_bytes:,} bytes are more than a batch can carry ({API_MAX_BYTES:,})"
        raise InvalidRequestError("request", problem)


@cache
def _adapter() -> pydantic.TypeAdapter[MessageCreateParamsNonStreaming]:
    # Made late: it takes 50 ms. Strict, or "100" would pass for a number.
    @pydantic.with_config(pydantic.ConfigDict(strict=True))
    class StrictParams(MessageCreateParamsNonStreaming):
        pass

    return pydantic.TypeAdapter(StrictParams)


def _problems(error: pydantic.ValidationError) -> Iterator[tuple[str, str]]:
    """Field and problem of what is wrong for sure.

    A union gives errors for each of its members. One whose only fault may be a new spelling makes
    the whole field pass.
    """
    members: dict[str, dict[object, list[ErrorDetails]]] = {}
    for details in error.errors(include_url=False, include_context=False):
        field, *path = details["loc"]
        if path or details["type"] != "missing":
            members.setdefault(str(field), {}).setdefault(path[0] if path else None, []).append(details)
    for field, errors in members.items():
        sure = [found for found in errors.values() if not any(map(_may_be_new, found))]
        if sure and (len(sure) == len(errors) or _matches_a_member(sure)):
            yield field, _describe(max((found[0] for found in sure), key=_telling))


def _may_be_new(details: ErrorDetails) -> bool:
    return details["type"] == "literal_error" and isinstance(details["input"], str)


def _matches_a_member(sure: list[list[ErrorDetails]]) -> bool:
    """Whether the value is meant for a member of the union, and is wrong in it."""
    return any(len(details["loc"]) > 2 for found in sure for details in found)


def _telling(details: ErrorDetails) -> tuple[bool, int]:
    """How well it tells what is wrong: the deepest does, and a list of all models does not."""
    return details["type"] != "literal_error", len(details["loc"])


def _describe(details: ErrorDetails) -> str:
    # Members of a union stand in the path as names of types: nothing a caller has written.
    path = [str(part) for part in details["loc"][1:] if isinstance(part, int) or _is_key(part)]
    where = f"{'.'.join(path)}: " if path else ""
    message = details["msg"].removeprefix("Input ")
    given = "" if details["type"] == "missing" else f", not {type(details['input']).__name__}"
    return f"{where}{message[:1].lower()}{message[1:]}{given}"


def _is_key(part: str) -> bool:
    return part.isidentifier() and part.islower() and part != "str"


def _find_no_list(arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """What the SDK's types take for an iterable, and the API does not."""
    for name in _LISTS:
        if name in arguments and not isinstance(arguments[name], list | tuple):
            return name, f"should be a list, not {type(arguments[name]).__name__}"
    if isinstance(arguments.get("system"), Mapping):
        return "system", "should be a string or a list of text blocks, not a mapping"
    return None


def _unknown(name: str, names: Set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=3)
    if close:
        return f"messages.create has no such argument; did you mean {' or '.join(close)}?"
    return "messages.create has no such argument; what the SDK does not know goes into extra_body"
