"""Live calls whose answer comes in pieces, because it may be long."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import anthropic
from anthropic import NotGiven, Stream
from anthropic.lib.streaming import BetaMessageStream
from anthropic.types.beta import BetaRawMessageStreamEvent

from llmrouter.claude.live_failures import LIMITED_TYPES
from llmrouter.claude.rate_limits import read_limits
from llmrouter.domain.live import LiveCallError

if TYPE_CHECKING:
    import httpx2

STREAM_ABOVE_TOKENS = 21_333
"""The `max_tokens` above which the SDK sends no call without streaming: it expects it to take more than ten
minutes, at 128,000 tokens an hour."""

_SLOW_TOKENS = 8_192
_SLOW_MODELS = frozenset({"claude-4-opus-20250514", "claude-opus-4-0", "claude-opus-4-20250514"})
"""Models for which the SDK takes `_SLOW_TOKENS` for that."""


def asking_for_pieces(body: bytes) -> bytes:
    """The body of a call, with ``"stream": true`` added where the SDK would not send it without.

    Raises:
        ValueError: It is no JSON object.
    """
    params: Any = json.loads(body)
    if not isinstance(params, dict):
        raise ValueError("a request should be a JSON object")  # noqa: TRY004 - as what is no JSON
    longest = _SLOW_TOKENS if params.get("model") in _SLOW_MODELS else STREAM_ABOVE_TOKENS
    max_tokens = params.get("max_tokens")
    if not isinstance(max_tokens, int) or max_tokens <= longest:
        return body
    if "stream" in params:
        return json.dumps({**params, "stream": True}, ensure_ascii=False).encode()
    return b'{"stream":true,' + body.lstrip()[1:]


def join_pieces(response: httpx2.Response, client: anthropic.Anthropic) -> bytes:
    """The JSON of the message that comes in pieces, put together as the SDK does it, betas included.

    Raises:
        LiveCallError: It did not come whole. What began may be paid for, whatever ended it.
    """
    stream = BetaMessageStream(
        Stream[BetaRawMessageStreamEvent](
            cast_to=cast("type[BetaRawMessageStreamEvent]", BetaRawMessageStreamEvent),
            response=response,
            client=client,
        ),
        output_format=NotGiven(),
    )
    started = stopped = False
    try:
        for event in stream:
            started = started or event.type == "message_start"
            stopped = stopped or event.type == "message_stop"
        if stopped:
            return stream.get_final_message().to_json(indent=None, warnings=False).encode()
    except Exception as error:
        # The SDK's, the transport's, or what a piece of an unknown form led to.
        told = isinstance(error, anthropic.APIStatusError) and not started
        raise LiveCallError(
            f"the live call's answer broke off ({type(error).__name__})",
            limited=told and isinstance(error, anthropic.APIStatusError) and error.type in LIMITED_TYPES,
            unclear=not told,
            limits=read_limits(response.headers),
        ) from error
    raise LiveCallError(
        "the live call's answer ended before its end", unclear=True, limits=read_limits(response.headers)
    )
