"""The lines of a batch's results on their way out: with what faults do to them, and in pieces."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from llmrouter.sandbox.replies import encode_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmrouter.sandbox.faults import Fault

_CHUNK_BYTES = 65_536
_STRANGE_MESSAGE = {
    "id": "msg_stranger",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [{"type": "text", "text": "An answer to somebody else."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1, "service_tier": "batch"},
}


def join_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines in pieces of about 64 kB, each ending at a line's end."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= _CHUNK_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    yield b"".join(piece)


def change_lines(lines: Iterator[bytes], count: int, fault: Fault) -> Iterator[bytes]:
    """What a fault of kind `lines` makes of all `count` lines of a batch's results."""
    first: list[bytes] = []
    for index, line in enumerate(itertools.islice(lines, max(0, count - fault.missing))):
        changed = _postpone(line) if index < fault.unknown else line
        if index < fault.repeated:
            first.append(changed)
        yield changed
    yield from first
    for custom_id in fault.strangers:
        result = {"type": "succeeded", "message": _STRANGE_MESSAGE}
        yield encode_json({"custom_id": custom_id, "result": result}) + b"\n"
    for text in fault.added:
        yield text.encode() + b"\n"


def _postpone(line: bytes) -> bytes:
    return encode_json({**json.loads(line), "result": {"type": "postponed"}}) + b"\n"
