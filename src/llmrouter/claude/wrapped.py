"""What a middleware sees of a call of `messages.create`, and what becomes of it in a batch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anthropic
from anthropic import Omit

from llmrouter.claude.answers import message_json, to_error
from llmrouter.claude.headers import CallHeaders, fold_headers
from llmrouter.claude.lanes import CLIENT_LEVEL, Client, Lanes, has_batches
from llmrouter.claude.preparing import create_shape
from llmrouter.claude.replies import reply, thread_refusal
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from anthropic import APIRequest, APIResponse, AsyncAPIResponse

    from llmrouter.domain.requests import Outcome

LIVE_MAX_TOKENS = 128_000
"""The most output tokens of any model in a live call; more is only in a batch, with `LONG_OUTPUT_BETA`."""

LONG_OUTPUT_BETA = "output-300k-"
"""How the beta begins that lets a batch's request have up to 300,000 (docs/api.md)."""

_PATHS = frozenset({"/v1/messages", "/v1/messages?beta=true"})
_BETA = "anthropic-beta"
_OF_THE_SDK = "x-stainless-"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenCall:
    """A call that may become a request in a batch."""

    request: Mapping[str, Any] = field(repr=False)
    """The keyword arguments of `messages.create` that give the same body."""
    headers: CallHeaders
    """Its headers, and those of its client that the router's client does not send by itself."""

    def content(self) -> bytes:
        """What makes calls equal: bytes that are the same for the same body and headers.

        Raises:
            InvalidRequestError: It cannot be sent as JSON.
        """
        headers = {name: value if isinstance(value, str) else None for name, value in self.headers.items()}
        try:
            return json.dumps([self.request, headers], sort_keys=True, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                "request", f"cannot be sent as JSON ({type(error).__name__})"
            ) from error


class WrappedCalls:
    """Calls on clients that share the credential and the base URL of a router's client."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def is_batchable(self, client: object) -> bool:
        """Whether calls on a client may go in a batch; not those of a platform without batches.

        Raises:
            SettingsError: They go elsewhere than the router's client.
        """
        if not has_batches(client):
            return False
        self._lanes.headers_beside(client)
        return True

    def is_message(self, request: APIRequest) -> bool:
        """Whether a call is one of `messages.create`, `parse` or `stream`, of the beta API too."""
        return (
            request.url in _PATHS and request.method.lower() == "post" and isinstance(request.json, Mapping)
        )

    def client_of(self, call_next: Callable[..., Any]) -> Client | None:
        """See `client_of`."""
        return client_of(call_next)

    def needs_batch(self, request: APIRequest, client: Client) -> bool:
        """Whether a call asks for more output than a live call can give."""
        max_tokens = request.json.get("max_tokens") if isinstance(request.json, Mapping) else None
        if not isinstance(max_tokens, int) or max_tokens <= LIVE_MAX_TOKENS:
            return False
        return any(beta.startswith(LONG_OUTPUT_BETA) for beta in _betas(request, client))

    def take(self, request: APIRequest, client: Client) -> TakenCall:
        """What a call would be as a request in a batch.

        Args:
            request: A call for which `is_message`, without headers of the router's own.
            client: What it is made with.

        Raises:
            SettingsError: The client points elsewhere than the router's.
            InvalidRequestError: A header that HTTP cannot carry.
            anthropic.BadRequestError: It belongs to a thread; see `llmrouter.claude.replies.thread_refusal`.
        """
        if isinstance(request.json, Mapping) and request.json.get("thread") is not None:
            raise thread_refusal(request, client)
        beside = self._lanes.headers_beside(client)
        own = {
            name: value
            for name, value in fold_headers(request.headers).items()
            # The SDK omits these in every call that does not name them, and sends the client's own.
            if not (name.startswith(_OF_THE_SDK) or (name in CLIENT_LEVEL and isinstance(value, Omit)))
        }
        body = dict(request.json) if isinstance(request.json, Mapping) else {}
        return TakenCall(
            request=_arguments(body, request.query_params, beta=bool(_betas(request, client))),
            headers={**beside, **own},
        )

    def answer(
        self,
        request: APIRequest,
        client: Client,
        outcome: Outcome | None,
        *,
        request_id: str,
        waited: timedelta,
    ) -> APIResponse[Any] | AsyncAPIResponse[Any]:
        """How a request ended, as the answer to the call: see `llmrouter.claude.replies.reply`.

        Args:
            request: The call.
            client: What it was made with.
            outcome: None: it was canceled.
            request_id: Of the request, llmrouter's.
            waited: How long the call took.

        Raises:
            anthropic.APIStatusError: As a live call; see `llmrouter.claude.answers.to_error`.
            ResultMissingError: There never was an answer.
        """
        if outcome is None:
            raise to_error(OutcomeKind.CANCELED, b"", request_id, 0)
        if outcome.kind is not OutcomeKind.SUCCEEDED:
            raise to_error(outcome.kind, outcome.raw, request_id, outcome.attempts)
        message = message_json(outcome.raw)
        return reply(request, client, message, request_id=request_id, waited=waited)


def client_of(call_next: Callable[..., Any]) -> Client | None:
    """The client that a middleware is called for; None where this version of the SDK does not tell.

    A client derived from a wrapped one has the same middleware, and may have other headers, another key
    or another base URL. The SDK tells a middleware nothing of it, so it is read out of the closure.
    """
    # Each link of the SDK's chain holds the next one; the last one holds the client.
    while True:
        held = _closure(call_next)
        client = held.get("self")
        if isinstance(client, anthropic.Anthropic | anthropic.AsyncAnthropic):
            return client
        if "call_next" not in held:
            return None
        call_next = held["call_next"]


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    if not inspect.isfunction(function) or function.__closure__ is None:
        return {}
    return {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True)
    }


def _betas(request: APIRequest, client: Client) -> list[str]:
    """The betas that a live call would name, by its own headers or its client's."""
    betas = fold_headers(client.default_headers, request.headers).get(_BETA)
    return [beta.strip() for beta in betas.split(",")] if isinstance(betas, str) else []


def _arguments(body: dict[str, Any], query: Mapping[str, Any], *, beta: bool) -> dict[str, Any]:
    """The arguments of `messages.create` whose body is this one.

    What the SDK's types of the plain API do not have goes into `extra_body`, unchecked; so does all that
    a beta may have changed.
    """
    if body.get("stream"):
        del body["stream"]
    named = {name: body[name] for name in create_shape().body_keys if name in body}
    extra = body if beta else {name: value for name, value in body.items() if name not in named}
    return {**named, **({"extra_body": extra} if extra else {}), **({"extra_query": query} if query else {})}
