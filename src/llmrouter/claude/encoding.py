"""Requests into the exact bytes that the SDK would send, checked as early as can be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anthropic import NotGiven, Omit

from llmrouter.claude.checks import check_batch_body, check_names, check_types, check_values
from llmrouter.claude.headers import CallHeaders, fold_headers
from llmrouter.claude.preparing import Shape, create_shape, prepare_body
from llmrouter.claude.prompt_prefix import find_prefixes, has_breakpoints, mark_prefix
from llmrouter.errors import InvalidRequestError

_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ABSENT = (Omit, NotGiven)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRequest:
    """A request as it will be sent."""

    body: bytes = field(repr=False)
    """The JSON body of `messages.create`, to the byte."""
    model: str
    headers: CallHeaders
    """The headers that this call adds to the client's own, names in lower case."""
    arguments: Mapping[str, Any] = field(repr=False)
    """The request again, with plain data for what was used up in the reading; empty for a batch."""
    prefixes: tuple[str, ...] = ()
    """Of its prompt, by their cache breakpoints, see `find_prefixes`; empty for a live call."""


def encode(
    request: Mapping[str, Any],
    *,
    batch: bool,
    extra_headers: CallHeaders | None = None,
    index: int | None = None,
    auto_cache: bool = False,
) -> EncodedRequest:
    """Checks a request and encodes it. Iterators in it are used up, files in it are read.

    Args:
        request: The keyword arguments of `messages.create`.
        batch: Whether it is going to be in a batch, which cannot carry everything.
        extra_headers: Further headers; they win over those of the request.
        index: Its place in a list of requests, for errors.
        auto_cache: Whether to add `cache_control` to a request for a batch that has none, see `mark_prefix`.

    Raises:
        InvalidRequestError: It cannot be accepted; says which field is wrong and never what was in it.
    """
    try:
        return _encode(request, batch, extra_headers, auto_cache)
    except InvalidRequestError as error:
        if index is None:
            raise
        raise InvalidRequestError(error.field, error.problem, index=index) from error.__cause__


def _encode(
    request: Mapping[str, Any], batch: bool, extra_headers: CallHeaders | None, auto_cache: bool
) -> EncodedRequest:
    arguments = _given(request)
    shape = create_shape()
    check_names(arguments, shape.names, batch=batch)
    body, data = _encode_body(arguments, shape)
    model = _model_of(data)
    if batch:
        marked = mark_prefix(data, model) if auto_cache else None
        if marked is not None:
            body, data = _encode_finished(marked), marked
        check_batch_body(data, len(body))
    return EncodedRequest(
        body=body,
        model=model,
        headers=_call_headers(arguments, shape, extra_headers),
        arguments={} if batch else _again(arguments, data),
        prefixes=find_prefixes(data) if batch and has_breakpoints(data) else (),
    )


def _again(arguments: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[str, Any]:
    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: data.get(name, value) for name, value in values.items()}

    extra = arguments.get("extra_body")
    return read(arguments) if extra is None else {**read(arguments), "extra_body": read(extra)}


def _given(request: object) -> dict[str, Any]:
    """The arguments without those that are as good as absent."""
    if not isinstance(request, Mapping):
        problem = f"should be a mapping of the arguments of messages.create, not {type(request).__name__}"
        raise InvalidRequestError("request", problem)
    for value in request.values():
        if isinstance(value, _ABSENT):
            return {name: value for name, value in request.items() if not isinstance(value, _ABSENT)}
    return request if type(request) is dict else dict(request)


def _encode_body(arguments: dict[str, Any], shape: Shape) -> tuple[bytes, dict[str, Any]]:
    """The body as bytes, and as the plain data in them."""
    named = {name: arguments[name] for name in shape.body_keys if name in arguments}
    extra = arguments.get("extra_body")
    if extra is not None and not isinstance(extra, Mapping):
        raise InvalidRequestError("extra_body", f"should be a mapping, not {type(extra).__name__}")
    data = {**named, **extra} if extra else named
    try:
        body = _encode_json(data).encode()
    except TypeError:
        data = _prepare(named, extra)
        body = _encode_finished(data)
    except (ValueError, RecursionError):
        raise _unencodable(data) from None
    # What is in extra_body is there because the SDK's types do not have it.
    check_types({name: data[name] for name in named if name not in extra} if extra else data)
    check_values(data)
    return body, data


def _prepare(named: Mapping[str, Any], extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Plain data out of arguments that the JSON encoder does not take."""
    try:
        return prepare_body(named, extra)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise InvalidRequestError("request", f"could not be read ({type(error).__name__})") from error


def _encode_finished(data: Mapping[str, Any]) -> bytes:
    try:
        return _encode_json(data).encode()
    except (TypeError, ValueError, RecursionError):
        raise _unencodable(data) from None


def _unencodable(data: Mapping[str, Any]) -> InvalidRequestError:
    for name, value in data.items():
        try:
            _encode_json({name: value}).encode()
        except UnicodeEncodeError:
            return InvalidRequestError(str(name), "has a lone surrogate, which is no valid text")
        except RecursionError:
            return InvalidRequestError(str(name), "is nested too deeply")
        except ValueError as error:
            circular = "Circular" in str(error)
            problem = "contains itself" if circular else "has NaN or Infinity, which JSON cannot carry"
            return InvalidRequestError(str(name), problem)
        except TypeError as error:
            return InvalidRequestError(str(name), f"cannot be sent as JSON: {error}")
    return InvalidRequestError("request", "cannot be sent as JSON")


def _model_of(data: Mapping[str, Any]) -> str:
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError("model", "should be the name of a model")
    # A member of an enum shows another text than the one that is sent.
    return model if type(model) is str else str.__str__(model)


def _call_headers(
    arguments: Mapping[str, Any], shape: Shape, extra_headers: CallHeaders | None
) -> dict[str, str | Omit]:
    named: dict[str, str] = {}
    for name, header in shape.header_of.items():
        value = arguments.get(name, "")
        if not isinstance(value, str):
            raise InvalidRequestError(name, f"should be a string, not {type(value).__name__}")
        if name in arguments:
            named[header] = value
    own = arguments.get("extra_headers")
    if not (named or own or extra_headers):
        return {}
    return fold_headers(named, own, extra_headers)
