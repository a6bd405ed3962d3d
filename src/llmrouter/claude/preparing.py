"""How the SDK turns the arguments of `messages.create` into a body, asked of the SDK itself.

Nothing is sent: a client whose middleware answers in place of the API hands back the finished request.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

import anthropic
import httpx2
from anthropic import APIRequest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic import CallNext

CALL_ARGUMENTS = frozenset({"extra_body", "extra_headers", "extra_query", "timeout"})
"""What `messages.create` takes beside the parameters of the API."""

_MODEL = "llmrouter-capture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where `messages.create` puts its arguments."""

    body_keys: tuple[str, ...]
    """The arguments that go into the body, in the body's order."""
    header_of: Mapping[str, str]
    """The arguments that become headers, and the header's name in lower case."""
    names: frozenset[str]
    """Every argument."""


@cache
def create_shape() -> Shape:
    """Learns the shape from the installed SDK: a later one may know more parameters."""
    parameters = (
        MessageCreateParamsNonStreaming.__required_keys__ | MessageCreateParamsNonStreaming.__optional_keys__
    )
    request = _capture({name: name for name in parameters})
    header_of = {value: header.lower() for header, value in request.headers.items() if isinstance(value, str)}
    return Shape(
        body_keys=tuple(cast("dict[str, Any]", request.json)),
        header_of={name: header for name, header in header_of.items() if name in parameters},
        names=parameters | CALL_ARGUMENTS,
    )


def prepare_body(arguments: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> dict[str, Any]:
    """The body as plain JSON data: models dumped, iterators drained, files read, `extra_body` merged last.

    Args:
        arguments: Body arguments of `messages.create`, the required ones among them.
        extra_body: As `messages.create` takes it.

    Raises:
        Exception: What the SDK raises, or what an iterator or a file in the request raises.
    """
    # Under a name of its own a retired model makes the SDK warn neither here nor twice.
    request = _capture({**arguments, "model": _MODEL}, extra_body)
    body = dict(cast("dict[str, Any]", request.json))
    if body.get("model") == _MODEL:
        body["model"] = arguments["model"]
    return body


def _capture(arguments: Mapping[str, Any], extra_body: Mapping[str, Any] | None = None) -> APIRequest:
    # With a timeout given the SDK does not refuse a large `max_tokens`.
    answer: Any = _capturing_client().messages.create(**arguments, extra_body=extra_body, timeout=1.0)
    return cast("APIRequest", answer)


@cache
def _capturing_client() -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="none",
        base_url="http://llmrouter.invalid",
        max_retries=0,
        middleware=[_answer_with_request],
        http_client=httpx2.Client(transport=httpx2.MockTransport(_refuse_to_send)),
        open_telemetry=False,
    )


def _answer_with_request(request: APIRequest, _call_next: CallNext) -> Any:
    return request


def _refuse_to_send(_request: httpx2.Request) -> NoReturn:
    raise AssertionError("a captured request was sent")
