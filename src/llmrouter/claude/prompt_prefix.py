"""The beginnings of prompts that the API can cache: found, marked for it, and turned into warm-up calls.

A prompt is read as tools, then system, then messages, and is cached up to each of its breakpoints: up to
four blocks with `cache_control`, or the last block for one at the top level
(https://platform.claude.com/docs/en/build-with-claude/prompt-caching, November 2026).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from llmrouter.domain.prompt_cache import WarmUpCall, estimate_tokens, minimum_tokens, prefix_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ONE_HOUR: Mapping[str, str] = {"type": "ephemeral", "ttl": "1h"}
"""Batches take longer than the five minutes of the default."""

_SECTIONS = ("tools", "system", "messages")
_PLACEHOLDER = "."
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of a prompt, in the order in which it is read."""

    section: str
    """``tools``, ``system`` or ``messages``."""
    place: int
    """Of the tool, system block or message."""
    inner: int
    """Of the block within its message."""
    role: str
    """Of its message; empty outside of messages."""
    value: Any
    """A mapping, or the text that stands in for a single block."""
    marked: bool
    """Whether it ends a prefix."""


@dataclass(frozen=True, slots=True)
class _Prefix:
    name: str
    last: _Block
    size: int
    """Bytes of its blocks as JSON."""


def has_breakpoints(data: Mapping[str, Any]) -> bool:
    """Whether a request has any cache breakpoint. It looks at blocks, not at texts, however long they are.

    Args:
        data: The body as plain JSON data.
    """
    if data.get("cache_control"):
        return True
    lists, messages = [data.get("tools"), data.get("system")], data.get("messages")
    if isinstance(messages, list | tuple):
        lists += [message.get("content") for message in messages if isinstance(message, dict)]
    return any(isinstance(blocks, list | tuple) and any(map(_ends_prefix, blocks)) for blocks in lists)


def find_prefixes(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Names for the beginnings of a request's prompt, one for each breakpoint, the shortest first.

    A name is a hash of all that the API's cache tells prompts apart by: the model and `output_config`,
    the blocks up to the breakpoint, and for those in messages `thinking` and `tool_choice` as well. Where
    other breakpoints are, and their TTL, does not matter.

    Args:
        data: The body as plain JSON data.

    Returns:
        32 hexadecimal digits each; empty without breakpoints.
    """
    return tuple(found.name for found in _prefixes(data))


def mark_prefix(data: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    """Puts an hour's `cache_control` at the end of what requests can share: system prompt, else tools.

    What the caller has set is left alone: a request with any `cache_control`, even None, is not touched.

    Args:
        data: The body as plain JSON data. Not changed.
        model: Tells how long a prefix has to be.

    Returns:
        The new body; None where there is nothing to mark, or too little to be cached.
    """
    tools, system = _listed(data.get("tools")), data.get("system")
    size = sum(len(_encode_json(part).encode()) for part in (tools, system) if part)
    if estimate_tokens(size) < minimum_tokens(model):
        return None
    if _is_set(data) or any(_is_set(block.value) for block in _blocks(data)):
        return None
    if isinstance(system, str) and system.strip():
        return {**data, "system": [_marked(system)]}
    blocks = _listed(system)
    if blocks:
        return {**data, "system": [*blocks[:-1], _marked(blocks[-1])]} if _is_text(blocks[-1]) else None
    # A tool that is loaded later is no part of the prefix, and must not be marked.
    for place in reversed(range(len(tools))):
        if isinstance(tools[place], dict) and not tools[place].get("defer_loading"):
            return {**data, "tools": [*tools[:place], _marked(tools[place]), *tools[place + 1 :]]}
    return None


def warm_up_call(body: bytes, prefix: str) -> WarmUpCall | None:
    """A live call that puts a prefix into the cache, and asks for no answer (`max_tokens: 0`).

    The API refuses that with a stream, a forced tool, `thinking` that is "enabled", an output format,
    and in a batch ("Pre-warming the cache", in the page above). Of these, thinking and a forced tool can be
    left out where the prefix ends before the messages, since the cache of tools and system prompt does not
    depend on them. An output format is written into the prompt.

    Args:
        body: Of any request with this prefix.
        prefix: As in `Group.prefix`.

    Returns:
        None where no such call has the same prefix, and for a body without this prefix.
    """
    data = json.loads(body)
    wanted = prefix_hash(prefix)
    found = next((one for one in _prefixes(data) if one.name == wanted), None)
    if found is None or _field(data, "output_config", "format"):
        return None
    in_messages = found.last.section == "messages"
    thinking = _field(data, "thinking", "type") == "enabled"
    forced = _field(data, "tool_choice", "type") in ("any", "tool")
    if in_messages and (thinking or forced):
        return None
    left_out = {*_SECTIONS, "stream", "cache_control"}
    if thinking:
        left_out.add("thinking")
    if not in_messages:
        left_out.add("tool_choice")
    call = {name: value for name, value in data.items() if name not in left_out}
    call.update(_cut(data, found.last), max_tokens=0)
    return WarmUpCall(body=_encode_json(call).encode(), prefix_tokens=estimate_tokens(found.size))


def _field(data: Mapping[str, Any], name: str, field: str) -> Any:
    """A field of a parameter; None for what is no object, which the API would refuse."""
    value = data.get(name)
    return value.get(field) if isinstance(value, dict) else None


def _cut(data: Mapping[str, Any], last: _Block) -> dict[str, Any]:
    """Tools, system and messages up to a block, which alone is a breakpoint."""
    kept: dict[str, list[Any]] = {section: [] for section in _SECTIONS}
    for block in _blocks(data):
        at_end = (block.section, block.place, block.inner) == (last.section, last.place, last.inner)
        value = _marked(block.value) if at_end else _unmarked(block.value)
        if block.section != "messages":
            kept[block.section].append(_as_block(value))
        elif block.inner == 0:
            kept["messages"].append({**data["messages"][block.place], "content": [_as_block(value)]})
        else:
            kept["messages"][-1]["content"].append(_as_block(value))
        if at_end:
            break
    if last.role != "user":
        kept["messages"].append({"role": "user", "content": _PLACEHOLDER})
    return {section: blocks for section, blocks in kept.items() if blocks}


def _prefixes(data: Mapping[str, Any]) -> list[_Prefix]:
    blocks = list(_blocks(data))
    last = max((place for place, block in enumerate(blocks) if block.marked), default=-1)
    found, size, in_messages = [], 0, False
    digest = blake2b(_encode_json([data.get("model"), data.get("output_config")]).encode(), digest_size=16)
    for block in blocks[: last + 1]:
        if block.section == "messages" and not in_messages:
            in_messages = True
            digest.update(_encode_json([data.get("thinking"), data.get("tool_choice")]).encode())
        encoded = _encode_json([block.role, _unmarked(_as_block(block.value))]).encode()
        digest.update(encoded)
        size += len(encoded)
        if block.marked:
            found.append(_Prefix(digest.hexdigest(), block, size))
    return found


def _blocks(data: Mapping[str, Any]) -> Iterator[_Block]:
    """The blocks of a prompt, in the order in which the API reads them."""
    found = [
        *((("tools", place, 0, ""), tool) for place, tool in enumerate(_listed(data.get("tools")))),
        *((("system", place, 0, ""), block) for place, block in enumerate(_listed(data.get("system")))),
        *_message_blocks(data.get("messages")),
    ]
    automatic = len(found) - 1 if data.get("cache_control") else -1
    for number, (place, value) in enumerate(found):
        yield _Block(*place, value, number == automatic or _ends_prefix(value))


def _message_blocks(messages: Any) -> Iterator[tuple[tuple[str, int, int, str], Any]]:
    for place, message in enumerate(_listed(messages)):
        if isinstance(message, dict):
            for inner, block in enumerate(_listed(message.get("content"))):
                yield ("messages", place, inner, str(message.get("role"))), block


def _listed(value: Any) -> list[Any]:
    """The blocks of a list, or the one that a text stands for."""
    if isinstance(value, list | tuple):
        return list(value)
    return [value] if isinstance(value, str) and value else []


def _ends_prefix(block: Any) -> bool:
    if not isinstance(block, dict):
        return False
    return bool(block.get("cache_control")) or any(inner.get("cache_control") for inner in _inner(block))


def _is_set(block: Any) -> bool:
    """Whether the caller has said anything about caching here."""
    if not isinstance(block, dict):
        return False
    return "cache_control" in block or any("cache_control" in inner for inner in _inner(block))


def _inner(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The blocks within a block: what a tool gave back, say."""
    content = block.get("content")
    return (
        [inner for inner in content if isinstance(inner, dict)] if isinstance(content, list | tuple) else []
    )


def _unmarked(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    kept: dict[str, Any] = _without_mark(block)
    if _inner(block):
        kept["content"] = [_without_mark(inner) for inner in block["content"]]
    return kept


def _without_mark(inner: Any) -> Any:
    if not isinstance(inner, dict):
        return inner
    return {name: value for name, value in inner.items() if name != "cache_control"}


def _marked(block: Any) -> dict[str, Any]:
    return {**_as_block(_unmarked(block)), "cache_control": dict(ONE_HOUR)}


def _as_block(value: Any) -> Any:
    return {"type": "text", "text": value} if isinstance(value, str) else value


def _is_text(block: Any) -> bool:
    """Whether it is a text that can be marked: the API refuses a breakpoint on an empty one."""
    return isinstance(block, dict) and isinstance(block.get("text"), str) and bool(block["text"].strip())
