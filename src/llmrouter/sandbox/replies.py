"""Answers: a message for a request, always the same one for the same seed and parameters."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmrouter.sandbox.errors import error_envelope
from llmrouter.sandbox.params import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from llmrouter.sandbox.batches import Batch, Item

ServiceTier = Literal["standard", "batch"]

_SHORTEST_CHARACTERS = 60
_SPREAD_CHARACTERS = 400
_DELTA_CHARACTERS = 20
_PROSE = (
    "The harbour was quiet when the survey boat came in, and the crew had little to say about the weather. "
    "They had measured the channel twice, found the same depth both times, and written it down in the same "
    "blue ink. The keeper of the light took the figures, thanked them, and put the page with the others. "
    "By evening the wind had turned to the north, the gulls had gone inland, and the lamp was lit early. "
    "Nobody asked for the figures that week; when at last someone did, they were found in good order. "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a `reply` function may return instead of a plain text."""

    text: str
    """The answer's text; cut where `max_tokens` is reached."""
    stop_reason: str = "end_turn"
    """Such as `tool_use` or `refusal`; `max_tokens` where the text was cut."""
    blocks: Sequence[Mapping[str, Any]] = ()
    """More content blocks in the API's JSON, after the text; left out where that was cut."""


ReplyFunction = Callable[[Any], "str | Reply"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerer:
    """Makes the answers of one sandbox."""

    seed: int
    reply: ReplyFunction | None = None
    """Called with the parsed parameters of each request; None: made-up prose."""

    def usage(self, item: Item, tier: ServiceTier) -> dict[str, Any]:
        """The `usage` the request's answer has: about 4 characters a token, at most `max_tokens` out.

        What it marks for the prompt cache is written each time, and never read.
        """
        return _usage(item, self._cut_reply(item), tier)

    def message(self, item: Item, tier: ServiceTier, message_id: str) -> dict[str, Any]:
        """The answer to one request, as the API's `Message` in plain JSON."""
        reply = self._cut_reply(item)
        return {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": item.model,
            "content": [*([{"type": "text", "text": reply.text}] if reply.text else []), *reply.blocks],
            "stop_reason": reply.stop_reason,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            "usage": _usage(item, reply, tier),
        }

    def result_lines(self, batch: Batch) -> Iterator[bytes]:
        """One line of JSON for each item, made as it is asked for, in the order of `batch.order`."""
        for item, outcome in batch.outcomes():
            token = self._token(batch.id, item.custom_id)
            result: dict[str, Any] = {"type": outcome}
            if outcome == "succeeded":
                result["message"] = self.message(item, "batch", f"msg_{token}")
            elif outcome == "errored":
                error_type, message = item.error
                result["error"] = error_envelope(error_type, message, request_id=f"req_{token}")
            yield encode_json({"custom_id": item.custom_id, "result": result}) + b"\n"

    def message_id(self, number: int) -> str:
        """The id of the answer to live call `number`."""
        return f"msg_{self._token('live', str(number))}"

    def _cut_reply(self, item: Item) -> Reply:
        made = self._prose(item) if self.reply is None else self.reply(item.params)
        reply = Reply(text=made) if isinstance(made, str) else made
        longest = item.max_tokens * CHARACTERS_PER_TOKEN
        if len(reply.text) <= longest:
            return reply
        return Reply(text=reply.text[:longest], stop_reason="max_tokens")

    def _prose(self, item: Item) -> str:
        dice = hashlib.sha256(item.digest + str(self.seed).encode()).digest()
        length = _SHORTEST_CHARACTERS + int.from_bytes(dice[:4], "big") % _SPREAD_CHARACTERS
        return f"[{item.params_hash[:12]}] {(_PROSE * 2)[:length]}"

    def _token(self, *parts: str) -> str:
        return hashlib.sha256(":".join((str(self.seed), *parts)).encode()).hexdigest()[:24]


def stream_events(message: dict[str, Any]) -> Iterator[bytes]:
    """A message as the server-sent events of `stream: true`."""
    usage = message["usage"]
    started = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield _event({"type": "message_start", "message": started})
    for index, block in enumerate(message["content"]):
        empty, deltas = _taken_apart(block)
        yield _event({"type": "content_block_start", "index": index, "content_block": empty})
        yield _event({"type": "ping"})
        for delta in deltas:
            yield _event({"type": "content_block_delta", "index": index, "delta": delta})
        yield _event({"type": "content_block_stop", "index": index})
    delta = {name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details", "container")}
    counted = {
        name: usage[name]
        for name in (
            "input_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
            "output_tokens",
            "server_tool_use",
        )
    }
    yield _event({"type": "message_delta", "delta": delta, "usage": counted})
    yield _event({"type": "message_stop"})


def _taken_apart(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A content block as it begins, and the deltas that complete it; of most types it comes whole."""
    if block["type"] == "text":
        return {**block, "text": ""}, [
            {"type": "text_delta", "text": piece} for piece in _pieces(block["text"])
        ]
    if block["type"] == "tool_use":
        given = encode_json(block["input"]).decode()
        return {**block, "input": {}}, [
            {"type": "input_json_delta", "partial_json": piece} for piece in _pieces(given)
        ]
    return block, []


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + _DELTA_CHARACTERS] for start in range(0, len(text), _DELTA_CHARACTERS))


def encode_json(value: object) -> bytes:
    """JSON in UTF-8, not ASCII, as the API sends it: U+2028 and its like stand raw in the strings."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _event(data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (data["type"].encode(), encode_json(data))


def _usage(item: Item, reply: Reply, tier: ServiceTier) -> dict[str, Any]:
    characters = len(reply.text) + sum(len(encode_json(block)) for block in reply.blocks)
    output_tokens = min(item.max_tokens, max(1, math.ceil(characters / CHARACTERS_PER_TOKEN)))
    written = item.written_5m_tokens + item.written_1h_tokens
    return {
        "input_tokens": item.input_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": 0,
        "cache_creation": {
            "ephemeral_5m_input_tokens": item.written_5m_tokens,
            "ephemeral_1h_input_tokens": item.written_1h_tokens,
        },
        "output_tokens": output_tokens,
        "server_tool_use": None,
        "service_tier": tier,
        "inference_geo": "global",
    }
