"""The parameters of one request: their canonical form, their tokens, and what the API refuses in them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CHARACTERS_PER_TOKEN = 4
SMALLEST_CACHED = 1_024
MAX_OUTPUT_TOKENS = 128_000
MAX_OUTPUT_TOKENS_BATCH = 300_000
LONG_OUTPUT_BETA = "output-300k-2026-03-24"
NO_SAMPLING_VERSION = "2026-10-21"
VERSIONS = frozenset({"2023-01-01", "2023-06-01", NO_SAMPLING_VERSION})

_NO_TEXT = ("type", "role", "cache_control")
_MEDIA_CHARACTERS = 1_500 * CHARACTERS_PER_TOKEN
_SAMPLING_FIELDS = frozenset({"temperature", "top_p", "top_k"})
_BETA_FIELDS = frozenset(
    {
        "billing_policy",
        "compaction",
        "context_management",
        "fallback_credit_token",
        "fallbacks",
        "mcp_servers",
        "thread",
    }
)
_FIELDS = _SAMPLING_FIELDS | {
    "cache_control",
    "container",
    "diagnostics",
    "inference_geo",
    "max_tokens",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "speed",
    "stop_sequences",
    "stream",
    "system",
    "thinking",
    "tool_choice",
    "tools",
    "user_profile_id",
}
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "stream": (bool, "a valid boolean"),
    "system": ((str, list), "a valid string or list"),
    "tools": (list, "a valid list"),
    "stop_sequences": (list, "a valid list"),
    "metadata": (dict, "a valid dictionary"),
    "thinking": (dict, "a valid dictionary"),
    "tool_choice": (dict, "a valid dictionary"),
    "output_config": (dict, "a valid dictionary"),
}
_ROLES = frozenset({"user", "assistant", "system"})

_encode_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a call's headers say about the parameters it carries."""

    version: str
    """The `anthropic-version` header."""
    betas: frozenset[str] = frozenset()
    """The names in the `anthropic-beta` header."""
    beta: bool = False
    """Whether fields of the beta API are known: a beta header, or `?beta=true`."""
    in_batch: bool = False
    """Whether the parameters are an item of a batch."""
    user_profile_id: str | None = None
    """The `anthropic-user-profile-id` header."""


def canonical_json(params: Mapping[str, Any]) -> bytes:
    """The parameters as ASCII JSON with sorted keys and no spaces: equal parameters, equal bytes."""
    return _encode_canonical(params).encode()


def params_hash(params: Mapping[str, Any]) -> str:
    """What the books know a request by, in hexadecimal: the SHA-256 of `canonical_json(params)`.

    `stream` does not count: a request is the same one, whichever way its answer is sent.
    """
    return digest_params(params).hex()


def digest_params(params: Mapping[str, Any]) -> bytes:
    """`params_hash` as 32 bytes."""
    kept = {field: value for field, value in params.items() if field != "stream"}
    return hashlib.sha256(canonical_json(kept)).digest()


def count_input_tokens(params: Mapping[str, Any]) -> int:
    """About one token for four characters of system prompt, messages and tools; at least 1."""
    characters = sum(_count_characters(params.get(field)) for field in ("system", "messages", "tools"))
    return max(1, math.ceil(characters / CHARACTERS_PER_TOKEN))


def count_written_tokens(params: Mapping[str, Any]) -> tuple[int, int]:
    """The input tokens up to the last cache breakpoint, written for five minutes and for an hour.

    None where there are fewer than `SMALLEST_CACHED`.
    """
    written = {"5m": 0, "1h": 0}
    characters = 0
    for block in _iter_blocks(params):
        characters += _count_characters(block)
        mark = block.get("cache_control") if isinstance(block, dict) else None
        if isinstance(mark, dict):
            written[_read_ttl(mark)] += characters
            characters = 0
    whole = params.get("cache_control")
    if isinstance(whole, dict):
        written[_read_ttl(whole)] += characters
    tokens = written["5m"] // CHARACTERS_PER_TOKEN, written["1h"] // CHARACTERS_PER_TOKEN
    return tokens if sum(tokens) >= SMALLEST_CACHED else (0, 0)


def _iter_blocks(params: Mapping[str, Any]) -> Iterator[object]:
    """The blocks of a prompt in the order in which it is read."""
    for field in ("tools", "system", "messages"):
        for block in _listed(params.get(field)):
            content = block.get("content") if field == "messages" and isinstance(block, dict) else None
            yield from (block,) if content is None else _listed(content)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def _read_ttl(mark: Mapping[str, Any]) -> str:
    return "1h" if mark.get("ttl") == "1h" else "5m"


def find_problem(params: Mapping[str, Any], terms: Terms) -> str | None:
    """The first thing the API would refuse in `params`, as it would say it, or None."""
    for check in _CHECKS:
        problem = check(params, terms)
        if problem is not None:
            return problem
    return None


def find_count_problem(params: Mapping[str, Any], terms: Terms) -> str | None:
    """The same for a call of `count_tokens`, which needs no `max_tokens`."""
    return _check_model(params, terms) or _check_messages(params, terms) or _check_types(params, terms)


def _count_characters(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_count_characters, value))
    if isinstance(value, dict):
        if value.get("type") in ("image", "document"):
            return _MEDIA_CHARACTERS
        return sum(_count_characters(inner) for key, inner in value.items() if key not in _NO_TEXT)
    return 0


def _check_batch_fields(params: Mapping[str, Any], terms: Terms) -> str | None:
    if not terms.in_batch:
        return None
    if params.get("stream"):
        return "stream: Streaming is not supported in a batch"
    for field in ("speed", "fallbacks", "thread"):
        if params.get(field) is not None:
            return f"{field}: Not supported in a batch"
    profile = params.get("user_profile_id")
    if profile is not None and profile != terms.user_profile_id:
        return "user_profile_id: Does not match the anthropic-user-profile-id header of the batch"
    return None


def _check_unknown_fields(params: Mapping[str, Any], terms: Terms) -> str | None:
    for field in params:
        if field not in _FIELDS and not (terms.beta and field in _BETA_FIELDS):
            return f"{field}: Extra inputs are not permitted"
    return None


def _check_model(params: Mapping[str, Any], _terms: Terms) -> str | None:
    if "model" not in params:
        return "model: Field required"
    model = params["model"]
    if not isinstance(model, str) or not model:
        return "model: String should have at least 1 character"
    return None


def _check_max_tokens(params: Mapping[str, Any], terms: Terms) -> str | None:
    if "max_tokens" not in params:
        return "max_tokens: Field required"
    max_tokens = params["max_tokens"]
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
        return "max_tokens: Input should be a valid integer"
    lowest = 1 if terms.in_batch else 0
    if max_tokens < lowest:
        return f"max_tokens: Input should be greater than or equal to {lowest}"
    long_output = terms.in_batch and LONG_OUTPUT_BETA in terms.betas
    highest = MAX_OUTPUT_TOKENS_BATCH if long_output else MAX_OUTPUT_TOKENS
    if max_tokens > highest:
        return f"max_tokens: {max_tokens} > {highest}, which is the maximum allowed number of output tokens"
    return None


def _check_messages(params: Mapping[str, Any], _terms: Terms) -> str | None:
    if "messages" not in params:
        return "messages: Field required"
    messages = params["messages"]
    if not isinstance(messages, list):
        return "messages: Input should be a valid list"
    if not messages:
        return "messages: at least one message is required"
    for index, message in enumerate(messages):
        problem = _find_message_problem(message)
        if problem is not None:
            return f"messages.{index}{problem}"
    return None


def _find_message_problem(message: object) -> str | None:
    if not isinstance(message, dict):
        return ": Input should be a valid dictionary"
    if message.get("role") not in _ROLES:
        return ".role: Input should be 'user', 'assistant' or 'system'"
    if "content" not in message:
        return ".content: Field required"
    content = message["content"]
    if isinstance(content, list):
        for index, block in enumerate(content):
            if not isinstance(block, dict) or not isinstance(block.get("type"), str):
                return f".content.{index}.type: Field required"
    elif not isinstance(content, str):
        return ".content: Input should be a valid string or list"
    return None if content else ": user messages must have non-empty content"


def _check_types(params: Mapping[str, Any], _terms: Terms) -> str | None:
    for field, (types, expected) in _TYPES.items():
        if field in params and not isinstance(params[field], types):
            return f"{field}: Input should be {expected}"
    return None


def _check_sampling(params: Mapping[str, Any], terms: Terms) -> str | None:
    for field in sorted(_SAMPLING_FIELDS & params.keys()):
        value = params[field]
        if terms.version >= NO_SAMPLING_VERSION:
            return f"{field}: Not supported by anthropic-version {terms.version}"
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
            return f"{field}: Input should be a valid number"
        if field != "top_k" and value > 1:
            return f"{field}: Input should be less than or equal to 1"
    return None


_CHECKS: tuple[Callable[[Mapping[str, Any], Terms], str | None], ...] = (
    _check_batch_fields,
    _check_unknown_fields,
    _check_model,
    _check_max_tokens,
    _check_messages,
    _check_types,
    _check_sampling,
)
